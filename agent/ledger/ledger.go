// Package ledger decides what an agent does with each message about a job, in each state that the job can be in. It is
// pure: no clocks, no I/O; the caller tells it what happened and carries out the effects that it answers with, in order.
//
// Its rules: a job is launched at most once per epoch, and only if it was accepted; while one epoch of a job is started
// or finished no other epoch of it is accepted; a started job is given up only because the control plane says so; every
// finished job is reported until that is acknowledged, and kept until the control plane says that it may go. Messages
// that are repeated, stale or out of order have no effect.
package ledger

import (
	"fmt"
	"time"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// OfferPatience is how long an offer may wait for a slot whose job has finished already.
const OfferPatience = 10 * time.Second

// Ref names one attempt at a job.
type Ref struct{ Job, Epoch int64 }

func (r Ref) String() string { return fmt.Sprintf("%d/%d", r.Job, r.Epoch) }

// Proto is the ref in the contract's form.
func (r Ref) Proto() *fleetv1.JobRef { return &fleetv1.JobRef{Job: r.Job, Epoch: r.Epoch} }

// RefOf reads the contract's form; ok is false if it names no job.
func RefOf(p *fleetv1.JobRef) (ref Ref, ok bool) {
	ref = Ref{p.GetJob(), p.GetEpoch()}
	return ref, ref.Job > 0 && ref.Epoch > 0
}

// Phase is how far a job has come on this agent.
type Phase int

// The phases, in their order; Discarding may follow each.
const (
	// Waiting: the offer is not answered yet, a slot is about to be free.
	Waiting Phase = iota + 1
	// Accepted: a slot is held, the start is awaited.
	Accepted
	// Started: the start was ordered; the job is prepared or runs.
	Started
	// Finished: the result is known.
	Finished
	// Discarding: what there is of it is being removed; nothing is reported any more.
	Discarding
)

// State is the phase as the protocol names it.
func (p Phase) State() fleetv1.JobState {
	switch p {
	case Accepted:
		return fleetv1.JobState_JOB_STATE_ACCEPTED
	case Started:
		return fleetv1.JobState_JOB_STATE_STARTED
	case Finished:
		return fleetv1.JobState_JOB_STATE_FINISHED
	case Waiting, Discarding:
	}
	return fleetv1.JobState_JOB_STATE_UNSPECIFIED
}

// Verb is what an Effect does.
type Verb int

// The verbs.
const (
	// Reply accepts the offer.
	Reply Verb = iota + 1
	// Hold makes room for the job and writes it down, so that an agent which is killed finds it again; [Ledger.Written]
	// then answers the offer. Its payload may be fetched.
	Hold
	// Refuse declines the offer; Reason says why.
	Refuse
	// Launch starts the job.
	Launch
	// Cancel stops it as Mode says; it still ends with a result.
	Cancel
	// Discard stops it if it runs and removes all of it, without a report.
	Discard
	// Report sends a JobReport of State.
	Report
)

// Effect is one thing to do.
type Effect struct {
	Verb   Verb
	Ref    Ref
	Reason string
	Mode   fleetv1.CancelMode
	State  fleetv1.JobState
}

type entry struct {
	phase    Phase
	busy     bool // holds a slot
	written  bool // a process of the agent after this one would know of it
	fenced   bool // user commands may have run: STARTED is to be reported
	acked    fleetv1.JobState
	cancel   fleetv1.CancelMode
	deadline time.Time // of Waiting
}

// Ledger is the set of jobs that an agent holds. It is owned by one goroutine.
type Ledger struct {
	slots    int
	draining string // why; empty: not
	jobs     map[Ref]*entry
	queue    []Ref // Waiting, in the order of their offers
}

// New returns an empty ledger for that many jobs at once.
func New(slots int) *Ledger {
	return &Ledger{slots: slots, jobs: make(map[Ref]*entry)}
}

// Restore adds a job that a previous process of the agent left behind.
func (l *Ledger) Restore(ref Ref, phase Phase, fenced bool) {
	l.jobs[ref] = &entry{phase: phase, busy: phase != Finished, written: true, fenced: fenced}
}

// Drain refuses every offer from now on for that reason, those that wait for an answer too. An empty reason ends it.
func (l *Ledger) Drain(reason string) []Effect {
	l.draining = reason
	if reason == "" {
		return nil
	}
	return l.refuseWaiting(reason)
}

func (l *Ledger) refuseWaiting(reason string) []Effect {
	var out []Effect
	for _, ref := range l.queue {
		delete(l.jobs, ref)
		out = append(out, Effect{Verb: Refuse, Ref: ref, Reason: reason})
	}
	l.queue = nil
	return out
}

// Offer handles an offer. refusal is the caller's own reason against it, if any (no such executor, no room).
func (l *Ledger) Offer(now time.Time, ref Ref, refusal string) []Effect {
	refuse := func(reason string) []Effect { return []Effect{{Verb: Refuse, Ref: ref, Reason: reason}} }
	if e := l.jobs[ref]; e != nil {
		switch e.phase {
		case Accepted, Started, Finished:
			return l.reply(ref)
		case Discarding:
			return refuse("this attempt at the job was given up")
		case Waiting:
		}
		return nil
	}
	var out []Effect
	for other, e := range l.jobs {
		switch {
		case other.Job != ref.Job:
		case other.Epoch > ref.Epoch:
			return nil // stale
		case e.phase == Started || e.phase == Finished || e.phase == Discarding:
			return refuse(fmt.Sprintf("this agent still holds attempt %d at the job", other.Epoch))
		default:
			out = append(out, l.Withdraw(other)...) // the newer offer says that the older is off
		}
	}
	switch {
	case l.draining != "":
		return append(out, refuse(l.draining)...)
	case refusal != "":
		return append(out, refuse(refusal)...)
	case l.Free() > 0 && len(l.queue) == 0:
		l.jobs[ref] = &entry{phase: Accepted, busy: true}
		return append(out, Effect{Verb: Hold, Ref: ref})
	case len(l.queue) < l.Free()+l.ending():
		l.jobs[ref] = &entry{phase: Waiting, deadline: now.Add(OfferPatience)}
		l.queue = append(l.queue, ref)
		return out
	}
	return append(out, refuse("no slot is free")...)
}

// Written says that a job which is held is written down: only now is it accepted. Else the control plane could have it
// started on an agent that, killed in between, does not know of it.
func (l *Ledger) Written(ref Ref) []Effect {
	e := l.jobs[ref]
	if e == nil || e.written {
		return nil
	}
	e.written = true
	if e.phase == Discarding {
		return nil
	}
	return l.reply(ref)
}

// reply accepts the offer of a job, unless that has to wait.
func (l *Ledger) reply(ref Ref) []Effect {
	if !l.jobs[ref].written {
		return nil
	}
	return []Effect{{Verb: Reply, Ref: ref}}
}

// admit holds waiting offers as far as there are slots.
func (l *Ledger) admit() []Effect {
	var out []Effect
	for len(l.queue) > 0 && l.Free() > 0 {
		ref := l.queue[0]
		l.queue = l.queue[1:]
		*l.jobs[ref] = entry{phase: Accepted, busy: true}
		out = append(out, Effect{Verb: Hold, Ref: ref})
	}
	return out
}

// Tick refuses offers that have waited too long for a slot.
func (l *Ledger) Tick(now time.Time) []Effect {
	var out []Effect
	for len(l.queue) > 0 && !now.Before(l.jobs[l.queue[0]].deadline) {
		ref := l.queue[0]
		l.queue = l.queue[1:]
		delete(l.jobs, ref)
		out = append(out, Effect{Verb: Refuse, Ref: ref, Reason: "no slot became free"})
	}
	return out
}

// Deadline is when Tick has something to do next; zero: not as things are.
func (l *Ledger) Deadline() time.Time {
	if len(l.queue) == 0 {
		return time.Time{}
	}
	return l.jobs[l.queue[0]].deadline
}

// Disconnected forgets offers that were not answered: they do not outlive their session.
func (l *Ledger) Disconnected() {
	l.refuseWaiting("")
}

// Withdraw takes back an offer or an accepted job. A started job is not touched: the message is stale.
func (l *Ledger) Withdraw(ref Ref) []Effect {
	switch l.Phase(ref) {
	case Waiting:
		l.unqueue(ref)
		delete(l.jobs, ref)
	case Accepted:
		return l.discard(ref)
	case Started, Finished, Discarding:
	}
	return nil
}

func (l *Ledger) unqueue(ref Ref) {
	for i, r := range l.queue {
		if r == ref {
			l.queue = append(l.queue[:i:i], l.queue[i+1:]...)
			return
		}
	}
}

// Start launches an accepted job. For a job that is not held the answer is a refusal, so that the control plane does not
// wait for it in vain.
func (l *Ledger) Start(ref Ref) []Effect {
	e := l.jobs[ref]
	if e == nil {
		return []Effect{{Verb: Refuse, Ref: ref, Reason: "this agent does not hold the job"}}
	}
	if e.phase != Accepted {
		return nil
	}
	e.phase = Started
	var out []Effect
	if e.cancel != 0 { // before the launch: the job then ends without having begun
		out = append(out, Effect{Verb: Cancel, Ref: ref, Mode: e.cancel})
	}
	return append(out, Effect{Verb: Launch, Ref: ref})
}

// Cancel stops a job. Modes only get stronger.
func (l *Ledger) Cancel(ref Ref, mode fleetv1.CancelMode) []Effect {
	e := l.jobs[ref]
	if e == nil || mode <= e.cancel || e.phase != Accepted && e.phase != Started {
		return nil
	}
	e.cancel = mode
	if e.phase == Accepted {
		return nil
	}
	return []Effect{{Verb: Cancel, Ref: ref, Mode: mode}}
}

// CancelAll stops every job that has no result yet. One that waits for its start will end as soon as that comes.
func (l *Ledger) CancelAll(mode fleetv1.CancelMode) []Effect {
	var out []Effect
	for ref := range l.jobs {
		out = append(out, l.Cancel(ref, mode)...)
	}
	return out
}

// Acknowledged notes that a report is durable.
func (l *Ledger) Acknowledged(ref Ref, state fleetv1.JobState) {
	if e := l.jobs[ref]; e != nil && state > e.acked {
		e.acked = state
	}
}

// Forget removes a job that the control plane is done with.
func (l *Ledger) Forget(ref Ref) []Effect {
	switch l.Phase(ref) {
	case Waiting:
		return l.Withdraw(ref)
	case Accepted, Started, Finished:
		return l.discard(ref)
	case Discarding:
	}
	return nil
}

// Welcome applies the control plane's verdict on a job that Hello listed. Jobs without a verdict, or with one that this
// version does not know, are kept. What was not acknowledged is reported again.
func (l *Ledger) Welcome(ref Ref, verdict fleetv1.Verdict, cancel fleetv1.CancelMode) []Effect {
	if verdict == fleetv1.Verdict_VERDICT_KILL || verdict == fleetv1.Verdict_VERDICT_FORGET {
		return l.Forget(ref)
	}
	return append(l.report(ref), l.Cancel(ref, cancel)...)
}

// report says what of a job's progress is still to be confirmed.
func (l *Ledger) report(ref Ref) []Effect {
	e := l.jobs[ref]
	if e == nil {
		return nil
	}
	const started, finished = fleetv1.JobState_JOB_STATE_STARTED, fleetv1.JobState_JOB_STATE_FINISHED
	switch {
	case e.phase == Finished && e.acked < finished:
		return []Effect{{Verb: Report, Ref: ref, State: finished}}
	case e.phase == Started && e.fenced && e.acked < started:
		return []Effect{{Verb: Report, Ref: ref, State: started}}
	}
	return nil
}

// Fenced says that the job's process has made sure that the job never starts again.
func (l *Ledger) Fenced(ref Ref) []Effect {
	e := l.jobs[ref]
	if e == nil || e.fenced {
		return nil
	}
	e.fenced = true
	return l.report(ref)
}

// Finished says that a started job has its result.
func (l *Ledger) Finished(ref Ref) []Effect {
	e := l.jobs[ref]
	if e == nil || e.phase != Started {
		return nil
	}
	e.phase = Finished
	return l.report(ref)
}

// Freed says that nothing of the job takes up its slot any more.
func (l *Ledger) Freed(ref Ref) []Effect {
	if e := l.jobs[ref]; e != nil {
		e.busy = false
	}
	return l.admit()
}

// Gone says that all of a discarded job is removed.
func (l *Ledger) Gone(ref Ref) []Effect {
	l.unqueue(ref)
	delete(l.jobs, ref)
	return l.admit()
}

func (l *Ledger) discard(ref Ref) []Effect {
	l.jobs[ref].phase = Discarding
	return []Effect{{Verb: Discard, Ref: ref}}
}
