//go:build linux

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// systemd keeps groups as transient scopes: units of their own, which the end of the agent's unit does not touch.
type systemd struct{ bus bus }

// bus is the part of a connection to systemd that scopes need.
type bus interface {
	StartTransientUnitContext(ctx context.Context, name, mode string, properties []dbus.Property, ch chan<- string) (int, error)
	AttachProcessesToUnit(ctx context.Context, unit, subcgroup string, pids []uint32) error
	ListUnitsByPatternsContext(ctx context.Context, states, patterns []string) ([]dbus.UnitStatus, error)
	GetUnitTypePropertyContext(ctx context.Context, unit, unitType, name string) (*dbus.Property, error)
	ResetFailedUnitContext(ctx context.Context, name string) error
}

func dialSystemd(ctx context.Context) (*systemd, error) {
	c, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		if c, err = dbus.NewUserConnectionContext(ctx); err != nil {
			return nil, err
		}
	}
	return &systemd{c}, nil
}

const unitSuffix = ".scope"

// properties are those of a job's scope.
func properties(pid int, l Limits) []dbus.Property {
	list := []dbus.Property{
		dbus.PropDescription("A GitLab job run by Switchyard"),
		dbus.PropPids(uint32(pid)), //nolint:gosec // a process's number
		{Name: "Delegate", Value: godbus.MakeVariant(true)},
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
	}
	if l.Memory > 0 {
		list = append(list, dbus.Property{Name: "MemoryMax", Value: godbus.MakeVariant(uint64(l.Memory))})
	}
	if l.CPUs > 0 {
		list = append(list, dbus.Property{Name: "CPUQuotaPerSecUSec", Value: godbus.MakeVariant(uint64(l.CPUs * 1e6))})
	}
	return list
}

func (s *systemd) add(ctx context.Context, name string, pid int, l Limits) error {
	done := make(chan string, 1)
	_, err := s.bus.StartTransientUnitContext(ctx, name+unitSuffix, "fail", properties(pid, l), done)
	if exists(err) {
		return s.bus.AttachProcessesToUnit(ctx, name+unitSuffix, "/", []uint32{uint32(pid)}) //nolint:gosec // a process's number
	}
	if err != nil {
		return err
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("systemd says %q of the scope %s", result, name)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func exists(err error) bool {
	var e godbus.Error
	return errors.As(err, &e) && e.Name == "org.freedesktop.systemd1.UnitExists"
}

// folder is the scope's group in the file system; nothing if there is no such scope.
func (s *systemd) folder(ctx context.Context, name string) (string, error) {
	p, err := s.bus.GetUnitTypePropertyContext(ctx, name+unitSuffix, "Scope", "ControlGroup")
	if err != nil {
		return "", err
	}
	group, _ := p.Value.Value().(string)
	if group == "" {
		return "", nil
	}
	if v2 := filepath.Join(mountpoint, group); pathExists(v2) {
		return v2, nil
	}
	return filepath.Join(mountpoint, "systemd", group), nil
}

func (s *systemd) processes(ctx context.Context, name string) ([]int, error) {
	dir, err := s.folder(ctx, name)
	if err != nil || dir == "" {
		return nil, err
	}
	return readPIDs(filepath.Join(dir, "cgroup.procs"))
}

func (s *systemd) freeze(string, bool) error { return nil }

// remove has nothing to do but to forget a failure: a scope goes with its last process.
func (s *systemd) remove(ctx context.Context, name string) error {
	_ = s.bus.ResetFailedUnitContext(ctx, name+unitSuffix) // it did not fail, or is gone
	return nil
}

func (s *systemd) names(ctx context.Context, prefix string) ([]string, error) {
	units, err := s.bus.ListUnitsByPatternsContext(ctx, nil, []string{prefix + "*" + unitSuffix})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, u := range units {
		names = append(names, strings.TrimSuffix(u.Name, unitSuffix))
	}
	return names, nil
}

func (s *systemd) outOfMemory(name string) (int64, error) {
	dir, err := s.folder(context.Background(), name)
	if err != nil || dir == "" {
		return 0, err
	}
	return readCounter(filepath.Join(dir, "memory.events"), "oom_kill")
}
