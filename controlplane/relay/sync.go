package relay

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

const (
	// finishSync is how long the sync of a finished job's trace waits for others to go with it, and for GitLab: what it
	// has got need not be synced here.
	finishSync = 20 * time.Millisecond
	// syncsAtOnce is the number of files that are synced at the same time; the file system makes one commit of them.
	syncsAtOnce = 8
)

// syncer writes traces to the disk in groups.
type syncer struct {
	r    *Relay
	wake chan struct{}
	quit chan struct{}
	done chan struct{}

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
	s.mu.Lock()
	jobs := make([]*job, 0, len(s.dirty))
	for j := range s.dirty {
		jobs = append(jobs, j)
	}
	clear(s.dirty)
	s.due = time.Time{}
	s.mu.Unlock()

	marks := make([]mark, len(jobs))
	each(len(jobs), syncsAtOnce, func(i int) { marks[i] = jobs[i].sync() })
	err := s.r.spool.SyncNames()
	errs := []error{err}
	for i, j := range jobs {
		switch m := marks[i]; {
		case m.err != nil:
			errs = append(errs, fmt.Errorf("job %d: %w", j.id, m.err))
		case err == nil && m.ok:
			j.synchronized(m)
		}
	}
	return errors.Join(errs...)
}

// each calls f for [0, n), at most limit at once.
func each(n, limit int, f func(i int)) {
	if n == 1 {
		f(0)
		return
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, limit)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wg.Wait()
}

// mark is how far a sync has come.
type mark struct {
	ok      bool
	length  int64
	rewinds int
	err     error
}

// sync syncs the file, unless GitLab has what is in it.
func (j *job) sync() mark {
	j.mu.Lock()
	if j.closed || j.file == nil || j.reported || j.completed && j.report.Whole() {
		j.mu.Unlock()
		return mark{}
	}
	m := mark{ok: true, length: j.length, rewinds: j.rewinds}
	file := j.file
	j.mu.Unlock()
	if m.err = file.Sync(); errors.Is(m.err, os.ErrClosed) {
		return mark{} // forgotten meanwhile
	}
	return m
}

func (j *job) synchronized(m mark) {
	j.mu.Lock()
	if j.closed || j.reported || j.rewinds != m.rewinds || m.length <= j.synced {
		j.mu.Unlock()
		return
	}
	j.synced = m.length
	j.nowSafe()
	p := j.tell(j.verdict())
	j.mu.Unlock()
	j.r.o.Events.Received(j.id, p)
}
