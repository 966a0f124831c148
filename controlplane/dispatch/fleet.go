package dispatch

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// AgentStatus is a snapshot of one agent.
type AgentStatus struct {
	ID, Name, Version string
	Online            bool
	Draining          bool // it takes no new jobs, by itself or by DrainAgent
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
			ID: a.id, Name: a.name, Version: a.version, Online: a.session != nil, Draining: a.draining || a.drained, LastSeen: a.lastSeen,
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
	all := d.jobSnapshots()
	for i, s := range all { // without the lock: the relay may be waiting for the disk
		p := d.relay.Progress(s.Job, s.Epoch)
		all[i].TraceReceived, all[i].TraceReported = p.Written, p.Reported
	}
	slices.SortFunc(all, func(a, b JobSnapshot) int { return cmp.Compare(a.Job, b.Job) })
	return all
}

func (d *Dispatcher) jobSnapshots() []JobSnapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]JobSnapshot, 0, len(d.jobs))
	for id, j := range d.jobs {
		s := JobSnapshot{
			Job: id, Epoch: j.life.epoch, GitLabJobID: j.row.GitLabJobID, State: j.life.phase.String(), Runner: j.runner.Name,
			ProjectPath: j.row.Envelope.ProjectPath, JobName: j.row.Envelope.JobName, ClaimedAt: j.row.ClaimedAt, StartedAt: j.begun,
		}
		if j.holder != nil {
			s.Agent = j.holder.name
		}
		all = append(all, s)
	}
	return all
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
