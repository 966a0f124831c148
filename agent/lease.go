package agent

import (
	"time"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// lease is the agent's right to go on with its jobs: the control plane takes them for lost some time after it ends.
type lease struct {
	span    time.Duration // S of the design; 0: not known yet, or none
	until   time.Time     // when it ends; zero: not known yet
	passed  time.Time     // the end that jobs were told last
	timer   *time.Timer
	stopped bool // it ended and the jobs were stopped
}

func newLease() lease {
	return lease{timer: stoppedTimer()}
}

// extend counts the lease anew from the sending of a message that was answered. Jobs have the same limit for themselves;
// they are told when a quarter of it has gone by, so that they need not be woken at each ping.
func (l *loop) extend(sent time.Time) {
	v := &l.lease
	if v.span <= 0 || !sent.Add(v.span).After(v.until) {
		return
	}
	v.until, v.stopped = sent.Add(v.span), false
	v.timer.Reset(time.Until(v.until))
	if v.until.Sub(v.passed) < v.span/4 {
		return
	}
	v.passed = v.until
	for ref, job := range l.jobs {
		if l.ledger.Phase(ref) == ledger.Started {
			job.Lease(v.until)
		}
	}
}

// setLease sets the span that the control plane grants from now on.
func (l *loop) setLease(span time.Duration) {
	if span == l.lease.span {
		return
	}
	l.lease.timer.Stop()
	l.lease = lease{span: span, timer: l.lease.timer}
}

// lapsed stops the jobs when the lease is over: the control plane may give them up from now on.
func (l *loop) lapsed() {
	if l.lease.stopped {
		return
	}
	l.lease.stopped = true
	if n := l.ledger.Count(ledger.Started); n > 0 {
		l.log.Error("the control plane was not heard for too long: stopping the jobs", "jobs", n, "limit", l.lease.span)
	}
	l.apply(l.ledger.CancelStarted(fleetv1.CancelMode_CANCEL_MODE_KILL))
}
