//go:build unix

// Package datadir is an agent's folder on its host:
//
//	agent.lock                 flock(2)ed by the running agent; holds its PID
//	place                      where the folder is, by which a copy is told
//	agent.key, agent.crt, …    who the agent is, see package identity
//	jobs/<name>/               one folder for each job that the agent holds, see package supervisor
//	builds/, cache/            where the shell executor works, unless it is told otherwise
package datadir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	lockName = "agent.lock"
	jobsName = "jobs"

	// lockPatience is how long the lock may outlive its owner: an agent that is killed while it starts a job has a child
	// that is just becoming another program and holds all that the agent had open until then.
	lockPatience = 2 * time.Second
	lockPause    = 10 * time.Millisecond
)

// InUseError says that another agent process works in the folder.
type InUseError struct {
	Path string
	PID  int // 0 if it is not known
}

func (e *InUseError) Error() string {
	who := "another agent"
	if e.PID > 0 {
		who += " (process " + strconv.Itoa(e.PID) + ")"
	}
	return fmt.Sprintf("%s uses the data folder %s: stop it, or give this agent a folder of its own with --data", who, e.Path)
}

// Dir is an agent's data folder, held by this process until Close.
type Dir struct {
	path   string
	lock   *os.File
	place  string // what is, or is to be, in the file of that name
	copyOf string
}

// Open makes the folder (mode 0700; its parents as needed) and takes it for this process. It returns an *InUseError if
// another process has it; one that has just been killed is waited for, for a moment. The path is made absolute.
func Open(ctx context.Context, path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data folder %q: %w", path, err)
	}
	for _, dir := range []string{abs, filepath.Join(abs, jobsName)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the data folder: %w (choose another with --data)", err)
		}
	}
	if err := os.Chmod(filepath.Join(abs, jobsName), 0o700); err != nil {
		return nil, fmt.Errorf("close the jobs' folder to others: %w", err)
	}
	lock, err := takeLock(ctx, abs)
	if err != nil {
		return nil, err
	}
	d := &Dir{path: abs, lock: lock}
	if err := d.look(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func takeLock(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data folder: %w (choose another with --data)", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	for limit := time.Now().Add(lockPatience); errors.Is(err, syscall.EWOULDBLOCK); {
		text, _ := io.ReadAll(io.NewSectionReader(f, 0, 32))
		pid, _ := strconv.Atoi(string(bytes.TrimSpace(text)))
		if alive(pid) || time.Now().After(limit) {
			return nil, errors.Join(&InUseError{Path: dir, PID: pid}, f.Close())
		}
		// Nothing tells when the lock is let go, short of waiting for it without an end.
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the data folder %s: %w", dir, errors.Join(err, f.Close()))
	}
	return f, nil
}

// alive reports whether there is a process with that PID, or that cannot be told.
func alive(pid int) bool {
	return pid <= 0 || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// Close lets the folder go.
func (d *Dir) Close() error {
	if err := d.lock.Close(); err != nil {
		return fmt.Errorf("unlock the data folder: %w", err)
	}
	return nil
}

// Path is the folder's absolute path.
func (d *Dir) Path() string { return d.path }

// Jobs is the folder with one folder for each job.
func (d *Dir) Jobs() string { return filepath.Join(d.path, jobsName) }
