package coordinator

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/variables"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// payloadView is what a payload needs of the state that changes; it is copied while mu is held.
type payloadView struct {
	runner    *runner
	token     string
	timeout   time.Duration
	now       time.Time
	queued    time.Time
	running   int // of the project, on instance runners
	queueSize int
	depth     int
	base      string
	repoURL   string

	cacheIndex   int64
	dependencies []payloadDependency
	dotenv       []ciconfig.Variable // of the dependencies
}

// payload is the body of a 201 (lib/api/entities/ci/job_request/response.rb), with all fields that GitLab sends, empty
// ones too.
type payload struct {
	ID            int64                   `json:"id"`
	Token         string                  `json:"token"`
	AllowGitFetch bool                    `json:"allow_git_fetch"`
	JobInfo       payloadJobInfo          `json:"job_info"`
	GitInfo       payloadGitInfo          `json:"git_info"`
	RunnerInfo    payloadRunnerInfo       `json:"runner_info"`
	Inputs        []any                   `json:"inputs"`
	Variables     []runnerapi.Variable    `json:"variables"`
	Steps         []runnerapi.Step        `json:"steps"`
	Hooks         []runnerapi.Hook        `json:"hooks"`
	Image         *payloadImage           `json:"image"`
	Services      []payloadService        `json:"services"`
	Artifacts     []payloadArtifact       `json:"artifacts"`
	Cache         []payloadCache          `json:"cache"`
	Credentials   []runnerapi.Credentials `json:"credentials"`
	Features      payloadFeatures         `json:"features"`
	Dependencies  []payloadDependency     `json:"dependencies"`
}

type payloadJobInfo struct {
	ID                 int64   `json:"id"`
	Name               string  `json:"name"`
	Stage              string  `json:"stage"`
	PipelineID         int64   `json:"pipeline_id"`
	ProjectID          int64   `json:"project_id"`
	ProjectName        string  `json:"project_name"`
	ProjectFullPath    string  `json:"project_full_path"`
	NamespaceID        int64   `json:"namespace_id"`
	RootNamespaceID    int64   `json:"root_namespace_id"`
	OrganizationID     int64   `json:"organization_id"`
	InstanceID         string  `json:"instance_id"`
	InstanceUUID       string  `json:"instance_uuid"`
	UserID             int64   `json:"user_id"`
	ScopedUserID       *int64  `json:"scoped_user_id"`
	TimeInQueueSeconds float64 `json:"time_in_queue_seconds"`
	ProjectJobsRunning string  `json:"project_jobs_running_on_instance_runners_count"`
	QueueSize          int     `json:"queue_size"`
	QueueDepth         int     `json:"queue_depth"`
}

type payloadGitInfo struct {
	RepoURL          string   `json:"repo_url"`
	RepoObjectFormat string   `json:"repo_object_format"`
	Ref              string   `json:"ref"`
	SHA              string   `json:"sha"`
	BeforeSHA        string   `json:"before_sha"`
	RefType          string   `json:"ref_type"`
	Refspecs         []string `json:"refspecs"`
	Depth            int      `json:"depth"`
	Protected        bool     `json:"protected"`
}

type payloadRunnerInfo struct {
	Timeout          int     `json:"timeout"`
	RunnerSessionURL *string `json:"runner_session_url"`
}

type payloadFeatures struct {
	TraceSections     bool                      `json:"trace_sections"`
	TokenMaskPrefixes []string                  `json:"token_mask_prefixes"`
	FailureReasons    []runnerapi.FailureReason `json:"failure_reasons"`
}

// runnerReasons are the failure reasons that the coordinator knows; others become unknown_failure.
var runnerReasons = []runnerapi.FailureReason{
	reasonUnknown, runnerapi.ReasonScriptFailure, "api_failure", reasonStuckOrTimeout, runnerapi.ReasonRunnerSystem,
	reasonMissingDependency, reasonRunnerUnsupported, "stale_schedule", runnerapi.ReasonExecutionTimeout,
	"archived_failure", "unmet_prerequisites", reasonScheduler, "data_integrity_failure", "forward_deployment_failure",
	"user_blocked", "project_deleted", "ci_quota_exceeded", "pipeline_loop_detected", reasonTraceSize, "builds_disabled",
	reasonProvisioningTimeout, runnerapi.ReasonImagePull, runnerapi.ReasonConfiguration,
	runnerapi.ReasonExternalDependency, runnerapi.ReasonInterrupted, runnerapi.ReasonCanceled,
}

// instanceRunningMaxBucket is Project::INSTANCE_RUNNER_RUNNING_JOBS_MAX_BUCKET.
const instanceRunningMaxBucket = 5

