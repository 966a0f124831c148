// Package groupcommit gathers the writes of concurrent callers into one commit: while one commit is on its way to the
// disk, the writes that come meanwhile wait together for the next. A caller that is alone waits for nobody.
package groupcommit

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// Bounds.
const (
	// QueueLength bounds the writes that wait; further callers wait to be queued.
	QueueLength = 256
	// BatchLimit bounds the writes of one commit.
	BatchLimit = 128
	// DropLimit is how many payloads may wait for the next commit; then one is made for them.
	DropLimit = 256
)

// Write is a caller's function. It may be run more than once and must set its results anew each time; they are the
// caller's once the write is done.
type Write[Tx any] struct {
	Context context.Context // ends when nobody waits any more
	Run     func(Tx) error
	Err     error // how it went; the committer sets it

	done chan struct{}
}

// Wait returns how the write went. If ctx ends first, ctx's error is returned and the write may yet be committed.
func (w *Write[Tx]) Wait(ctx context.Context) error {
	select {
	case <-w.done:
		return w.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Committer makes one commit of the writes, and of the deletion of the payloads of the jobs in drops, and sets Err of
// each write. It returns whether the payloads are gone; otherwise they come again with the next commit. Calls come one
// after the other.
type Committer[Tx any] func(batch []*Write[Tx], drops []int64) (dropped bool)

// Queue hands writes to a committer, in one goroutine that ends with Close. Its methods may be called concurrently.
type Queue[Tx any] struct {
	commit Committer[Tx]
	beat   time.Duration
	writes chan *Write[Tx]
	done   chan struct{} // closed when the goroutine has ended

	// mu is held for reading while a write is being queued, so that Close knows when the queue is complete.
	mu     sync.RWMutex
	closed bool

	dropMu sync.Mutex
	drops  map[int64]struct{} // jobs whose payloads go with the next commit
	nudge  chan struct{}      // capacity 1: commit the drops without waiting for a write
}

// New starts a queue. With a beat that is not 0 the committer is also called, with nothing, after so long without a
// commit.
func New[Tx any](commit Committer[Tx], beat time.Duration) *Queue[Tx] {
	q := &Queue[Tx]{
		commit: commit, beat: beat,
		writes: make(chan *Write[Tx], QueueLength),
		done:   make(chan struct{}),
		drops:  make(map[int64]struct{}),
		nudge:  make(chan struct{}, 1),
	}
	go q.loop()
	return q
}

// Do has a function run in a transaction and returns once that is on the disk, or with the function's error. If ctx ends
// first, ctx's error is returned and the function may yet be run and committed. store.ErrClosed after Close.
func (q *Queue[Tx]) Do(ctx context.Context, run func(Tx) error) error {
	w, err := q.Add(ctx, run)
	if err != nil {
		return err
	}
	return w.Wait(ctx)
}

// Add is the first half of Do, Write.Wait the second.
func (q *Queue[Tx]) Add(ctx context.Context, run func(Tx) error) (*Write[Tx], error) {
	w := &Write[Tx]{Context: ctx, Run: run, done: make(chan struct{})}
	q.mu.RLock()
	defer q.mu.RUnlock()
	if q.closed {
		return nil, store.ErrClosed
	}
	select {
	case q.writes <- w:
		return w, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Drop has a job's payload deleted by the next commit.
func (q *Queue[Tx]) Drop(job int64) {
	q.dropMu.Lock()
	q.drops[job] = struct{}{}
	many := len(q.drops) >= DropLimit
	q.dropMu.Unlock()
	if many {
		select {
		case q.nudge <- struct{}{}:
		default: // one is on its way
		}
	}
}

// Drops returns the jobs whose payloads wait for the next commit, in no order.
func (q *Queue[Tx]) Drops() []int64 {
	q.dropMu.Lock()
	defer q.dropMu.Unlock()
	return slices.Collect(maps.Keys(q.drops))
}

// dropped forgets drops that are done.
func (q *Queue[Tx]) dropped(jobs []int64) {
	q.dropMu.Lock()
	defer q.dropMu.Unlock()
	for _, job := range jobs {
		delete(q.drops, job)
	}
}

func (q *Queue[Tx]) loop() {
	defer close(q.done)
	var beats <-chan time.Time // nil: never
	var timer *time.Timer
	if q.beat > 0 {
		timer = time.NewTimer(q.beat)
		defer timer.Stop()
		beats = timer.C
	}
	batch := make([]*Write[Tx], 0, BatchLimit)
	for open := true; open; {
		batch = batch[:0]
		select {
		case w, ok := <-q.writes:
			if open = ok; ok {
				batch = q.gather(append(batch, w))
			}
		case <-q.nudge:
		case <-beats:
		}
		drops := q.Drops()
		if open || len(drops) > 0 {
			if q.commit(batch, drops) {
				q.dropped(drops)
			}
		}
		for _, w := range batch {
			close(w.done)
		}
		clear(batch)
		if timer != nil {
			timer.Reset(q.beat)
		}
	}
}

// gather adds what waits already.
func (q *Queue[Tx]) gather(batch []*Write[Tx]) []*Write[Tx] {
	for len(batch) < BatchLimit {
		select {
		case w, ok := <-q.writes:
			if !ok {
				return batch
			}
			batch = append(batch, w)
		default:
			return batch
		}
	}
	return batch
}

// Close has what is queued committed and returns when that is done. Writes that come later get store.ErrClosed.
func (q *Queue[Tx]) Close() {
	q.mu.Lock()
	if !q.closed {
		q.closed = true
		close(q.writes)
	}
	q.mu.Unlock()
	<-q.done
}
