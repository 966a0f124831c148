// Package executors says what a place is where jobs run. An executor makes environments (GitLab's word: what "preparing
// the environment" makes); switchyard-job runs one job in one environment. All that is the same for every place - stages,
// scripts, git, masking, timeouts - is in switchyard-job; all that is the same for every agent - the job folder, the
// trace, leases - is in the agent. What is left for an executor is in these two interfaces, and executors/conformance
// holds every implementation to them.
package executors

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// Executor makes environments on one kind of place. All methods may be called concurrently.
type Executor interface {
	// Name is GitLab's name for the executor, for example "shell".
	Name() string

	// Features says what jobs can rely on here. It is constant for the life of the process.
	Features() Features

	// Check returns why no job can run here at all (no shell, no engine), or nil. It is called once at the agent's start
	// and its error is shown to the person who started it: it says what to install or to change.
	Check(ctx context.Context) error

	// Prepare makes the environment that spec describes. What it has to tell the user goes to trace (plain text lines,
	// for example the progress of an image pull). The agent has persisted spec.Name before the call, so an environment
	// that was half made when the agent was killed is found by Recover or Sweep.
	//
	// The error is an [*Error] if the reason is not the agent's own failure. If Prepare fails or ctx ends it leaves
	// nothing behind.
	Prepare(ctx context.Context, spec Spec, trace io.Writer) (Environment, error)

	// Recover takes up the environment of that name after the agent was restarted, half made ones too. ErrNotFound: there
	// is none, or nothing of it is left. What cannot run any more but is not removed yet is recovered, with Done closed.
	// Another error (the engine does not answer) leaves the job alone until the agent's next start.
	Recover(ctx context.Context, spec Spec) (Environment, error)

	// Sweep destroys every environment of this fleet's agent on this place for which keep(name) is false. It touches
	// nothing that this agent did not make.
	Sweep(ctx context.Context, keep func(name string) bool) error
}

// Environment is one job's place. Methods may be called concurrently; none after Destroy has succeeded but Destroy itself.
//
// There are two kinds. Where the job folder is on the agent's own disk, the agent writes and reads its files, starts the
// job with Exec(`Binary run Folder`) and follows it by the folder's control socket. Where it is elsewhere (a volume, a pod,
// another host), all goes through Exec:
//
//   - `Binary launch Folder --offset N [--lease D]` makes the folder (mode 0700; folders above it too), starts the job
//     in a session of its own and follows it. Its standard input brings spec and payload, then orders for as long as the
//     job lives; its standard output is a stream of frames (package job/attach). It may be run again, also while an
//     earlier one still runs: the job starts once, by whichever comes first, and every launch follows it.
//   - `Binary attach Folder --offset N [--lease D]` follows a job that has been started, in the same way.
//
// The agent keeps a copy of the folder on its own disk, and attaches again whenever a stream breaks, for as long as Done is
// open. It never starts a job again in another environment once launch has been given the job.
type Environment interface {
	// Job is what switchyard-job needs to know of the place; the agent completes it with what it knows itself. It is the
	// same after Recover as it was after Prepare.
	Job() Place

	// LocalFolder is the job folder's path on the agent's own disk: Spec.Folder, if jobs here use that one. ok is false if
	// the job folder is elsewhere: then path means nothing, Job().Folder is a path in the environment that need not
	// exist yet, and it stays readable there until Destroy, for the agent that comes back. ok is constant.
	LocalFolder() (path string, ok bool)

	// Exec runs a command in the environment with the agent's privileges there (never the user's script) and returns
	// its exit code, 128+n if signal n ended it. Any number may run at once.
	//
	// Ending ctx ends the wait, not the process: Exec returns ctx.Err() at once, the process goes on and finds the end of
	// its standard input and nobody behind its output. So a stopping agent leaves its jobs alone. What a process has
	// started itself outlives it.
	//
	// Stdin may stay open for as long as the process lives, with hours between two lines: each Write to its other end
	// reaches the process without waiting for more, and its end reaches it as the end of its input. Stdout is passed on
	// without waiting for more, in order, byte for byte; it is complete when Exec returns without error, and a writer that
	// is slow holds the process up instead of filling memory. After Exec has returned, a Read of Stdin may still be under
	// way (the caller ends it) but Stdout and Stderr are not used any more.
	//
	// An error means that the command could not be started or was lost sight of: a connection that is lost, or silent
	// for longer than its keep-alive allows, ends Exec with an error within a minute or so, whatever ctx says.
	Exec(ctx context.Context, c Command) (exitCode int, err error)

	// Done is closed when the environment cannot run anything any more and the job in it has ended with it (out of
	// memory, evicted, container or node lost, host rebooted), also if that happened before Recover. A connection that
	// is lost is no reason: the job goes on. It is never closed by Kill or Destroy.
	Done() <-chan struct{}
	// Err says why Done is closed, in words for the job's trace; nil before. It is an [*Error] if the reason is not a
	// failure of the system.
	Err() error

	// Kill stops every process of the environment at once, daemons that a script left behind included. It returns when
	// none is left. Idempotent. Afterwards nothing can be relied on but Kill and Destroy.
	Kill(ctx context.Context) error

	// Destroy removes all that Prepare made and a job folder that is elsewhere, killing what still runs. The agent's
	// own job folder (Spec.Folder) is not its to remove. Idempotent; safe to repeat after an error. When it has succeeded
	// nothing of the job runs or will run, an Exec that was on its way included.
	Destroy(ctx context.Context) error
}

