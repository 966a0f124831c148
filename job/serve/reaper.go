//go:build unix

package serve

import (
	"errors"
	"fmt"
	"os"
	ossignal "os/signal"
	"syscall"
)

// Reap is what process 1 of a container does: it runs argv as a child, passes signals on to it, reaps whatever else comes
// to it, and returns the child's exit code. The child is the one that knows its own children, so no exit code is taken
// from it.
func Reap(argv []string) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find this program: %w", err)
	}
	signals := make(chan os.Signal, 16)
	ossignal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer ossignal.Stop(signals)
	child, err := syscall.ForkExec(self, argv, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", self, err)
	}
	stop := make(chan struct{})
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		for {
			select {
			case s := <-signals:
				_ = syscall.Kill(child, s.(syscall.Signal))
			case <-stop:
				return
			}
		}
	}()
	defer func() {
		close(stop)
		<-passed
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for children: %w", err)
		case pid == child && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == child:
			return status.ExitStatus(), nil
		}
	}
}
