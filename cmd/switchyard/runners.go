package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
)

type runnersCmd struct {
	List       runnersListCmd       `cmd:"" help:"List the runners of the running control plane, and how they do."`
	Verify     runnersVerifyCmd     `cmd:"" help:"Ask GitLab about each configured runner; no control plane has to run."`
	Register   runnersRegisterCmd   `cmd:"" help:"Make a runner in GitLab with a registration token (the old way)."`
	Unregister runnersUnregisterCmd `cmd:"" help:"Remove a runner, or this control plane's part in it, from GitLab."`
	Rotate     runnersRotateCmd     `cmd:"" help:"Give a runner a new token now; the running control plane goes on with it."`
}

type runnersListCmd struct {
	configFlag
	outputFlag
}

// Help is shown by --help.
func (runnersListCmd) Help() string {
	return `STATE is online, or what keeps the runner from getting jobs:

  starting   GitLab has not answered yet
  refused    GitLab does not know the token: it was reset, it expired, or the runner was removed
  trouble    GitLab does not answer as it should, or jobs cannot be written to disk
  paused     nobody lets it ask for jobs

JOBS are those that are here, of as many as there can be at once now. CLAIMS are requests for a job and how many brought
one, WATCHES those that GitLab holds until there is something. 2-PHASE says whether GitLab waits for the start of a job to
be confirmed; that is unknown until there was one. JSON (-o json) has more, for example when the token is replaced.`
}

func (c *runnersListCmd) Run(ctx context.Context, std streams) error {
	answer, err := ask(ctx, c.configFlag, std, func(ctx context.Context, a adminv1.AdminServiceClient) (*adminv1.ListRunnersResponse, error) {
		return a.ListRunners(ctx, &adminv1.ListRunnersRequest{})
	})
	if err != nil {
		return err
	}
	const header = "NAME\tSTATE\tGITLAB\tID\tJOBS\tCLAIMS\tWATCHES\tTOKEN EXPIRES\t2-PHASE\tPROBLEM"
	return printList(c.outputFlag, std.out, answer.GetRunners(), header, func(r *adminv1.Runner) []string {
		n := r.GetCounters()
		problem := ""
		switch {
		case r.GetTroubleSince() != nil:
			problem = r.GetLastError()
		case r.GetToken().GetProblem() != "":
			problem = "new token: " + r.GetToken().GetProblem()
		}
		return []string{
			r.GetName(), r.GetState(), r.GetUrl(), idOrDash(r.GetGitlabId()), fmt.Sprintf("%d/%d", r.GetJobs(), r.GetSlots()),
			fmt.Sprintf("%d (%d jobs)", n.GetClaims(), n.GetJobs()+n.GetWatchJobs()), fmt.Sprint(n.GetWatches()),
			until(r.GetToken().GetExpiresAt()), r.GetTwoPhaseCommit(), orDash(problem),
		}
	})
}

type runnersRotateCmd struct {
	configFlag
	Name string `arg:"" help:"The runner's name in the configuration."`
}

// Help is shown by --help.
func (runnersRotateCmd) Help() string {
	return `GitLab makes the new token and refuses the old one at once. The control plane keeps the new one, encrypted, in its store and
uses it from now on; the configuration keeps the old one, by which it knows that the new one is its successor. Running
jobs are not touched: they have tokens of their own.

Tokens that expire are replaced by themselves at three quarters of their life, unless the runner's feature flag
FF_DISABLE_AUTOMATIC_TOKEN_ROTATION is on. If somebody may have seen a token, this is the command.`
}

func (c *runnersRotateCmd) Run(ctx context.Context, std streams) error {
	answer, err := ask(ctx, c.configFlag, std, func(ctx context.Context, a adminv1.AdminServiceClient) (*adminv1.RotateRunnerTokenResponse, error) {
		return a.RotateRunnerToken(ctx, &adminv1.RotateRunnerTokenRequest{Runner: c.Name, Actor: actor()})
	})
	if err != nil {
		return err
	}
	token := answer.GetToken()
	expires := "does not expire"
	if at := token.GetExpiresAt(); at != nil {
		expires = "expires " + at.AsTime().UTC().Format(time.RFC3339)
	}
	fmt.Fprintf(std.out, "runner %s has a new token, which begins with %s and %s\n", c.Name, token.GetShort(), expires)
	return nil
}

func idOrDash(id int64) string {
	if id == 0 {
		return "-"
	}
	return fmt.Sprint(id)
}

// until says how long there is to a time.
func until(t *timestamppb.Timestamp) string {
	switch {
	case t == nil:
		return "-"
	case time.Now().After(t.AsTime()):
		return time.Since(t.AsTime()).Round(time.Second).String() + " ago"
	}
	return "in " + time.Until(t.AsTime()).Round(time.Second).String()
}
