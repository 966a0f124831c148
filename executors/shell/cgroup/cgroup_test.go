//go:build linux

package cgroup

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestDecide(t *testing.T) {
	all := []string{"pids", "memory", "cpu", "freezer"}
	memory := Limits{Memory: 1 << 20}
	for name, c := range map[string]struct {
		facts  Facts
		limits Limits
		want   Kind
		err    string
	}{
		"systemd":                               {Facts{Systemd: true}, memory, Scope, ""},
		"systemd wins":                          {Facts{Systemd: true, Unified: true, Writable: true, Controllers: all}, Limits{}, Scope, ""},
		"v2":                                    {Facts{Unified: true, Writable: true, Controllers: all}, memory, V2, ""},
		"v2 without controllers":                {Facts{Unified: true, Writable: true}, Limits{}, V2, ""},
		"v2, a limit that cannot be kept":       {Facts{Unified: true, Writable: true, Controllers: []string{"pids"}}, memory, None, "the limit on memory cannot be kept"},
		"v1":                                    {Facts{Writable: true, Controllers: all}, Limits{CPUs: 1}, V1, ""},
		"nothing":                               {Facts{}, Limits{}, None, ""},
		"nothing, and a limit":                  {Facts{}, Limits{CPUs: 1}, None, "the limit on cpu cannot be kept"},
		"nothing but controllers of others":     {Facts{Unified: true, Controllers: all}, Limits{CPUs: 1}, None, "run the agent as root or under systemd"},
		"v1 without the controller that counts": {Facts{Writable: true, Controllers: []string{"freezer"}}, Limits{CPUs: 1}, None, "the limit on cpu"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Decide(c.facts, c.limits)
			require.Equal(t, c.want, got)
			if c.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.err)
			}
		})
	}
}

// host finds what this machine has; tests of the real thing are skipped by name where it has nothing.
func host(t *testing.T, l Limits) *Host {
	t.Helper()
	h, err := Find(t.Context(), fmt.Sprintf("sytest%d", time.Now().UnixNano()), l, slog.New(slog.DiscardHandler))
	if err != nil || h.Kind() == None {
		t.Skipf("needs control groups that this process may make: %v", err)
	}
	return h
}

func await(t *testing.T, done func() bool) {
	t.Helper()
	require.Eventually(t, done, 10*time.Second, 5*time.Millisecond)
}

