// Package runnerapi holds the wire types of GitLab's Runner API (lib/api/ci/runner.rb and lib/api/entities/ci/job_request
// in GitLab's repository). They serve both sides: the client in runnerapi/client and the embedded GitLab. The package
// links no HTTP and no third-party code, so that switchyard-job can read a payload with it and stay small.
package runnerapi

import (
	"encoding/json"
	"time"
)

// Job states as they stand in PUT /jobs/:id and in the Job-Status header.
const (
	StatePending   = "pending"
	StateRunning   = "running"
	StateSuccess   = "success"
	StateFailed    = "failed"
	StateCanceled  = "canceled"
	StateCanceling = "canceling"
)

// Header names of the Runner API.
const (
	HeaderRunnerToken         = "Runner-Token"
	HeaderJobToken            = "Job-Token"
	HeaderJobStatus           = "Job-Status"
	HeaderLastUpdate          = "X-Gitlab-Last-Update"
	HeaderTraceUpdateInterval = "X-Gitlab-Trace-Update-Interval"
	HeaderBuildsPolling       = "Gitlab-Ci-Builds-Polling"
	HeaderRequestID           = "X-Request-Id"
)

// FailureReason is GitLab's name for why a job failed.
type FailureReason string

// The failure reasons that a runner reports.
const (
	ReasonScriptFailure      FailureReason = "script_failure"
	ReasonRunnerSystem       FailureReason = "runner_system_failure"
	ReasonExecutionTimeout   FailureReason = "job_execution_timeout"
	ReasonImagePull          FailureReason = "image_pull_failure"
	ReasonUnknown            FailureReason = "unknown_failure"
	ReasonConfiguration      FailureReason = "runner_configuration_error"
	ReasonExternalDependency FailureReason = "runner_external_dependency_failure"
	ReasonInterrupted        FailureReason = "runner_interrupted"
	ReasonCanceled           FailureReason = "job_canceled"
)

// Features is `info.features`: what the runner can do. GitLab withholds jobs that need a feature which is false.
type Features struct {
	Variables               bool `json:"variables"`
	Image                   bool `json:"image"`
	Services                bool `json:"services"`
	Artifacts               bool `json:"artifacts"`
	Cache                   bool `json:"cache"`
	FallbackCacheKeys       bool `json:"fallback_cache_keys"`
	Shared                  bool `json:"shared"`
	UploadMultipleArtifacts bool `json:"upload_multiple_artifacts"`
	UploadRawArtifacts      bool `json:"upload_raw_artifacts"`
	Session                 bool `json:"session"`
	Terminal                bool `json:"terminal"`
	Refspecs                bool `json:"refspecs"`
	Masking                 bool `json:"masking"`
	Proxy                   bool `json:"proxy"`
	RawVariables            bool `json:"raw_variables"`
	ArtifactsExclude        bool `json:"artifacts_exclude"`
	MultiBuildSteps         bool `json:"multi_build_steps"`
	TraceReset              bool `json:"trace_reset"`
	TraceChecksum           bool `json:"trace_checksum"`
	TraceSize               bool `json:"trace_size"`
	VaultSecrets            bool `json:"vault_secrets"`
	Cancelable              bool `json:"cancelable"`
	ReturnExitCode          bool `json:"return_exit_code"`
	ServiceVariables        bool `json:"service_variables"`
	ServiceMultipleAliases  bool `json:"service_multiple_aliases"`
	ImageExecutorOpts       bool `json:"image_executor_opts"`
	ServiceExecutorOpts     bool `json:"service_executor_opts"`
	CancelGracefully        bool `json:"cancel_gracefully"`
	NativeStepsIntegration  bool `json:"native_steps_integration"`
	TwoPhaseJobCommit       bool `json:"two_phase_job_commit"`
	JobInputs               bool `json:"job_inputs"`
}

// Config is `info.config`.
type Config struct {
	GPUs string `json:"gpus"`
}

// Info is `info`: who asks.
type Info struct {
	Name         string            `json:"name,omitempty"`
	Version      string            `json:"version,omitempty"`
	Revision     string            `json:"revision,omitempty"`
	Platform     string            `json:"platform,omitempty"`
	Architecture string            `json:"architecture,omitempty"`
	Executor     string            `json:"executor,omitempty"`
	Shell        string            `json:"shell,omitempty"`
	Features     Features          `json:"features"`
	Config       Config            `json:"config"`
	Labels       map[string]string `json:"labels,omitempty"`
}

