package admin

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/controlplane/polling"
	"github.com/switchyard-ci/switchyard/controlplane/tokens"
	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
)

// ErrUnknownRunner is returned for a runner that is not in the configuration.
var ErrUnknownRunner = errors.New("no such runner is configured")

// Runners knows the configured runners. *controlplane.Server is one.
type Runners interface {
	// Runners returns what is known of each, in the order of the configuration.
	Runners() []RunnerStatus
	// RotateToken gives a runner a new token and returns when it is in use. ErrUnknownRunner.
	RotateToken(ctx context.Context, runner string) error
}

// RunnerStatus is a runner at one moment.
type RunnerStatus struct {
	Polling          polling.Status // has its name
	URL, Executor    string
	GitLabID         int64 // 0: not known yet
	Limit            int   // 0: none
	Jobs, Slots      int
	TwoPhase         string // on, off or unknown
	Token            tokens.Status
	ShortToken       string
	UnreachableSince time.Time // zero: requests to its GitLab are not held back
}

func (s *service) ListRunners(context.Context, *adminv1.ListRunnersRequest) (*adminv1.ListRunnersResponse, error) {
	response := new(adminv1.ListRunnersResponse)
	for _, r := range s.runners.Runners() {
		response.Runners = append(response.Runners, runnerMessage(r))
	}
	return response, nil
}

func (s *service) RotateRunnerToken(ctx context.Context, req *adminv1.RotateRunnerTokenRequest) (*adminv1.RotateRunnerTokenResponse, error) {
	name := req.GetRunner()
	err := s.runners.RotateToken(ctx, name)
	switch {
	case errors.Is(err, ErrUnknownRunner):
		return nil, status.Error(codes.NotFound, err.Error())
	case ctx.Err() != nil && err != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	response := new(adminv1.RotateRunnerTokenResponse)
	for _, r := range s.runners.Runners() {
		if r.Polling.Runner == name {
			response.Token = tokenMessage(r)
		}
	}
	if err != nil {
		text := err.Error()
		if p := response.GetToken().GetProblem(); p != "" {
			text = p // the same, with the way out
		}
		return nil, status.Error(codes.FailedPrecondition, text)
	}
	s.log.InfoContext(ctx, "a runner's token was replaced as asked for", slog.String("runner", name))
	return response, s.record(ctx, req.GetActor(), "runner_token.rotate", name, "")
}

func runnerMessage(r RunnerStatus) *adminv1.Runner {
	p := r.Polling
	return &adminv1.Runner{
		Name: p.Runner, Url: r.URL, Executor: r.Executor, GitlabId: r.GitLabID, State: runnerState(p),
		LastError: p.LastError, LastErrorAt: timestamp(p.LastErrorAt), TroubleSince: timestamp(p.ErrorSince), RetryAt: timestamp(p.RetryAt),
		LastContact: timestamp(p.LastContact), LastJob: timestamp(p.LastJob), Jobs: uint32(r.Jobs), Slots: uint32(r.Slots), Limit: uint32(r.Limit),
		Watching: p.Watching, TwoPhaseCommit: r.TwoPhase, UnreachableSince: timestamp(r.UnreachableSince), Token: tokenMessage(r),
		Counters: &adminv1.RunnerCounters{
			Claims: p.Counters.Claims, Jobs: p.Counters.Jobs, WatchJobs: p.Counters.WatchJobs, Empty: p.Counters.Empty,
			Conflicts: p.Counters.Conflicts, Watches: p.Counters.Watches, Verifies: p.Counters.Verifies,
			Throttled: p.Counters.Throttled, Errors: p.Counters.Errors,
		},
	}
}

func tokenMessage(r RunnerStatus) *adminv1.RunnerToken {
	t := r.Token
	return &adminv1.RunnerToken{
		Short: r.ShortToken, Rotated: t.Rotated, ObtainedAt: timestamp(t.ObtainedAt), ExpiresAt: timestamp(t.ExpiresAt),
		RotateAt: timestamp(t.RotateAt), Lost: t.Lost, Problem: t.Problem,
	}
}

// runnerState is a poller's state in the words of people who do not know how it works.
func runnerState(p polling.Status) string {
	switch p.State {
	case polling.StateDirty, polling.StateClean:
		return "online"
	case polling.StateError:
		if p.Refused {
			return "refused"
		}
		return "trouble"
	default:
		return string(p.State)
	}
}
