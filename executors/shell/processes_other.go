//go:build unix && !linux

package shell

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/switchyard-ci/switchyard/job/folder"
)

type process struct{ folder string }

// marked finds nothing: only Linux shows other processes' environments.
func marked(func(folder string) bool) ([]process, error) { return nil, nil }

// killAll kills the session of the job's process.
func killAll(_ context.Context, path string) error {
	f, err := folder.Open(path)
	if err != nil {
		return nil //nolint:nilerr // no folder, no process
	}
	defer func() { _ = f.Close() }()
	running, err := f.Running()
	if err != nil || !running {
		return err
	}
	started, err := f.Started()
	if err != nil || started.PID <= 1 {
		return err
	}
	if err := unix.Kill(-started.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}
