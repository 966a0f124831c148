package dispatch

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// AgentStatus is a snapshot of one agent.
type AgentStatus struct {
	ID, Name, Version string
	Online, Draining  bool
	LastSeen          time.Time
	Slots, UsedSlots  int
	Labels            map[string]string
	Executors         []string
}

// Agents returns the agents that are here or still hold a job, ordered by name.
func (d *Dispatcher) Agents() []AgentStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]AgentStatus, 0, len(d.agents))
	for _, a := range d.agents {
		s := AgentStatus{
			ID: a.id, Name: a.name, Version: a.version, Online: a.session != nil, Draining: a.draining, LastSeen: a.lastSeen,
			Slots: a.slots, UsedSlots: len(a.leases), Labels: a.labels, Executors: slices.Sorted(maps.Keys(a.executors)),
		}
		if a.session != nil {
			s.LastSeen = a.session.lastHeard()
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b AgentStatus) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// JobSnapshot is a snapshot of one job that is here.
type JobSnapshot struct {
	Job, Epoch, GitLabJobID int64
	State                   string
	Runner, Agent           string
	ProjectPath, JobName    string
	ClaimedAt, StartedAt    time.Time
	TraceReceived           int64
	TraceReported           int64
}

// Jobs returns the jobs that are claimed and not yet reported, ordered by id.
func (d *Dispatcher) Jobs() []JobSnapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]JobSnapshot, 0, len(d.jobs))
	for id, j := range d.jobs {
		s := JobSnapshot{
			Job: id, Epoch: j.life.epoch, GitLabJobID: j.row.GitLabJobID, State: j.life.phase.String(), Runner: j.runner.Name,
			ProjectPath: j.row.Envelope.ProjectPath, JobName: j.row.Envelope.JobName, ClaimedAt: j.row.ClaimedAt, StartedAt: j.begun,
		}
		if a := d.agents[j.life.agent]; a != nil {
			s.Agent = a.name
		}
		if j.life.phase >= started && d.relay != nil {
			p := d.relay.Progress(id, j.life.epoch)
			s.TraceReceived, s.TraceReported = p.Written, p.Reported
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b JobSnapshot) int { return int(a.Job - b.Job) })
	return all
}

// Info returns what GitLab is to be told of a runner: the control plane's own part and the features that all agents
// have which may serve it. With no such agent at hand it is what any agent can do.
func (d *Dispatcher) Info(name string) runnerapi.Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.runners[name]
	if r == nil {
		return runnerapi.Info{}
	}
	info := r.Info
	info.Executor = r.Executor
	if r.pool.stale {
		d.describeLocked(r.pool)
	}
	if r.pool.features != nil {
		info.Features = info.Features.Union(*r.pool.features)
		info.Shell, info.Platform, info.Architecture = r.pool.shell, r.pool.os, r.pool.arch
	}
	return info
}

// Slots returns how many jobs the runner can have at once: its limit or what its agents have, whichever is less.
func (d *Dispatcher) Slots(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.runners[name]
	if r == nil {
		return 0
	}
	if r.pool.stale {
		d.describeLocked(r.pool)
	}
	if r.Limit > 0 {
		return min(r.Limit, r.pool.slots)
	}
	return r.pool.slots
}

// describeLocked works out what all agents of a pool have in common. A pool that has lost its last agent keeps what it
// said before, so that what GitLab is told does not flicker.
func (d *Dispatcher) describeLocked(p *pool) {
	p.stale, p.slots = false, 0
	first := true
	for id := range p.agents.Agents {
		a := d.agents[id]
		if a.session == nil {
			continue
		}
		p.slots += a.slots
		e := a.executors[p.executor]
		f := runnerapi.FeaturesOf(e.GetFeatures())
		if first {
			p.features, p.shell, p.os, p.arch = &f, e.GetShell(), a.os, a.arch
			first = false
			continue
		}
		f = f.Intersection(*p.features)
		p.features = &f
		p.shell, p.os, p.arch = same(p.shell, e.GetShell()), same(p.os, a.os), same(p.arch, a.arch)
	}
}

func same(a, b string) string {
	if a == b {
		return a
	}
	return ""
}

func (a *agent) send(m *fleetv1.SessionResponse) {
	if a != nil && a.session != nil {
		a.session.send(m)
	}
}

func (a *agent) sendWithdraw(ref *fleetv1.JobRef, reason string) {
	a.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Withdraw{Withdraw: &fleetv1.Withdraw{Ref: ref, Reason: reason}}})
}

func (a *agent) sendAck(ref *fleetv1.JobRef, state store.JobState) {
	s := fleetv1.JobState_JOB_STATE_STARTED
	if state == store.JobFinished {
		s = fleetv1.JobState_JOB_STATE_FINISHED
	}
	a.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_ReportAck{ReportAck: &fleetv1.ReportAck{Ref: ref, State: s}}})
}

func (a *agent) sendForget(ref *fleetv1.JobRef) {
	a.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Forget{Forget: &fleetv1.Forget{Ref: ref}}})
}
