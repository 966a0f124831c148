//go:build unix

// Package datafolder is the control plane's folder: store, spool, CA, keys and the socket for administration. One
// control plane at a time works in it.
package datafolder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// lockName is flock(2)ed by the control plane and holds its PID. The file stays: removing it would let two processes
// lock two files of that name.
const lockName = "controlplane.lock"

// InUseError says that another control plane works in the folder.
type InUseError struct {
	Path string
	PID  int // 0 if it is not known
}

// Error says who and what to do.
func (e *InUseError) Error() string {
	who := "another control plane"
	if e.PID > 0 {
		who += " (process " + strconv.Itoa(e.PID) + ")"
	}
	return fmt.Sprintf("%s uses the data folder %s: stop it, or give this one another folder (data: in its configuration)", who, e.Path)
}

// Folder is a data folder that this process holds until Close.
type Folder struct {
	path string
	lock *os.File
}

// Open makes the folder if it is missing (mode 0700, its parents too) and takes it for this process. It returns an
// *InUseError if another process has it. The lock ends with the process, however that ends.
func Open(path string) (*Folder, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data folder %q: %w", path, err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, fmt.Errorf("make the data folder: %w (the key data in the configuration says where it is)", err)
	}
	lock, err := takeLock(abs)
	if err != nil {
		return nil, err
	}
	return &Folder{path: abs, lock: lock}, nil
}

func takeLock(folder string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(folder, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data folder: %w; see to its owner and mode", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		text, _ := io.ReadAll(io.LimitReader(f, 32)) // the PID is a courtesy
		pid, _ := strconv.Atoi(string(bytes.TrimSpace(text)))
		return nil, errors.Join(&InUseError{Path: folder, PID: pid}, f.Close())
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the data folder %s: %w", folder, errors.Join(err, f.Close()))
	}
	return f, nil
}

// Path is the folder's absolute path.
func (f *Folder) Path() string { return f.path }

// Close lets the folder go.
func (f *Folder) Close() error {
	if err := f.lock.Close(); err != nil {
		return fmt.Errorf("unlock the data folder: %w", err)
	}
	return nil
}
