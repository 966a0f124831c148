package ledger

import fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"

// Phase returns where a job stands; 0: it is not held.
func (l *Ledger) Phase(ref Ref) Phase {
	if e := l.jobs[ref]; e != nil {
		return e.phase
	}
	return 0
}

// Busy says whether the job holds a slot.
func (l *Ledger) Busy(ref Ref) bool {
	e := l.jobs[ref]
	return e != nil && e.busy
}

// Len is how many jobs are held, whatever their phase.
func (l *Ledger) Len() int { return len(l.jobs) }

// Count is how many jobs are in a phase.
func (l *Ledger) Count(phase Phase) int {
	n := 0
	for _, e := range l.jobs {
		if e.phase == phase {
			n++
		}
	}
	return n
}

// Unacknowledged is how many jobs have a result that the control plane has not confirmed, or will have one.
func (l *Ledger) Unacknowledged() int {
	n := 0
	for _, e := range l.jobs {
		if e.phase == Started || e.phase == Finished && e.acked < fleetv1.JobState_JOB_STATE_FINISHED {
			n++
		}
	}
	return n
}

// Held calls f for each job that belongs into Hello.
func (l *Ledger) Held(f func(Ref, Phase)) {
	for ref, e := range l.jobs {
		if e.phase == Accepted || e.phase == Started || e.phase == Finished {
			f(ref, e.phase)
		}
	}
}

// Free is the number of slots that hold nothing; it may be negative after a restart with fewer slots.
func (l *Ledger) Free() int {
	free := l.slots
	for _, e := range l.jobs {
		if e.busy {
			free--
		}
	}
	return free
}

// ending is the number of slots that will be free without anyone's doing.
func (l *Ledger) ending() int {
	n := 0
	for _, e := range l.jobs {
		if e.busy && (e.phase == Finished || e.phase == Discarding) {
			n++
		}
	}
	return n
}
