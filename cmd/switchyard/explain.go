package main

import (
	"context"
	"fmt"
	"io"

	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
)

type explainCmd struct {
	Job     explainJobCmd     `cmd:"" help:"Why a job waits, or what becomes of it."`
	Runner  explainRunnerCmd  `cmd:"" help:"Why a runner does not ask GitLab for jobs now, or what it heard last."`
	Project explainProjectCmd `cmd:"" help:"Why the jobs of a project wait."`
}

// Help is shown by --help.
func (explainCmd) Help() string {
	return `The answer comes from the code that decides: no capacity, a quota or a pause and whose, who is before it and with how much, or
that GitLab gave nothing. Jobs that GitLab has not given away yet are not known here: explain their
project or their runner.`
}

type explainFlags struct {
	configFlag
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

func (f explainFlags) explain(ctx context.Context, std streams, req *adminv1.ExplainRequest) error {
	answer, err := ask(ctx, f.configFlag, std, func(ctx context.Context, a adminv1.AdminServiceClient) (*adminv1.ExplainResponse, error) {
		return a.Explain(ctx, req)
	})
	if err != nil {
		return err
	}
	if f.Output == "json" {
		return printOne(std.out, answer)
	}
	printExplanation(std.out, answer)
	return nil
}

func printExplanation(w io.Writer, answer *adminv1.ExplainResponse) {
	fmt.Fprintln(w, plain(answer.GetSentence()))
	for _, note := range answer.GetNotes() {
		fmt.Fprintln(w, "  "+plain(note))
	}
}

type explainJobCmd struct {
	explainFlags
	Job int64 `arg:"" help:"Its number in the fleet (switchyard jobs list) or at its GitLab."`
}

func (c *explainJobCmd) Run(ctx context.Context, std streams) error {
	return c.explain(ctx, std, &adminv1.ExplainRequest{Subject: &adminv1.ExplainRequest_Job{Job: c.Job}})
}

type explainRunnerCmd struct {
	explainFlags
	Runner string `arg:"" help:"Its name in the configuration."`
}

func (c *explainRunnerCmd) Run(ctx context.Context, std streams) error {
	return c.explain(ctx, std, &adminv1.ExplainRequest{Subject: &adminv1.ExplainRequest_Runner{Runner: c.Runner}})
}

type explainProjectCmd struct {
	explainFlags
	Project string `arg:"" help:"Its full path, for example group/project."`
	GitLab  string `name:"gitlab" placeholder:"URL" help:"Its GitLab, if the runners are of several."`
}

func (c *explainProjectCmd) Run(ctx context.Context, std streams) error {
	return c.explain(ctx, std, &adminv1.ExplainRequest{Subject: &adminv1.ExplainRequest_Project{Project: c.Project}, Gitlab: c.GitLab})
}
