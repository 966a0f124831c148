package agent

import (
	"time"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/supervisor"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// lease is the agent's right to go on with its jobs: the control plane takes a job for lost some time after the job's own
// limit is over. All limits are counted from the same moment.
type lease struct {
	span  time.Duration // S of the design for jobs without one of their own; 0: not known yet, or none
	acked time.Time     // when the last message was sent that was answered; zero: none was
	jobs  map[ledger.Ref]*jobLease
	timer *time.Timer // to the next end of a job's
}

// jobLease is what became of one job's.
type jobLease struct {
	passed  time.Time // the end that the job was told last
	stopped time.Time // the end at which it was stopped; zero: it was not
}

func newLease() lease {
	return lease{jobs: make(map[ledger.Ref]*jobLease), timer: stoppedTimer()}
}

// until is when a job's lease ends; zero: not as far as is known.
func (v *lease) until(job *supervisor.Job) time.Time {
	span := v.span
	if own := job.Intent.StopAfter; own > 0 {
		span = own
	}
	if span <= 0 || v.acked.IsZero() {
		return time.Time{}
	}
	return v.acked.Add(span)
}

// extend counts leases anew from the sending of a message that was answered.
func (l *loop) extend(sent time.Time) {
	if sent.After(l.lease.acked) {
		l.lease.acked = sent
		l.renewLeases()
	}
}

// setLease sets the span that the control plane grants from now on to jobs that have none of their own.
func (l *loop) setLease(span time.Duration) {
	if span != l.lease.span {
		l.lease.span = span
		l.renewLeases()
	}
}

// renewLeases tells the jobs that run how long they may, and sets the clock for the first of them. Jobs have the same limit
// for themselves; they are told when a quarter of it has gone by, so that they need not be woken at each ping, and when
// there is no session any more, because then it is what counts.
func (l *loop) renewLeases() {
	v := &l.lease
	var first time.Time
	for ref, job := range l.jobs {
		until := v.until(job)
		if until.IsZero() || l.ledger.Phase(ref) != ledger.Started {
			continue
		}
		known := v.of(ref)
		if gained := until.Sub(known.passed); gained < 0 || gained >= until.Sub(v.acked)/4 || l.link == nil && gained > 0 {
			known.passed = until
			job.Lease(until)
		}
		if !known.stopped.Equal(until) && (first.IsZero() || until.Before(first)) {
			first = until
		}
	}
	for ref := range v.jobs {
		if l.jobs[ref] == nil {
			delete(v.jobs, ref)
		}
	}
	if first.IsZero() {
		v.timer.Stop()
		return
	}
	v.timer.Reset(time.Until(first))
}

func (v *lease) of(ref ledger.Ref) *jobLease {
	known := v.jobs[ref]
	if known == nil {
		known = &jobLease{}
		v.jobs[ref] = known
	}
	return known
}

// lapsed stops the jobs whose lease is over: the control plane may give them up from now on.
func (l *loop) lapsed() {
	now := time.Now()
	for ref, job := range l.jobs {
		until := l.lease.until(job)
		if until.IsZero() || now.Before(until) || l.ledger.Phase(ref) != ledger.Started || l.lease.of(ref).stopped.Equal(until) {
			continue
		}
		l.lease.of(ref).stopped = until
		l.log.Error("the control plane was not heard for too long: stopping a job", "job", ref.Job, "epoch", ref.Epoch,
			"limit", until.Sub(l.lease.acked))
		l.apply(l.ledger.Cancel(ref, fleetv1.CancelMode_CANCEL_MODE_KILL))
	}
	l.renewLeases()
}
