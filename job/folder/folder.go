// Package folder is the durable form of one job on the host or in the environment that runs it: the names and contents
// of the files by which the agent and switchyard-job meet. Both may be killed at any moment and be of different
// versions; the files are the truth, the socket only wakes up and carries orders.
//
//	spec.json     agent       all that the job must know beside the payload; immutable once written
//	payload.json  agent       GitLab's JSON, byte for byte; immutable
//	prefix        agent       trace bytes [0, P): preparing the environment; closed before the job starts
//	trace         job         trace bytes [P, P+n): masked, repaired and limited already; only ever grows
//	checkpoints   job         records that prove beginnings of the trace after a loss of power (32 bytes each, see checkpoint);
//	                          never synced, missing for the first second, no part of what a reader must understand
//	suffix        agent       trace bytes after the job's; written only when the job ended without a result
//	lock          job         flock(2)ed by the switchyard-job that runs the job, for as long as it lives
//	.             both        the folder itself is flock(2)ed while a job starts, and to ask whether one runs: see LockStart
//	started       job         the fence: made with O_EXCL and synced (file and folder) before the first user command.
//	                          A folder that has it never starts again.
//	result.json   job         how it ended; written to a temporary name, synced, renamed. The trace is synced before it.
//	control.sock  job         see [ControlSocket]
//	job.log       job         what switchyard-job itself has to say; for operators, never secrets
//
// The folder's mode is 0700, that of its files 0600. Version is the format's: a reader refuses a newer one by name.
package folder

