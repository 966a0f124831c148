package dispatch

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

var errRemoved = status.Error(codes.PermissionDenied,
	"the agent was removed from the fleet; to let it join again, stop it, empty its data folder and give it a new token from `switchyard agents token`")

// RemoveAgent ends the session of an agent that Config.Identity does not know any more. It is told to stop its jobs, and
// those that were started are reported as failed at once: who removes an agent says that nobody waits for it. Others go to
// another agent. It returns how many jobs were lost.
func (d *Dispatcher) RemoveAgent(id string) (lost int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.agents[id]
	if a == nil {
		return 0
	}
	jobs := slices.Collect(maps.Values(a.jobs))
	for _, j := range jobs {
		ref := &fleetv1.JobRef{Job: j.row.ID, Epoch: j.life.epoch}
		if j.life.phase < started {
			a.sendWithdraw(ref, "the agent was removed from the fleet")
		} else {
			a.sendForget(ref)
		}
	}
	if s := a.session; s != nil {
		s.end(errRemoved)
		d.detachLocked(a, s)
	}
	if a.trace != nil {
		a.trace.end(errRemoved)
	}
	for _, j := range jobs {
		if j.life.phase == started {
			lost++
		}
		d.applyLocked(j, event{kind: evLost, agent: id, reason: fmt.Sprintf("agent %s was removed from the fleet by an administrator while it had the job", a.name)})
	}
	d.log.Info("agent removed", "agent", a.name, "lost_jobs", lost)
	return lost
}
