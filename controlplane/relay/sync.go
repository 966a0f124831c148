package relay

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/relay/spool"
)

const (
	// finishSync is how long the sync of a finished job's trace waits for others to go with it, and for GitLab: what it
	// has got need not be synced here.
	finishSync = 20 * time.Millisecond
	// syncAgain is when a sync that failed is tried again.
	syncAgain = time.Second
)

// syncer writes traces to the disk in groups.
type syncer struct {
	r    *Relay
	wake chan struct{}
	quit chan struct{}
	done chan struct{}
	one  sync.Mutex // held by flush

	mu    sync.Mutex
	dirty map[*job]struct{}
	due   time.Time // when they are to be synced; zero if there are none
}

func newSyncer(r *Relay) *syncer {
	s := &syncer{
		r: r, wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
		dirty: make(map[*job]struct{}),
	}
	go s.run()
	return s
}

// add has a job's bytes synced after that time at the latest.
func (s *syncer) add(j *job, within time.Duration) {
	due := time.Now().Add(within)
	s.mu.Lock()
	s.dirty[j] = struct{}{}
	sooner := s.due.IsZero() || due.Before(s.due)
	if sooner {
		s.due = due
	}
	s.mu.Unlock()
	if sooner {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

func (s *syncer) run() {
	defer close(s.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		s.mu.Lock()
		due := s.due
		s.mu.Unlock()
		if due.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(due))
		}
		select {
		case <-s.wake:
		case <-timer.C:
			if err := s.flush(); err != nil {
				s.r.log.Error("traces are not safe from a loss of power", "error", err)
			}
		case <-s.quit:
			return
		}
	}
}

// close syncs what is left.
func (s *syncer) close() error {
	close(s.quit)
	<-s.done
	return s.flush()
}

// flush syncs all dirty jobs and tells of it.
func (s *syncer) flush() error {
	s.one.Lock()
	defer s.one.Unlock()
	s.mu.Lock()
	jobs := make([]*job, 0, len(s.dirty))
	marks := make([]spool.Mark, 0, len(s.dirty))
	rewinds := make([]int, 0, len(s.dirty))
	dirty := s.dirty
	s.dirty = make(map[*job]struct{}, len(dirty))
	s.due = time.Time{}
	s.mu.Unlock()
	for j := range dirty {
		if m, n, ok := j.mark(); ok {
			jobs, marks, rewinds = append(jobs, j), append(marks, m), append(rewinds, n)
		}
	}
	var errs []error
	for i, err := range s.r.spool.Commit(marks) {
		j := jobs[i]
		switch {
		case err == nil:
			j.synchronized(marks[i].Length(), rewinds[i])
		case errors.Is(err, os.ErrClosed): // forgotten meanwhile
		default:
			errs = append(errs, fmt.Errorf("job %d: %w", j.id, err))
			if !errors.Is(err, spool.ErrSync) {
				s.add(j, syncAgain)
			}
		}
	}
	return errors.Join(errs...)
}

// mark says what is to be synced of a job: nothing if GitLab has what is in the file.
func (j *job) mark() (m spool.Mark, rewinds int, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed || j.file == nil || j.reported || j.completed && j.report.Whole() {
		return m, 0, false
	}
	return j.file.Mark(j.length, j.sum), j.rewinds, true
}

func (j *job) synchronized(length int64, rewinds int) {
	j.mu.Lock()
	if j.closed || j.reported || j.rewinds != rewinds || length <= j.synced {
		j.mu.Unlock()
		return
	}
	j.synced = length
	j.nowSafe()
	p := j.tell(j.verdict())
	j.mu.Unlock()
	j.r.o.Events.Received(j.id, p)
}
