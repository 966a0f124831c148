//go:build unix

package admin_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/controlplane/admin"
	"github.com/switchyard-ci/switchyard/controlplane/allocation"
	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
	"github.com/switchyard-ci/switchyard/controlplane/polling"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/usage"
	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// sharing is a Sharing that knows one of each.
type sharing struct{ rows []dispatch.UsageRow }

var why = dispatch.Explanation{
	Explanation: allocation.Explanation{
		Verdict: allocation.Blocked, Sentence: "It waits.", Running: 2, Waiting: 3,
		Reasons: []allocation.Reason{{
			Cause: allocation.HardQuota, Node: "https://gitlab.example.com/group", Kind: "group", Running: 2, Limit: 2,
			Rivals: []allocation.Rival{{Name: "other", Kind: "project", Running: 1, Weight: 2, SlotSeconds: 60}},
		}},
	},
	Notes: []string{"A note."},
}

func (sharing) ExplainJob(id int64) (dispatch.Explanation, error) {
	switch id {
	case 7:
		return why, nil
	case 8:
		return dispatch.Explanation{}, fmt.Errorf("explain job 8: %w", dispatch.ErrAmbiguous)
	}
	return dispatch.Explanation{}, fmt.Errorf("explain job %d: %w", id, dispatch.ErrUnknownJob)
}

func (sharing) ExplainRunner(name string) (dispatch.Explanation, error) {
	if name != "runner" {
		return dispatch.Explanation{}, fmt.Errorf("explain runner %q: %w", name, dispatch.ErrUnknownRunner)
	}
	return why, nil
}

func (sharing) ExplainProject(gitlab, path string) (dispatch.Explanation, error) {
	e := why
	e.Sentence = gitlab + " " + path
	return e, nil
}

func (s sharing) Usage() []dispatch.UsageRow { return s.rows }

// policies is a Policies that takes every text but one, and keeps what is recorded.
type policies struct{ recorded *[]store.AuditEntry }

func (policies) Policy() admin.Policy {
	return admin.Policy{Text: "share: fair", Version: 3, AppliedBy: "ada"}
}

func (policies) ApplyPolicy(_ context.Context, name, text, actor string, check bool) (admin.Policy, []yamlform.Problem, error) {
	warnings := []yamlform.Problem{{File: name, Message: "a warning"}}
	if text == "bad" {
		return admin.Policy{}, warnings, yamlform.Problems{{File: name, Line: 2, Column: 1, Field: "share", Message: "is wrong"}}
	}
	if check {
		return policies{}.Policy(), warnings, nil
	}
	return admin.Policy{Text: text, Version: 4, AppliedAt: time.Unix(1, 0), AppliedBy: actor}, warnings, nil
}

func (policies) Audit(_ context.Context, before int64, limit int) ([]store.AuditEntry, error) {
	return []store.AuditEntry{{ID: before - 1, At: time.Unix(2, 0), Actor: "ada", Action: "policy.apply", Subject: "policy", Detail: fmt.Sprint(limit)}}, nil
}

var errNoAudit = errors.New("the disk is full")

func (p policies) Record(_ context.Context, e store.AuditEntry) error {
	if p.recorded == nil {
		return errNoAudit
	}
	*p.recorded = append(*p.recorded, e)
	return nil
}

func TestPolicies(t *testing.T) {
	folder := t.TempDir()
	serve(t, folder, members{}, fleet{}, runners{}, slog.New(slog.DiscardHandler))
	client := dial(t, folder)
	got, err := client.GetPolicy(t.Context(), &adminv1.GetPolicyRequest{})
	require.NoError(t, err)
	require.EqualValues(t, 3, got.GetPolicy().GetVersion())
	require.Nil(t, got.GetPolicy().GetAppliedAt())

	applied, err := client.ApplyPolicy(t.Context(), &adminv1.ApplyPolicyRequest{Text: "share: fifo", Name: "p.yaml", Actor: "grace"})
	require.NoError(t, err)
	require.EqualValues(t, 4, applied.GetPolicy().GetVersion())
	require.Equal(t, "grace", applied.GetPolicy().GetAppliedBy())
	require.Equal(t, []string{"p.yaml: a warning"}, applied.GetWarnings())
	require.Empty(t, applied.GetProblems())

	applied, err = client.ApplyPolicy(t.Context(), &adminv1.ApplyPolicyRequest{Text: "bad", Name: "p.yaml", Actor: "grace"})
	require.NoError(t, err)
	require.Equal(t, []string{"p.yaml:2:1: share: is wrong"}, applied.GetProblems())
	require.EqualValues(t, 3, applied.GetPolicy().GetVersion(), "nothing has changed")

	_, err = client.ApplyPolicy(t.Context(), &adminv1.ApplyPolicyRequest{Text: "share: fifo"})
	require.Equal(t, codes.InvalidArgument, status.Code(err), "somebody must have done it")

	log, err := client.ListAudit(t.Context(), &adminv1.ListAuditRequest{Before: 10})
	require.NoError(t, err)
	require.EqualValues(t, 9, log.GetEntries()[0].GetId())
	require.Equal(t, "50", log.GetEntries()[0].GetDetail())
}

