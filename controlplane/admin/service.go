// Package admin is the control plane's side of AdminService and the way to it: a socket in the data folder that only its
// owner can open.
package admin

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
	"github.com/switchyard-ci/switchyard/controlplane/grpcserver"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

// Defaults of CreateJoinToken.
const (
	defaultUses = 1
	defaultTTL  = time.Hour
)

// Members knows who belongs to the fleet. *enrollment.Authority is one.
type Members interface {
	// NewJoinToken makes a token for so many agents and so long.
	NewJoinToken(ctx context.Context, uses int, ttl time.Duration) (jointoken.Token, store.JoinToken, error)
	// Agents returns all members, in any order.
	Agents() []store.Agent
	// Remove puts an agent out of the fleet: its calls are refused from now on.
	Remove(ctx context.Context, agentID string) error
}

// Fleet knows what goes on. *dispatch.Dispatcher is one.
type Fleet interface {
	Sharing
	// Agents returns the agents that are here or hold jobs.
	Agents() []dispatch.AgentStatus
	// RemoveAgent ends the session of an agent that is no member any more and returns how many jobs it had begun.
	RemoveAgent(id string) (lost int)
	// Jobs returns the jobs that are claimed and not yet reported, ordered by id.
	Jobs() []dispatch.JobSnapshot
}

// Plane is the control plane itself. *controlplane.Server is one.
type Plane interface {
	Runners
	Policies
	Drains
}

// NewServer makes a server for AdminService. It asks nobody who he is: serve it on a listener of Listen only.
func NewServer(members Members, fleet Fleet, plane Plane, log *slog.Logger) (*grpc.Server, error) {
	server, err := grpcserver.New(grpcserver.Options{Log: log})
	if err != nil {
		return nil, err
	}
	adminv1.RegisterAdminServiceServer(server, &service{members: members, fleet: fleet, sharing: fleet, runners: plane, policies: plane, drains: plane, log: log})
	return server, nil
}

type service struct {
	adminv1.UnimplementedAdminServiceServer

	members  Members
	fleet    Fleet
	sharing  Sharing
	runners  Runners
	policies Policies
	drains   Drains
	log      *slog.Logger
}

func (s *service) CreateJoinToken(ctx context.Context, req *adminv1.CreateJoinTokenRequest) (*adminv1.CreateJoinTokenResponse, error) {
	uses := cmp.Or(int(req.GetUses()), defaultUses)
	ttl := cmp.Or(req.GetTtl().AsDuration(), defaultTTL)
	token, stored, err := s.members.NewJoinToken(ctx, uses, ttl)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	detail := fmt.Sprintf("uses: %d, expires: %s", stored.Uses, stored.ExpiresAt.UTC().Format(time.RFC3339))
	if err := s.record(ctx, req.GetActor(), "join_token.make", stored.ID, detail); err != nil {
		return nil, err
	}
	s.log.InfoContext(ctx, "join token made", slog.String("join_token", stored.ID), slog.Int("uses", stored.Uses), slog.Time("expires", stored.ExpiresAt))
	return &adminv1.CreateJoinTokenResponse{Token: token.String(), ExpiresAt: timestamppb.New(stored.ExpiresAt)}, nil
}

func (s *service) ListJobs(context.Context, *adminv1.ListJobsRequest) (*adminv1.ListJobsResponse, error) {
	response := new(adminv1.ListJobsResponse)
	for _, j := range s.fleet.Jobs() {
		response.Jobs = append(response.Jobs, &adminv1.Job{
			Job: j.Job, Epoch: j.Epoch, State: j.State, Runner: j.Runner, Agent: j.Agent, GitlabJobId: j.GitLabJobID,
			ProjectPath: j.ProjectPath, JobName: j.JobName, ClaimedAt: timestamp(j.ClaimedAt), StartedAt: timestamp(j.StartedAt),
			TraceReceived: j.TraceReceived, TraceReported: j.TraceReported,
		})
	}
	return response, nil
}

// timestamp is nil for no time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
