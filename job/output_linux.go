package job

import (
	"os"

	"golang.org/x/sys/unix"
)

const fionread = unix.TIOCINQ

func pipe(fds []int) error { return unix.Pipe2(fds, unix.O_CLOEXEC) }

// growPipe lets programs write more before they wait; a limit on pipes' sizes is not an error.
func growPipe(fd int) { _, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize) }

// unnamedFile returns a file that holds text and has no name, read from its beginning.
func unnamedFile(text []byte, _ string) (*os.File, error) {
	fd, err := unix.MemfdCreate("script", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "script")
	return f, fill(f, text)
}
