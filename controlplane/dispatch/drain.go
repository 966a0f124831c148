package dispatch

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// errUndrained ends a session whose agent was told of a drain: only the Welcome of the next one lets it have jobs again.
var errUndrained = status.Error(codes.Unavailable, "the agent is drained no more: it is to come back for jobs")

// DrainAgent keeps new jobs from an agent, which may be away, until UndrainAgent. Jobs that it has begun go on; it is told,
// and refuses what it was asked to take. reason is for people. It returns how many jobs the agent has. What is to hold
// after a restart is Config.Drained.
func (d *Dispatcher) DrainAgent(id, reason string) (jobs int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.drained[id] = reason
	a := d.agents[id]
	if a == nil {
		return 0
	}
	a.drained = true
	a.sendDrain(reason)
	a.offerRoomLocked()
	d.log.Info("agent drained", "agent", a.name, "reason", reason, "jobs", len(a.jobs))
	return len(a.jobs)
}

// UndrainAgent lets a drained agent have jobs again. One that is here is told to come back for a new session; its jobs go
// on meanwhile.
func (d *Dispatcher) UndrainAgent(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.drained, id)
	a := d.agents[id]
	if a == nil || !a.drained {
		return
	}
	a.drained = false
	d.log.Info("agent drained no more", "agent", a.name)
	if s := a.session; s != nil {
		s.end(errUndrained)
		d.detachLocked(a, s)
	}
}

func (a *agent) sendDrain(reason string) {
	a.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Drain{Drain: &fleetv1.Drain{Reason: reason}}})
}

// takesJobs says whether the agent may be given another job.
func (a *agent) takesJobs() bool { return a.session != nil && !a.draining && !a.drained }
