package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
	"github.com/switchyard-ci/switchyard/controlplane/polling"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/usage"
	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// defaultEntries is how many entries of the audit log are returned if the caller does not say.
const defaultEntries = 50

// Policy is a policy of fair usage as it was applied.
type Policy struct {
	Text      string
	Version   int64 // 0: none was ever applied, and the default counts
	AppliedAt time.Time
	AppliedBy string
}

// Policies keeps the policy of fair usage. *controlplane.Server is one.
type Policies interface {
	// Policy returns the policy in force.
	Policy() Policy
	// ApplyPolicy puts a policy in force, at once and for good, and has it in the audit log who did so. name is what its
	// text is called in messages. The error is yamlform.Problems if the text has mistakes; nothing has changed then.
	// Warnings come with both. With check nothing changes either.
	ApplyPolicy(ctx context.Context, name, text, actor string, check bool) (Policy, []yamlform.Problem, error)
	// Audit returns who changed what, the newest first: at most limit entries older than the one with the ID before (0: from
	// the newest).
	Audit(ctx context.Context, before int64, limit int) ([]store.AuditEntry, error)
	// Record appends an entry to the audit log.
	Record(ctx context.Context, e store.AuditEntry) error
}

// Sharing knows who is served next and why. *dispatch.Dispatcher is one.
type Sharing interface {
	// ExplainJob says why a job waits; id is its number in the fleet or at its GitLab. dispatch.ErrUnknownJob,
	// dispatch.ErrAmbiguous.
	ExplainJob(id int64) (dispatch.Explanation, error)
	// ExplainRunner says why a runner does not claim. dispatch.ErrUnknownRunner.
	ExplainRunner(name string) (dispatch.Explanation, error)
	// ExplainProject says why jobs of a project wait; gitlab may be empty if there is one only.
	ExplainProject(gitlab, path string) (dispatch.Explanation, error)
	// Usage returns what projects use, the one that used most in front.
	Usage() []dispatch.UsageRow
}

func (s *service) GetPolicy(context.Context, *adminv1.GetPolicyRequest) (*adminv1.GetPolicyResponse, error) {
	return &adminv1.GetPolicyResponse{Policy: policyMessage(s.policies.Policy())}, nil
}

func (s *service) ApplyPolicy(ctx context.Context, req *adminv1.ApplyPolicyRequest) (*adminv1.ApplyPolicyResponse, error) {
	p, warnings, err := s.policies.ApplyPolicy(ctx, cmp.Or(req.GetName(), "policy"), req.GetText(), req.GetActor(), req.GetCheckOnly())
	response := &adminv1.ApplyPolicyResponse{}
	for _, w := range warnings {
		response.Warnings = append(response.Warnings, w.String())
	}
	if problems, ok := errors.AsType[yamlform.Problems](err); ok {
		for _, problem := range problems {
			response.Problems = append(response.Problems, problem.String())
		}
		response.Policy = policyMessage(s.policies.Policy())
		return response, nil
	}
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	response.Policy = policyMessage(p)
	return response, nil
}

func policyMessage(p Policy) *adminv1.Policy {
	return &adminv1.Policy{Text: p.Text, Version: p.Version, AppliedAt: timestamp(p.AppliedAt), AppliedBy: p.AppliedBy}
}

