//go:build unix && !linux

package process

import "syscall"

// adoptOrphans does nothing: what leaves its session here is not found again.
func adoptOrphans() error { return nil }

// awaitEnd waits until a child has ended and reaps it.
func awaitEnd() (pid int, status syscall.WaitStatus, reaped bool, err error) {
	pid, err = syscall.Wait4(-1, &status, 0, nil)
	return pid, status, true, err
}

func signalDescendants(started []int, s syscall.Signal) {
	for _, pid := range started {
		_ = syscall.Kill(-pid, s)
	}
}
