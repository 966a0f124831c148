//go:build linux

// Package cgroup keeps the processes of one job together in a control group of their own: limits hold for all of them, and
// none gets away, whatever it does to its parent, its session or its environment. Where systemd rules, the group is a
// transient scope, so that it also outlives the agent's unit; elsewhere it is a child of the agent's own group.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bound all processes of one job together. Zero values are no limit. There is none on the number of processes: it
// would hold for switchyard-job too, which could not end the job any more when the script has used it up.
type Limits struct {
	Memory int64   // bytes
	CPUs   float64 // processors' worth of time
}

func (l Limits) any() bool { return l != Limits{} }

// Kind says how groups are made.
type Kind string

// The kinds.
const (
	Scope Kind = "systemd scope"
	V2    Kind = "cgroup v2"
	V1    Kind = "cgroup v1"
	None  Kind = "" // they cannot be
)

// Facts are what Decide looks at.
type Facts struct {
	// Systemd is process 1 and lets this process ask for scopes.
	Systemd bool
	// Unified: the cgroup v2 hierarchy is the host's. Writable: the process may make groups below its own.
	Unified, Writable bool
	// Controllers that limits can be set with below the process's own group: memory, cpu.
	Controllers []string
}

// Decide chooses how groups are made. The error says which limit cannot be kept; it is one of the configuration.
func Decide(f Facts, l Limits) (Kind, error) {
	kind := None
	switch {
	case f.Systemd:
		return Scope, nil // systemd has every controller
	case f.Writable && f.Unified:
		kind = V2
	case f.Writable:
		kind = V1
	}
	for _, c := range []struct {
		controller string
		wanted     bool
	}{{"memory", l.Memory > 0}, {"cpu", l.CPUs > 0}} {
		if c.wanted && (kind == None || !slices.Contains(f.Controllers, c.controller)) {
			return None, fmt.Errorf("the limit on %s cannot be kept: this process may not make control groups with that controller: "+
				"run the agent as root or under systemd, or remove the limit", c.controller)
		}
	}
	return kind, nil
}

// Host makes groups. Its methods may be called concurrently.
type Host struct {
	kind   Kind
	prefix string
	limits Limits
	maker  maker
}

// maker is one way to keep groups.
type maker interface {
	// add puts a process into the group, which is made if needed.
	add(ctx context.Context, name string, pid int, l Limits) error
	// processes are the living ones of the group, none if there is no group.
	processes(ctx context.Context, name string) ([]int, error)
	// freeze keeps them from forking, or lets them go on. It may do nothing.
	freeze(name string, frozen bool) error
	// remove removes a group that has no processes. No group is no error.
	remove(ctx context.Context, name string) error
	// names are those of all groups that begin with prefix.
	names(ctx context.Context, prefix string) ([]string, error)
	// outOfMemory says how often the kernel killed for lack of memory.
	outOfMemory(name string) (int64, error)
}

var notInAName = regexp.MustCompile(`[^a-z0-9-]`)

// Find looks at the host. prefix begins the names of all groups: two agents on one host have different ones. Where no group
// can be made Kind is None and the error nil, unless limits were asked for.
func Find(ctx context.Context, prefix string, l Limits, log *slog.Logger) (*Host, error) {
	h := &Host{prefix: notInAName.ReplaceAllString(prefix, "-"), limits: l}
	facts, makers := look(ctx, l, log)
	kind, err := Decide(facts, l)
	if err != nil {
		return nil, err
	}
	h.kind = kind
	h.maker = makers[kind]
	return h, nil
}

