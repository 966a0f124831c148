package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/gitrepo"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/pipeline"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/trace"
)

// PipelineOptions describe a pipeline to be made.
type PipelineOptions struct {
	// Ref is the branch (or tag, with Tag) that the pipeline runs for; empty means the default branch.
	Ref string
	Tag bool
	// SHA is the commit: an id or what git rev-parse takes. Empty means the tip of Ref. A commit that is not the tip is
	// fine; if the repository has no such Ref, it is served at that commit.
	SHA string
	// BeforeSHA is the id of the commit that Ref pointed at before; empty means the commit of the last pipeline of this ref, or zeros.
	BeforeSHA string
	// Source is CI_PIPELINE_SOURCE; empty means push.
	Source string
	// Variables are given to this pipeline alone; they win over those of the project and of the configuration.
	Variables []ciconfig.Variable
	// Jobs restricts the pipeline to jobs of these names (for a job with `parallel`, the name without suffix means all)
	// and to what they need or name in `dependencies`, directly or not. A job named here is started even if it is manual, delayed or on_failure.
	Jobs []string
	// User is who started the pipeline.
	User User
	// Config is a compiled configuration to use instead of the one in the repository. It must not be changed afterwards.
	Config *ciconfig.Pipeline
}

// User is who starts pipelines.
type User struct {
	Login, Name, Email string
}

// Pipeline is a pipeline of the coordinator.
type Pipeline struct {
	ID, IID   int64
	ProjectID int64
	Project   string // full path
	Name      string // workflow:name
	Status    string // GitLab's name
	Ref       string
	Tag       bool
	SHA       string
	Source    string
	Stages    []Stage
	// Jobs are those that count, ordered by stage and place in the configuration; attempts that were retried are in
	// Retried.
	Jobs    []Job
	Retried []Job
	// Warnings are what the configuration's author should know.
	Warnings []string

	CreatedAt, StartedAt, FinishedAt time.Time // zero: not yet
}

// Stage is a stage of a pipeline.
type Stage struct {
	Name   string
	Status string
}

// Finished says that the pipeline has ended.
func (p Pipeline) Finished() bool {
	switch p.Status {
	case "success", "failed", "canceled", "skipped":
		return true
	}
	return false
}

// Blocked says that nothing goes on until someone plays a manual job.
func (p Pipeline) Blocked() bool { return p.Status == "manual" }

type pipelineRun struct {
	id, iid   int64
	project   *project
	def       *ciconfig.Pipeline
	opts      PipelineOptions
	user      User
	userID    int64
	commit    gitrepo.Commit
	tagText   string
	before    string
	protected bool
	namedJobs map[string]bool // asked for by name

	byName     map[string]int // positions in def.Jobs
	stageStart map[string]int // the position of a stage's first job
	locked     bool           // artifacts are kept though their time is over

	graph   *pipeline.Pipeline
	current []*job // by position in def.Jobs
	jobs    []*job // all attempts
	status  pipeline.Status
	changed chan struct{} // closed at the next change of status

	createdAt, startedAt, finishedAt time.Time
}

// ErrNoPipeline is in the chain of what CreatePipeline returns when the configuration is valid but makes no pipeline in
// this context: no job, or workflow:rules say no.
var ErrNoPipeline = errors.New("no pipeline for this ref")

const (
	sha1Length = 40
	// maxJobs bounds a pipeline.
	maxJobs = 100_000
)

var commitID = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// blank is the id that stands for no commit, in the format of another id.
func blank(sha string) string { return strings.Repeat("0", len(sha)) }

