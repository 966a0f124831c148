//go:build unix

package admin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/switchyard-ci/switchyard/controlplane/admin"
	"github.com/switchyard-ci/switchyard/controlplane/polling"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/tokens"
	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
)

func TestRunners(t *testing.T) {
	folder := t.TempDir()
	now := time.Now().UTC()
	list := []admin.RunnerStatus{
		{
			Polling: polling.Status{
				Runner: "b", State: polling.StateError, Refused: true, LastError: "403", LastErrorAt: now, ErrorSince: now.Add(-time.Hour), RetryAt: now.Add(time.Minute),
				LastContact: now.Add(-time.Hour), LastJob: now.Add(-2 * time.Hour), Watching: true,
				Counters: polling.Counters{Claims: 1, Jobs: 2, Empty: 3, Conflicts: 4, Watches: 5, WatchJobs: 6, Verifies: 7, Throttled: 8, Errors: 9},
			},
			URL: "https://gitlab.example.com", Executor: "docker", GitLabID: 7, Limit: 3, Jobs: 1, Slots: 2, TwoPhase: "on", ShortToken: "abcdefghi",
			Token:            tokens.Status{Rotated: true, ObtainedAt: now, ExpiresAt: now.Add(time.Hour), RotateAt: now.Add(time.Minute), Lost: true, Problem: "lost"},
			UnreachableSince: now,
		},
	}
	want := map[polling.State]string{
		polling.StateStarting: "starting", polling.StateDirty: "online", polling.StateClean: "online", polling.StatePaused: "paused",
		polling.StateError: "trouble", polling.StateStopping: "stopping",
	}
	for state := range want {
		list = append(list, admin.RunnerStatus{Polling: polling.Status{Runner: string(state), State: state}})
	}
	serve(t, folder, members{}, fleet{}, runners{list: list}, slog.New(slog.DiscardHandler))
	answer, err := dial(t, folder).ListRunners(t.Context(), &adminv1.ListRunnersRequest{})
	require.NoError(t, err)
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(d)) }
	requireProto(t, &adminv1.Runner{
		Name: "b", Url: "https://gitlab.example.com", Executor: "docker", GitlabId: 7, State: "refused", LastError: "403", LastErrorAt: at(0),
		TroubleSince: at(-time.Hour), RetryAt: at(time.Minute), LastContact: at(-time.Hour), LastJob: at(-2 * time.Hour), Jobs: 1, Slots: 2, Limit: 3,
		Watching: true, TwoPhaseCommit: "on", UnreachableSince: at(0),
		Counters: &adminv1.RunnerCounters{Claims: 1, Jobs: 2, Empty: 3, Conflicts: 4, Watches: 5, WatchJobs: 6, Verifies: 7, Throttled: 8, Errors: 9},
		Token: &adminv1.RunnerToken{
			Short: "abcdefghi", Rotated: true, ObtainedAt: at(0), ExpiresAt: at(time.Hour), RotateAt: at(time.Minute), Lost: true, Problem: "lost",
		},
	}, answer.GetRunners()[0])
	for _, r := range answer.GetRunners()[1:] {
		require.Equal(t, want[polling.State(r.GetName())], r.GetState())
	}
}

func TestRotateRunnerToken(t *testing.T) {
	folder := t.TempDir()
	log := new(bytes.Buffer)
	waiting := make(chan struct{})
	list := []admin.RunnerStatus{
		{Polling: polling.Status{Runner: "good"}, ShortToken: "new"},
		{Polling: polling.Status{Runner: "bad"}, Token: tokens.Status{Problem: "403; do this"}},
		{Polling: polling.Status{Runner: "odd"}},
	}
	var audit []store.AuditEntry
	stop := serve(t, folder, members{}, fleet{}, runners{list: list, policies: policies{&audit}, rotate: func(ctx context.Context, runner string) error {
		switch runner {
		case "good":
			return nil
		case "bad", "odd":
			return errors.New("403")
		case "slow":
			close(waiting)
			<-ctx.Done()
			return ctx.Err()
		}
		return fmt.Errorf("runner %q: %w", runner, admin.ErrUnknownRunner)
	}}, slog.New(slog.NewTextHandler(log, nil)))
	client := dial(t, folder)
	rotate := func(ctx context.Context, runner string) (*adminv1.RunnerToken, error) {
		answer, err := client.RotateRunnerToken(ctx, &adminv1.RotateRunnerTokenRequest{Runner: runner, Actor: "ada"})
		return answer.GetToken(), err
	}
	token, err := rotate(t.Context(), "good")
	require.NoError(t, err)
	require.Equal(t, "new", token.GetShort())
	for runner, want := range map[string]struct {
		code codes.Code
		text string
	}{
		"bad":     {codes.FailedPrecondition, "403; do this"},
		"odd":     {codes.FailedPrecondition, "403"},
		"unknown": {codes.NotFound, `runner "unknown": no such runner is configured`},
		"":        {codes.InvalidArgument, "runner: "},
	} {
		_, err := rotate(t.Context(), runner)
		require.Equal(t, want.code, status.Code(err), runner)
		require.Contains(t, status.Convert(err).Message(), want.text)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-waiting
		cancel()
	}()
	_, err = rotate(ctx, "slow")
	require.Equal(t, codes.Canceled, status.Code(err))
	stop()
	require.Equal(t, 1, bytes.Count(log.Bytes(), []byte("as asked for")))
	require.Len(t, audit, 1)
	require.Equal(t, []string{"ada", "runner_token.rotate", "good"}, []string{audit[0].Actor, audit[0].Action, audit[0].Subject})
}
