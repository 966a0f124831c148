package allocation

import (
	"container/heap"
	"time"
)

// Key is what a waiting runner is judged by: fewest running jobs first, then whoever waits longest, then the name.
type Key struct {
	Runner  string
	Running int
	Since   time.Time
}

// Before says whether k is served before other. It is a strict total order over runners with different names.
func (k Key) Before(other Key) bool {
	if k.Running != other.Running {
		return k.Running < other.Running
	}
	if !k.Since.Equal(other.Since) {
		return k.Since.Before(other.Since)
	}
	return k.Runner < other.Runner
}

// Queue holds the runners that wait for a slot of one kind. The zero value is empty. A Queue is not safe for concurrent
// use. Every operation costs O(log n) for n waiting runners.
type Queue struct {
	byRunner map[string]*waiting
	order    byKey
}

// Set adds a runner or changes its key.
func (q *Queue) Set(k Key) {
	if w, ok := q.byRunner[k.Runner]; ok {
		w.key = k
		heap.Fix(&q.order, w.index)
		return
	}
	if q.byRunner == nil {
		q.byRunner = make(map[string]*waiting)
	}
	w := &waiting{key: k}
	q.byRunner[k.Runner] = w
	heap.Push(&q.order, w)
}

// Remove takes a runner out of the queue; one that is not in it is no error.
func (q *Queue) Remove(runner string) {
	if w, ok := q.byRunner[runner]; ok {
		heap.Remove(&q.order, w.index)
		delete(q.byRunner, runner)
	}
}

// Next returns the runner to be served next, without removing it.
func (q *Queue) Next() (Key, bool) {
	if len(q.order) == 0 {
		return Key{}, false
	}
	return q.order[0].key, true
}

// Len returns how many runners wait.
func (q *Queue) Len() int { return len(q.order) }

type waiting struct {
	key   Key
	index int
}

// byKey implements heap.Interface.
type byKey []*waiting

func (o byKey) Len() int           { return len(o) }
func (o byKey) Less(i, j int) bool { return o[i].key.Before(o[j].key) }

func (o byKey) Swap(i, j int) {
	o[i], o[j] = o[j], o[i]
	o[i].index, o[j].index = i, j
}

func (o *byKey) Push(x any) {
	w := x.(*waiting)
	w.index = len(*o)
	*o = append(*o, w)
}

func (o *byKey) Pop() any {
	last := len(*o) - 1
	w := (*o)[last]
	(*o)[last] = nil
	*o = (*o)[:last]
	return w
}