// CreatePipeline makes a pipeline and starts it. With a repository it copies the user's branches and tags first, reads
// the configuration and its includes at the commit (not from the work tree) and serves the commit as
// refs/pipelines/<id>.
func (c *Coordinator) CreatePipeline(ctx context.Context, projectID int64, o PipelineOptions) (Pipeline, error) {
	c.mu.Lock()
	p := c.projects[projectID]
	c.mu.Unlock()
	if p == nil {
		return Pipeline{}, fmt.Errorf("project %d: %w", projectID, ErrNotFound)
	}
	o.Variables = slices.Clone(o.Variables)
	setDefault(&o.Ref, p.DefaultBranch)
	setDefault(&o.Source, "push")
	if !gitrepo.ValidName(o.Ref) {
		return Pipeline{}, fmt.Errorf("project %s: %q is no valid name of a branch or tag", p.Path, o.Ref)
	}
	if o.BeforeSHA != "" && !commitID.MatchString(o.BeforeSHA) {
		return Pipeline{}, fmt.Errorf("project %s: %q is no id of a commit: give all of its digits", p.Path, o.BeforeSHA)
	}
	run := &pipelineRun{project: p, opts: o, user: o.User, changed: make(chan struct{}), createdAt: time.Now()}
	if err := c.prepare(ctx, run); err != nil {
		return Pipeline{}, fmt.Errorf("project %s, %s: %w", p.Path, o.Ref, err)
	}
	if err := run.selectJobs(); err != nil {
		return Pipeline{}, err
	}
	if err := run.buildGraph(); err != nil {
		return Pipeline{}, fmt.Errorf("project %s, %s: %w", p.Path, o.Ref, err)
	}
	head := ""
	if p.repo != nil {
		if err := c.serve(ctx, run); err != nil {
			return Pipeline{}, fmt.Errorf("project %s, %s: %w", p.Path, o.Ref, err)
		}
		head = p.repo.Head(run.fullRef())
	}
	return c.start(run, head)
}

// prepare finds the commit and its configuration.
func (c *Coordinator) prepare(ctx context.Context, run *pipelineRun) error {
	p, o := run.project, &run.opts
	c.mu.Lock()
	run.id = c.id("pipeline")
	p.lastIID++
	run.iid = p.lastIID
	run.before = cmp.Or(o.BeforeSHA, p.lastSHA[o.Ref])
	setDefault(&run.user, User{Login: "root", Name: "Administrator", Email: "admin@example.com"})
	if run.userID = c.users[run.user.Login]; run.userID == 0 {
		run.userID = c.id("user")
		c.users[run.user.Login] = run.userID
	}
	c.mu.Unlock()
	run.protected = p.protects(o.Ref, o.Tag)

	if p.repo == nil {
		run.commit = gitrepo.Commit{SHA: cmp.Or(o.SHA, strings.Repeat("0", sha1Length))}
		setDefault(&run.before, blank(run.commit.SHA))
		if o.Config == nil {
			return fmt.Errorf("the project has no repository, so its pipelines need a compiled configuration")
		}
		run.def = o.Config
		return nil
	}
	if err := p.repo.Sync(ctx); err != nil {
		return err
	}
	reader, err := p.repo.Reader(ctx)
	if err != nil {
		return err
	}
	defer reader.Close()
	rev := o.SHA
	if rev == "" {
		rev = run.fullRef()
	}
	if run.commit, err = reader.Commit(rev); err != nil {
		return fmt.Errorf("find the commit: %w", err)
	}
	setDefault(&run.before, blank(run.commit.SHA))
	if o.Tag {
		if run.tagText, err = reader.TagMessage(o.Ref); err != nil && !errors.Is(err, gitrepo.ErrNotFound) {
			return fmt.Errorf("read the tag: %w", err)
		}
	}
	if run.def = o.Config; run.def != nil {
		return nil
	}
	run.def, err = c.compile(ctx, run, reader)
	return err
}

// fullRef is the name of the branch or tag in a repository.
func (run *pipelineRun) fullRef() string {
	if run.opts.Tag {
		return "refs/tags/" + run.opts.Ref
	}
	return "refs/heads/" + run.opts.Ref
}

// ref is what pins the pipeline's commit.
func (run *pipelineRun) ref() string { return fmt.Sprintf("refs/pipelines/%d", run.id) }

// serve makes the commit fetchable.
func (c *Coordinator) serve(ctx context.Context, run *pipelineRun) error {
	if err := run.project.repo.Set(ctx, run.ref(), run.commit.SHA); err != nil {
		return err
	}
	return run.project.repo.SetMissing(ctx, run.fullRef(), run.commit.SHA)
}

