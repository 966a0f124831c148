//go:build unix

// Package process starts programs and stops everything that descends from them. One [Group] owns every child of the
// calling process: it adopts orphans (on Linux), reaps them, and no other code of the process may wait for children.
package process

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
)

// Command is one program to start.
type Command struct {
	// Path is the program's file, Argv its arguments including the zeroth.
	Path string
	Argv []string
	// Env is the whole environment.
	Env []string
	// Dir is the working folder.
	Dir string
	// Stdin, Stdout and Stderr are given to the program; nil means /dev/null. They stay the caller's.
	Stdin, Stdout, Stderr *os.File
}

// Exit says how a program ended.
type Exit struct {
	// Code is the exit code, or 128 + the signal's number as shells have it.
	Code   int
	Signal syscall.Signal // 0 unless a signal ended it
}

// Group is all the children of this process. At most one per process; methods may be called concurrently.
type Group struct {
	mu      sync.Mutex
	wake    *sync.Cond
	tracked map[int]*Process
	// children is false when the kernel said that there is none; empty is closed then.
	children bool
	empty    chan struct{}
	closed   bool
	done     chan struct{}
}

// Process is a started program.
type Process struct {
	PID  int
	done chan struct{}
	exit Exit
}

// Done is closed when the program itself has ended; what it left behind may live on.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit is how it ended; only valid once Done is closed.
func (p *Process) Exit() Exit { return p.exit }

// NewGroup makes this process the one that orphans among its descendants come to (where the system has that) and begins
// to reap. Close ends it.
func NewGroup() (*Group, error) {
	if err := adoptOrphans(); err != nil {
		return nil, fmt.Errorf("become the reaper of orphans: %w", err)
	}
	g := &Group{tracked: map[int]*Process{}, empty: make(chan struct{}), done: make(chan struct{})}
	g.wake = sync.NewCond(&g.mu)
	close(g.empty)
	go g.reap()
	return g, nil
}

// Close stops reaping. All children must be gone: it waits for them (see StopAll).
func (g *Group) Close() {
	g.mu.Lock()
	g.closed = true
	g.wake.Signal()
	g.mu.Unlock()
	<-g.done
}

// Start starts a program in a session of its own.
func (g *Group) Start(c Command) (*Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	defer func() { _ = null.Close() }()
	files := make([]uintptr, 3)
	for i, f := range []*os.File{c.Stdin, c.Stdout, c.Stderr} {
		if f == nil {
			f = null
		}
		files[i] = f.Fd()
	}
	p := &Process{done: make(chan struct{})}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, fmt.Errorf("start %s: %w", c.Path, os.ErrClosed)
	}
	// The lock is held until the child is known, so that its end cannot be seen before.
	p.PID, err = syscall.ForkExec(c.Path, c.Argv, &syscall.ProcAttr{
		Dir: c.Dir, Env: c.Env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	g.tracked[p.PID] = p
	if !g.children {
		g.children = true
		g.empty = make(chan struct{})
		g.wake.Signal()
	}
	return p, nil
}

// Empty returns a channel that is closed when this process has no children left, adopted ones included.
func (g *Group) Empty() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.empty
}

// StopAll ends every descendant: SIGTERM to each once, also to those that appear later and to those that have become
// another program since (a shell's child forgets a signal that comes just before its exec), and SIGKILL to all that there
// are once grace is over. It returns true when none is left, false if some outlive SIGKILL by patience (they hang in the
// kernel).
func (g *Group) StopAll(grace, patience time.Duration) bool {
	if g.none() {
		return true
	}
	told := map[entry]bool{}
	limit := time.Now().Add(grace)
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		tellDescendants(g.pids(), syscall.SIGTERM, told)
		left := time.Until(limit)
		if g.emptyWithin(min(wait, max(left, 0))) {
			return true
		}
		if left <= 0 {
			return g.KillAll(patience)
		}
	}
}

// entry is a process as the system shows it; start (in ticks) tells it from a later one with the same pid.
type entry struct {
	pid, parent int
	start       uint64
	name        string
}

// KillAll is StopAll without the grace. What forks while it is killed is met in the next round: there are rounds, further
// and further apart, until nothing is left.
func (g *Group) KillAll(patience time.Duration) bool {
	if g.none() {
		return true
	}
	limit := time.Now().Add(patience)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		tellDescendants(g.pids(), syscall.SIGKILL, nil)
		left := time.Until(limit)
		if g.emptyWithin(min(wait, max(left, 0))) {
			return true
		}
		if left <= 0 {
			return false
		}
	}
}

// Signal sends a signal to the process group of p, unless p itself has ended.
func (g *Group) Signal(p *Process, s syscall.Signal) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.tracked[p.PID] != p {
		return nil
	}
	// p is not reaped while the lock is held, so its id cannot be another's.
	err := syscall.Kill(-p.PID, s)
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// SignalAll sends a signal to every descendant that there is now.
func (g *Group) SignalAll(s syscall.Signal) {
	if !g.none() {
		tellDescendants(g.pids(), s, nil)
	}
}

func (g *Group) none() bool {
	select {
	case <-g.Empty():
		return true
	default:
		return false
	}
}

func (g *Group) emptyWithin(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-g.Empty():
		return true
	case <-t.C:
		return g.none()
	}
}

// pids are the children that were started here and still run.
func (g *Group) pids() []int {
	g.mu.Lock()
	defer g.mu.Unlock()
	pids := make([]int, 0, len(g.tracked))
	for pid := range g.tracked {
		pids = append(pids, pid)
	}
	return pids
}

func (g *Group) reap() {
	defer close(g.done)
	for {
		g.mu.Lock()
		for !g.children && !g.closed {
			g.wake.Wait()
		}
		if !g.children {
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()

		pid, status, reaped, err := awaitEnd()
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		g.mu.Lock()
		if err != nil {
			// ECHILD. A child that Start made meanwhile is in tracked.
			if len(g.tracked) == 0 && g.children {
				g.children = false
				close(g.empty)
			}
			g.mu.Unlock()
			continue
		}
		if !reaped {
			_, err = syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
		}
		if p := g.tracked[pid]; p != nil && err == nil {
			delete(g.tracked, pid)
			p.exit = exitOf(status)
			close(p.done)
		}
		g.mu.Unlock()
	}
}

func exitOf(s syscall.WaitStatus) Exit {
	if s.Signaled() {
		return Exit{Code: 128 + int(s.Signal()), Signal: s.Signal()}
	}
	return Exit{Code: s.ExitStatus()}
}

// tellGroups sends s to the process groups of children, except those in told.
func tellGroups(started []int, s syscall.Signal, told map[entry]bool) {
	for _, pid := range started {
		if e := (entry{pid: pid}); !told[e] {
			_ = syscall.Kill(-pid, s)
			if told != nil {
				told[e] = true
			}
		}
	}
}