func TestExplain(t *testing.T) {
	folder := t.TempDir()
	at := time.Date(2026, 5, 1, 10, 0, 0, 0, time.UTC)
	serve(t, folder, members{}, fleet{}, runners{list: []admin.RunnerStatus{{Polling: polling.Status{
		Runner: "runner", State: polling.StateClean, LastJob: at, LastEmpty: at.Add(time.Minute), Watching: true, ClaimingSince: at.Add(2 * time.Minute),
	}}}}, slog.New(slog.DiscardHandler))
	client := dial(t, folder)

	got, err := client.Explain(t.Context(), &adminv1.ExplainRequest{Subject: &adminv1.ExplainRequest_Job{Job: 7}})
	require.NoError(t, err)
	require.Equal(t, "blocked", got.GetVerdict())
	require.Equal(t, "It waits.", got.GetSentence())
	require.Equal(t, []string{"A note."}, got.GetNotes())
	require.EqualValues(t, 2, got.GetReasons()[0].GetLimit())
	require.Contains(t, got.GetReasons()[0].GetSentence(), "uses 2 of the 2 slots of its quota")
	require.Equal(t, "other", got.GetReasons()[0].GetRivals()[0].GetName())

	got, err = client.Explain(t.Context(), &adminv1.ExplainRequest{Subject: &adminv1.ExplainRequest_Runner{Runner: "runner"}})
	require.NoError(t, err)
	require.Equal(t, []string{
		"A note.", "GitLab was asked last at 2026-05-01T10:01:00Z and had no job for it.",
		"GitLab has not answered a request for a job that was sent at 2026-05-01T10:02:00Z.",
		"A request is held by GitLab until something changes in its queue.", "The last job came at 2026-05-01T10:00:00Z.",
	}, got.GetNotes())

	got, err = client.Explain(t.Context(), &adminv1.ExplainRequest{Subject: &adminv1.ExplainRequest_Project{Project: "a/b"}, Gitlab: "https://g"})
	require.NoError(t, err)
	require.Equal(t, "https://g a/b", got.GetSentence())

	for want, req := range map[codes.Code]*adminv1.ExplainRequest{
		codes.NotFound:           {Subject: &adminv1.ExplainRequest_Job{Job: 1}},
		codes.FailedPrecondition: {Subject: &adminv1.ExplainRequest_Job{Job: 8}},
		codes.InvalidArgument:    {},
	} {
		_, err = client.Explain(t.Context(), req)
		require.Equal(t, want, status.Code(err), "%v", err)
	}
}

func TestUsage(t *testing.T) {
	folder := t.TempDir()
	serve(t, folder, members{}, fleet{sharing: sharing{rows: []dispatch.UsageRow{{
		Row: usage.Row{
			Project: usage.Project{GitLab: "https://g", ID: 5}, Path: "a/b", Slots: 2,
			Hour: usage.Used{SlotSeconds: 90, Jobs: 3, P50: time.Second, P95: time.Minute},
		},
		Waiting: 4, Weight: 2, Share: 0.25, Hard: 6,
	}}}}, runners{}, slog.New(slog.DiscardHandler))
	got, err := dial(t, folder).GetUsage(t.Context(), &adminv1.GetUsageRequest{})
	require.NoError(t, err)
	p := got.GetProjects()[0]
	require.Equal(t, "a/b", p.GetProjectPath())
	require.EqualValues(t, 4, p.GetWaiting())
	require.EqualValues(t, 6, p.GetHardQuota())
	require.InDelta(t, 90, p.GetHour().GetSlotSeconds(), 0)
	require.Equal(t, time.Minute, p.GetHour().GetWaitP95().AsDuration())
}
