package allocation

import (
	"fmt"
	"math"
	"time"
)

// Arrive makes a job known that waits for a slot. A job that waits already is changed and keeps its time; one that has
// a slot is left alone.
func (s *Scheduler) Arrive(now time.Time, w Job) error {
	s.tick(now)
	r := s.runners[w.Runner]
	if r == nil {
		return fmt.Errorf("queue job %d of runner %q: %w", w.ID, w.Runner, ErrUnknownRunner)
	}
	j := s.jobs[w.Key()]
	switch {
	case j == nil:
		j = s.newJob(&w, r)
		j.since = s.now
	case j.state == running:
		return nil
	default:
		s.keeping = true
		s.dequeue(j)
		s.keeping = false
		s.countWaiting(j, -1)
		since, project := j.since, j.project
		s.describe(j, &w, r)
		j.since = since
		if j.project != project {
			defer s.kept()
		}
	}
	if !w.Since.IsZero() {
		j.since = w.Since.UnixMicro()
	}
	s.countWaiting(j, 1)
	if w.Held != "" {
		j.state, j.reason = held, w.Held
	}
	if j.state != held {
		s.enqueue(j)
	}
	s.leafChanged(r)
	return nil
}

func (s *Scheduler) newJob(w *Job, r *runner) *job {
	var j *job
	if n := len(s.spare); n > 0 {
		j, s.spare = s.spare[n-1], s.spare[:n-1]
	} else {
		j = new(job)
	}
	*j = job{key: w.Key(), pos: absent, place: absent}
	s.describe(j, w, r)
	s.jobs[j.key] = j
	return j
}

func (s *Scheduler) describe(j *job, w *Job, r *runner) {
	j.project, j.runner, j.name = s.project(w.GitLab, w.Project), r, w.Name
	j.class, j.priority, j.commit = min(max(w.Class, 0), MaxClass), w.Priority, w.Committed
	factor := w.Factor
	if factor <= 0 {
		factor = 1
	}
	j.lease = lease{factor: int64(math.Round(min(max(factor, 0.001), 1000) * 1000))}
	j.project.seen = s.now
}

func (s *Scheduler) forgetJob(j *job) {
	delete(s.jobs, j.key)
	r := j.runner
	*j = job{}
	if len(s.spare) < 1024 {
		s.spare = append(s.spare, j)
	}
	s.forgetRunner(r)
}

func (s *Scheduler) countWaiting(j *job, by int) {
	j.runner.waiting += by
	j.project.waiting += int32(by)
}

// Withdraw forgets a job that waits: it was cancelled, or given back to GitLab.
func (s *Scheduler) Withdraw(now time.Time, k JobKey) error {
	s.tick(now)
	j, err := s.waitingJob(k, "withdraw")
	if err != nil {
		return err
	}
	s.dequeue(j)
	s.countWaiting(j, -1)
	s.leafChanged(j.runner)
	s.forgetJob(j)
	return nil
}

// Hold keeps a waiting job from being served until Release, for a reason that the caller has and Explain repeats.
func (s *Scheduler) Hold(now time.Time, k JobKey, reason string) error {
	s.tick(now)
	j, err := s.waitingJob(k, "hold")
	if err != nil {
		return err
	}
	s.dequeue(j)
	j.state, j.reason = held, reason
	return nil
}

// Release ends Hold; a job that is not held is left alone.
func (s *Scheduler) Release(now time.Time, k JobKey) error {
	s.tick(now)
	j, err := s.waitingJob(k, "release")
	if err != nil || j.state != held {
		return err
	}
	j.reason = ""
	s.enqueue(j)
	return nil
}

func (s *Scheduler) waitingJob(k JobKey, verb string) (*job, error) {
	j := s.jobs[k]
	if j == nil {
		return nil, fmt.Errorf("%s job %d: %w", verb, k.ID, ErrUnknownJob)
	}
	if j.state == running {
		return nil, fmt.Errorf("%s job %d: %w", verb, k.ID, ErrNotWaiting)
	}
	return j, nil
}

