package dispatch

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// agent is what the dispatcher knows of an enrolled agent that it has heard of since its start, or that still holds a
// job. All of it is guarded by the dispatcher's lock.
type agent struct {
	id, name  string
	bootID    string
	hostID    string
	hostname  string
	version   string
	os, arch  string
	labels    map[string]string
	executors map[string]executor
	slots     int
	draining  bool // it says so itself
	drained   bool // by DrainAgent

	session       *session // nil while it is away
	lastSeen      time.Time
	leases        map[*lease]struct{}
	jobs          map[int64]*job // those whose current epoch is for it, reported ones excluded
	pools         []*pool        // while it is here
	poolNames     []string       // theirs
	protectedOnly bool           // it takes jobs of protected refs only
	lost          loss           // runs while it is away with jobs
	unheard       bool           // it has not been here since the control plane was started
	trace         *traceStream
}

func (d *Dispatcher) agentLocked(id, name string) *agent {
	a := d.agents[id]
	if a == nil {
		a = &agent{id: id, leases: make(map[*lease]struct{}), jobs: make(map[int64]*job)}
		_, a.drained = d.drained[id]
		d.agents[id] = a
	}
	a.name = name
	return a
}

// attachLocked makes s the session of an agent that has none and answers for every job that the agent holds.
func (d *Dispatcher) attachLocked(a *agent, s *session, h *fleetv1.Hello) {
	a.session, a.lastSeen, a.unheard = s, time.Now(), false
	a.bootID, a.hostID, a.hostname = h.GetBootId(), h.GetHostId(), h.GetHostname()
	a.version, a.os, a.arch = h.GetVersion(), h.GetOs(), h.GetArch()
	a.labels, a.slots, a.draining = h.GetLabels(), int(h.GetSlots()), h.GetDraining()
	a.executors, a.protectedOnly = executorsOf(h), h.GetProtectedOnly()
	w := &fleetv1.Welcome{
		SessionId:  s.id,
		Protocol:   protocolVersion,
		PingPeriod: durationpb.New(d.cfg.PingPeriod),
		StopAfter:  durationpb.New(d.stopAfterLocked(a)),
		AgentName:  a.name,
	}
	listed := make(map[int64]store.JobState, len(h.GetJobs()))
	for _, held := range h.GetJobs() {
		v := d.verdictLocked(a, held)
		w.Jobs = append(w.Jobs, v)
		if v.GetVerdict() == fleetv1.Verdict_VERDICT_KEEP {
			listed[held.GetRef().GetJob()] = heldState(held.GetState())
		}
	}
	s.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Welcome{Welcome: w}})
	if a.drained {
		a.sendDrain(d.drained[a.id])
	}
	d.joinPoolsLocked(a)
	for _, j := range slices.Collect(maps.Values(a.jobs)) {
		if j.mayBeElsewhere(a.hostID) && listed[j.row.ID] == "" {
			continue // it may still run where the agent was: only the lease ends it there
		}
		j.hereLocked(a)
		d.applyLocked(j, event{
			kind: evUp, agent: a.id, state: listed[j.row.ID],
			reason: fmt.Sprintf("agent %s came back without the job: it was restarted before the job began, or its data folder was lost", a.name),
		})
	}
	for _, held := range h.GetJobs() { // results that were found while the agent was away
		j := a.jobs[held.GetRef().GetJob()]
		if j != nil && listed[j.row.ID] == store.JobFinished && held.GetState() == fleetv1.JobState_JOB_STATE_FINISHED && held.GetResult() != nil {
			d.applyLocked(j, event{
				kind: evReport, agent: a.id, epoch: held.GetRef().GetEpoch(),
				state: store.JobFinished, result: storeResult(held.GetResult()),
			})
		}
	}
	d.awaitLocked(a)
	d.returnedLocked(a)
	d.roomLocked(a)
}

// verdictLocked answers for one job that an agent says it holds.
func (d *Dispatcher) verdictLocked(a *agent, held *fleetv1.HeldJob) *fleetv1.JobVerdict {
	ref := held.GetRef()
	v := &fleetv1.JobVerdict{Ref: ref, Verdict: fleetv1.Verdict_VERDICT_KEEP}
	j := d.jobs[ref.GetJob()]
	switch {
	case j == nil && held.GetState() >= fleetv1.JobState_JOB_STATE_FINISHED:
		v.Verdict = fleetv1.Verdict_VERDICT_FORGET
	case j == nil:
		v.Verdict = fleetv1.Verdict_VERDICT_KILL
	case j.life.epoch != ref.GetEpoch() || j.life.agent != a.id:
		v.Verdict = fleetv1.Verdict_VERDICT_KILL
	case j.life.phase < started, j.life.concluded():
		// A promise that belongs to a session which is gone: the job is offered anew. Or the job was given up.
		v.Verdict = fleetv1.Verdict_VERDICT_KILL
	case j.isElsewhere(a.hostID) && j.life.phase == started && held.GetState() >= fleetv1.JobState_JOB_STATE_FINISHED:
		// What a copy of the data folder says of a process that is not on its host is worth nothing.
		v.Verdict = fleetv1.Verdict_VERDICT_KILL
	default:
		v.Received = d.relay.Progress(ref.GetJob(), ref.GetEpoch()).Received
		if j.life.cancel != cancelNone {
			v.Cancel = &fleetv1.Cancel{Ref: ref, Mode: j.life.cancel.proto()}
		}
	}
	return v
}

// detachLocked ends an agent's session; it does nothing if another one has taken its place.
func (d *Dispatcher) detachLocked(a *agent, s *session) {
	if a.session != s {
		return
	}
	a.session = nil
	a.lastSeen = s.lastHeard()
	a.leavePoolsLocked()
	for _, j := range slices.Collect(maps.Values(a.jobs)) {
		if j.awayAt.IsZero() {
			j.awayAt = a.lastSeen
		}
		d.applyLocked(j, event{kind: evDown, agent: a.id})
	}
	d.awaitLocked(a)
	d.forgetLocked(a)
}

// forgetLocked drops what is known of an agent that is away and holds nothing.
func (d *Dispatcher) forgetLocked(a *agent) {
	if a.session != nil || a.trace != nil || len(a.jobs) > 0 || len(a.leases) > 0 || d.agents[a.id] != a {
		return
	}
	a.lost.stop()
	delete(d.agents, a.id)
}

// heldState is the store's word for how far an agent has come with a job that it may keep.
func heldState(s fleetv1.JobState) store.JobState {
	switch {
	case s >= fleetv1.JobState_JOB_STATE_FINISHED:
		return store.JobFinished
	case s == fleetv1.JobState_JOB_STATE_STARTED:
		return store.JobStarted
	default:
		return store.JobClaimed
	}
}

func (m cancelMode) proto() fleetv1.CancelMode {
	if m == cancelKill {
		return fleetv1.CancelMode_CANCEL_MODE_KILL
	}
	return fleetv1.CancelMode_CANCEL_MODE_GRACEFUL
}

func storeResult(r *fleetv1.Result) *store.Result {
	return &store.Result{
		State: r.GetState(), FailureReason: r.GetFailureReason(), ExitCode: int(r.GetExitCode()), Message: r.GetMessage(),
		TraceLength: r.GetTraceLength(), TraceCRC32: r.GetTraceCrc32(),
		StartedAt: r.GetStartedAt().AsTime(), FinishedAt: r.GetFinishedAt().AsTime(),
	}
}
