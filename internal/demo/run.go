package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/liveview"
	"github.com/switchyard-ci/switchyard/internal/tracetext"
)

// run makes the pipelines and shows what their jobs say, until all have ended.
func (y *yard) run(ctx context.Context) error {
	for _, p := range y.projects {
		pipeline, err := y.gitlab.CreatePipeline(ctx, p.id, coordinator.PipelineOptions{})
		if err != nil {
			return err
		}
		y.pipelines = append(y.pipelines, pipeline)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watching errgroup.Group
	for _, process := range append(slices.Clone(y.agents), y.plane) {
		watching.Go(func() error {
			select {
			case <-process.ended:
				cancel(fmt.Errorf("%s: %w", process.name, process.result()))
			case <-ctx.Done():
			}
			return nil
		})
	}
	var following errgroup.Group
	for i, p := range y.projects {
		following.Go(func() error {
			view := &output{stage: y.stage, project: p, width: y.nameWidth()}
			ended, err := liveview.Follow(ctx, y.gitlab, y.pipelines[i].ID, view, liveview.Options{})
			y.pipelines[i] = ended
			if err != nil {
				err = fmt.Errorf("the pipeline of %s: %w", p.path, err)
			}
			return err
		})
	}
	err := following.Wait()
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	cancel(nil)
	_ = watching.Wait() // never fails
	return err
}

func (y *yard) nameWidth() int {
	width := 0
	for _, p := range y.projects {
		for name := range p.want {
			width = max(width, len(p.folder)+1+len(name))
		}
	}
	return width
}

// output shows the scripts' part of traces: the commands and what they write.
type output struct {
	stage   *stage
	project *project
	width   int
	inside  map[int64]bool // jobs whose script has begun
}

func (*output) Pipeline(coordinator.Pipeline) {}

func (*output) Partial(coordinator.Job, string) {}

func (o *output) Output(j coordinator.Job, lines []string) {
	if o.inside == nil {
		o.inside = map[int64]bool{}
	}
	for _, line := range lines {
		switch {
		case line == `$ echo "on the agent $YARD"`:
			o.inside[j.ID] = true
		case strings.HasPrefix(line, "$ "):
			o.inside[j.ID] = true
			o.line(j, o.stage.paint(dim, line))
		case o.inside[j.ID] && !ofRunner.MatchString(line):
			o.line(j, line)
		}
	}
}

// ofRunner are lines that are in every trace.
var ofRunner = regexp.MustCompile(`^(Running after|Cleaning up|ERROR: Job failed|Job succeeded)`)

func (o *output) Ended(j coordinator.Job) {
	switch {
	case j.Status == "success":
		o.line(j, o.stage.paint(green, "✓ passed"))
	case j.Status == "failed" && j.AllowFailure:
		o.line(j, o.stage.paint(yellow, "! failed with "+liveview.Why(j)+", which it may"))
	case j.Status == "failed":
		o.line(j, o.stage.paint(red, "✗ failed: "+liveview.Why(j)))
	}
}

func (o *output) line(j coordinator.Job, text string) {
	name := o.project.folder + " " + tracetext.Clean(j.Name)
	o.stage.say("  %s%s  %s", o.stage.paint(o.project.color, name), strings.Repeat(" ", max(0, o.width-len(name))), text)
}

// onAgent is the line by which a job says where it is.
var onAgent = regexp.MustCompile(`(?m)^on the agent (\w+)\r?$`)

// report shows all jobs in a table and checks them.
func (y *yard) report(context.Context) error {
	y.stage.say("  %s", y.stage.paint(bold, fmt.Sprintf("%-18s  %-22s  %-6s  %-8s  %5s", "PROJECT", "JOB", "AGENT", "STATE", "TIME")))
	var wrong []string
	jobs := map[string]int{}
	for i, p := range y.projects {
		left := len(p.want)
		for _, j := range y.pipelines[i].Jobs {
			agent, err := y.agentOf(j)
			if err != nil {
				return err
			}
			state, wrongWith := j.Status, y.check(p, j, agent)
			wrong = append(wrong, wrongWith...)
			if j.Status != "skipped" {
				jobs[agent]++
			}
			left--
			took := ""
			if !j.StartedAt.IsZero() {
				took = fmt.Sprintf("%.1fs", j.FinishedAt.Sub(j.StartedAt).Seconds())
			}
			y.stage.say("  %s  %-22s  %-6s  %s  %5s", y.stage.paint(p.color, fmt.Sprintf("%-18s", p.path)), j.Name, agent,
				y.stage.paint(colorOf(j), fmt.Sprintf("%-8s", state)), took)
		}
		if left != 0 {
			wrong = append(wrong, fmt.Sprintf("%s has %d jobs, not %d", p.path, len(y.pipelines[i].Jobs), len(p.want)))
		}
		if status := y.pipelines[i].Status; status != "success" {
			wrong = append(wrong, fmt.Sprintf("the pipeline of %s is %s", p.path, status))
		}
	}
	for _, name := range agentNames {
		if jobs[name] == 0 {
			wrong = append(wrong, "the agent "+name+" got no job")
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("not as expected: %s", strings.Join(wrong, "; "))
	}
	y.stage.say("")
	y.stage.fact("every state is the expected one, the scan's allowed failure included")
	y.stage.fact("both agents had work: %s %d jobs, %s %d", agentNames[0], jobs[agentNames[0]], agentNames[1], jobs[agentNames[1]])
	y.stage.fact("every trace reached GitLab with the right length and checksum")
	return nil
}

// check says what is wrong with a job.
func (y *yard) check(p *project, j coordinator.Job, agent string) []string {
	var wrong []string
	if j.Status != p.want[j.Name] {
		wrong = append(wrong, fmt.Sprintf("%s of %s is %q, not %q", j.Name, p.path, j.Status, p.want[j.Name]))
	}
	if j.Status == "skipped" {
		return wrong
	}
	if !slices.Contains(agentNames, agent) {
		wrong = append(wrong, fmt.Sprintf("%s of %s does not say on which agent it was", j.Name, p.path))
	}
	if !j.Report.ChecksumOK || !j.Report.SizeOK {
		wrong = append(wrong, fmt.Sprintf("the trace of %s of %s did not arrive as it was sent", j.Name, p.path))
	}
	return wrong
}

// agentOf reads in a job's trace on which agent it was.
func (y *yard) agentOf(j coordinator.Job) (string, error) {
	trace, err := y.gitlab.Trace(j.ID, 0)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(trace)
	if err != nil {
		return "", fmt.Errorf("read the trace of %s: %w", j.Name, err)
	}
	if m := onAgent.FindSubmatch(text); m != nil {
		return string(m[1]), nil
	}
	return "", nil
}

func colorOf(j coordinator.Job) color {
	switch {
	case j.Status == "success":
		return green
	case j.Status == "failed" && j.AllowFailure:
		return yellow
	case j.Status == "failed":
		return red
	}
	return dim
}
