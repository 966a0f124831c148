//go:build unix && !linux

package datadir

// Room returns nil: free space is looked at on Linux only.
func (d *Dir) Room(int64) error { return nil }
