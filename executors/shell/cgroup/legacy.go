//go:build linux

package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// legacy keeps groups in the hierarchies of cgroup v1, below this process's own group in each.
type legacy struct {
	subsystems []cgroup1.Subsystem
}

// newLegacy takes the hierarchy that counts processes, which is enough to keep them together, and those of the limits: each
// one more costs each job a folder.
func newLegacy(limits Limits) (*legacy, error) {
	l := &legacy{}
	add := func(s cgroup1.Subsystem) {
		if dir, err := l.own(string(s.Name())); err == nil && writable(dir) {
			l.subsystems = append(l.subsystems, s)
		}
	}
	if add(cgroup1.NewPids(mountpoint)); len(l.subsystems) == 0 {
		return nil, errors.New("the pids hierarchy of cgroup v1 is not open to this process")
	}
	if limits.Memory > 0 {
		add(cgroup1.NewMemory(mountpoint))
	}
	if limits.CPUs > 0 {
		add(cgroup1.NewCpu(mountpoint))
	}
	return l, nil
}

// own is the folder of this process's group in a hierarchy.
func (l *legacy) own(subsystem string) (string, error) {
	path, err := ownPath(subsystem)
	if err != nil {
		return "", err
	}
	return filepath.Join(mountpoint, subsystem, path), nil
}

func (l *legacy) controllers() []string {
	var names []string
	for _, s := range l.subsystems {
		names = append(names, string(s.Name()))
	}
	return names
}

func (l *legacy) hierarchy() ([]cgroup1.Subsystem, error) { return l.subsystems, nil }

func (l *legacy) path(name string) cgroup1.Path { return cgroup1.NestedPath(name) }

const cpuPeriod = uint64(100_000) // microseconds, the kernel's default

func (l *legacy) add(_ context.Context, name string, pid int, limits Limits) error {
	r := &specs.LinuxResources{}
	if limits.Memory > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &limits.Memory}
	}
	if limits.CPUs > 0 {
		period, quota := cpuPeriod, int64(limits.CPUs*float64(cpuPeriod))
		r.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	g, err := cgroup1.New(l.path(name), r, cgroup1.WithHierarchy(l.hierarchy))
	if err != nil {
		return err
	}
	return g.Add(cgroup1.Process{Pid: pid})
}

// processes reads the group in every hierarchy: a process that is on its way into them is in some already.
func (l *legacy) processes(_ context.Context, name string) ([]int, error) {
	seen := map[int]bool{}
	var pids []int
	for _, s := range l.subsystems {
		dir, err := l.own(string(s.Name()))
		if err != nil {
			return nil, err
		}
		found, err := readPIDs(filepath.Join(dir, name, "cgroup.procs"))
		if err != nil {
			return nil, err
		}
		for _, pid := range found {
			if !seen[pid] {
				seen[pid] = true
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// readPIDs reads the processes of one group; a group that is not there has none.
func readPIDs(file string) ([]int, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for line := range strings.Lines(string(b)) {
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// freeze lets nothing fork any more: what is about to be killed may as well run until then.
func (l *legacy) freeze(name string, frozen bool) error {
	if !frozen {
		return nil
	}
	dir, err := l.own(string(cgroup1.Pids))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name, "pids.max"), []byte("0"), 0)
}

func (l *legacy) remove(_ context.Context, name string) error {
	for _, s := range l.subsystems {
		dir, err := l.own(string(s.Name()))
		if err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (l *legacy) names(_ context.Context, prefix string) ([]string, error) {
	seen := map[string]bool{}
	var names []string
	for _, s := range l.subsystems {
		dir, err := l.own(string(s.Name()))
		if err != nil {
			return nil, err
		}
		found, err := below(dir, prefix)
		if err != nil {
			return nil, err
		}
		for _, n := range found {
			if !seen[n] {
				seen[n] = true
				names = append(names, n)
			}
		}
	}
	return names, nil
}

func (l *legacy) outOfMemory(name string) (int64, error) {
	dir, err := l.own(string(cgroup1.Memory))
	if err != nil {
		return 0, err
	}
	return readCounter(filepath.Join(dir, name, "memory.oom_control"), "oom_kill")
}

// readCounter reads "key value" lines.
func readCounter(file, key string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			return strconv.ParseInt(v, 10, 64)
		}
	}
	return 0, nil
}
