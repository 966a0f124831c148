package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/tracetext"
)

// list prints the pipeline's jobs. The embedded GitLab is asked for them; no runner is there to take one.
func (c *runCmd) list(ctx context.Context, std streams, scratch string, variables []ciconfig.Variable) error {
	project, err := findProject(ctx, c, filepath.Join(scratch, "project"))
	if err != nil {
		return unlessInterrupted(ctx, err)
	}
	gitlab, err := coordinator.New(coordinator.Options{Dir: scratch})
	if err != nil {
		return err
	}
	p, err := project.create(ctx, gitlab, c, variables)
	err = unlessInterrupted(ctx, err)
	for _, w := range p.Warnings {
		fmt.Fprintln(std.err, "warning:", tracetext.Clean(w))
	}
	switch {
	case err != nil:
	case c.Output == "json":
		err = printJSON(std.out, listed(p))
	default:
		err = printTable(std.out, p)
	}
	if closeErr := gitlab.Close(); err == nil {
		err = closeErr
	}
	return err
}

// printTable prints one line per job.
func printTable(w io.Writer, p coordinator.Pipeline) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "STAGE\tJOB\tWHEN\tNEEDS\tTAGS")
	for _, j := range p.Jobs {
		when := string(j.When)
		if j.AllowFailure && j.When != ciconfig.Manual {
			when += ", may fail"
		}
		needs := strings.Join(j.Needs, ", ")
		if j.NeedsDeclared && needs == "" {
			needs = "nothing"
		}
		row := []string{j.Stage, j.Name, when, orDash(needs), orDash(strings.Join(j.Tags, ", "))}
		for i := range row {
			row[i] = tracetext.Clean(row[i])
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print the list: %w", err)
	}
	return nil
}

// listedJob is a job of --list -o json.
type listedJob struct {
	Stage        string        `json:"stage"`
	Name         string        `json:"name"`
	When         ciconfig.When `json:"when"`
	AllowFailure bool          `json:"allow_failure"`
	// Needs is null if the job waits for the earlier stages.
	Needs []string `json:"needs"`
	Tags  []string `json:"tags"`
}

func listed(p coordinator.Pipeline) []listedJob {
	jobs := make([]listedJob, 0, len(p.Jobs))
	for _, j := range p.Jobs {
		l := listedJob{Stage: j.Stage, Name: j.Name, When: j.When, AllowFailure: j.AllowFailure, Tags: append([]string{}, j.Tags...)}
		if j.NeedsDeclared {
			l.Needs = append([]string{}, j.Needs...)
		}
		jobs = append(jobs, l)
	}
	return jobs
}

// result is a pipeline in -o json.
type result struct {
	Status   string      `json:"status"`
	Name     string      `json:"name,omitempty"`
	Project  string      `json:"project"`
	Ref      string      `json:"ref"`
	SHA      string      `json:"sha"`
	Dirty    bool        `json:"dirty"`
	Source   string      `json:"source"`
	Seconds  float64     `json:"duration_seconds"`
	Warnings []string    `json:"warnings"`
	Jobs     []resultJob `json:"jobs"`
}

type resultJob struct {
	Stage         string  `json:"stage"`
	Name          string  `json:"name"`
	Status        string  `json:"status"`
	AllowFailure  bool    `json:"allow_failure"`
	FailureReason string  `json:"failure_reason,omitempty"`
	ExitCode      int     `json:"exit_code"`
	Attempt       int     `json:"attempt"`
	Seconds       float64 `json:"duration_seconds"`

	Artifacts []resultArtifact `json:"artifacts"`
}

type resultArtifact struct {
	Type string `json:"type"`
	Name string `json:"name"`
	Size int64  `json:"size"`
}

func printResult(w io.Writer, of *project, p coordinator.Pipeline, all []kept) error {
	r := result{
		Status: p.Status, Name: p.Name, Project: p.Project, Ref: p.Ref, SHA: p.SHA, Dirty: of.Dirty, Source: p.Source,
		Seconds: seconds(p.CreatedAt, p.FinishedAt), Warnings: append([]string{}, p.Warnings...), Jobs: []resultJob{},
	}
	uploads := map[int64][]resultArtifact{}
	for _, k := range all {
		for _, a := range k.list {
			uploads[k.job.ID] = append(uploads[k.job.ID], resultArtifact{a.Type, a.Name, a.Size})
		}
	}
	for _, j := range p.Jobs {
		r.Jobs = append(r.Jobs, resultJob{
			Stage: j.Stage, Name: j.Name, Status: j.Status, AllowFailure: j.AllowFailure, FailureReason: string(j.FailureReason),
			ExitCode: j.ExitCode, Attempt: j.Attempt, Seconds: seconds(j.StartedAt, j.FinishedAt),
			Artifacts: append([]resultArtifact{}, uploads[j.ID]...),
		})
	}
	return printJSON(w, r)
}

// seconds is how long something took, rounded to milliseconds; 0 if it did not happen.
func seconds(from, to time.Time) float64 {
	if from.IsZero() || to.IsZero() {
		return 0
	}
	return to.Sub(from).Round(time.Millisecond).Seconds()
}

func printJSON(w io.Writer, value any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(value); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}
