package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/switchyard-ci/switchyard/agent"
	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/liveview"
	"github.com/switchyard-ci/switchyard/internal/localfleet"
	"github.com/switchyard-ci/switchyard/internal/snapshot"
	"github.com/switchyard-ci/switchyard/internal/tracetext"
)

type runCmd struct {
	Names []string `arg:"" optional:"" name:"job" help:"Run these jobs and what they need, not the whole pipeline. A manual job runs if it is named."`

	Dir       string        `short:"C" type:"path" default:"." placeholder:"DIR" help:"The project's folder; it need not be a git repository. A folder with a .gitlab-ci.yml is a project of its own."`
	Ref       string        `placeholder:"REF" help:"Run this branch, tag or commit instead of the working tree."`
	List      bool          `short:"l" help:"List the pipeline's jobs and run none."`
	Variable  []string      `short:"v" sep:"none" placeholder:"KEY=VALUE" help:"A variable for all jobs; KEY alone takes it from the environment as it is. May be repeated."`
	Slots     int           `name:"jobs" short:"j" placeholder:"N" help:"How many jobs may run at once (the number of CPUs)."`
	File      string        `placeholder:"FILE" help:"The configuration, instead of .gitlab-ci.yml."`
	Source    string        `enum:"push,web,schedule,api,trigger,pipeline,merge_request_event" default:"push" help:"What CI_PIPELINE_SOURCE says (${enum})."`
	Executor  string        `enum:"shell,docker" default:"shell" help:"Where jobs run: on this host (shell) or in containers of this host's Docker Engine (docker)."`
	Image     string        `placeholder:"IMAGE" help:"The image for jobs that name none, with --executor docker."`
	Artifacts string        `type:"path" placeholder:"DIR" help:"Copy the jobs' artifacts into this folder: files into DIR/JOB, reports into DIR/JOB.reports."`
	Cache     string        `type:"path" placeholder:"DIR" help:"The folder for the jobs' caches, instead of one for this project in the user's folder for caches."`
	NoCache   bool          `help:"Begin without caches, and keep none."`
	Timeout   time.Duration `placeholder:"DURATION" help:"Cancel the pipeline when it has taken so long."`
	Output    string        `short:"o" enum:"text,json" default:"text" help:"json prints the result, or the list, as JSON; progress goes to stderr then."`
	Plain     bool          `help:"Print the jobs' output line by line also on a terminal."`
	Color     string        `enum:"auto,always,never" default:"auto" help:"auto, always or never."`
	Log       string        `type:"path" placeholder:"FILE" help:"Append what control plane, agent and embedded GitLab have to say to this file."`

	cacheDir string // where caches are, with --executor shell
}

// Help is shown by --help.
func (runCmd) Help() string {
	return `The working tree is run as it is: changes and files that git does not track yet included, ignored ones not. It goes
through the same control plane, sessions and agent as in a fleet, all of them inside this command. The repository is only
read, and nothing is left behind but caches.

  switchyard run                    the whole pipeline
  switchyard run --list             what there is
  switchyard run test lint          two jobs and what they need
  switchyard run -v RACE=1 test     with a variable
  switchyard run --ref v1.2.0       another commit
  switchyard run --artifacts out    keeps what the jobs upload
  switchyard run --executor docker  in containers, for jobs with an image

Jobs run on this host, as you, with your environment: run only what you trust. In containers (--executor docker) they
have an image's environment instead; images are pulled if they are not there. Manual jobs are left out unless they are
named, tags are not asked for.

Caches are kept from run to run: in a folder for the project below switchyard/run in your folder for caches
(~/.cache), for containers in a volume switchyard-run-PROJECT. Remove either to begin anew. Artifacts reach later jobs
as in GitLab and are removed at the end, unless --artifacts names a folder; one inside the project should be ignored
by git, or the next run takes it for a part of the project.

Ctrl-C cancels the pipeline: jobs that run still do their after_script. A second one kills them; a third one leaves even
if nobody reads the output.

Exit codes: 0 the pipeline passed (or waits for a manual job), 1 it failed, 2 the command line or the configuration is
wrong, 130 it was canceled.`
}

