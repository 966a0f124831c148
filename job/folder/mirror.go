//go:build unix

package folder

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// A folder whose job runs elsewhere is a mirror: spec, payload and prefix are the agent's as always, trace, fence and result
// are copies of what the job writes into a folder in its environment. Package attach keeps it.

// MirrorStarted notes that the fence of the job's own folder stands. It is not synced and replaces an earlier note: the
// fence that counts is the other one.
func (f *Folder) MirrorStarted(s Started) error {
	s.Version = Version
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("write %s: %w", StartedFile, err)
	}
	return f.replace(StartedFile, b, notSynced)
}

// MirrorTrace opens the copy of the trace for reading and appending and makes it if needed. anew: what there is of it is
// dropped first. The caller owns the file.
func (f *Folder) MirrorTrace(anew bool) (*os.File, error) {
	flags := os.O_RDWR | os.O_APPEND | os.O_CREATE | syscall.O_NOFOLLOW
	if anew {
		flags |= os.O_TRUNC
	}
	file, err := f.root.OpenFile(TraceFile, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", TraceFile, err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("open %s: %w", TraceFile, err)
	}
	return file, nil
}