// Start gives a slot to a waiting job; mostly it is the one that Next named, but it need not be.
func (s *Scheduler) Start(now time.Time, k JobKey) error {
	s.tick(now)
	j, err := s.waitingJob(k, "start")
	if err != nil {
		return err
	}
	r := j.runner
	j.lease.cost = scale(j.project.lengths.expect(j.name, s.settings.firstGuess), j.lease.factor)
	b := s.bandOf(j)
	s.take(j, s.now, b, false)
	s.served(b)
	s.refreshChains(j.project, r.leaf)
	s.gate(r)
	s.leafChanged(r)
	return nil
}

// take makes a waiting job one that has a slot, without bringing the rankings up to date.
func (s *Scheduler) take(j *job, start int64, b *band, charged bool) {
	r := j.runner
	j.lease.leaf, j.lease.domain, j.lease.start = r.leaf, r.pool.domain, start
	j.lease.isInstance = r.Scope == InstanceRunner
	if charged {
		s.count(j.project, r.leaf, j.lease.domain)
	} else {
		s.charge(b, j.project, r.leaf, &j.lease)
	}
	s.remove(j)
	j.state = running
	s.countWaiting(j, -1)
	r.leases++
	if j.lease.isInstance {
		j.project.instance++
	}
}

// Resume makes a job known that has had a slot since started: after a restart, between Restore and the first Next. What
// a restored account has been charged for it is not charged again.
func (s *Scheduler) Resume(now time.Time, w Job, started time.Time) error {
	s.tick(now)
	r := s.runners[w.Runner]
	if r == nil {
		return fmt.Errorf("resume job %d of runner %q: %w", w.ID, w.Runner, ErrUnknownRunner)
	}
	if j := s.jobs[w.Key()]; j != nil {
		if j.state == running {
			return nil
		}
		s.dequeue(j)
		s.countWaiting(j, -1)
		s.describe(j, &w, r)
	} else {
		s.newJob(&w, r)
	}
	j := s.jobs[w.Key()]
	s.countWaiting(j, 1)
	b := s.bandOf(j)
	cost, charged := s.restored.take(j.key)
	if !charged {
		cost = scale(j.project.lengths.expect(j.name, s.settings.firstGuess), j.lease.factor)
	}
	j.lease.cost = cost
	s.take(j, started.UnixMicro(), b, charged)
	s.refreshChains(j.project, r.leaf)
	s.gate(r)
	return nil
}

// Finish ends a job that had a slot: what it really used is charged, and its length is learned.
func (s *Scheduler) Finish(now time.Time, k JobKey) error {
	j, err := s.leave(now, k, "finish")
	if err != nil {
		return err
	}
	length := s.now - j.lease.start
	j.project.lengths.learn(j.name, length)
	j.lease.leaf.lengths.learn("", length)
	s.forgetJob(j)
	return nil
}

// Return takes the slot of a job that did not run after all, and lets it wait again with the time that it had.
func (s *Scheduler) Return(now time.Time, k JobKey) error {
	j, err := s.leave(now, k, "take back the slot of")
	if err != nil {
		return err
	}
	j.state = queued
	s.countWaiting(j, 1)
	s.enqueue(j)
	s.leafChanged(j.runner)
	return nil
}

func (s *Scheduler) leave(now time.Time, k JobKey, verb string) (*job, error) {
	s.tick(now)
	j := s.jobs[k]
	if j == nil {
		return nil, fmt.Errorf("%s job %d: %w", verb, k.ID, ErrUnknownJob)
	}
	if j.state != running {
		return nil, fmt.Errorf("%s job %d: %w", verb, k.ID, ErrNotRunning)
	}
	r := j.runner
	r.leases--
	if j.lease.isInstance {
		j.project.instance--
	}
	s.settle(j.project, j.lease.leaf, &j.lease)
	s.refreshChains(j.project, j.lease.leaf)
	s.gate(r)
	s.leafChanged(r)
	return j, nil
}
