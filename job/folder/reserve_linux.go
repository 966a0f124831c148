package folder

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserve takes space for the file's first bytes without changing its length. It only fails if there is none: not every
// file system knows how to reserve.
func reserve(file *os.File, size int64) error {
	err := unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return err
	}
	return nil
}
