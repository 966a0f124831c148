package queue

import (
	"cmp"
	"container/heap"
	"iter"
	"slices"
)

func laneOf(lanes map[int64]*lane, key int64) *lane {
	l := lanes[key]
	if l == nil {
		l = &lane{at: -1}
		lanes[key] = l
	}
	return l
}

// lane is a list of jobs sorted by id. Removed jobs stay in it until they reach its head or are the majority.
type lane struct {
	items []*item
	head  int
	live  int

	// In the fair order:
	project int64
	running int
	of      *fairHeap
	at      int // position in of, or -1
}

func (l *lane) size() int {
	if l == nil {
		return 0
	}
	return l.live
}

func (l *lane) push(it *item) {
	l.live++
	if n := len(l.items); n == l.head || l.items[n-1].Job < it.Job {
		l.items = append(l.items, it)
		return
	}
	i, _ := slices.BinarySearchFunc(l.items[l.head:], it.Job, func(x *item, id int64) int { return cmp.Compare(x.Job, id) })
	l.items = slices.Insert(l.items, l.head+i, it)
}

// drop accounts for one item that was marked as removed.
func (l *lane) drop() {
	l.live--
	for l.head < len(l.items) && l.items[l.head].removed {
		l.items[l.head] = nil
		l.head++
	}
	if len(l.items) > 32 && l.live < len(l.items)/2 {
		kept := make([]*item, 0, l.live+8)
		for it := range l.all() {
			kept = append(kept, it)
		}
		l.items, l.head = kept, 0
	}
}

func (l *lane) first() *item { return l.items[l.head] }

func (l *lane) all() iter.Seq[*item] {
	return func(yield func(*item) bool) {
		if l == nil {
			return
		}
		for _, it := range l.items[l.head:] {
			if !it.removed && !yield(it) {
				return
			}
		}
	}
}

// fairHeap orders the non-empty lanes of a class by (running, first job).
type fairHeap struct{ lanes []*lane }

func (h *fairHeap) fix(l *lane) {
	l.of = h
	switch {
	case l.live == 0 && l.at >= 0:
		heap.Remove(h, l.at)
	case l.live == 0:
	case l.at < 0:
		heap.Push(h, l)
	default:
		heap.Fix(h, l.at)
	}
}

func (h *fairHeap) Len() int { return len(h.lanes) }

func (h *fairHeap) Less(a, b int) bool {
	x, y := h.lanes[a], h.lanes[b]
	return cmp.Or(cmp.Compare(x.running, y.running), cmp.Compare(x.firstID(), y.firstID())) < 0
}

// firstID is the id that orders the lane; an emptied lane is about to leave the heap and its place is of no account.
func (l *lane) firstID() int64 {
	if l.head == len(l.items) {
		return 0
	}
	return l.first().Job
}

func (h *fairHeap) Swap(a, b int) {
	h.lanes[a], h.lanes[b] = h.lanes[b], h.lanes[a]
	h.lanes[a].at, h.lanes[b].at = a, b
}

func (h *fairHeap) Push(x any) {
	l := x.(*lane)
	l.at = len(h.lanes)
	h.lanes = append(h.lanes, l)
}

func (h *fairHeap) Pop() any {
	l := h.lanes[len(h.lanes)-1]
	h.lanes = h.lanes[:len(h.lanes)-1]
	l.at = -1
	return l
}
