package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// jobProcess is a process of a job.
type jobProcess struct {
	pid     int
	command string
}

func (p jobProcess) String() string { return fmt.Sprintf("%d (%s)", p.pid, p.command) }

func (p jobProcess) kill() error {
	if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %s: %w", p, err)
	}
	return nil
}

// jobProcesses returns the processes of jobs whose folders are below dir.
func jobProcesses(dir string) ([]jobProcess, error) {
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	var found []jobProcess
	for _, file := range environments {
		environ, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(environ, []byte("SWITCHYARD_JOB_FOLDER="+dir)) {
			continue // it has ended, or is somebody else's
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		command, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		found = append(found, jobProcess{pid, string(bytes.TrimSpace(bytes.ReplaceAll(command, []byte{0}, []byte(" "))))})
	}
	return found, nil
}
