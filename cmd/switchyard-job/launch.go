//go:build unix

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// launch makes a job's folder where there is none, has another process run the job and follows it. It may be repeated: the
// job starts once.
func launch(args []string) int {
	runtime.GOMAXPROCS(1) // see run
	to, err := parseAttach(args)
	if err != nil {
		return misused("launch: " + err.Error())
	}
	in := bufio.NewReaderSize(os.Stdin, 64<<10)
	f, err := begin(to.folder, in)
	if err != nil {
		attach.Fail(os.Stdout, err)
		return failed(err)
	}
	return follow(f, to, in)
}

// begin returns the folder of a job that has been started, by whomever.
func begin(path string, in io.Reader) (*folder.Folder, error) {
	spec, payload, err := attach.ReadHeader(in)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the job folder: %w", err)
	}
	f, err := folder.Make(path)
	if err != nil {
		return nil, err
	}
	if err = describe(f, spec, payload); err == nil {
		err = start(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// describe writes spec and payload, unless that was done before.
func describe(f *folder.Folder, spec folder.Spec, payload []byte) error {
	lock, err := f.LockStart() // another one may be at it
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	have, err := f.Spec()
	switch {
	case err == nil && (have.Job != spec.Job || have.Epoch != spec.Epoch):
		return fmt.Errorf("%s is the folder of job %d, epoch %d, not of job %d, epoch %d", f.Path(), have.Job, have.Epoch, spec.Job, spec.Epoch)
	case !errors.Is(err, folder.ErrNoSpec):
		return err
	}
	spec.PrefixElsewhere = true
	if err := f.WritePayload(payload); err != nil {
		return err
	}
	return f.WriteSpec(spec)
}

// start has a process of its own run the job, unless one did before. When it returns nil the job can be followed.
func start(f *folder.Folder) error {
	if _, err := f.Started(); !errors.Is(err, folder.ErrNotStarted) {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start the job: %w", err)
	}
	var complaint tail
	c := exec.Command(self, "run", f.Path())
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.Stderr = &complaint
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		return fmt.Errorf("start the job: %w", err)
	}
	ready, attached, err := readiness(out)
	switch {
	case err != nil:
		return fmt.Errorf("start the job: %w", err)
	case ready:
		go func() { _ = c.Wait() }() // whoever runs it may end before this process does
		return nil
	case attached: // another one was quicker; this one only waits for its end
		_ = c.Process.Kill()
		_ = c.Wait()
		return nil
	}
	_ = c.Wait()
	switch code := c.ProcessState.ExitCode(); code {
	case exitOK, exitStartedBefore, exitAttached, exitAttachedNoResult:
		return nil // what is in the folder says how it ended
	default:
		return fmt.Errorf("the job cannot be started (exit code %d): %s", code, complaint)
	}
}

// readiness reads what run announces.
func readiness(out io.Reader) (ready, attached bool, err error) {
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return false, false, err
	}
	words := strings.Fields(line)
	if len(words) == 0 {
		return false, false, nil
	}
	last := words[len(words)-1]
	return last == "ready", last == "attached", nil
}

// tail keeps the begin of what a process complains about.
type tail []byte

func (t *tail) Write(b []byte) (int, error) {
	const most = 2 << 10
	*t = append(*t, b[:min(len(b), most-len(*t))]...)
	return len(b), nil
}

func (t tail) String() string {
	return strings.TrimSpace(strings.TrimPrefix(strings.ToValidUTF8(string(t), "�"), "switchyard-job: "))
}

// follow writes frames for as long as the job lives and the caller listens.
func follow(f *folder.Folder, to target, in io.Reader) int {
	resulted, err := attach.Serve(context.Background(), f, to.offset, to.lease, in, os.Stdout)
	switch {
	case errors.Is(err, attach.ErrLeft):
		return exitLeft
	case err != nil:
		return failed(err)
	case !resulted:
		return exitStartedBefore
	}
	return exitOK
}
