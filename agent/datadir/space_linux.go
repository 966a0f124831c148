package datadir

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Limits of Room.
const (
	leastFree   = 100 << 20 // bytes
	mostFree    = 1 << 30   // bytes
	leastInodes = 1000
)

// Room returns nil while the folder's filesystem has room for more jobs. The error says how much there is and how much
// is asked for: 1 % of the filesystem, but at least 100 MiB and at most 1 GiB (on a filesystem below 1 GiB: 10 %), and
// 1000 inodes. least, unless it is 0, is what is asked for instead of the 1 %.
func (d *Dir) Room(least int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(d.path, &s); err != nil {
		return fmt.Errorf("look at the free space of %s: %w", d.path, err)
	}
	block := uint64(s.Bsize)                                                                     //nolint:gosec // never negative
	return room(d.path, s.Bavail*block, s.Blocks*block, s.Ffree, s.Files, uint64(max(least, 0))) //nolint:gosec // not negative
}

func room(path string, free, size, freeInodes, inodes, least uint64) error {
	need := least
	if need == 0 {
		need = min(max(size/100, leastFree), mostFree, size/10)
	}
	if free < need {
		return fmt.Errorf("the disk of the data folder %s is nearly full: %d MiB are free, %d MiB are needed to take jobs",
			path, free>>20, need>>20)
	}
	// Filesystems that have no fixed number of inodes say 0.
	if inodes > 0 && freeInodes < min(leastInodes, inodes/10) {
		return fmt.Errorf("the disk of the data folder %s has only %d free inodes, %d are needed to take jobs",
			path, freeInodes, min(leastInodes, inodes/10))
	}
	return nil
}
