package relay

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// cpu is the CPU time of this process so far.
func cpu(t testing.TB) time.Duration {
	var u unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// done hands out what has ended, and what has begun to reach GitLab.
type done struct{ begun, reported chan int64 }

func (d *done) JobStatus(int64, string)       {}
func (d *done) Reported(job int64, _ Outcome) { d.reported <- job }

func (d *done) Received(job int64, p Progress) {
	if p.Reported > 0 && d.begun != nil {
		d.begun <- job
	}
}

func newBenchmark(b *testing.B) (*Relay, *done, func(job, limit int64)) {
	b.Helper()
	c, err := client.New(client.Options{URL: startSink(b)})
	require.NoError(b, err)
	b.Cleanup(c.Close)
	d := &done{reported: make(chan int64, 100_000)}
	r, err := New(Options{Dir: b.TempDir(), Events: d})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, r.Close(b.Context())) })
	info := runnerapi.Info{Name: "switchyard", Executor: "shell"}
	open := func(job, limit int64) {
		_, err := r.Open(job, 1, Target{
			Instance: c.URL(), GitLab: c, JobID: job, Token: "glcbt-64_0123456789abcdefghij", OutputLimit: limit,
			Info: func() runnerapi.Info { return info },
		})
		require.NoError(b, err)
	}
	return r, d, open
}

// BenchmarkLongTrace takes a trace of 133 MB from Append to a GitLab's socket.
func BenchmarkLongTrace(b *testing.B) {
	r, d, open := newBenchmark(b)
	trace := pattern(133_000_000)
	res := success(trace)
	begin, before := time.Now(), cpu(b)
	for job := int64(1); b.Loop(); job++ {
		open(job, 256<<20)
		for at := 0; at < len(trace); at += 256 << 10 {
			r.Append(job, 1, int64(at), trace[at:min(at+256<<10, len(trace))])
		}
		require.NoError(b, r.Finish(job, 1, res))
		<-d.reported
		r.Forget(job)
	}
	mb := float64(b.N) * float64(len(trace)) / 1e6
	b.ReportMetric(mb/time.Since(begin).Seconds(), "MB/s")
	b.ReportMetric((cpu(b)-before).Seconds()*1000/mb, "CPU-ms/MB")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkTrivialJob reports jobs with four lines of output, ten at a time.
func BenchmarkTrivialJob(b *testing.B) {
	r, d, open := newBenchmark(b)
	trace := pattern(1500)
	res := success(trace)
	begin, before := time.Now(), cpu(b)
	free := make(chan struct{}, 10)
	var reports sync.WaitGroup
	reports.Go(func() {
		for range b.N {
			r.Forget(<-d.reported)
			<-free
		}
	})
	for job := range int64(b.N) {
		free <- struct{}{}
		job++
		open(job, 4<<20)
		r.Append(job, 1, 0, trace[:400])
		r.Append(job, 1, 400, trace[400:])
		require.NoError(b, r.Finish(job, 1, res))
	}
	reports.Wait()
	b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "jobs/s")
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "CPU-µs/job")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdleJobs says what 2,000 jobs cost that have said something and are silent now.
func BenchmarkIdleJobs(b *testing.B) {
	const jobs = 2000
	memory := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	r, d, open := newBenchmark(b)
	d.begun = make(chan int64, 10*jobs)
	for b.Loop() {
		before, goroutines := memory(), runtime.NumGoroutine()
		for job := int64(1); job <= jobs; job++ {
			open(job, 4<<20)
			r.Append(job, 1, 0, []byte(fmt.Sprint("job ", job, " begins\n")))
		}
		for begun := make(map[int64]bool); len(begun) < jobs; {
			begun[<-d.begun] = true
		}
		b.ReportMetric(float64(memory()-before)/jobs, "B/job")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines), "goroutines")
		for job := int64(1); job <= jobs; job++ {
			r.Forget(job)
		}
	}
	b.ReportMetric(0, "ns/op")
}
