//go:build unix

package shell

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// environment is one job's processes on this host.
type environment struct {
	executor *Executor
	spec     executors.Spec
	user     *user // nil: the agent's

	once sync.Once
	done chan struct{}
	err  error
}

func newEnvironment(e *Executor, spec executors.Spec) *environment {
	v := &environment{executor: e, spec: spec, done: make(chan struct{})}
	if n := len(e.users); n > 0 {
		v.user = &e.users[spec.ConcurrentID%n]
	}
	return v
}

func (v *environment) end(why error) {
	v.once.Do(func() {
		v.err = why
		close(v.done)
	})
}

func (v *environment) Job() executors.Place {
	c := v.executor.config
	builds, cache := c.BuildsDir, c.CacheDir
	if v.user != nil {
		builds, cache = v.user.folder(builds), v.user.folder(cache)
	}
	return executors.Place{
		Folder:          v.spec.Folder,
		Binary:          v.spec.JobBinary,
		Hostname:        v.executor.hostname,
		BuildsDir:       builds,
		CacheDir:        cache,
		SharedBuildsDir: true,
		Shells:          v.executor.shells,
		Login:           true,
		KillGrace:       c.KillGrace,
		CustomBuildDir:  c.CustomBuildDir,
	}
}

func (v *environment) LocalFolder() (string, bool) { return v.spec.Folder, true }

func (v *environment) Done() <-chan struct{} { return v.done }

func (v *environment) Err() error {
	select {
	case <-v.done:
		return v.err
	default:
		return nil
	}
}

func (v *environment) Exec(ctx context.Context, c executors.Command) (int, error) {
	how := launch{environ: append(slices.Clip(v.executor.environ), marker+"="+v.spec.Folder), dir: v.Job().BuildsDir}
	if v.user != nil {
		if v.isJob(c) {
			if err := v.user.take(v.spec.Folder); err != nil {
				return 0, fmt.Errorf("give the job folder to %s: %w", v.user.name, err)
			}
		}
		how.environ, how.credential = v.user.environ(how.environ), v.user.credential
	}
	release, err := v.hold(c)
	if err != nil {
		return 0, err
	}
	defer release()
	how.started = func(pid int) error {
		defer release()
		// An agent that leaves at this moment must not take the job with it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), groupPatience)
		defer cancel()
		return v.executor.groups.add(ctx, v.spec.Name, pid)
	}
	code, err := run(ctx, c, how)
	if v.isJob(c) && code == killed && v.executor.groups.outOfMemory(v.spec.Name) {
		v.end(fmt.Errorf("the job used more memory than its limit of %d bytes, and the kernel killed it", v.executor.config.Limits.Memory))
	}
	return code, err
}

// groupPatience is how long the system may take to make a group.
const groupPatience = 10 * time.Second

// killed is the exit code of what SIGKILL ended.
const killed = 128 + 9

// isJob says whether a command is the job itself.
func (v *environment) isJob(c executors.Command) bool {
	return len(c.Argv) > 1 && c.Argv[0] == v.spec.JobBinary && c.Argv[1] == "run"
}

// hold keeps a switchyard-job that is about to be started from beginning, until release is called: first it has to be in
// the job's group, or what it starts meanwhile would not be.
func (v *environment) hold(c executors.Command) (release func(), err error) {
	if !v.isJob(c) || !v.executor.groups.any() {
		return func() {}, nil
	}
	f, err := folder.Open(v.spec.Folder)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	lock, err := f.LockStart()
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { _ = lock.Close() }), nil
}

func (v *environment) Kill(ctx context.Context) error {
	if err := errors.Join(v.executor.groups.kill(ctx, v.spec.Name), killAll(ctx, v.spec.Folder)); err != nil {
		return fmt.Errorf("kill the job's processes: %w", err)
	}
	return nil
}

// Destroy kills what is left. A job that ended in order left nothing: switchyard-job ends only after everything that
// descends from it has.
func (v *environment) Destroy(ctx context.Context) error {
	if !v.ended() {
		if err := v.Kill(ctx); err != nil {
			return err
		}
	}
	return v.executor.groups.remove(ctx, v.spec.Name)
}

// ended reports whether the job has a result and its process is gone.
func (v *environment) ended() bool {
	f, err := folder.Open(v.spec.Folder)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Result(); err != nil {
		return false
	}
	running, err := f.Running()
	return err == nil && !running
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return string(b), nil
}
