package dispatch

import "time"

// probeEvery is how long an answer about two-phase commit is believed: it is a feature flag of GitLab's
// (allow_runner_job_acknowledgement), which may change.
const probeEvery = time.Hour

// What TwoPhase says.
const (
	TwoPhaseOn      = "on"      // GitLab waits for an acknowledgement: a claimed job may be kept from starting
	TwoPhaseOff     = "off"     // a claimed job runs already, in GitLab's eyes
	TwoPhaseUnknown = "unknown" // no answer so far says which
)

// twoPhase is what is known of a runner's GitLab. It is found out with a job, because nothing else tells: the first one
// after the start and then one per hour is confirmed by PUT state=pending before it starts.
type twoPhase struct {
	state  string    // one of the above; empty is unknown
	since  time.Time // of the last answer that said which
	asking bool      // a job is under way that will find out
}

// wantsProbe says whether the next job is to find out, and takes it that it will.
func (p *twoPhase) wantsProbe(now time.Time) bool {
	if p.asking || !p.since.IsZero() && now.Sub(p.since) < probeEvery {
		return false
	}
	p.asking = true
	return true
}

// learn takes in GitLab's answer to a job's PUT state=pending: 200 is the acknowledgement's keep-alive, 400 says that the
// job runs, which without a PUT state=running before is only so where there is no two-phase commit. Any other answer, and
// none, says nothing: the next job asks again.
func (p *twoPhase) learn(now time.Time, a action, verdict gitlabVerdict, ran bool) {
	if a.probe {
		p.asking = false
	}
	switch {
	case verdict == verdictOK:
		p.state, p.since = TwoPhaseOn, now
	case verdict == verdictRunning && !ran:
		p.state, p.since = TwoPhaseOff, now
	}
}

// TwoPhase says whether the runner's GitLab uses two-phase commit: "on", "off", or "unknown" as long as no job has shown it
// and for runners that are not configured.
func (d *Dispatcher) TwoPhase(runner string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.runners[runner]; r != nil && r.twoPhase.state != "" {
		return r.twoPhase.state
	}
	return TwoPhaseUnknown
}
