//go:build linux

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup2"
	"golang.org/x/sys/unix"
)

// unified keeps groups in the hierarchy of cgroup v2, below the agent's own group.
type unified struct {
	group       string // the agent's own, below the mountpoint
	controllers []string
}

// leaf is where the agent itself goes when controllers are needed: a group with processes cannot give any to its children.
const leaf = "switchyard-agent"

func newUnified(l Limits) (*unified, error) {
	group, err := ownPath("")
	if err != nil {
		return nil, err
	}
	group = strings.TrimSuffix(group, "/"+leaf) // an earlier agent process of this group moved
	if group == "" {
		group = "/"
	}
	u := &unified{group: group}
	if !writable(u.dir("")) {
		return nil, errors.New("the process's own group is not open to it")
	}
	if !l.any() {
		return u, nil
	}
	b, err := os.ReadFile(filepath.Join(u.dir(""), "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	var give []string
	for _, c := range []string{"memory", "cpu"} {
		if slices.Contains(strings.Fields(string(b)), c) {
			give = append(give, "+"+c)
			u.controllers = append(u.controllers, c)
		}
	}
	if group != "/" {
		if err := u.moveAgent(); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(u.dir(""), "cgroup.subtree_control"), []byte(strings.Join(give, " ")), 0); err != nil {
		u.controllers = nil
	}
	return u, nil
}

func (u *unified) moveAgent() error {
	if err := os.Mkdir(u.dir(leaf), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	pids, err := readPIDs(filepath.Join(u.dir(""), "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := os.WriteFile(filepath.Join(u.dir(leaf), "cgroup.procs"), fmt.Append(nil, pid), 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

func (u *unified) dir(name string) string { return filepath.Join(mountpoint, u.group, name) }

func (u *unified) load(name string) (*cgroup2.Manager, error) {
	return cgroup2.Load(filepath.Join(u.group, name), cgroup2.WithMountpoint(mountpoint))
}

func (u *unified) add(_ context.Context, name string, pid int, l Limits) error {
	r := &cgroup2.Resources{}
	if l.Memory > 0 {
		r.Memory = &cgroup2.Memory{Max: &l.Memory}
	}
	if l.CPUs > 0 {
		period, quota := cpuPeriod, int64(l.CPUs*float64(cpuPeriod))
		r.CPU = &cgroup2.CPU{Max: cgroup2.NewCPUMax(&quota, &period)}
	}
	if err := os.Mkdir(u.dir(name), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	m, err := u.load(name)
	if err != nil {
		return err
	}
	if err := m.Update(r); err != nil {
		return err
	}
	return m.AddProc(uint64(pid)) //nolint:gosec // a process's number is positive
}

func (u *unified) processes(_ context.Context, name string) ([]int, error) {
	return readPIDs(filepath.Join(u.dir(name), "cgroup.procs"))
}

func (u *unified) freeze(name string, frozen bool) error {
	m, err := u.load(name)
	if err != nil {
		return err
	}
	if frozen {
		return m.Freeze()
	}
	return m.Thaw()
}

func (u *unified) remove(_ context.Context, name string) error {
	err := os.Remove(u.dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (u *unified) names(_ context.Context, prefix string) ([]string, error) {
	return below(u.dir(""), prefix)
}

func (u *unified) outOfMemory(name string) (int64, error) {
	return readCounter(filepath.Join(u.dir(name), "memory.events"), "oom_kill")
}

// writable says whether groups can be made in a folder.
func writable(dir string) bool {
	probe, err := os.MkdirTemp(dir, "switchyard-probe-")
	if err != nil {
		return false
	}
	return os.Remove(probe) == nil
}