import (
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Version of the format that this code writes.
const Version = 1

// Names of the files of a job folder.
const (
	SpecFile    = "spec.json"
	PayloadFile = "payload.json"
	PrefixFile  = "prefix"
	TraceFile   = "trace"
	SuffixFile  = "suffix"
	LockFile    = "lock"
	StartedFile = "started"
	ResultFile  = "result.json"
	LogFile     = "job.log"
	// CheckpointsFile need not be there.
	CheckpointsFile = "checkpoints"
)

// ControlSocket is the name of the Unix stream socket that a running job listens on. Both sides write lines.
//
// To the job: `cancel graceful` (stop the script, run after_script with CI_JOB_STATUS=canceled), `cancel kill` (stop
// everything; no after_script), `lease <milliseconds>` (the dead man's limit: stop unless another lease comes within that
// time), `answer <JSON of CacheAnswer>`. From the job: first `switchyard-job <format version>`, then `stage <name>` at
// each stage and once on connecting, `trace <length>` when the trace file has grown (coalesced: a reader that is slow
// misses lengths, never the last one), `ask <JSON of CacheRequest>` (to every follower, again on connecting, until it is
// answered), `result` when result.json is in place. The end of the stream means that the process is gone.
//
// Paths of Unix sockets are limited to about 100 bytes, so both sides address the socket through the opened folder
// (/proc/self/fd/N/control.sock on Linux).
const ControlSocket = "control.sock"

// Spec is what the agent tells switchyard-job about a job. Durations are in nanoseconds in JSON.
type Spec struct {
	Version int   `json:"version"`
	Job     int64 `json:"job"`
	Epoch   int64 `json:"epoch"`

	// PrefixLength and PrefixCRC32 (IEEE) are those of the prefix: the job's own CRC goes on from there, and
	// OutputLimit counts it.
	PrefixLength int64  `json:"prefix_length"`
	PrefixCRC32  uint32 `json:"prefix_crc32"`
	// PrefixElsewhere: the prefix is not in this folder but in the agent's, on another disk. What is here of the trace
	// begins at PrefixLength.
	PrefixElsewhere bool `json:"prefix_elsewhere,omitempty"`
	// OutputLimit is the greatest length of the whole trace in bytes, without the notice that says it was reached.
	OutputLimit int64 `json:"output_limit"`
	// OutputLimitReason is a line for the notice, of at most 1 KiB, if the limit is not the runner's.
	OutputLimitReason string `json:"output_limit_reason,omitempty"`

	Executor string `json:"executor"`
	Hostname string `json:"hostname"`
	// BuildsDir and CacheDir are absolute paths in the environment.
	BuildsDir string `json:"builds_dir"`
	CacheDir  string `json:"cache_dir"`
	// SharedBuildsDir: other runners' jobs use BuildsDir too, so the build's path carries token and slot.
	SharedBuildsDir bool `json:"shared_builds_dir"`
	// Shells are tried in order; "bash" is used as a login shell if Login is set. None found fails the job.
	Shells []string `json:"shells"`
	Login  bool     `json:"login"`
	// ScriptSocket, if set, is the path of the socket of the `switchyard-job serve` that runs the user's scripts;
	// empty means as children of this process.
	ScriptSocket string `json:"script_socket,omitempty"`
	ScriptToken  string `json:"script_token,omitempty"`

	Runner              Runner `json:"runner"`
	ConcurrentID        int    `json:"concurrent_id"`
	ConcurrentProjectID int    `json:"concurrent_project_id"`

	// Environment is added to the job's variables below GitLab's.
	Environment []runnerapi.Variable `json:"environment,omitempty"`
	// ServerURL is the GitLab's address as the runner is configured with it: artifacts go there.
	ServerURL string `json:"server_url,omitempty"`
	// ServerCA is the PEM of the CA that GitLab's certificate is checked against, if it is not a public one.
	ServerCA string `json:"server_ca,omitempty"`
	// Settings are the runner's, as its administrator configured them.
	Settings Settings `json:"settings"`

	// SharedFiles: the user's scripts may run as another user than this process, so what is made for them (working copy,
	// temporary files) is open to every user of the environment.
	SharedFiles bool `json:"shared_files,omitempty"`
	// CustomBuildDir: GIT_CLONE_PATH may be used, within BuildsDir.
	CustomBuildDir bool `json:"custom_build_dir,omitempty"`
	// SectionAttempts says that EXECUTOR_JOB_SECTION_ATTEMPTS has a meaning here (gitlab-runner: docker only).
	SectionAttempts bool `json:"section_attempts,omitempty"`

	// Lease is the dead man's limit until the first `lease` line; 0 means none.
	Lease time.Duration `json:"lease,omitempty"`
	// KillGrace is the time between SIGTERM and SIGKILL for what a cancel, a timeout or a lost lease stops.
	KillGrace time.Duration `json:"kill_grace"`
}

// Settings are those of a runner that its jobs follow. The zero value is gitlab-runner's default for each.
type Settings struct {
	// Scripts of the runner, run around the job's own (gitlab-runner: pre_get_sources_script and so on in config.toml).
	PreGetSourcesScript  string `json:"pre_get_sources_script,omitempty"`
	PostGetSourcesScript string `json:"post_get_sources_script,omitempty"`
	PreBuildScript       string `json:"pre_build_script,omitempty"`
	PostBuildScript      string `json:"post_build_script,omitempty"`
	// CloneURL replaces scheme and host of the payload's repo_url.
	CloneURL string `json:"clone_url,omitempty"`
	// DebugTraceDisabled takes CI_DEBUG_TRACE and CI_DEBUG_SERVICES from jobs.
	DebugTraceDisabled bool `json:"debug_trace_disabled,omitempty"`
	// FeatureFlags win over the job's FF_ variables.
	FeatureFlags map[string]bool `json:"feature_flags,omitempty"`
	// GetSourcesTimeout limits get_sources; 0 is the job's own timeout.
	GetSourcesTimeout time.Duration `json:"get_sources_timeout,omitempty"`
	// ArtifactUploadTimeout and ArtifactResponseHeaderTimeout limit one upload; 0 is 1 h and 10 min.
	ArtifactUploadTimeout         time.Duration `json:"artifact_upload_timeout,omitempty"`
	ArtifactResponseHeaderTimeout time.Duration `json:"artifact_response_header_timeout,omitempty"`
	// RemoteCache: caches are in an object store, by URLs that are asked for (see CacheRequest); otherwise in CacheDir.
	RemoteCache bool `json:"remote_cache,omitempty"`
	// MaxUploadedArchiveSize limits a cache that is uploaded, in bytes; 0 is no limit.
	MaxUploadedArchiveSize int64 `json:"max_uploaded_archive_size,omitempty"`
}

// Runner is what a job is told about the runner that claimed it.
type Runner struct {
	ID         int64  `json:"id"`
	Name       string `json:"name"`
	ShortToken string `json:"short_token"`
	SystemID   string `json:"system_id"`
	Version    string `json:"version"`
	Revision   string `json:"revision"`
}

// Started is the content of the fence.
type Started struct {
	Version int       `json:"version"`
	PID     int       `json:"pid"`
	BootID  string    `json:"boot_id"` // of the kernel: a PID means nothing after a reboot
	At      time.Time `json:"at"`
	// Checkpoints: the job writes CheckpointsFile.
	Checkpoints bool `json:"checkpoints,omitempty"`
}

// Result is the content of result.json.
type Result struct {
	Version       int                     `json:"version"`
	State         string                  `json:"state"` // runnerapi.StateSuccess or StateFailed
	FailureReason runnerapi.FailureReason `json:"failure_reason,omitempty"`
	ExitCode      int                     `json:"exit_code,omitempty"`
	// Message is one sentence for people if it was not the script that failed.
	Message string `json:"message,omitempty"`
	// TraceLength is the length of the trace file; with PrefixLength it is the whole trace's. TraceCRC32 is the CRC of
	// prefix and trace together.
	TraceLength int64     `json:"trace_length"`
	TraceCRC32  uint32    `json:"trace_crc32"`
	StartedAt   time.Time `json:"started_at"`
	FinishedAt  time.Time `json:"finished_at"`
}