func (c *runCmd) Run(ctx context.Context, std streams) error {
	variables, err := c.variables(os.LookupEnv)
	if err != nil {
		return usageError(err)
	}
	if c.Slots < 0 || c.Slots > agent.MaxSlots {
		return usageError(fmt.Errorf("--jobs is %d: it must be 1 to %d", c.Slots, agent.MaxSlots))
	}
	if c.Slots == 0 {
		c.Slots = runtime.GOMAXPROCS(0)
	}
	if err := c.checkPlace(); err != nil {
		return usageError(err)
	}
	if c.Timeout < 0 {
		return usageError(fmt.Errorf("--timeout is %s: it must not be negative", c.Timeout))
	}
	log, closeLog, err := openLog(c.Log)
	if err != nil {
		return usageError(err)
	}
	steering := newSteering() // before anything is made that a signal would leave behind
	defer steering.stop()
	scratch, err := os.MkdirTemp("", "switchyard-run-")
	if err != nil {
		return fmt.Errorf("make a folder for what is needed meanwhile: %w", err)
	}
	if c.List {
		err = c.list(ctx, std, scratch, variables)
	} else {
		err = c.run(ctx, std, scratch, variables, steering, log)
	}
	tell(std, os.RemoveAll(scratch))
	tell(std, closeLog())
	return err
}

// tell shows what went wrong after the result was known, which it does not change.
func tell(std streams, err error) {
	if err != nil {
		fmt.Fprintln(std.err, "switchyard: tidy up:", err)
	}
}

// openLog opens the file that was named, for this user alone: jobs' names and paths are in it.
func openLog(name string) (*slog.Logger, func() error, error) {
	if name == "" {
		return slog.New(slog.DiscardHandler), func() error { return nil }, nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("--log: %w", err)
	}
	return slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: slog.LevelDebug})), f.Close, nil
}

// unlessInterrupted is err, or what a user gets to see who has interrupted what failed.
func unlessInterrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return &exitError{Code: exitInterrupted}
	}
	return err
}

// run runs the pipeline.
func (c *runCmd) run(ctx context.Context, std streams, scratch string, variables []ciconfig.Variable, steering *steering, log *slog.Logger) error {
	fleet, project, err := c.start(ctx, scratch, log)
	if err != nil {
		return unlessInterrupted(ctx, err)
	}
	end := func(err error) error {
		tell(std, fleet.Close())
		removeIfEmpty(c.cacheDir)
		return err
	}
	steering.leave = func() {
		tell(std, fleet.Close())
		tell(std, os.RemoveAll(scratch))
		os.Exit(exitInterrupted)
	}
	p, err := project.create(ctx, fleet.GitLab(), c, variables)
	if err != nil {
		return end(unlessInterrupted(ctx, err))
	}
	if err := c.checkImages(p); err != nil {
		return end(err)
	}
	if err := fleet.GitLab().SetTags(fleet.Runners()[0].ID, tagsOf(p)); err != nil {
		return end(fmt.Errorf("let the runner take jobs with all tags: %w", err))
	}
	screen := c.screen(std, project.title(p, c.Source), steering.nobodyReads)
	screen.begin(ctx, p, c.Slots)
	p, err = c.follow(context.WithoutCancel(ctx), fleet, p, screen, steering)
	if err != nil {
		screen.abandon()
		return end(err)
	}
	if err := screen.finish(p); err != nil && !steering.deaf {
		return end(fmt.Errorf("show the result: %w", err))
	}
	all, err := artifactsOf(fleet.GitLab(), p)
	if err != nil {
		return end(err)
	}
	if c.Output == "json" {
		if err := printResult(std.out, project, p, all); err != nil {
			return end(err)
		}
	}
	if err := c.keep(context.WithoutCancel(ctx), fleet.GitLab(), all, std); err != nil && !steering.deaf {
		return end(err)
	}
	return end(steering.verdict(p))
}

// keep shows the artifacts and copies them.
func (c *runCmd) keep(ctx context.Context, gitlab *coordinator.Coordinator, all []kept, std streams) error {
	out := std.out
	if c.Output == "json" {
		out = std.err
	}
	if c.Artifacts != "" && len(all) > 0 {
		if err := saveArtifacts(ctx, gitlab, all, c.Artifacts, func(line string) {
			fmt.Fprintln(std.err, "warning:", tracetext.Clean(line))
		}); err != nil {
			return err
		}
	}
	return listArtifacts(out, gitlab, all, c.Artifacts)
}

