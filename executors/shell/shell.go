//go:build unix

// Package shell runs jobs on the agent's own host. An environment is a set of processes: those in the job's control group,
// those that carry the job folder's path in their environment, and what descends from them. Without run_as jobs run as the
// agent's user and there is no isolation: jobs on one host see and trust one another, as under gitlab-runner's shell
// executor.
package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// Name is GitLab's name of this executor.
const Name = "shell"

// DefaultKillGrace is the time between SIGTERM and SIGKILL.
const DefaultKillGrace = 30 * time.Second

// marker is the variable by which a job's processes are known: the job folder's path.
const marker = "SWITCHYARD_JOB_FOLDER"

// Config is what the executor is made with. Paths are absolute.
type Config struct {
	// Jobs is the folder below which the agent keeps its job folders. It tells this agent's processes from those of
	// others on the host.
	Jobs string
	// BuildsDir and CacheDir are made if needed.
	BuildsDir string
	CacheDir  string
	// Shell is "bash", "sh" or empty: bash if there is one.
	Shell string
	// RunAs are users that jobs run as; the agent must be root. The job in slot n is that of user n (modulo their number),
	// with folders for builds and caches of its own below BuildsDir and CacheDir. None: the agent's user.
	RunAs []string
	// CustomBuildDir lets jobs choose their folder within BuildsDir by GIT_CLONE_PATH.
	CustomBuildDir bool
	// Limits bound what all processes of one job may use together.
	Limits Limits
	// KillGrace is the time between SIGTERM and SIGKILL; 0 means DefaultKillGrace.
	KillGrace time.Duration
	// Environ is the environment that jobs begin with, in the form of os.Environ, less what Inherited removes.
	Environ []string
	// Supervised says that a supervisor (systemd) ends all of the agent's processes with the agent.
	Supervised bool
	Log        *slog.Logger
}

// Executor makes environments on this host.
type Executor struct {
	config   Config
	shells   []string
	environ  []string
	hostname string
	users    []user // of RunAs
	groups   groups
}

// New checks the configuration.
func New(c Config) (*Executor, error) {
	for _, p := range []struct{ name, path string }{{"jobs", c.Jobs}, {"builds_dir", c.BuildsDir}, {"cache_dir", c.CacheDir}} {
		if !filepath.IsAbs(p.path) {
			return nil, fmt.Errorf("shell executor: %s is %q: it must be an absolute path", p.name, p.path)
		}
	}
	shells := []string{"bash", "sh"}
	switch c.Shell {
	case "":
		if _, err := exec.LookPath("bash"); err != nil {
			shells = []string{"sh"}
		}
	case "bash", "sh":
		shells = []string{c.Shell}
	default:
		return nil, fmt.Errorf("shell executor: shell is %q: it must be bash or sh", c.Shell)
	}
	if c.KillGrace == 0 {
		c.KillGrace = DefaultKillGrace
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("shell executor: %w", err)
	}
	e := &Executor{config: c, shells: shells, environ: Inherited(c.Environ), hostname: hostname}
	if e.users, err = lookUp(c.RunAs); err != nil {
		return nil, fmt.Errorf("shell executor: %w", err)
	}
	if e.groups, err = findGroups(c); err != nil {
		return nil, fmt.Errorf("shell executor: limits: %w", err)
	}
	return e, nil
}

// Inherited returns what of the agent's environment its jobs get: all but what is the agent's own or its supervisor's.
func Inherited(environ []string) []string {
	own := []string{
		"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES",
		"INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "CREDENTIALS_DIRECTORY", "MAINPID", "MANAGERPID",
		"MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE",
	}
	return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		key, _, _ := strings.Cut(kv, "=")
		return strings.HasPrefix(key, "SWITCHYARD_") || slices.Contains(own, key)
	})
}

// Name returns "shell".
func (e *Executor) Name() string { return Name }

// Features returns what jobs can rely on here.
func (e *Executor) Features() executors.Features {
	return executors.Features{
		Runner:        runnerapi.Features{Variables: true, Shared: true},
		Shell:         e.shells[0],
		SurvivesAgent: !e.config.Supervised || e.groups.outlive(),
	}
}

// Check looks for the shell and for room to build in. A missing git is only warned about: jobs with GIT_STRATEGY none
// or empty run without it.
func (e *Executor) Check(context.Context) error {
	if _, err := exec.LookPath(e.shells[0]); err != nil {
		if e.config.Shell != "" {
			return fmt.Errorf("shell executor: %s is not installed: install it, or set executors.shell.shell to the one that is there", e.shells[0])
		}
		return errors.New("shell executor: neither bash nor sh is in PATH: install one of them")
	}
	if err := e.makeFolders(); err != nil {
		return err
	}
	for _, u := range e.users {
		if err := e.openTo(u); err != nil {
			return err
		}
	}
	if _, err := exec.LookPath("git"); err != nil {
		e.config.Log.Warn("git is not installed: jobs that fetch their repository will fail", "executor", Name)
	}
	return nil
}

func (e *Executor) makeFolders() error {
	for _, dir := range []string{e.config.BuildsDir, e.config.CacheDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("shell executor: %w (executors.shell.builds_dir and cache_dir say where)", err)
		}
	}
	return nil
}

// Prepare makes sure that the folders for builds and caches are there.
func (e *Executor) Prepare(_ context.Context, spec executors.Spec, trace io.Writer) (executors.Environment, error) {
	if err := e.makeFolders(); err != nil {
		return nil, err
	}
	if _, err := exec.LookPath(e.shells[0]); err != nil {
		return nil, fmt.Errorf("shell executor: %s is not installed on %s", e.shells[0], e.hostname)
	}
	if _, err := fmt.Fprintf(trace, "Using Shell (%s) executor...\n", e.shells[0]); err != nil {
		return nil, fmt.Errorf("write the trace: %w", err)
	}
	env := newEnvironment(e, spec)
	if env.user != nil {
		if err := env.user.ownFolders(e.config.BuildsDir, e.config.CacheDir); err != nil {
			return nil, fmt.Errorf("shell executor: %w", err)
		}
	}
	return env, nil
}

// Recover takes up what an earlier process of the agent left. The environment is done if the host was restarted since.
func (e *Executor) Recover(_ context.Context, spec executors.Spec) (executors.Environment, error) {
	f, err := folder.Open(spec.Folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil, executors.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	defer func() { _ = f.Close() }()
	env := newEnvironment(e, spec)
	started, err := f.Started()
	switch {
	case errors.Is(err, folder.ErrNotStarted):
		return env, nil
	case err != nil:
		return nil, fmt.Errorf("recover: %w", err)
	}
	if now, err := bootID(); err == nil && started.BootID != "" && started.BootID != now {
		env.end(fmt.Errorf("the host %s was restarted while the job ran", e.hostname))
	}
	return env, nil
}

// Sweep kills what is left of jobs that the agent does not hold. Names are those of the folders that job folders are in.
func (e *Executor) Sweep(ctx context.Context, keep func(name string) bool) error {
	found, err := marked(func(path string) bool {
		rel, err := filepath.Rel(e.config.Jobs, path)
		return err == nil && filepath.IsLocal(rel) && !keep(filepath.Dir(rel))
	})
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	folders := make(map[string]bool)
	for _, p := range found {
		folders[p.folder] = true
	}
	var errs []error
	for path := range folders {
		e.config.Log.Warn("killing processes of a job that this agent does not hold any more", "folder", path)
		errs = append(errs, killAll(ctx, path))
	}
	return errors.Join(append(errs, e.groups.sweep(ctx, keep))...)
}
