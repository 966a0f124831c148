package coordinator

import (
	"context"
	"sync"
)

// EventKind says what an [Event] is about.
type EventKind uint8

// The kinds of events.
const (
	JobChanged      EventKind = iota + 1 // a job is new or has another status
	PipelineChanged                      // a pipeline is new or has another status
	TraceChanged                         // a trace has more bytes
)

// Event says that something has changed; what it is now, a snapshot tells.
type Event struct {
	Kind       EventKind
	ProjectID  int64
	PipelineID int64
	JobID      int64 // of JobChanged and TraceChanged
}

// Subscribe returns a channel of events from now on, closed when ctx ends or the coordinator is closed. A slow reader
// holds up nobody: while an event waits, further ones of the same kind about the same thing are dropped, so at most one
// per thing waits beside the one that is being handed over.
func (c *Coordinator) Subscribe(ctx context.Context) <-chan Event {
	s := &subscriber{waiting: map[Event]struct{}{}, wake: make(chan struct{}, 1)}
	out := make(chan Event)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		close(out)
		return out
	}
	c.subscribers[s] = struct{}{}
	c.work.Go(func() {
		defer close(out)
		defer func() {
			c.mu.Lock()
			delete(c.subscribers, s)
			c.mu.Unlock()
		}()
		for {
			e, ok := s.next()
			send, wake := out, s.wake
			if ok {
				wake = nil
			} else {
				send = nil
			}
			select {
			case send <- e:
			case <-wake:
			case <-ctx.Done():
				return
			case <-c.ctx.Done():
				return
			}
		}
	})
	return out
}

type subscriber struct {
	mu      sync.Mutex
	waiting map[Event]struct{}
	order   []Event
	wake    chan struct{}
}

func (s *subscriber) add(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.waiting[e]; known {
		return
	}
	s.waiting[e] = struct{}{}
	s.order = append(s.order, e)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// next takes the event that has waited longest. It no longer waits then: a change after this moment is an event of its
// own, so that whoever reads the state after the first event misses nothing.
func (s *subscriber) next() (Event, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.order) == 0 {
		return Event{}, false
	}
	e := s.order[0]
	s.order = s.order[1:]
	delete(s.waiting, e)
	return e, true
}

// publish tells subscribers. mu is held.
func (c *Coordinator) publish(e Event) {
	for s := range c.subscribers {
		s.add(e)
	}
}

func (c *Coordinator) publishJob(j *job) {
	c.publish(Event{Kind: JobChanged, ProjectID: j.pipe.project.id, PipelineID: j.pipe.id, JobID: j.id})
}
