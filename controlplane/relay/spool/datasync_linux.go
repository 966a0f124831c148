package spool

import (
	"os"

	"golang.org/x/sys/unix"
)

// datasync leaves out the times in the inode, which fsync would write too.
func datasync(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for {
			if failed = unix.Fdatasync(int(fd)); failed != unix.EINTR {
				return
			}
		}
	})
	if err != nil {
		return os.ErrClosed // Control has no other error of its own, and this one has no name
	}
	return failed
}