// buildPayload makes the JSON of a job. It takes no lock: what it reads of the job does not change.
func (c *Coordinator) buildPayload(j *job, view *payloadView) ([]byte, error) {
	run, p, d := j.pipe, j.pipe.project, j.def
	view.repoURL = withCredentials(view.base, "/"+p.Path+".git", jobUser, view.token)
	vars := c.jobVariables(j, view)
	depth := gitDepth(vars, p.GitDepth)
	b := payload{
		ID: j.id, Token: view.token, AllowGitFetch: true,
		JobInfo: payloadJobInfo{
			ID: j.id, Name: d.Name, Stage: d.Stage, PipelineID: run.id, ProjectID: p.id, ProjectName: p.Title, ProjectFullPath: p.Path,
			NamespaceID: p.namespaces[len(p.namespaces)-1], RootNamespaceID: p.namespaces[0], OrganizationID: 1, UserID: run.userID,
			TimeInQueueSeconds: view.now.Sub(view.queued).Seconds(), ProjectJobsRunning: runningBucket(view),
			QueueSize: view.queueSize, QueueDepth: view.depth,
		},
		GitInfo: payloadGitInfo{
			RepoURL: view.repoURL, RepoObjectFormat: objectFormat(run.commit.SHA), Ref: run.opts.Ref, SHA: run.commit.SHA,
			BeforeSHA: run.before, RefType: "branch", Refspecs: refspecs(run, depth), Depth: depth, Protected: run.protected,
		},
		RunnerInfo:   payloadRunnerInfo{Timeout: int(view.timeout / time.Second)},
		Inputs:       []any{},
		Variables:    vars,
		Steps:        steps(j, view.timeout),
		Hooks:        hooksOf(d),
		Image:        imageOf(d.Image),
		Services:     servicesOf(d.Services),
		Artifacts:    artifactsOf(d.Artifacts),
		Cache:        cachesOf(run, d.Caches, view.cacheIndex),
		Credentials:  c.credentialsOf(view.token),
		Features:     payloadFeatures{TraceSections: true, TokenMaskPrefixes: []string{"glpat-"}, FailureReasons: runnerReasons},
		Dependencies: view.dependencies,
	}
	if run.opts.Tag {
		b.GitInfo.RefType = "tag"
	}
	body, err := json.Marshal(&b)
	if err != nil {
		return nil, fmt.Errorf("make the payload: %w", err)
	}
	if c.opts.DecoratePayload == nil {
		return body, nil
	}
	var fields map[string]any
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, fmt.Errorf("decorate the payload: %w", err)
	}
	if err := c.opts.DecoratePayload(j.id, fields); err != nil {
		return nil, fmt.Errorf("decorate the payload: %w", err)
	}
	if body, err = json.Marshal(fields); err != nil {
		return nil, fmt.Errorf("decorate the payload: %w", err)
	}
	return body, nil
}

// jobVariables are all variables of a job, weakest first, expanded.
func (c *Coordinator) jobVariables(j *job, view *payloadView) []runnerapi.Variable {
	run := j.pipe
	var l list
	l.persisted(j, view)
	l.registry(c.opts.Registry, run.project)
	l.job(j.def)
	l = append(l, c.pipelineVariables(run, view.base)...)
	l.runner(view.runner)
	l.configured(j.def.Variables)
	l.user(run.user, run.userID)
	l.configured(view.dotenv)
	l.configured(run.project.Variables)
	l.configured(run.opts.Variables)
	l.configured(j.extra)
	return variables.Expand(l)
}

// gitDepth is GIT_DEPTH or the project's.
func gitDepth(vars []runnerapi.Variable, depth int) int {
	for _, v := range vars {
		if v.Key != "GIT_DEPTH" {
			continue
		}
		depth = leadingInt(v.Value)
	}
	return max(0, depth)
}

// leadingInt is Ruby's to_i: the number that a text begins with, 0 if there is none.
func leadingInt(s string) int {
	end := 0
	for end < len(s) && (s[end] >= '0' && s[end] <= '9' || end == 0 && s[end] == '-') {
		end++
	}
	n, err := strconv.Atoi(s[:end])
	if err != nil {
		return 0
	}
	return n
}

// refspecs are what the runner fetches.
func refspecs(run *pipelineRun, depth int) []string {
	specs := []string{"+" + run.ref() + ":" + run.ref()}
	switch {
	case depth == 0:
		return append(specs, "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
	case run.opts.Tag:
		return append(specs, "+refs/tags/"+run.opts.Ref+":refs/tags/"+run.opts.Ref)
	default:
		return append(specs, "+refs/heads/"+run.opts.Ref+":refs/remotes/origin/"+run.opts.Ref)
	}
}

func objectFormat(sha string) string {
	if len(sha) == 64 {
		return "sha256"
	}
	return "sha1"
}

func runningBucket(view *payloadView) string {
	switch {
	case view.runner.Type != InstanceRunner:
		return "+Inf"
	case view.running < instanceRunningMaxBucket:
		return strconv.Itoa(view.running)
	default:
		return strconv.Itoa(instanceRunningMaxBucket) + "+"
	}
}

func steps(j *job, timeout time.Duration) []runnerapi.Step {
	d := j.def
	script := make([]string, 0, len(d.BeforeScript)+len(d.Script))
	script = append(append(script, d.BeforeScript...), d.Script...)
	list := []runnerapi.Step{{Name: "script", Script: script, Timeout: int(timeout / time.Second), When: "on_success"}}
	if len(d.AfterScript) > 0 {
		list = append(list, runnerapi.Step{
			Name: "after_script", Script: d.AfterScript, Timeout: int(timeout / time.Second), When: "always", AllowFailure: true,
		})
	}
	return list
}
