package fleettest

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/faults"
)

// BenchmarkReconnect: one job prints 100 MB, and the agent's connections are reset ten times meanwhile. What crosses the
// network in addition to the same job without resets was sent again, or is what a new connection costs.
func BenchmarkReconnect(b *testing.B) {
	const size, resets = 100_000_000, 10
	for b.Loop() {
		p := startProcesses(b, processOptions{runnerKeys: unhurried + "    output_limit: 1048576\n"})
		network, err := faults.NewNetwork(p.listen)
		require.NoError(b, err)
		b.Cleanup(func() { require.NoError(b, network.Close()) })
		p.listen = network.Addr()
		p.startAgent("agent", 1)
		runJobs(b, p, 5)
		big := p.dir + "/big"
		line := []byte(strings.Repeat("0123456789 abcdefghijklmnopqrstuvwxyz ", 3) + "\n")
		require.NoError(b, os.WriteFile(big, bytes.Repeat(line, size/len(line)+1), 0o600))
		whole := printThrough(b, p, network, big, 0, 0)
		cut := printThrough(b, p, network, big, size/(resets+1), resets)
		b.ReportMetric(float64(cut-whole)/resets, "re-sent-bytes/connection")
		b.ReportMetric(float64(cut-whole)/float64(whole)*100, "re-sent-%")
		b.ReportMetric(0, "ns/op")
	}
}

// printThrough runs a job that prints a file, resets all connections after every so many bytes, and returns how many bytes
// went to the control plane.
func printThrough(b *testing.B, p *processes, network *faults.Network, file string, every int64, resets int) int64 {
	b.Helper()
	before := network.Traffic().ToPlane
	next := before + every
	run := pipeline(b, p.gitlab, project(b, p.gitlab, "group/reconnect-"+time.Now().Format("150405.000000")), "job: {script: [cat "+file+"]}")
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(patience); ; <-ticker.C {
		if resets > 0 && network.Traffic().ToPlane >= next {
			network.Reset()
			resets--
			next = network.Traffic().ToPlane + every
		}
		job, err := p.gitlab.Job(run.Jobs[0].ID)
		require.NoError(b, err)
		if job.Finished() {
			break
		}
		require.True(b, time.Now().Before(deadline), "the job does not end:\n%s", p.logs())
	}
	require.Zero(b, resets, "resets that did not come")
	done := wait(b, p.gitlab, run)
	require.Equal(b, "success", done.Status)
	requireWhole(b, done.Jobs[0])
	return network.Traffic().ToPlane - before
}
