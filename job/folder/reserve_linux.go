package folder

import (
	"os"

	"golang.org/x/sys/unix"
)

// reserve takes space for the file's first bytes without changing its length, if the file system knows how to.
func reserve(file *os.File, size int64) {
	_ = unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
}
