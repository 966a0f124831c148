package dispatch

import (
	"context"
	"fmt"
	"time"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// A store that was restored from a backup may have a job as claimed that an agent has begun since. Nothing else lets an
// agent say so: a start is persisted before it is sent. Such a job is not offered anew but taken over as it is, if the
// agent is heard of in time.

const (
	// returnPatience is how long a job that a control plane finds unstarted at its start waits for the agent that it was
	// meant for: it may say that the job has begun. An agent tries to come back every 30 s at least.
	returnPatience = 35 * time.Second
	// mostMissed is how many offers of a job a restored store may lack.
	mostMissed = 100
)

// adoptLocked takes over what the agent has begun although the store has it as claimed. true: it is being written down,
// and the agent has to come back when that is done.
func (d *Dispatcher) adoptLocked(a *agent, h *fleetv1.Hello) (busy bool) {
	for _, held := range h.GetJobs() {
		ref := held.GetRef()
		j := d.jobs[ref.GetJob()]
		switch {
		case j == nil || held.GetState() < fleetv1.JobState_JOB_STATE_STARTED:
			continue
		case j.life.adopting && j.life.agent == a.id:
			busy = true
			continue
		case j.life.phase >= started || !j.life.found || ref.GetEpoch() < j.row.Epoch:
			continue
		}
		d.log.Error("an agent has begun a job that is not known as started: the store is a restored backup", "job", ref.GetJob(),
			"gitlab_job", j.row.GitLabJobID, "agent", a.name, "epoch", ref.GetEpoch(), "known_epoch", j.life.epoch)
		if a.lastSeen.IsZero() {
			a.lastSeen = time.Now()
		}
		d.applyLocked(j, event{
			kind: evBegun, agent: a.id, epoch: ref.GetEpoch(), ok: j.life.epoch == j.row.Epoch && j.row.Agent == a.id,
			reason: fmt.Sprintf("the control plane's store was restored from a backup, and agent %s had begun the job", a.name),
		})
		if !j.life.adopting {
			continue
		}
		l, old := &lease{agent: a, runner: j.runner}, j.lease
		j.lease = l
		a.leases[l], j.runner.leases[l] = struct{}{}, struct{}{}
		d.accountLocked(j)
		if old != nil {
			d.releaseLocked(old)
		}
		d.awaitJobLocked(a, j)
		busy = true
	}
	return busy
}

// adopt is what evBegun does: the agent keeps the job if the store can follow, else the job fails; never does it run twice.
// ev.ok says that the agent is the one that the store has for the present epoch.
func (l *life) adopt(ev event) []action {
	missed := ev.epoch - l.epoch
	switch {
	case l.phase >= started:
		return nil
	case l.slot || missed > mostMissed || missed < 0 || missed == 0 && !ev.ok:
		return l.refuse(ev.reason, runnerapi.ReasonRunnerSystem)
	}
	known := l.epoch
	l.phase, l.epoch, l.agent, l.online = started, ev.epoch, ev.agent, false
	l.asked, l.slot, l.confirmed, l.payload = false, true, true, false
	l.adopting, l.adopted = true, true
	l.wakeAt = time.Time{}
	return []action{{kind: actAdopt, agent: ev.agent, epoch: known}, {kind: actDropPayload}}
}

// adopt persists that the job was started with its present epoch; known is that of the store.
func (d *Dispatcher) adopt(ctx context.Context, j *job, known, epoch int64, agent string) error {
	for known < epoch {
		next, err := insist(ctx, j, "persist what an agent has begun", func() (int64, error) {
			return d.cfg.Store.Reoffer(ctx, j.row.ID, known, agent)
		})
		if err != nil {
			return err
		}
		known = next
	}
	return d.start(ctx, j, epoch)
}

// awaitedLocked lets a job wait for the agent that it was meant for before the control plane was started.
func (d *Dispatcher) awaitedLocked(j *job) {
	if j.row.Agent != "" {
		j.life.awaits = true
		d.awaited[j.row.Agent] = append(d.awaited[j.row.Agent], j)
	}
}

// returnedLocked lets the jobs go on that waited for an agent.
func (d *Dispatcher) returnedLocked(a *agent) {
	jobs := d.awaited[a.id]
	delete(d.awaited, a.id)
	for _, j := range jobs {
		d.applyLocked(j, event{kind: evReturned})
	}
}

// returned is what evReturned does.
func (l *life) returned(now time.Time) []action {
	l.awaits = false
	if l.phase != placing || l.slot || l.asked {
		return nil
	}
	l.resumeAt = now
	return l.wait(now)
}

// patience is how long a job that is confirmed waits for an agent that may have begun it.
func (l *life) patience() time.Duration {
	if l.awaits {
		return returnPatience
	}
	return 0
}