// look finds the facts, and what makes groups of each kind.
func look(ctx context.Context, l Limits, log *slog.Logger) (Facts, map[Kind]maker) {
	makers := map[Kind]maker{}
	var f Facts
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		s, err := dialSystemd(ctx)
		if err == nil {
			f.Systemd, makers[Scope] = true, s
		} else {
			log.Warn("systemd rules this host but does not let this process ask for scopes", "err", err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(mountpoint, &fs); err == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		f.Unified = true
		if v, err := newUnified(l); err == nil {
			f.Writable, f.Controllers, makers[V2] = true, v.controllers, v
		}
		return f, makers
	}
	if v, err := newLegacy(l); err == nil {
		f.Writable, f.Controllers, makers[V1] = true, v.controllers(), v
	}
	return f, makers
}

const mountpoint = "/sys/fs/cgroup"

// Kind says how this host's groups are made.
func (h *Host) Kind() Kind { return h.kind }

// Group is a handle of the group of that name; nothing is made yet.
func (h *Host) Group(name string) *Group { return &Group{host: h, name: h.prefix + "-" + name} }

// Names are those of the groups that exist, as Group takes them.
func (h *Host) Names(ctx context.Context) ([]string, error) {
	if h.kind == None {
		return nil, nil
	}
	names, err := h.maker.names(ctx, h.prefix+"-")
	for i, n := range names {
		names[i] = strings.TrimPrefix(n, h.prefix+"-")
	}
	return names, err
}

// Group is one job's.
type Group struct {
	host *Host
	name string
}

// Add puts a process into the group, with what it starts from then on. The group is made if needed. Where there are no
// groups it does nothing.
func (g *Group) Add(ctx context.Context, pid int) error {
	if g.host.kind == None {
		return nil
	}
	if err := g.host.maker.add(ctx, g.name, pid, g.host.limits); err != nil {
		return fmt.Errorf("put the job into a %s: %w", g.host.kind, err)
	}
	return nil
}

// Kill kills every process of the group and waits for their ends. wait waits for one; it returns at once for a process that
// has ended and that nobody has reaped yet.
func (g *Group) Kill(ctx context.Context, wait func(ctx context.Context, pid int) error) error {
	if g.host.kind == None {
		return nil
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		pids, err := g.host.maker.processes(ctx, g.name)
		if err != nil {
			return fmt.Errorf("list the processes of the job's group: %w", err)
		}
		if len(pids) == 0 {
			return nil
		}
		if err := g.killEach(pids); err != nil {
			return err
		}
		for _, pid := range pids {
			if err := wait(ctx, pid); err != nil {
				return err
			}
		}
		// The kernel may count for a moment what has ended.
		if err := sleep(ctx, pause); err != nil {
			return fmt.Errorf("processes of the job's group do not end: %w", err)
		}
	}
}

// killEach kills processes of the group, which are kept from forking meanwhile.
func (g *Group) killEach(pids []int) error {
	freezeErr := g.host.maker.freeze(g.name, true)
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL) // gone meanwhile: good
	}
	if err := g.host.maker.freeze(g.name, false); err != nil && freezeErr == nil {
		return fmt.Errorf("let the job's group go on to its end: %w", err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// removePatience is how long the kernel may still count a process that has ended.
const removePatience = 10 * time.Second

// Remove removes the group, whose processes have ended. It may be called again.
func (g *Group) Remove(ctx context.Context) error {
	if g.host.kind == None {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, removePatience)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := g.host.maker.remove(ctx, g.name)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove the job's group: %w", err)
		}
		if ended := sleep(ctx, wait); ended != nil {
			return fmt.Errorf("remove the job's group: %w: %w", ended, err)
		}
	}
}

// OutOfMemory says whether the kernel killed a process of the group for lack of memory.
func (g *Group) OutOfMemory() bool {
	if g.host.kind == None {
		return false
	}
	n, err := g.host.maker.outOfMemory(g.name)
	return err == nil && n > 0
}

// ownPath is this process's group in a hierarchy: controllers is empty for v2.
func ownPath(controllers string) (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		list, path, ok := strings.Cut(rest, ":")
		if ok && (list == controllers || slices.Contains(strings.Split(list, ","), controllers)) {
			return path, nil
		}
	}
	return "", errors.New("this process has no group in that hierarchy")
}

func pathExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// below lists the folders of dir whose names begin with prefix.
func below(dir, prefix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), prefix) {
			names = append(names, filepath.Base(e.Name()))
		}
	}
	return names, nil
}