// VerifyRequest is the body of POST /runners/verify.
type VerifyRequest struct {
	Info     Info   `json:"info"`
	Token    string `json:"token"`
	SystemID string `json:"system_id,omitempty"`
}

// VerifyResponse answers it.
type VerifyResponse struct {
	ID             int64      `json:"id"`
	Token          string     `json:"token"`
	TokenExpiresAt *time.Time `json:"token_expires_at"`
}

// JobRequest is the body of POST /jobs/request.
type JobRequest struct {
	Info       Info   `json:"info"`
	Token      string `json:"token"`
	SystemID   string `json:"system_id,omitempty"`
	LastUpdate string `json:"last_update,omitempty"`
}

// Output is the trace as the runner saw it: checksum "crc32:%08x" (IEEE) and size of all bytes sent.
type Output struct {
	Checksum string `json:"checksum,omitempty"`
	Bytesize int64  `json:"bytesize,omitempty"`
}

// UpdateRequest is the body of PUT /jobs/:id.
type UpdateRequest struct {
	Info          Info          `json:"info"`
	Token         string        `json:"token"`
	State         string        `json:"state"`
	FailureReason FailureReason `json:"failure_reason,omitempty"`
	Checksum      string        `json:"checksum,omitempty"` // deprecated by output.checksum, still sent
	Output        Output        `json:"output"`
	ExitCode      int           `json:"exit_code,omitempty"`
}

// Envelope is the little that the control plane reads of a payload; everything else stays the original JSON.
type Envelope struct {
	ID         int64      `json:"id"`
	Token      string     `json:"token"`
	JobInfo    JobInfo    `json:"job_info"`
	GitInfo    GitInfo    `json:"git_info"`
	RunnerInfo RunnerInfo `json:"runner_info"`
	Origin     Origin     `json:"variables"`
}

// Job is the payload of a job: the body of a 201 to POST /jobs/request. Fields that are not here stay in the original
// JSON; those that carry behaviour which nothing here implements are kept raw so that they can be refused by name.
type Job struct {
	ID            int64                      `json:"id"`
	Token         string                     `json:"token"`
	AllowGitFetch bool                       `json:"allow_git_fetch"`
	JobInfo       JobInfo                    `json:"job_info"`
	GitInfo       GitInfo                    `json:"git_info"`
	RunnerInfo    RunnerInfo                 `json:"runner_info"`
	Inputs        json.RawMessage            `json:"inputs,omitempty"`
	Variables     []Variable                 `json:"variables"`
	Steps         []Step                     `json:"steps"`
	Image         *Image                     `json:"image,omitempty"`
	Services      []Image                    `json:"services,omitempty"`
	Artifacts     []Artifact                 `json:"artifacts,omitempty"`
	Cache         []Cache                    `json:"cache,omitempty"`
	Credentials   []Credentials              `json:"credentials,omitempty"`
	Dependencies  []Dependency               `json:"dependencies,omitempty"`
	Features      JobFeatures                `json:"features"`
	Secrets       map[string]json.RawMessage `json:"secrets,omitempty"`
	Hooks         []Hook                     `json:"hooks,omitempty"`
	Run           string                     `json:"run,omitempty"`
	PolicyOptions *PolicyOptions             `json:"policy_options,omitempty"`
	// SuspendOptions ask to keep the environment after the job.
	SuspendOptions json.RawMessage `json:"suspend_options,omitempty"`
}

// PolicyOptions say that a policy of the project's group made the job.
type PolicyOptions struct {
	ExecutionPolicyJob         bool     `json:"execution_policy_job"`
	Name                       string   `json:"policy_name,omitempty"`
	VariablesOverrideAllowed   *bool    `json:"policy_variables_override_allowed,omitempty"`
	VariablesOverrideException []string `json:"policy_variables_override_exceptions,omitempty"`
}

