package queue

import (
	"cmp"
	"container/heap"
)

// merge walks several lanes at once in the order (running, id).
type merge struct{ cursors []cursor }

// cursor is what is left of a lane; its first item is not a removed one.
type cursor struct {
	items   []*item
	running int
}

// first returns the first n jobs.
func (m *merge) first(n int) []int64 {
	var jobs []int64
	heap.Init(m)
	for len(m.cursors) > 0 && len(jobs) < n {
		c := &m.cursors[0]
		job := c.items[0].Job
		// A job below two namespaces of a group runner is in two lanes.
		if len(jobs) == 0 || jobs[len(jobs)-1] != job {
			jobs = append(jobs, job)
		}
		c.items = c.items[1:]
		for len(c.items) > 0 && c.items[0].removed {
			c.items = c.items[1:]
		}
		if len(c.items) == 0 {
			heap.Pop(m)
		} else {
			heap.Fix(m, 0)
		}
	}
	return jobs
}

func compareCursors(a, b cursor) int {
	return cmp.Or(cmp.Compare(a.running, b.running), cmp.Compare(a.items[0].Job, b.items[0].Job))
}

func (m *merge) Len() int           { return len(m.cursors) }
func (m *merge) Less(a, b int) bool { return compareCursors(m.cursors[a], m.cursors[b]) < 0 }
func (m *merge) Swap(a, b int)      { m.cursors[a], m.cursors[b] = m.cursors[b], m.cursors[a] }
func (m *merge) Push(x any)         { m.cursors = append(m.cursors, x.(cursor)) }
func (m *merge) Pop() any {
	last := m.cursors[len(m.cursors)-1]
	m.cursors = m.cursors[:len(m.cursors)-1]
	return last
}
