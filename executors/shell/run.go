//go:build unix

package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/switchyard-ci/switchyard/executors"
)

// drain is how long output is read after the process has ended: something that it left behind may hold the pipe open.
const drain = time.Second

// launch is how a process is started.
type launch struct {
	environ    []string
	dir        string
	credential *syscall.Credential // nil: as the agent itself
	// started is called once the process is there; its error kills it.
	started func(pid int) error
}

// run starts a process in a session of its own, so that no signal to the agent's reaches it, and waits for it. When ctx
// ends the process goes on without being waited for.
func run(ctx context.Context, c executors.Command, how launch) (int, error) {
	if len(c.Argv) == 0 {
		return 0, errors.New("start a process: no command")
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	path, err := exec.LookPath(c.Argv[0])
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", c.Argv[0], err)
	}
	p := &pipes{}
	defer p.close()
	files, err := p.connect(c)
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", path, err)
	}
	waiter, err := start(path, &os.ProcAttr{
		Dir: how.dir, Env: how.environ, Files: files, Sys: &syscall.SysProcAttr{Setsid: true, Credential: how.credential},
	}, c.Argv)
	p.closeTheirs()
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", path, err)
	}
	if err := how.started(waiter.process.Pid); err != nil {
		_ = waiter.process.Kill()
		_, waitErr := waiter.wait(ctx)
		return 0, errors.Join(err, waitErr)
	}
	p.copy(c)
	state, err := waiter.wait(ctx)
	if err != nil {
		return 0, err
	}
	p.drain()
	if state.Exited() {
		return state.ExitCode(), nil
	}
	status, _ := state.Sys().(syscall.WaitStatus)
	return 128 + int(status.Signal()), nil
}

// pipes connects a process' standard streams with a command's readers and writers.
type pipes struct {
	ours, theirs []*os.File
	copying      sync.WaitGroup
}

func (p *pipes) connect(c executors.Command) ([]*os.File, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	p.theirs = append(p.theirs, null)
	files := []*os.File{null, null, null}
	if c.Stdin != nil {
		if err := p.pipe(&files[0], false); err != nil {
			return nil, err
		}
	}
	if c.Stdout != nil {
		if err := p.pipe(&files[1], true); err != nil {
			return nil, err
		}
	}
	switch c.Stderr {
	case nil:
	case c.Stdout:
		files[2] = files[1]
	default:
		if err := p.pipe(&files[2], true); err != nil {
			return nil, err
		}
	}
	return files, nil
}

func (p *pipes) pipe(theirs **os.File, out bool) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	if !out {
		r, w = w, r
	}
	p.ours = append(p.ours, r)
	p.theirs = append(p.theirs, w)
	*theirs = w
	return nil
}

// copy starts to copy; the order of ours is stdin, stdout, stderr, those that there are.
func (p *pipes) copy(c executors.Command) {
	ours := p.ours
	if c.Stdin != nil {
		in := ours[0]
		ours = ours[1:]
		// A reader that blocks cannot be interrupted, so nobody waits for this one; it ends with its reader.
		go func() {
			_, _ = io.Copy(in, c.Stdin)
			_ = in.Close()
		}()
	}
	for _, w := range []io.Writer{c.Stdout, c.Stderr} {
		if w == nil || len(ours) == 0 {
			continue
		}
		out := ours[0]
		ours = ours[1:]
		p.copying.Go(func() { _, _ = io.Copy(w, out) })
	}
}

func (p *pipes) closeTheirs() {
	for _, f := range p.theirs {
		_ = f.Close()
	}
	p.theirs = nil
}

// drain lets the copying end by itself, but not for long.
func (p *pipes) drain() {
	for _, f := range p.ours {
		_ = f.SetReadDeadline(time.Now().Add(drain))
	}
	p.copying.Wait()
}

func (p *pipes) close() {
	p.closeTheirs()
	for _, f := range p.ours {
		_ = f.Close()
	}
	p.copying.Wait()
}
