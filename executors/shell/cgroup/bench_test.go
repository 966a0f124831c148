//go:build linux

package cgroup

import (
	"log/slog"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// BenchmarkGroup is what a group costs a job.
func BenchmarkGroup(b *testing.B) {
	h, err := Find(b.Context(), "sybench", Limits{}, slog.New(slog.DiscardHandler))
	require.NoError(b, err)
	if h.Kind() == None {
		b.Skip("needs control groups that this process may make")
	}
	for b.Loop() {
		b.StopTimer()
		c := exec.Command("cat")
		in, err := c.StdinPipe()
		require.NoError(b, err)
		require.NoError(b, c.Start())
		g := h.Group("job")
		b.StartTimer()
		require.NoError(b, g.Add(b.Context(), c.Process.Pid))
		b.StopTimer()
		require.NoError(b, in.Close())
		require.NoError(b, c.Wait())
		b.StartTimer()
		require.NoError(b, g.Kill(b.Context(), wait))
		require.NoError(b, g.Remove(b.Context()))
	}
}