func wait(ctx context.Context, pid int) error {
	for unix.Kill(pid, 0) == nil {
		var status unix.WaitStatus
		_, _ = unix.Wait4(pid, &status, unix.WNOHANG, nil)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

func TestKillTakesWhatGotAway(t *testing.T) {
	h := host(t, Limits{})
	g := h.Group("job-1")
	nap := fmt.Sprintf("sleep 1%09d", time.Now().UnixNano()%1e9)
	c := exec.Command("sh", "-c", "read go; (setsid env -i "+nap+" >/dev/null 2>&1 &); "+nap)
	in, err := c.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	require.NoError(t, g.Add(t.Context(), c.Process.Pid))
	_, err = in.Write([]byte("go\n"))
	require.NoError(t, err)
	await(t, func() bool { return count(t, nap) == 2 })
	names, err := h.Names(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"job-1"}, names)

	require.NoError(t, g.Kill(t.Context(), wait))
	require.Zero(t, count(t, nap))
	require.NoError(t, g.Remove(t.Context()))
	require.NoError(t, g.Remove(t.Context()), "again")
	require.NoError(t, g.Kill(t.Context(), wait), "nothing is left")
	names, err = h.Names(t.Context())
	require.NoError(t, err)
	require.Empty(t, names)
	_ = c.Wait()
}

// A process that has ended and that its parent does not reap keeps nobody busy, and nobody waiting for longer than asked for.
func TestKillOfAZombie(t *testing.T) {
	h := host(t, Limits{})
	g := h.Group("job-1")
	c := exec.Command("sleep", "1000")
	require.NoError(t, c.Start())
	require.NoError(t, g.Add(t.Context(), c.Process.Pid))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	rounds := 0
	err := g.Kill(ctx, func(context.Context, int) error { rounds++; return nil })
	if err != nil {
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	require.Less(t, rounds, 50)
	require.Error(t, c.Wait())
	require.NoError(t, g.Kill(t.Context(), wait))
	require.NoError(t, g.Remove(t.Context()))
}

func TestLimits(t *testing.T) {
	h := host(t, Limits{Memory: 64 << 20, CPUs: 1.5})
	g := h.Group("job-1")
	c := exec.Command("sh", "-c", "read go; x=$(head -c 300000000 /dev/zero | tr '\\0' x); echo ${#x}")
	in, err := c.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	require.NoError(t, g.Add(t.Context(), c.Process.Pid))
	_, err = in.Write([]byte("go\n"))
	require.NoError(t, err)
	require.Error(t, c.Wait())
	require.True(t, g.OutOfMemory())
	require.NoError(t, g.Kill(t.Context(), wait))
	require.NoError(t, g.Remove(t.Context()))
}

// count counts the living processes whose command line ends in text.
func count(t *testing.T, text string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	n := 0
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err == nil && strings.HasSuffix(strings.ReplaceAll(strings.TrimRight(string(line), "\x00"), "\x00", " "), text) &&
			!strings.HasPrefix(string(line), "sh\x00") {
			n++
		}
	}
	return n
}

// fakeBus stands for systemd, which cannot be had in a test: it shows what would be asked of it.
type fakeBus struct {
	started  map[string][]dbus.Property
	attached []uint32
	result   string
}

func (f *fakeBus) StartTransientUnitContext(_ context.Context, name, _ string, p []dbus.Property, ch chan<- string) (int, error) {
	if f.started[name] != nil {
		return 0, godbus.Error{Name: "org.freedesktop.systemd1.UnitExists"}
	}
	f.started[name] = p
	ch <- f.result
	return 1, nil
}

func (f *fakeBus) AttachProcessesToUnit(_ context.Context, _, _ string, pids []uint32) error {
	f.attached = append(f.attached, pids...)
	return nil
}

func (f *fakeBus) ListUnitsByPatternsContext(context.Context, []string, []string) ([]dbus.UnitStatus, error) {
	var units []dbus.UnitStatus
	for name := range f.started {
		units = append(units, dbus.UnitStatus{Name: name})
	}
	return units, nil
}

func (f *fakeBus) GetUnitTypePropertyContext(context.Context, string, string, string) (*dbus.Property, error) {
	return &dbus.Property{Value: godbus.MakeVariant("")}, nil
}

func (f *fakeBus) ResetFailedUnitContext(context.Context, string) error { return nil }

func TestScopes(t *testing.T) {
	f := &fakeBus{started: map[string][]dbus.Property{}, result: "done"}
	h := &Host{kind: Scope, prefix: "sy", limits: Limits{Memory: 1 << 30, CPUs: 0.5}, maker: &systemd{f}}
	g := h.Group("job-1")
	require.NoError(t, g.Add(t.Context(), 17))
	require.NoError(t, g.Add(t.Context(), 18), "a second process joins")
	require.Equal(t, []uint32{18}, f.attached)
	values := map[string]any{}
	for _, p := range f.started["sy-job-1.scope"] {
		values[p.Name] = p.Value.Value()
	}
	require.Equal(t, []uint32{17}, values["PIDs"])
	require.Equal(t, uint64(1<<30), values["MemoryMax"])
	require.Equal(t, uint64(500_000), values["CPUQuotaPerSecUSec"])
	names, err := h.Names(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"job-1"}, names)
	require.NoError(t, g.Kill(t.Context(), wait))
	f.result = "failed"
	require.ErrorContains(t, h.Group("job-2").Add(t.Context(), 19), `systemd says "failed"`)
}