func (s *service) Explain(_ context.Context, req *adminv1.ExplainRequest) (*adminv1.ExplainResponse, error) {
	var e dispatch.Explanation
	var err error
	switch subject := req.GetSubject().(type) {
	case *adminv1.ExplainRequest_Job:
		e, err = s.sharing.ExplainJob(subject.Job)
	case *adminv1.ExplainRequest_Runner:
		if e, err = s.sharing.ExplainRunner(subject.Runner); err == nil {
			e.Notes = append(e.Notes, s.asked(subject.Runner)...)
		}
	case *adminv1.ExplainRequest_Project:
		e, err = s.sharing.ExplainProject(req.GetGitlab(), subject.Project)
	}
	switch {
	case errors.Is(err, dispatch.ErrUnknownJob), errors.Is(err, dispatch.ErrUnknownRunner):
		return nil, status.Error(codes.NotFound, err.Error())
	case err != nil:
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	response := &adminv1.ExplainResponse{
		Verdict: string(e.Verdict), Sentence: e.Sentence, Notes: e.Notes, Running: uint32(max(e.Running, 0)), Waiting: uint32(max(e.Waiting, 0)),
	}
	for _, r := range e.Reasons {
		m := &adminv1.Reason{
			Cause: string(r.Cause), Node: r.Node, Kind: r.Kind, Running: int64(r.Running), Limit: int64(r.Limit), Count: int64(r.Count), Sentence: r.String(),
		}
		for _, rival := range r.Rivals {
			m.Rivals = append(m.Rivals, &adminv1.Rival{
				Name: rival.Name, Kind: rival.Kind, Running: int64(rival.Running), Weight: rival.Weight, SlotSeconds: rival.SlotSeconds,
			})
		}
		response.Reasons = append(response.Reasons, m)
	}
	return response, nil
}

// asked is what a runner last heard of its GitLab.
func (s *service) asked(name string) []string {
	for _, r := range s.runners.Runners() {
		if r.Polling.Runner == name {
			return askedNotes(time.Now(), r.Polling)
		}
	}
	return nil
}

// hanging is how long GitLab may take to answer a claim, which it does at once, without that being worth a word.
const hanging = 5 * time.Second

func askedNotes(now time.Time, p polling.Status) []string {
	var notes []string
	clock := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case p.Refused:
		notes = append(notes, fmt.Sprintf("GitLab refuses its token since %s: %s.", clock(p.ErrorSince), p.LastError))
	case !p.ErrorSince.IsZero():
		notes = append(notes, fmt.Sprintf("It is in trouble since %s: %s.", clock(p.ErrorSince), p.LastError))
	case p.State == polling.StatePaused:
		notes = append(notes, "It is paused here.")
	}
	if !p.LastEmpty.IsZero() && p.LastEmpty.After(p.LastJob) {
		notes = append(notes, fmt.Sprintf("GitLab was asked last at %s and had no job for it.", clock(p.LastEmpty)))
	}
	if !p.ClaimingSince.IsZero() && now.Sub(p.ClaimingSince) > hanging {
		notes = append(notes, fmt.Sprintf("GitLab has not answered a request for a job that was sent at %s.", clock(p.ClaimingSince)))
	}
	if p.Watching {
		notes = append(notes, "A request is held by GitLab until something changes in its queue.")
	}
	if !p.LastJob.IsZero() {
		notes = append(notes, fmt.Sprintf("The last job came at %s.", clock(p.LastJob)))
	}
	return notes
}

func (s *service) GetUsage(context.Context, *adminv1.GetUsageRequest) (*adminv1.GetUsageResponse, error) {
	response := new(adminv1.GetUsageResponse)
	for _, r := range s.sharing.Usage() {
		response.Projects = append(response.Projects, &adminv1.ProjectUsage{
			Gitlab: r.GitLab, ProjectId: r.ID, ProjectPath: r.Path, Slots: uint32(r.Slots), Waiting: uint32(r.Waiting), Share: r.Share,
			Weight: r.Weight, Guaranteed: uint32(r.Min), SoftQuota: uint32(r.Soft), HardQuota: uint32(r.Hard), Paused: r.Paused,
			Hour: usedMessage(r.Hour), Day: usedMessage(r.Day),
		})
	}
	return response, nil
}

func usedMessage(u usage.Used) *adminv1.Used {
	return &adminv1.Used{SlotSeconds: u.SlotSeconds, Jobs: uint32(u.Jobs), WaitP50: durationpb.New(u.P50), WaitP95: durationpb.New(u.P95)}
}

func (s *service) ListAudit(ctx context.Context, req *adminv1.ListAuditRequest) (*adminv1.ListAuditResponse, error) {
	entries, err := s.policies.Audit(ctx, req.GetBefore(), cmp.Or(int(req.GetLimit()), defaultEntries))
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	response := new(adminv1.ListAuditResponse)
	for _, e := range entries {
		response.Entries = append(response.Entries, &adminv1.AuditEntry{
			Id: e.ID, At: timestamp(e.At), Actor: e.Actor, Action: e.Action, Subject: e.Subject, Detail: e.Detail,
		})
	}
	return response, nil
}