// ErrNotFound is returned by Recover for an environment that does not exist.
var ErrNotFound = errors.New("environment not found")

// Spec describes the environment that a job needs. Recover gets the same as Prepare did, but for Job, which is nil, and what
// is the runner's (ServerURL and below), which may be missing: what an executor needs of those later it keeps itself.
type Spec struct {
	// Name is unique for (fleet, job, epoch) and made of [a-z0-9-], at most 63 bytes.
	Name string
	// Folder is the job folder on the agent's disk; spec.json is not in it yet.
	Folder string
	// Job is GitLab's payload.
	Job *runnerapi.Job
	// JobBinary is the switchyard-job for the agent's own platform, an absolute path on the agent's disk.
	JobBinary string
	// Runner claimed the job. ConcurrentID and ConcurrentProjectID are the job's numbers among those that run on this
	// agent now, of the runner and of the project. All three are as in [folder.Spec]: they are what names of folders and
	// volumes that jobs share are made of.
	Runner              folder.Runner
	ConcurrentID        int
	ConcurrentProjectID int
	// Timeout is the job's own time limit; it is never 0. Prepare's ctx heeds it.
	Timeout time.Duration
	// ServerURL, ServerCA, Settings and Environment are as in [folder.Spec]: those of the runner.
	ServerURL   string
	ServerCA    string
	Settings    folder.Settings
	Environment []runnerapi.Variable
}

// Place is the executor's part of [folder.Spec]; fields of the same name mean the same.
type Place struct {
	// Folder is the job folder's path as seen from inside, Binary that of switchyard-job.
	Folder string
	Binary string

	Hostname        string
	BuildsDir       string
	CacheDir        string
	SharedBuildsDir bool
	Shells          []string
	Login           bool
	ScriptSocket    string
	ScriptToken     string
	KillGrace       time.Duration
	Environment     []runnerapi.Variable
	// SharedFiles: scripts may run as another user than switchyard-job.
	SharedFiles     bool
	CustomBuildDir  bool
	SectionAttempts bool
}

// Complete copies the place's facts into a job's spec.
func (p Place) Complete(s *folder.Spec) {
	s.Hostname, s.BuildsDir, s.CacheDir, s.SharedBuildsDir = p.Hostname, p.BuildsDir, p.CacheDir, p.SharedBuildsDir
	s.Shells, s.Login = p.Shells, p.Login
	s.ScriptSocket, s.ScriptToken = p.ScriptSocket, p.ScriptToken
	s.KillGrace = p.KillGrace
	s.Environment = append(s.Environment, p.Environment...)
	s.SharedFiles, s.CustomBuildDir, s.SectionAttempts = p.SharedFiles, p.CustomBuildDir, p.SectionAttempts
}

// Command is one process to run. Nil streams are empty or discarded.
type Command struct {
	Argv   []string
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// Features says what an executor's jobs can rely on.
type Features struct {
	// Runner has GitLab's `info.features` that depend on the executor (variables, image, services, …); those of
	// switchyard-job are added by the agent.
	Runner runnerapi.Features
	// Shell is the one that scripts run in, for `info.shell`.
	Shell string
	// SurvivesAgent: jobs go on when the agent's process ends.
	SurvivesAgent bool
	// GPUs are those that jobs get, as the administrator wrote them, for `info.config.gpus`; empty: none.
	GPUs string
}

// Error is a failure that is not the agent's own.
type Error struct {
	Reason runnerapi.FailureReason // what GitLab is told
	// ExitCode is what GitLab is told of the job's exit code; 0 is none.
	ExitCode int
	Err      error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
