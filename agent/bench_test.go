package agent_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/agent/internal/fakefleet"
	"github.com/switchyard-ci/switchyard/agent/ledger"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// BenchmarkJob runs one trivial job per operation, ten at a time, in real processes against a control plane that does
// nothing. agent-ms/job and job-ms/job are CPU of the agent and of all that it starts; rest-MiB is the agent's anonymous
// memory when nothing runs any more.
func BenchmarkJob(b *testing.B) {
	b.Setenv("HOME", b.TempDir()) // a login profile of one's own may cost more than all the rest
	f := fakefleet.Start(b)
	p := spawn(b, f, filepath.Join(b.TempDir(), "data"), "--slots", "10", "--log-level", "warn")
	s := f.Next()
	s.Welcome(forever, forever)
	pid := p.cmd.Process.Pid
	agentBefore, jobsBefore := cpuOf(b, pid)
	b.ResetTimer()
	next, done := int64(0), 0
	offer := func() {
		if next++; next <= int64(b.N) {
			f.SetPayload(next, bash(next, "echo hello"))
			s.Offer(ledger.Ref{Job: next, Epoch: 1})
		}
	}
	for range 10 {
		offer()
	}
	for done < b.N {
		m := s.Message()
		switch {
		case m.GetOfferReply().GetAccepted():
			ref, _ := ledger.RefOf(m.GetOfferReply().GetRef())
			s.Start(ref)
		case m.GetOfferReply() != nil:
			b.Fatalf("refused: %s", m.GetOfferReply().GetReason())
		case m.GetJobReport() != nil:
			ref, _ := ledger.RefOf(m.GetJobReport().GetRef())
			s.Ack(ref, m.GetJobReport().GetState())
			if m.GetJobReport().GetState() == fleetv1.JobState_JOB_STATE_FINISHED {
				require.Equal(b, "success", m.GetJobReport().GetResult().GetState())
				s.Forget(ref)
				done++
				offer()
			}
		}
	}
	b.StopTimer()
	agentAfter, jobsAfter := cpuOf(b, pid)
	b.ReportMetric((agentAfter-agentBefore)/float64(b.N), "agent-ms/job")
	b.ReportMetric((jobsAfter-jobsBefore)/float64(b.N), "job-ms/job")
	b.ReportMetric(anonymous(b, pid), "rest-MiB")
}

// BenchmarkRealTrace sends the 133 MB that one job prints, in real processes. agent-ms/MB is the agent's CPU, job-ms/MB
// that of switchyard-job and the script.
func BenchmarkRealTrace(b *testing.B) {
	const size = 133 << 20
	b.Setenv("HOME", b.TempDir())
	f := fakefleet.Start(b)
	f.Window, f.Discard = 8<<20, true
	p := spawn(b, f, filepath.Join(b.TempDir(), "data"), "--log-level", "warn")
	s := f.Next()
	s.Welcome(forever, forever)
	pid := p.cmd.Process.Pid
	agentBefore, jobsBefore := cpuOf(b, pid)
	b.SetBytes(size)
	b.ResetTimer()
	for i := range b.N {
		ref := ledger.Ref{Job: int64(i) + 1, Epoch: 1}
		f.SetPayload(ref.Job, bash(ref.Job, fmt.Sprintf("yes 0123456789012345678901234567890123456789012345678901234567890123456789 | head -c %d", size)))
		run(s, ref)
		result := s.Finished(ref)
		require.Greater(b, result.GetTraceLength(), int64(size))
		f.WaitReceived(ref.Job, result.GetTraceLength())
		s.Forget(ref)
	}
	b.StopTimer()
	agentAfter, jobsAfter := cpuOf(b, pid)
	b.ReportMetric((agentAfter-agentBefore)/float64(b.N)/(size/1e6), "agent-ms/MB")
	b.ReportMetric((jobsAfter-jobsBefore)/float64(b.N)/(size/1e6), "job-ms/MB")
	b.ReportMetric(anonymous(b, pid), "rest-MiB")
}

// cpuOf is the CPU time of a process and of its children that have ended, in milliseconds.
func cpuOf(b *testing.B, pid int) (own, children float64) {
	b.Helper()
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(b, err)
	fields := strings.Fields(string(line[strings.LastIndexByte(string(line), ')')+2:]))
	ticks := func(i int) float64 {
		n, err := strconv.ParseFloat(fields[i], 64)
		require.NoError(b, err)
		return n * 10
	}
	return ticks(11) + ticks(12), ticks(13) + ticks(14)
}

// anonymous is a process' anonymous memory in MiB.
func anonymous(b *testing.B, pid int) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(b, err)
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			require.NoError(b, err)
			return n / 1024
		}
	}
	b.Fatal("no RssAnon")
	return 0
}