// buildGraph translates the configuration's jobs.
func (run *pipelineRun) buildGraph() error {
	def := run.def
	if len(def.Jobs) == 0 {
		return fmt.Errorf("the configuration has no jobs: %w", ErrNoPipeline)
	}
	if len(def.Jobs) > maxJobs {
		return fmt.Errorf("the pipeline has %d jobs, more than %d are not possible", len(def.Jobs), maxJobs)
	}
	stages := map[string]int{}
	for i, s := range def.Stages {
		stages[s] = i
	}
	run.byName, run.stageStart = make(map[string]int, len(def.Jobs)), map[string]int{}
	for i := range def.Jobs {
		d := &def.Jobs[i]
		run.byName[d.Name] = i
		if _, begun := run.stageStart[d.Stage]; !begun {
			run.stageStart[d.Stage] = i
		}
	}
	jobs := make([]pipeline.Job, len(def.Jobs))
	for i := range def.Jobs {
		d := &def.Jobs[i]
		stage, ok := stages[d.Stage]
		if !ok {
			return fmt.Errorf("job %q is in stage %q, which the pipeline does not have", d.Name, d.Stage)
		}
		j := pipeline.Job{
			Name: d.Name, Stage: stage, DAG: d.NeedsDeclared, When: d.When, StartIn: d.StartIn, AllowFailure: d.AllowFailure,
			AllowFailureExitCodes: d.AllowFailureExitCodes, Retry: d.Retry,
		}
		if j.When == "" || run.namedJobs[d.Name] {
			j.When = ciconfig.OnSuccess
		}
		for _, n := range d.Needs {
			at, ok := run.byName[n.Job]
			if !ok && !n.Optional {
				return fmt.Errorf("job %q needs %q, which the pipeline does not have", d.Name, n.Job)
			}
			if ok {
				j.Needs = append(j.Needs, at)
			}
		}
		jobs[i] = j
	}
	graph, err := pipeline.New(len(def.Stages), jobs)
	if err != nil {
		return err
	}
	run.graph = graph
	return nil
}

// start makes the jobs and lets the first of them go. head is the commit of the pipeline's ref, if known.
func (c *Coordinator) start(run *pipelineRun, head string) (Pipeline, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return Pipeline{}, ErrClosed
	}
	now := time.Now()
	run.project.lastSHA[run.opts.Ref] = run.commit.SHA
	for i := range run.def.Jobs {
		d := &run.def.Jobs[i]
		j := &job{
			id: c.id("job"), pipe: run, index: i, def: d, attempt: 1, allowFailure: d.AllowFailure, createdAt: now, updatedAt: now,
		}
		j.trace = trace.New(c.tracePath(j.id), c.opts.TraceMemory)
		c.jobs[j.id] = j
		run.current = append(run.current, j)
		run.jobs = append(run.jobs, j)
		c.publishJob(j)
	}
	c.pipelines[run.id] = run
	run.lockArtifacts()
	c.publish(Event{Kind: PipelineChanged, ProjectID: run.project.id, PipelineID: run.id})
	c.advance(run, now)
	c.cancelRedundant(run, head, now)
	return run.snapshot(), nil
}

func (run *pipelineRun) snapshot() Pipeline {
	s := Pipeline{
		ID: run.id, IID: run.iid, ProjectID: run.project.id, Project: run.project.Path, Name: run.def.Name,
		Status: run.status.String(), Ref: run.opts.Ref, Tag: run.opts.Tag, SHA: run.commit.SHA, Source: run.opts.Source,
		Warnings: slices.Clone(run.def.Warnings), CreatedAt: run.createdAt, StartedAt: run.startedAt, FinishedAt: run.finishedAt,
	}
	for i, name := range run.def.Stages {
		s.Stages = append(s.Stages, Stage{Name: name, Status: run.graph.StageStatus(i).String()})
	}
	for _, j := range run.current {
		s.Jobs = append(s.Jobs, j.snapshot())
	}
	for _, j := range run.jobs {
		if j.retried {
			s.Retried = append(s.Retried, j.snapshot())
		}
	}
	return s
}
