package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

const (
	// keepLines is how much of a process' log is kept for the case that something goes wrong.
	keepLines = 100
	// stopPatience is how long a process may take to leave.
	stopPatience = 15 * time.Second
)

// process is one of the fleet's programs. It logs JSON, by which it is known how far it is.
type process struct {
	name string
	cmd  *exec.Cmd

	mu      sync.Mutex
	log     []string
	seen    map[string]map[string]any // the first record of each message
	changed chan struct{}             // closed at the next record
	ended   chan struct{}             // closed when the process has ended
	err     error                     // of the process; for after ended
}

// launch starts a program in a process group of its own, so that a Ctrl-C reaches the demo alone.
func launch(name, path string, environ []string, args ...string) (*process, error) {
	p := &process{
		name: name, cmd: exec.Command(path, args...), //nolint:noctx // it is stopped in order, by close
		seen: map[string]map[string]any{}, changed: make(chan struct{}), ended: make(chan struct{}),
	}
	p.cmd.Env = append(os.Environ(), environ...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.read(stderr)
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

func (p *process) read(from io.Reader) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		record := map[string]any{}
		_ = json.Unmarshal(lines.Bytes(), &record) // a panic's lines are none
		message, _ := record["msg"].(string)
		p.mu.Lock()
		p.log = append(p.log, lines.Text())
		p.log = p.log[max(0, len(p.log)-keepLines):]
		if p.seen[message] == nil {
			p.seen[message] = record
		}
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, from) // after a line that is too long
}

// await waits until the process has logged a message and returns the record.
func (p *process) await(ctx context.Context, message string) (map[string]any, error) {
	for {
		p.mu.Lock()
		record, changed := p.seen[message], p.changed
		p.mu.Unlock()
		if record != nil {
			return record, nil
		}
		select {
		case <-changed:
		case <-p.ended:
			return nil, fmt.Errorf("%s has ended before it was ready: %w", p.name, p.result())
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s: %w", p.name, ctx.Err())
		}
	}
}

var errUnasked = errors.New("it ended by itself")

// result is how the process ended; it has.
func (p *process) result() error {
	if p.err != nil {
		return p.err
	}
	return errUnasked
}

// stop asks the process to leave and waits until it has; one that does not is killed. In a hurry it is asked twice: then
// an agent does not wait for its jobs.
func (p *process) stop(hurry bool) error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s: %w", p.name, p.result())
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	if hurry {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have left already
	}
	patience := time.NewTimer(stopPatience)
	defer patience.Stop()
	select {
	case <-p.ended:
	case <-patience.C:
		_ = p.cmd.Process.Kill()
		<-p.ended
		return fmt.Errorf("%s did not leave within %s", p.name, stopPatience)
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w", p.name, p.err)
	}
	return nil
}

// lines is the end of the log.
func (p *process) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.log...)
}