// start starts a fleet and, at the same time, looks at the project.
func (c *runCmd) start(ctx context.Context, scratch string, log *slog.Logger) (*localfleet.Fleet, *project, error) {
	binary, err := findJobBinary()
	if err != nil {
		return nil, nil, err
	}
	var fleet *localfleet.Fleet
	var found *project
	var both errgroup.Group
	o := localfleet.Options{
		Dir: scratch, Slots: c.Slots, JobBinary: binary, Environ: snapshot.Environ(os.Environ()),
		StopAfter: stopAfter, LostAfter: lostAfter, TracePace: tracePace, Logger: log,
		Coordinator: coordinator.Options{MaxArtifact: maxArtifact},
	}
	if err := c.usePlace(&o); err != nil {
		return nil, nil, err
	}
	c.cacheDir = o.CacheDir
	both.Go(func() (err error) {
		fleet, err = localfleet.Start(ctx, o)
		return err
	})
	both.Go(func() (err error) {
		found, err = findProject(ctx, c, filepath.Join(scratch, "project"))
		return err
	})
	if err := both.Wait(); err != nil {
		if fleet != nil {
			err = errors.Join(err, fleet.Close())
		}
		return nil, nil, err
	}
	return fleet, found, nil
}

const (
	// stopAfter is when jobs stop by themselves if this command is killed, lostAfter when they count as lost.
	stopAfter = 10 * time.Minute
	lostAfter = 12 * time.Minute
	// tracePace is how long output waits at most until it is shown.
	tracePace = 50 * time.Millisecond
	// exitInterrupted is the exit code after Ctrl-C.
	exitInterrupted = 130
	// newest is how much of the end of a trace a live view needs, in bytes.
	newest = 64 << 10
)

// follow shows the pipeline to its end.
func (c *runCmd) follow(ctx context.Context, fleet *localfleet.Fleet, p coordinator.Pipeline, s *screen, steering *steering) (coordinator.Pipeline, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	steered := make(chan struct{})
	go func() {
		defer close(steered)
		if err := steering.run(ctx, fleet, p.ID, c.Timeout, s.say); err != nil {
			cancel(err)
		}
	}()
	p, err := liveview.Follow(ctx, fleet.GitLab(), p.ID, s.view, s.options)
	cancel(nil)
	<-steered
	if err != nil {
		return p, fmt.Errorf("the pipeline could not be followed to its end: %w", causeOf(ctx, err))
	}
	return p, nil
}

// causeOf is why a context ended, if that is why err is.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(err, context.Canceled) && cause != nil {
		return cause
	}
	return err
}

// tagsOf are the tags of all jobs.
func tagsOf(p coordinator.Pipeline) []string {
	var tags []string
	for _, j := range p.Jobs {
		tags = append(tags, j.Tags...)
	}
	slices.Sort(tags)
	return slices.Compact(tags)
}

// variables reads --variable.
func (c *runCmd) variables(lookup func(string) (string, bool)) ([]ciconfig.Variable, error) {
	var list []ciconfig.Variable
	for _, v := range c.Variable {
		key, value, fromHere := strings.Cut(v, "=")
		if !validKey(key) {
			return nil, fmt.Errorf("--variable %q: a variable's name has letters, digits and _, as in KEY=VALUE", key)
		}
		if !fromHere {
			var set bool
			if value, set = lookup(key); !set {
				return nil, fmt.Errorf("--variable %s: there is no such variable in the environment; give it a value with %[1]s=VALUE", key)
			}
		}
		// What is in the environment is meant as it is; a value that is written here may name other variables.
		list = append(list, ciconfig.Variable{Key: key, Value: value, Raw: !fromHere})
	}
	return list, nil
}

// validKey says whether GitLab takes a name for a variable.
func validKey(key string) bool {
	return key != "" && len(key) <= 255 && strings.Trim(key, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// findJobBinary returns the absolute path of switchyard-job: beside this program, or in PATH.
func findJobBinary() (string, error) {
	const name = "switchyard-job"
	beside := name
	if self, err := os.Executable(); err == nil {
		if target, err := filepath.EvalSymlinks(self); err == nil {
			self = target
		}
		beside = filepath.Join(filepath.Dir(self), name)
		if path, err := exec.LookPath(beside); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s, which runs the jobs, is neither at %s nor in PATH: put it beside switchyard (make build does)", name, beside)
	}
	return filepath.Abs(path)
}
