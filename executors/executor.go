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

	// Recover takes up the environment of that name after the agent was restarted. ErrNotFound: there is none, or
	// nothing of it is left.
	Recover(ctx context.Context, spec Spec) (Environment, error)

	// Sweep destroys every environment of this fleet's agent on this place for which keep(name) is false. It touches
	// nothing that this agent did not make.
	Sweep(ctx context.Context, keep func(name string) bool) error
}

// Environment is one job's place. Methods may be called concurrently; none after Destroy.
type Environment interface {
	// Job is what switchyard-job needs to know of the place; the agent completes it with what it knows itself.
	Job() Place

	// LocalFolder is the job folder's path on the agent's own disk, if it is there: then the agent reads and writes the
	// files itself. If ok is false everything goes through Exec and `switchyard-job attach`.
	LocalFolder() (path string, ok bool)

	// Exec runs a command in the environment with the agent's privileges there (never the user's script) and returns
	// its exit code. Ending ctx ends the wait, not the process: it returns ctx.Err() and the process goes on, so that a
	// stopping agent leaves its jobs alone. An error means that the command could not be started or was lost sight of.
	Exec(ctx context.Context, c Command) (exitCode int, err error)

	// Done is closed when the environment cannot run anything any more (out of memory, evicted, node lost, host
	// rebooted). Err then says why, for people. It is never closed by Kill or Destroy.
	Done() <-chan struct{}
	// Err is why Done is closed; nil before.
	Err() error

	// Kill stops every process of the environment at once, daemons that a script left behind included. It returns when
	// none is left. Idempotent.
	Kill(ctx context.Context) error

	// Destroy removes all that Prepare made, killing what still runs. The agent's job folder itself is not its to
	// remove. Idempotent; safe to repeat after an error.
	Destroy(ctx context.Context) error
}

// ErrNotFound is returned by Recover for an environment that does not exist.
var ErrNotFound = errors.New("environment not found")

// Spec describes the environment that a job needs.
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
	// agent now, of the runner and of the project. All three are as in [folder.Spec]; Recover is not given them.
	Runner              folder.Runner
	ConcurrentID        int
	ConcurrentProjectID int
}

// Place is the executor's part of [folder.Spec].
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
}

// Complete copies the place's facts into a job's spec.
func (p Place) Complete(s *folder.Spec) {
	s.Hostname, s.BuildsDir, s.CacheDir, s.SharedBuildsDir = p.Hostname, p.BuildsDir, p.CacheDir, p.SharedBuildsDir
	s.Shells, s.Login = p.Shells, p.Login
	s.ScriptSocket, s.ScriptToken = p.ScriptSocket, p.ScriptToken
	s.KillGrace = p.KillGrace
	s.Environment = append(s.Environment, p.Environment...)
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
}

// Error is a failure of Prepare that is not the agent's own.
type Error struct {
	Reason runnerapi.FailureReason // what GitLab is told
	Err    error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
