package shell

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// waiter waits for a child in a way that can be given up.
type waiter struct {
	process *os.Process
	pidfd   *os.File // nil: the kernel has none
}

func start(path string, attr *os.ProcAttr, argv []string) (*waiter, error) {
	fd := -1
	attr.Sys.PidFD = &fd
	process, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return nil, err
	}
	w := &waiter{process: process}
	if fd >= 0 {
		if err := unix.SetNonblock(fd, true); err == nil {
			w.pidfd = os.NewFile(uintptr(fd), "pidfd")
		} else {
			_ = unix.Close(fd)
		}
	}
	return w, nil
}

func (w *waiter) wait(ctx context.Context) (*os.ProcessState, error) {
	if w.pidfd == nil {
		return waitInBackground(ctx, w.process)
	}
	defer func() { _ = w.pidfd.Close() }()
	if err := readable(ctx, w.pidfd); err != nil {
		if ctx.Err() != nil {
			_ = w.process.Release()
			return nil, ctx.Err()
		}
		return waitInBackground(ctx, w.process)
	}
	return w.process.Wait()
}

// readable waits until f can be read from: a pidfd can once its process has ended.
func readable(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for a process: %w", err)
	}
	var pollErr error
	err = raw.Read(func(fd uintptr) bool {
		set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor
		n, err := unix.Poll(set, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			pollErr = err
			return true
		}
		return n > 0
	})
	return errors.Join(err, pollErr)
}
