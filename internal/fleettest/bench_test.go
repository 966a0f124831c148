package fleettest

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
)

// The benchmarks run the programs as processes of their own and take their CPU time from the operating system; that of
// the embedded GitLab, which is in this process, does not count.

// unhurried is a runner that may ask as often as it likes: GitLab's bound on questions per minute is not what is measured.
const unhurried = "    requests_per_minute: 100000\n"

// BenchmarkTrivialJobs: jobs that echo one line, ten at a time on one agent, with an empty login profile.
func BenchmarkTrivialJobs(b *testing.B) {
	const jobs = 1000
	for b.Loop() {
		p := startProcesses(b, processOptions{runnerKeys: unhurried, emptyProfile: true})
		p.startAgent("agent", 10)
		runJobs(b, p, 50) // warm
		before := p.cpu()
		began := time.Now()
		done := runJobs(b, p, jobs)
		took := time.Since(began)
		used := p.cpu().minus(before)
		for _, j := range done {
			requireWhole(b, j)
		}
		b.ReportMetric(jobs/took.Seconds(), "jobs/s")
		b.ReportMetric(milliseconds(used.all())/jobs, "cpu-ms/job")
		b.ReportMetric(milliseconds(used.plane)/jobs, "cpu-ms/job-plane")
		b.ReportMetric(milliseconds(used.agents)/jobs, "cpu-ms/job-agent")
		b.ReportMetric(milliseconds(used.jobs)/jobs, "cpu-ms/job-job")
		b.ReportMetric(0, "ns/op")
	}
}

func runJobs(b *testing.B, p *processes, count int) []coordinator.Job {
	b.Helper()
	var config strings.Builder
	for i := 0; count > 0; i++ {
		n := min(count, 200)
		fmt.Fprintf(&config, "job-%d:\n  parallel: %d\n  script: [echo hello]\n", i, max(n, 1))
		count -= n
	}
	run := pipeline(b, p.gitlab, project(b, p.gitlab, "group/p"+strconv.FormatInt(time.Now().UnixNano(), 36)), config.String())
	done := wait(b, p.gitlab, run)
	require.Equal(b, "success", done.Status)
	return done.Jobs
}

// BenchmarkPickUp: from "pending in GitLab" to the claim and to the first byte of the script's output, one job at a
// time, with long polling and free slots.
func BenchmarkPickUp(b *testing.B) {
	for _, runners := range []int{1, 100} {
		b.Run(fmt.Sprintf("runners=%d", runners), func(b *testing.B) {
			for b.Loop() {
				pickUp(b, runners, 300)
			}
		})
	}
}

func pickUp(b *testing.B, runners, jobs int) {
	var mu sync.Mutex
	claimedAt := map[int64]time.Time{}
	p := startProcesses(b, processOptions{runners: runners, runnerKeys: unhurried, emptyProfile: true, coordinator: coordinator.Options{
		DecoratePayload: func(job int64, _ map[string]any) error {
			mu.Lock()
			defer mu.Unlock()
			claimedAt[job] = time.Now()
			return nil
		},
	}})
	p.startAgent("agent", 10)
	proj := project(b, p.gitlab, "group/pickup")
	var claimed, output []time.Duration
	for i := range jobs {
		run := pipeline(b, p.gitlab, proj, "job: {script: ['echo \"at $EPOCHREALTIME\"']}")
		done := wait(b, p.gitlab, run)
		require.Equal(b, "success", done.Status)
		if i < 10 {
			continue // warm
		}
		j := done.Jobs[0]
		mu.Lock()
		claimed = append(claimed, claimedAt[j.ID].Sub(j.QueuedAt))
		mu.Unlock()
		output = append(output, printedAt(b, trace(b, p.gitlab, j)).Sub(j.QueuedAt))
	}
	percentiles(b, "claimed", claimed)
	percentiles(b, "output", output)
	b.ReportMetric(0, "ns/op")
}

// printedAt is the time that bash printed as its $EPOCHREALTIME.
func printedAt(b *testing.B, trace []byte) time.Time {
	b.Helper()
	_, rest, ok := bytes.Cut(trace, []byte("\nat "))
	require.True(b, ok, string(limit(trace)))
	text, _, _ := bytes.Cut(rest, []byte("\n"))
	s, us, _ := strings.Cut(string(text), ".")
	sec, err := strconv.ParseInt(s, 10, 64)
	require.NoError(b, err)
	micro, err := strconv.ParseInt(us, 10, 64)
	require.NoError(b, err)
	return time.Unix(sec, micro*1000)
}

