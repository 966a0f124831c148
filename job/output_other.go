//go:build unix && !linux

package job

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const fionread = 0x4004667f // _IOR('f', 127, int)

func pipe(fds []int) error {
	// No fork of this process is missed: it starts programs from one goroutine only.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := unix.Pipe(fds); err != nil {
		return err
	}
	unix.CloseOnExec(fds[0])
	unix.CloseOnExec(fds[1])
	return nil
}

func growPipe(int) {}

// unnamedFile returns a file that holds text and has no name any more, read from its beginning.
func unnamedFile(text []byte, dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "script")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, fill(f, text)
}
