package spool

import (
	"os"

	"golang.org/x/sys/unix"
)

// reserve takes space for the file's first bytes without changing its length, if there is space and the file system knows
// how.
func reserve(f *os.File, size int64) {
	_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
}
