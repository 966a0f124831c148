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

func tellDescendants(started []int, s syscall.Signal, told map[entry]bool) {
	tellGroups(started, s, told)
}
