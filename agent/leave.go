package agent

import (
	"slices"
	"time"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/uplink"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// drain begins to leave: no more jobs.
func (l *loop) drain() {
	l.leaving = true
	l.log.Info("stopping: taking no more jobs", "jobs", l.ledger.Len())
	l.apply(l.ledger.Drain(l.refusing()))
	l.sendStatus()
	l.reminder.Reset(remind)
	l.remind()
}

// hurry cancels what runs.
func (l *loop) hurry() {
	l.hurrying = true
	l.log.Info("stopping now: cancelling the jobs", "jobs", l.ledger.Count(ledger.Started))
	l.apply(l.ledger.CancelAll(fleetv1.CancelMode_CANCEL_MODE_GRACEFUL))
}

// mayLeave says whether nothing is left that keeps a leaving agent. Normally that is when GitLab has every result; in a
// hurry it is enough that the control plane has results and traces.
func (l *loop) mayLeave() bool {
	held := l.ledger.Len()
	if l.session == nil {
		held -= l.ledger.Count(ledger.Accepted) // promises to a session that is gone
	}
	switch {
	case !l.leaving:
		return false
	case held == 0:
		return true
	case !l.hurrying || l.ledger.Unacknowledged() > 0:
		return false
	}
	for ref, job := range l.jobs {
		switch l.ledger.Phase(ref) {
		case ledger.Finished:
		case ledger.Accepted:
			if l.session != nil {
				return false
			}
			continue
		default:
			return false
		}
		if !l.traces.Delivered(ref, job.Result().GetTraceLength()) {
			return false
		}
	}
	return true
}

// remind says what a leaving agent waits for.
func (l *loop) remind() {
	if l.ledger.Len() == 0 {
		return
	}
	var running, reporting []string
	for ref, job := range l.jobs {
		name := job.Intent.ProjectPath + ":" + job.Intent.JobName
		if l.ledger.Phase(ref) == ledger.Finished {
			reporting = append(reporting, name)
		} else {
			running = append(running, name)
		}
	}
	slices.Sort(running)
	slices.Sort(reporting)
	const most = 10
	l.log.Info("waiting before leaving", "running", running[:min(len(running), most)], "runningTotal", len(running),
		"notReportedYet", reporting[:min(len(reporting), most)], "notReportedTotal", len(reporting))
}

// renewal is the certificate's.
type renewal struct {
	timer   *time.Timer
	done    chan error
	backoff uplink.Backoff
	told    bool
}

func newRenewal(at time.Time) renewal {
	return renewal{
		timer: time.NewTimer(time.Until(at)), done: make(chan error, 1),
		backoff: uplink.Backoff{First: time.Second, Most: time.Hour},
	}
}

// renew asks for a new certificate in a goroutine of its own. Without a session it is tried again soon.
func (l *loop) renew() {
	if l.session == nil || !l.session.welcomed {
		l.renewal.timer.Reset(idlePeriod)
		return
	}
	conn := l.link.conn
	l.tasks.Go(func() { l.renewal.done <- l.identity.Renew(l.ctx, conn) })
}

func (l *loop) renewed(err error) {
	if err != nil {
		_, end := l.identity.Validity()
		if !l.renewal.told {
			l.log.Warn("cannot renew the certificate; trying again", "err", err, "expires", end)
		}
		l.renewal.told = true
		l.renewal.timer.Reset(l.renewal.backoff.Next())
		return
	}
	_, end := l.identity.Validity()
	l.log.Info("renewed the certificate", "expires", end)
	l.renewal.told = false
	l.renewal.backoff.Reset()
	l.renewal.timer.Reset(time.Until(l.identity.RenewAt()))
}
