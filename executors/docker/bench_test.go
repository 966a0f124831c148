package docker_test

import (
	"io"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// cpu is what this process has used.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkEnvironment makes and destroys environments whose image is there.
func BenchmarkEnvironment(b *testing.B) {
	e := newExecutor(b, nil, "")
	require.NoError(b, e.Check(b.Context()))
	spec := aSpec(b, "bench", image(b, "busybox"))
	var prepare, destroy, used time.Duration
	n := 0
	for b.Loop() {
		spec.Name = "sy-bench-" + strconv.Itoa(n)
		n++
		before, began := cpu(b), time.Now()
		env, err := e.Prepare(b.Context(), spec, io.Discard)
		require.NoError(b, err)
		prepared := time.Now()
		require.NoError(b, env.Destroy(b.Context()))
		prepare += prepared.Sub(began)
		destroy += time.Since(prepared)
		used += cpu(b) - before
	}
	b.ReportMetric(prepare.Seconds()*1e3/float64(n), "prepare-ms/op")
	b.ReportMetric(destroy.Seconds()*1e3/float64(n), "destroy-ms/op")
	b.ReportMetric(used.Seconds()*1e3/float64(n), "agent-cpu-ms/op")
}
