//go:build unix

package folder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// Lock is the lock of a job folder, held until Close or the end of the process (it is not inherited).
type Lock struct{ file *os.File }

// LockStart is held by a switchyard-job from before it tries to take the job's lock until it listens on the control
// socket, and for an instant by whoever asks whether one runs. So whoever finds the job's lock taken knows that its owner
// listens already, or has ended. It waits.
func (f *Folder) LockStart() (*Lock, error) { return f.lockFolder(syscall.LOCK_EX) }

func (f *Folder) lockFolder(how int) (*Lock, error) {
	dir, err := f.root.Open(".") // a description of its own: locks belong to it
	if err != nil {
		return nil, fmt.Errorf("lock the job folder: %w", err)
	}
	if err := flock(dir, how); err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("lock the job folder: %w", err)
	}
	return &Lock{dir}, nil
}

// TryLock takes the lock of the process that runs the job; the caller holds LockStart. ok is false if another process has
// it.
func (f *Folder) TryLock() (lock *Lock, ok bool, err error) {
	file, err := f.root.OpenFile(LockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("lock the job folder: %w", err)
	}
	if err := flock(file, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, false, nil
		}
		return nil, false, fmt.Errorf("lock the job folder: %w", err)
	}
	return &Lock{file}, true, nil
}

// WaitLock takes the lock, waiting for as long as another process has it: that is, for the end of that process.
func (f *Folder) WaitLock() (*Lock, error) {
	file, err := f.root.OpenFile(LockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the job folder: %w", err)
	}
	if err := flock(file, syscall.LOCK_EX); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock the job folder: %w", err)
	}
	return &Lock{file}, nil
}

// Close lets the lock go.
func (l *Lock) Close() error { return l.file.Close() }

// Running says whether a switchyard-job holds the folder now; if so, it listens on the control socket, or has just ceased
// to. It waits for one that is starting.
func (f *Folder) Running() (bool, error) {
	start, err := f.lockFolder(syscall.LOCK_SH)
	if err != nil {
		return false, err
	}
	defer func() { _ = start.Close() }()
	file, err := f.openRegular(LockFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a running job: %w", err)
	}
	defer func() { _ = file.Close() }()
	err = flock(file, syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a running job: %w", err)
	}
	return false, nil
}

func flock(file *os.File, how int) error {
	for {
		// The descriptor stays open for the call: file is used after it.
		err := syscall.Flock(int(file.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
