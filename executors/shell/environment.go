//go:build unix

package shell

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// environment is one job's processes on this host.
type environment struct {
	executor *Executor
	spec     executors.Spec

	once sync.Once
	done chan struct{}
	err  error
}

func newEnvironment(e *Executor, spec executors.Spec) *environment {
	return &environment{executor: e, spec: spec, done: make(chan struct{})}
}

func (v *environment) end(why error) {
	v.once.Do(func() {
		v.err = why
		close(v.done)
	})
}

func (v *environment) Job() executors.Place {
	c := v.executor.config
	return executors.Place{
		Folder:          v.spec.Folder,
		Binary:          v.spec.JobBinary,
		Hostname:        v.executor.hostname,
		BuildsDir:       c.BuildsDir,
		CacheDir:        c.CacheDir,
		SharedBuildsDir: true,
		Shells:          v.executor.shells,
		Login:           true,
		KillGrace:       c.KillGrace,
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
	environ := append(slices.Clip(v.executor.environ), marker+"="+v.spec.Folder)
	return run(ctx, c, environ, v.executor.config.BuildsDir)
}

func (v *environment) Kill(ctx context.Context) error {
	if err := killAll(ctx, v.spec.Folder); err != nil {
		return fmt.Errorf("kill the job's processes: %w", err)
	}
	return nil
}

// Destroy kills what is left. A job that ended in order left nothing: switchyard-job ends only after everything that
// descends from it has.
func (v *environment) Destroy(ctx context.Context) error {
	if v.ended() {
		return nil
	}
	return v.Kill(ctx)
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
