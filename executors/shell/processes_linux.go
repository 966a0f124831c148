package shell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// process is one entry of /proc. start (clock ticks since the boot) tells it from another one with the same PID.
type process struct {
	pid, parent, session int
	start                uint64
	folder               string // what its marker says; empty if it has none
}

// marked returns the living processes whose marker names a folder that match accepts.
func marked(match func(folder string) bool) ([]process, error) {
	all, err := list()
	if err != nil {
		return nil, err
	}
	var out []process
	for _, p := range all {
		if p.folder = markerOf(p.pid); p.folder != "" && match(p.folder) {
			out = append(out, p)
		}
	}
	return out, nil
}

// belonging returns every living process of a job: the marked ones, their descendants (an environment can be cleaned,
// a parent cannot) and whoever shares a session with one of them.
func belonging(folder string) ([]process, error) {
	all, err := list()
	if err != nil {
		return nil, err
	}
	self := os.Getpid()
	own, _ := unix.Getsid(0)
	pids, sessions := map[int]bool{}, map[int]bool{}
	var out []process
	add := func(p process) {
		pids[p.pid] = true
		if p.session != own {
			sessions[p.session] = true
		}
		out = append(out, p)
	}
	rest := all[:0]
	for _, p := range all {
		switch {
		case p.pid == self || p.pid == 1:
		case markerOf(p.pid) == folder:
			add(p)
		default:
			rest = append(rest, p)
		}
	}
	for grown := true; grown; {
		grown = false
		left := rest[:0]
		for _, p := range rest {
			if pids[p.parent] || sessions[p.session] {
				add(p)
				grown = true
			} else {
				left = append(left, p)
			}
		}
		rest = left
	}
	return out, nil
}

// killAll kills every process of a job, again and again until a look finds none: what forks meanwhile is found by the
// next look. It waits for the ends of those that it killed. switchyard-job is stopped first and killed last: until then
// it is where orphans go, so that they stay its descendants.
func killAll(ctx context.Context, folder string) error {
	for {
		found, err := belonging(folder)
		if err != nil || len(found) == 0 {
			return err
		}
		roots, others := split(found)
		for _, p := range roots {
			p.signal(unix.SIGSTOP)
		}
		victims := others
		if len(victims) == 0 {
			victims = roots
		}
		for _, p := range victims {
			p.signal(unix.SIGKILL)
		}
		for _, p := range victims {
			if err := p.wait(ctx); err != nil {
				return err
			}
		}
	}
}

// split separates the processes that no other one of the set is the parent of.
func split(found []process) (roots, others []process) {
	pids := make(map[int]bool, len(found))
	for _, p := range found {
		pids[p.pid] = true
	}
	for _, p := range found {
		if pids[p.parent] {
			others = append(others, p)
		} else {
			roots = append(roots, p)
		}
	}
	return roots, others
}

// signal sends a signal to the process if it is still the same one.
func (p process) signal(s unix.Signal) {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		if errors.Is(err, unix.ENOSYS) && p.lives() {
			_ = unix.Kill(p.pid, s)
		}
		return
	}
	defer func() { _ = unix.Close(fd) }()
	if p.lives() {
		_ = unix.PidfdSendSignal(fd, s, nil, 0)
	}
}

// wait waits for the end of the process.
func (p process) wait(ctx context.Context) error {
	fd, err := unix.PidfdOpen(p.pid, unix.PIDFD_NONBLOCK)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil
	case err != nil:
		return p.waitByLooking(ctx)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer func() { _ = f.Close() }()
	if !p.lives() {
		return nil
	}
	if err := readable(ctx, f); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("process %d does not end: %w", p.pid, ctx.Err())
		}
		return p.waitByLooking(ctx)
	}
	return nil
}

// waitByLooking is for kernels that cannot wait for a process that is not a child.
func (p process) waitByLooking(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for p.lives() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("process %d does not end: %w", p.pid, ctx.Err())
		}
	}
	return nil
}

func (p process) lives() bool {
	now, ok := readStat(p.pid)
	return ok && now.start == p.start
}

// list returns the living processes; those that end meanwhile are left out.
func list() ([]process, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []process
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if p, ok := readStat(pid); ok {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// readStat reads /proc/PID/stat: "pid (name) state ppid pgrp session … starttime …". The name may hold anything, so the
// fields are counted from its end. Zombies are not alive.
func readStat(pid int) (process, bool) {
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return process{}, false
	}
	fields := bytes.Fields(line[bytes.LastIndexByte(line, ')')+1:])
	if len(fields) < 20 || fields[0][0] == 'Z' || fields[0][0] == 'X' {
		return process{}, false
	}
	parent, err1 := strconv.Atoi(string(fields[1]))
	session, err2 := strconv.Atoi(string(fields[3]))
	start, err3 := strconv.ParseUint(string(fields[19]), 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return process{}, false
	}
	return process{pid: pid, parent: parent, session: session, start: start}, true
}

// markerOf returns the job folder that a process was started for. Environments of other users' processes cannot be read:
// those are not ours.
func markerOf(pid int) string {
	env, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return ""
	}
	key := []byte(marker + "=")
	for len(env) > 0 {
		kv, rest, _ := bytes.Cut(env, []byte{0})
		if value, ok := bytes.CutPrefix(kv, key); ok {
			return string(value)
		}
		env = rest
	}
	return ""
}
