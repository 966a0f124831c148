package coordinator

import (
	"container/heap"
	"time"
)

// timers are the things to do at a time: one goroutine waits for the earliest. An entry is never cancelled; what it calls
// checks whether there is still something to do.
type timers struct {
	entries timerHeap
	changed chan struct{} // a new earliest entry
}

type timer struct {
	at   time.Time
	call func(now time.Time) // with Coordinator.mu held
}

// at calls f at a time, with mu held. The caller holds mu.
func (c *Coordinator) at(t time.Time, f func(now time.Time)) {
	heap.Push(&c.timers.entries, timer{t, f})
	if c.timers.entries[0].at.Equal(t) {
		select {
		case c.timers.changed <- struct{}{}:
		default:
		}
	}
}

func (c *Coordinator) runTimers() {
	wait := time.NewTimer(time.Hour)
	defer wait.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.timers.changed:
		case <-wait.C:
		}
		wait.Reset(c.fireTimers())
	}
}

// fireTimers calls what is due and returns how long it is until the next one.
func (c *Coordinator) fireTimers() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.timers.entries) > 0 {
		now := time.Now()
		if left := c.timers.entries[0].at.Sub(now); left > 0 {
			return left
		}
		heap.Pop(&c.timers.entries).(timer).call(now)
	}
	return time.Hour
}

type timerHeap []timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(a, b int) bool { return h[a].at.Before(h[b].at) }
func (h timerHeap) Swap(a, b int)      { h[a], h[b] = h[b], h[a] }
func (h *timerHeap) Push(x any)        { *h = append(*h, x.(timer)) }
func (h *timerHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = timer{}
	*h = old[:len(old)-1]
	return last
}
