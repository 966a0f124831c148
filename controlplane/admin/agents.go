package admin

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
)

// Drain says that an agent gets no new jobs.
type Drain struct {
	Reason string    `json:"reason,omitempty"`
	By     string    `json:"by"`
	At     time.Time `json:"at"`
}

// Drains keeps which agents are drained. *controlplane.Server is one.
type Drains interface {
	// Drains returns the drained agents by id; the map is the caller's.
	Drains() map[string]Drain
	// Drain keeps new jobs from an agent, for good, and has it in the audit log. It returns how many jobs the agent has.
	Drain(ctx context.Context, agent store.Agent, reason, actor string) (jobs int, err error)
	// Undrain lets it have jobs again, and has it in the audit log. It says no, and nothing changes, if it was not drained.
	Undrain(ctx context.Context, agent store.Agent, actor string) (was bool, err error)
}

// ListAgents lists the members, also those that were not seen since the start, ordered by name.
func (s *service) ListAgents(context.Context, *adminv1.ListAgentsRequest) (*adminv1.ListAgentsResponse, error) {
	agents := map[string]*adminv1.Agent{}
	for _, member := range s.members.Agents() {
		agents[member.ID] = &adminv1.Agent{Id: member.ID, Name: member.Name}
	}
	for _, a := range s.fleet.Agents() {
		agents[a.ID] = &adminv1.Agent{
			Id: a.ID, Name: a.Name, Online: a.Online, LastSeen: timestamp(a.LastSeen), Slots: uint32(a.Slots), UsedSlots: uint32(a.UsedSlots),
			Labels: a.Labels, Executors: a.Executors, Version: a.Version, Draining: a.Draining,
		}
	}
	for id, d := range s.drains.Drains() {
		if a := agents[id]; a != nil {
			a.Draining, a.DrainReason, a.DrainedBy, a.DrainedAt = true, d.Reason, d.By, timestamp(d.At)
		}
	}
	response := new(adminv1.ListAgentsResponse)
	for _, a := range agents {
		response.Agents = append(response.Agents, a)
	}
	slices.SortFunc(response.Agents, func(a, b *adminv1.Agent) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetId(), b.GetId()))
	})
	return response, nil
}

// member returns the member with this name or id.
func (s *service) member(name string) (store.Agent, error) {
	members := s.members.Agents()
	i := slices.IndexFunc(members, func(a store.Agent) bool { return a.Name == name || a.ID == name })
	if i < 0 {
		return store.Agent{}, status.Errorf(codes.NotFound, "there is no agent %q in the fleet; `switchyard agents list` shows those that are", name)
	}
	return members[i], nil
}

// RemoveAgent removes a member by its name or id.
func (s *service) RemoveAgent(ctx context.Context, req *adminv1.RemoveAgentRequest) (*adminv1.RemoveAgentResponse, error) {
	agent, err := s.member(req.GetName())
	if err != nil {
		return nil, err
	}
	if err := s.members.Remove(ctx, agent.ID); err != nil {
		return nil, status.Errorf(codes.Internal, "remove agent %s: %v", agent.Name, err)
	}
	lost := s.fleet.RemoveAgent(agent.ID)
	err = s.record(ctx, req.GetActor(), "agent.remove", agent.Name, fmt.Sprintf("id %s, lost jobs: %d", agent.ID, lost))
	return &adminv1.RemoveAgentResponse{LostJobs: uint32(lost)}, err
}

// DrainAgent drains a member by its name or id.
func (s *service) DrainAgent(ctx context.Context, req *adminv1.DrainAgentRequest) (*adminv1.DrainAgentResponse, error) {
	agent, err := s.member(req.GetName())
	if err != nil {
		return nil, err
	}
	jobs, err := s.drains.Drain(ctx, agent, req.GetReason(), req.GetActor())
	if err != nil {
		return nil, status.Errorf(codes.Internal, "drain agent %s: %v", agent.Name, err)
	}
	return &adminv1.DrainAgentResponse{Jobs: uint32(jobs)}, nil
}

// UndrainAgent ends the drain of a member by its name or id.
func (s *service) UndrainAgent(ctx context.Context, req *adminv1.UndrainAgentRequest) (*adminv1.UndrainAgentResponse, error) {
	agent, err := s.member(req.GetName())
	if err != nil {
		return nil, err
	}
	was, err := s.drains.Undrain(ctx, agent, req.GetActor())
	if err != nil {
		return nil, status.Errorf(codes.Internal, "undrain agent %s: %v", agent.Name, err)
	}
	return &adminv1.UndrainAgentResponse{WasDrained: was}, nil
}

// recordPatience is how long an entry of the audit log may take when nobody waits for the answer any more.
const recordPatience = 10 * time.Second

// record has in the audit log what was done, also if the caller has gone. Its error says that it was done, and is a gRPC
// status.
func (s *service) record(ctx context.Context, actor, action, subject, detail string) error {
	entry := store.AuditEntry{At: time.Now(), Actor: cmp.Or(actor, "unknown"), Action: action, Subject: subject, Detail: detail}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordPatience)
	defer cancel()
	if err := s.policies.Record(ctx, entry); err != nil {
		s.log.ErrorContext(ctx, "the audit log could not be written", slog.String("action", action), slog.String("subject", subject),
			slog.String("actor", entry.Actor), slog.Any("error", err))
		return status.Errorf(codes.Internal, "it is done (%s of %s), but the audit log could not be written: %v", action, subject, err)
	}
	return nil
}