// JobInfo describes the job and its project.
type JobInfo struct {
	ID                 int64   `json:"id"`
	Name               string  `json:"name"`
	Stage              string  `json:"stage"`
	PipelineID         int64   `json:"pipeline_id,omitempty"`
	ProjectID          int64   `json:"project_id"`
	ProjectName        string  `json:"project_name"`
	ProjectFullPath    string  `json:"project_full_path,omitempty"`
	NamespaceID        int64   `json:"namespace_id,omitempty"`
	RootNamespaceID    int64   `json:"root_namespace_id,omitempty"`
	UserID             int64   `json:"user_id,omitempty"`
	TimeInQueueSeconds float64 `json:"time_in_queue_seconds"`
	ProjectJobsRunning string  `json:"project_jobs_running_on_instance_runners_count"`
	QueueSize          int64   `json:"queue_size,omitempty"`
	QueueDepth         int64   `json:"queue_depth,omitempty"`
}

// GitInfo says what to check out.
type GitInfo struct {
	RepoURL          string   `json:"repo_url"`
	RepoObjectFormat string   `json:"repo_object_format,omitempty"` // sha1 (also if empty) or sha256
	Ref              string   `json:"ref"`
	SHA              string   `json:"sha"`
	BeforeSHA        string   `json:"before_sha"`
	RefType          string   `json:"ref_type"` // branch or tag
	Refspecs         []string `json:"refspecs"`
	Depth            int      `json:"depth"` // 0: all history
	Protected        *bool    `json:"protected,omitempty"`
}

// RunnerInfo carries the job's timeout in seconds; 0 or less means 7200.
type RunnerInfo struct {
	Timeout int `json:"timeout"`
}

// Variable is one job variable; of two with one key the later wins.
type Variable struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Public bool   `json:"public"`
	Masked bool   `json:"masked"`
	File   bool   `json:"file,omitempty"`
	Raw    bool   `json:"raw,omitempty"`
}

// Step is one list of shell commands. GitLab fills timeout, when and allow_failure; gitlab-runner runs `after_script`
// always and all others in order until the first failure.
type Step struct {
	Name         string   `json:"name"`
	Script       []string `json:"script"`
	Timeout      int      `json:"timeout"`
	When         string   `json:"when"`
	AllowFailure bool     `json:"allow_failure"`
}

// Image is a container image, of the job or of a service.
type Image struct {
	Name         string                     `json:"name"`
	Alias        string                     `json:"alias,omitempty"`
	Command      []string                   `json:"command,omitempty"`
	Entrypoint   []string                   `json:"entrypoint,omitempty"`
	Ports        json.RawMessage            `json:"ports,omitempty"`
	Variables    []Variable                 `json:"variables,omitempty"`
	PullPolicy   []string                   `json:"pull_policy,omitempty"`
	ExecutorOpts map[string]json.RawMessage `json:"executor_opts,omitempty"`
}

// Artifact is one upload: the archive or one report.
type Artifact struct {
	Name      string   `json:"name"`
	Untracked bool     `json:"untracked"`
	Paths     []string `json:"paths"`
	Exclude   []string `json:"exclude,omitempty"`
	When      string   `json:"when"`
	Type      string   `json:"artifact_type"`
	Format    string   `json:"artifact_format"`
	ExpireIn  string   `json:"expire_in"`
}

// Cache is one cache of the job.
type Cache struct {
	Key          string   `json:"key"`
	Untracked    bool     `json:"untracked"`
	Policy       string   `json:"policy"`
	Paths        []string `json:"paths"`
	When         string   `json:"when"`
	FallbackKeys []string `json:"fallback_keys"`
}

// Credentials open a registry.
type Credentials struct {
	Type     string `json:"type"`
	URL      string `json:"url"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// Dependency is a job whose artifacts this one gets.
type Dependency struct {
	ID            int64  `json:"id"`
	Name          string `json:"name"`
	Token         string `json:"token"`
	ArtifactsFile struct {
		Filename string `json:"filename"`
		Size     int64  `json:"size"`
	} `json:"artifacts_file"`
}

// Hook is a script that runs at a fixed point, for example pre_get_sources_script.
type Hook struct {
	Name   string   `json:"name"`
	Script []string `json:"script"`
}

// JobFeatures is what GitLab says about itself in the payload.
type JobFeatures struct {
	TraceSections     bool            `json:"trace_sections"`
	TokenMaskPrefixes []string        `json:"token_mask_prefixes,omitempty"`
	FailureReasons    []FailureReason `json:"failure_reasons,omitempty"`
}