func percentiles(b *testing.B, name string, d []time.Duration) {
	slices.Sort(d)
	for _, q := range []int{50, 95, 99} {
		b.ReportMetric(float64(d[(len(d)-1)*q/100].Microseconds())/1000, fmt.Sprintf("ms-%s-p%d", name, q))
	}
}

// BenchmarkTrace: one trace of 133 MB from a job's stdout into GitLab.
func BenchmarkTrace(b *testing.B) {
	for b.Loop() {
		p := startProcesses(b, processOptions{runnerKeys: unhurried + "    output_limit: 1048576\n"})
		p.startAgent("agent", 1)
		const size = 133_000_000
		big := p.dir + "/big"
		line := []byte(strings.Repeat("0123456789 abcdefghijklmnopqrstuvwxyz ", 3) + "\n")
		require.NoError(b, os.WriteFile(big, bytes.Repeat(line, size/len(line)+1), 0o600))
		runJobs(b, p, 5)
		before := p.cpu()
		began := time.Now()
		run := pipeline(b, p.gitlab, project(b, p.gitlab, "group/trace"), "job: {script: [cat "+big+"]}")
		done := wait(b, p.gitlab, run)
		took := time.Since(began)
		used := p.cpu().minus(before)
		require.Equal(b, "success", done.Status)
		requireWhole(b, done.Jobs[0])
		mb := float64(done.Jobs[0].TraceSize) / 1e6
		b.ReportMetric(mb/took.Seconds(), "MB/s")
		b.ReportMetric(milliseconds(used.all())/mb, "cpu-ms/MB")
		b.ReportMetric(milliseconds(used.plane)/mb, "cpu-ms/MB-plane")
		b.ReportMetric(milliseconds(used.agents)/mb, "cpu-ms/MB-agent")
		b.ReportMetric(milliseconds(used.jobs)/mb, "cpu-ms/MB-job")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkMemoryAtRest: control plane and agent after some jobs, with nothing to do.
func BenchmarkMemoryAtRest(b *testing.B) {
	for b.Loop() {
		p := startProcesses(b, processOptions{runnerKeys: unhurried})
		p.startAgent("agent", 10)
		runJobs(b, p, 100)
		for name, x := range map[string]*process{"plane": p.plane, "agent": p.agents["agent"]} {
			anonymous, resident := memory(b, x.cmd.Process.Pid)
			b.ReportMetric(anonymous, "MiB-anonymous-"+name)
			b.ReportMetric(resident, "MiB-resident-"+name)
		}
		b.ReportMetric(0, "ns/op")
	}
}

// cpuTime is what the parts of a fleet have used in user and system mode; jobs are those that have ended.
type cpuTime struct{ plane, agents, jobs time.Duration }

func (c cpuTime) all() time.Duration { return c.plane + c.agents + c.jobs }

func (c cpuTime) minus(o cpuTime) cpuTime {
	return cpuTime{c.plane - o.plane, c.agents - o.agents, c.jobs - o.jobs}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (p *processes) cpu() cpuTime {
	p.t.Helper()
	var c cpuTime
	c.plane, _ = processTime(p.t, p.plane.cmd.Process.Pid)
	for _, a := range p.agents {
		self, children := processTime(p.t, a.cmd.Process.Pid)
		c.agents += self
		c.jobs += children
	}
	return c
}

// processTime reads utime and stime, cutime and cstime of proc(5); a tick is 10 ms, which the many jobs even out.
func processTime(t testing.TB, pid int) (self, children time.Duration) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(t, err)
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
	var times [4]time.Duration
	for i, f := range fields[11:15] {
		n, err := strconv.ParseInt(f, 10, 64)
		require.NoError(t, err)
		times[i] = time.Duration(n) * 10 * time.Millisecond
	}
	return times[0] + times[1], times[2] + times[3]
}

// memory returns a process's anonymous and resident memory in MiB.
func memory(t testing.TB, pid int) (anonymous, resident float64) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	require.NoError(t, err)
	defer f.Close()
	values := map[string]float64{}
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) >= 2 {
			kib, _ := strconv.ParseFloat(fields[1], 64)
			values[fields[0]] = kib / 1024
		}
	}
	return values["Anonymous:"], values["Rss:"]
}
