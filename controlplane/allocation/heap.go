package allocation

import "strings"

// key is what siblings are compared by.
type key struct {
	class  int8  // 0: below its guaranteed minimum, 1: normal, 2: over its soft quota
	share  int64 // leases and the one to come
	weight int64 // thousandths
	tag    int64 // slot-µs per weight
	since  int64 // when the one that would be served began to wait, µs
	job    int64 // its id; 0 for a claim
}

// A contest is one of the two orders in which the children of a node stand.
type contest uint8

const (
	byShare contest = iota // fewest running per weight first
	byTag                  // least slot-time per weight first
)

// before is a strict total order over siblings.
func (st *standing) before(other *standing, c contest) bool {
	a, b := &st.key, &other.key
	if a.class != b.class {
		return a.class < b.class
	}
	if c == byShare {
		if l, r := a.share*b.weight, b.share*a.weight; l != r {
			return l < r
		}
	}
	if a.tag != b.tag {
		return a.tag < b.tag
	}
	if a.since != b.since {
		return a.since < b.since
	}
	if a.job != b.job {
		return a.job < b.job
	}
	if o := strings.Compare(st.node.name, other.node.name); o != 0 {
		return o < 0
	}
	return st.node.kind < other.node.kind
}

// ranking is a heap of standings that know their places in it.
type ranking struct{ items []*standing }

func (h *ranking) set(i int, st *standing, c contest) {
	h.items[i] = st
	st.pos[c] = int32(i)
}

func (h *ranking) insert(st *standing, c contest) {
	h.items = append(h.items, st)
	st.pos[c] = int32(len(h.items) - 1)
	h.up(len(h.items)-1, c)
}

func (h *ranking) remove(st *standing, c contest) {
	i, last := int(st.pos[c]), len(h.items)-1
	moved := h.items[last]
	h.items[last] = nil
	h.items = h.items[:last]
	st.pos[c] = absent
	if i != last {
		h.set(i, moved, c)
		h.fix(moved, c)
	}
}

// fix puts a standing whose key has changed where it belongs.
func (h *ranking) fix(st *standing, c contest) {
	if i := int(st.pos[c]); !h.up(i, c) {
		h.down(i, c)
	}
}

func (h *ranking) up(i int, c contest) bool {
	st, start := h.items[i], i
	for i > 0 {
		parent := (i - 1) / 2
		if !st.before(h.items[parent], c) {
			break
		}
		h.set(i, h.items[parent], c)
		i = parent
	}
	h.set(i, st, c)
	return i != start
}

func (h *ranking) down(i int, c contest) {
	st, n := h.items[i], len(h.items)
	for {
		child := 2*i + 1
		if child >= n {
			break
		}
		if child+1 < n && h.items[child+1].before(h.items[child], c) {
			child++
		}
		if !h.items[child].before(st, c) {
			break
		}
		h.set(i, h.items[child], c)
		i = child
	}
	h.set(i, st, c)
}

// jobHeap is the waiting jobs of a project in one band.
type jobHeap []*job

// before is the order inside a project.
func (j *job) before(other *job) bool {
	if j.order != other.order {
		return j.order < other.order
	}
	return j.key.ID < other.key.ID
}

func (h *jobHeap) insert(j *job) {
	*h = append(*h, j)
	h.set(len(*h)-1, j)
	h.up(len(*h) - 1)
}

func (h *jobHeap) remove(j *job) {
	i, last := int(j.pos), len(*h)-1
	moved := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	j.pos = absent
	if i != last {
		h.set(i, moved)
		if !h.up(i) {
			h.down(i)
		}
	}
}

func (h jobHeap) set(i int, j *job) {
	h[i] = j
	j.pos = int32(i)
}

func (h jobHeap) up(i int) bool {
	j, start := h[i], i
	for i > 0 {
		parent := (i - 1) / 2
		if !j.before(h[parent]) {
			break
		}
		h.set(i, h[parent])
		i = parent
	}
	h.set(i, j)
	return i != start
}

func (h jobHeap) down(i int) {
	j := h[i]
	for {
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if child+1 < len(h) && h[child+1].before(h[child]) {
			child++
		}
		if !h[child].before(j) {
			break
		}
		h.set(i, h[child])
		i = child
	}
	h.set(i, j)
}
