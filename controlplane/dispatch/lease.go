package dispatch

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

func checkLease(stopAfter, lostAfter time.Duration) error {
	if stopAfter <= 0 || lostAfter <= stopAfter {
		return fmt.Errorf("lost_after (%s) must be longer than stop_after (%s): an agent that is cut off has to stop its jobs before they are reported as lost",
			lostAfter, stopAfter)
	}
	return nil
}

// completeLease takes what the runner leaves open from the configuration of all.
func (r *Runner) completeLease(c Config) error {
	if r.StopAfter == 0 && r.LostAfter == 0 {
		r.StopAfter, r.LostAfter = c.StopAfter, c.LostAfter
	}
	if err := checkLease(r.StopAfter, r.LostAfter); err != nil {
		return fmt.Errorf("runner %q: %w", r.Name, err)
	}
	return nil
}

// terms are S and L of a job: those under which it was claimed, whatever the configuration says by now. Its agent may have
// been told that S, and counts it while it cannot be told another.
func (j *job) terms() (stopAfter, lostAfter time.Duration) {
	if e := j.row.Envelope; e.LostAfter > 0 {
		return e.StopAfter, e.LostAfter
	}
	return j.runner.StopAfter, j.runner.LostAfter
}

// stopAfterLocked is what an agent is told that has one limit for all its jobs: the shortest of any that it has or may get.
func (d *Dispatcher) stopAfterLocked(a *agent) time.Duration {
	least := d.cfg.StopAfter
	for _, r := range d.runners {
		least = min(least, r.StopAfter)
	}
	for _, j := range a.jobs {
		stopAfter, _ := j.terms()
		least = min(least, stopAfter)
	}
	return least
}

// whereabouts say where a job was heard of last.
type whereabouts struct {
	hostID, hostname string    // empty: not since the control plane was started
	awayAt           time.Time // when its agent was heard last to have it; zero while the agent is here with it
	unheard          bool      // it runs since before the control plane was started, and no agent has said that it has it
}

// hereLocked says that the job's agent is here with it.
func (w *whereabouts) hereLocked(a *agent) { *w = whereabouts{hostID: a.hostID, hostname: a.hostname} }

// mayBeElsewhere says that the job may run on another host than that of an agent which does not have it.
func (w *whereabouts) mayBeElsewhere(hostID string) bool { return w.unheard || w.isElsewhere(hostID) }

// isElsewhere says that the job was on another host, as far as is known.
func (w *whereabouts) isElsewhere(hostID string) bool {
	return w.hostID != "" && hostID != "" && w.hostID != hostID
}

// loss is the clock of an agent's jobs that are out of its hands: at its next stroke one of them may be lost.
type loss struct {
	timer *time.Timer // nil: it does not run
	at    time.Time
}

func (l *loss) stop() {
	if l.timer != nil {
		l.timer.Stop()
	}
	*l = loss{}
}

// lostAt is when a job is lost unless its agent says that it still has it; zero while the agent is here with it.
func (j *job) lostAt() time.Time {
	if j.awayAt.IsZero() {
		return time.Time{}
	}
	_, lostAfter := j.terms()
	return j.awayAt.Add(lostAfter)
}

// awaitLocked sets the clock of an agent for those of its jobs that it was not heard to have since some time.
func (d *Dispatcher) awaitLocked(a *agent) {
	a.lost.stop()
	for _, j := range a.jobs {
		d.awaitJobLocked(a, j)
	}
}

// awaitJobLocked is awaitLocked for one job more.
func (d *Dispatcher) awaitJobLocked(a *agent, j *job) {
	at := j.lostAt()
	if at.IsZero() || d.closed || a.lost.timer != nil && !at.Before(a.lost.at) {
		return
	}
	a.lost.stop()
	var timer *time.Timer
	timer = time.AfterFunc(time.Until(at), func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if a.lost.timer == timer && !d.closed { // else it came back in the same moment
			a.lost = loss{}
			d.loseLocked(a)
		}
	})
	a.lost = loss{timer, at}
}

// loseLocked gives up those of an agent's jobs whose lease is over.
func (d *Dispatcher) loseLocked(a *agent) {
	now := time.Now()
	for _, j := range slices.Collect(maps.Values(a.jobs)) {
		if at := j.lostAt(); at.IsZero() || now.Before(at) {
			continue
		}
		reason := fmt.Sprintf("agent %s was lost: nothing was heard of it since %s", a.name, j.awayAt.UTC().Format(time.RFC3339))
		switch {
		case a.unheard:
			reason += ", when the control plane was started"
		case a.session != nil && j.unheard:
			reason = fmt.Sprintf("agent %s was lost: it came back without the job, and nothing was heard of another host with the job since the control plane was started at %s",
				a.name, j.awayAt.UTC().Format(time.RFC3339))
		case a.session != nil:
			reason = fmt.Sprintf("agent %s was lost: host %s with the job was heard last at %s; since then another one answers for the agent (%s)",
				a.name, j.hostname, j.awayAt.UTC().Format(time.RFC3339), a.hostname)
		}
		j.awayAt = time.Time{}
		d.applyLocked(j, event{kind: evLost, agent: a.id, reason: reason})
	}
	d.awaitLocked(a)
}
