package conformance

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// Benchmark measures a job's whole life in the store (InsertJob, StartJob, DropPayload, FinishJob, DeleteJob) with
// payloads of 8 KiB, for 1, 10 and 100 callers at once. open opens an empty store; commits, called before the first job
// and after the last, says how many commits the database has made so far.
func Benchmark(b *testing.B, open func(b *testing.B) (s store.Store, commits func() int64)) {
	for _, callers := range []int{1, 10, 100} {
		b.Run(fmt.Sprint(callers, "-at-once"), func(b *testing.B) { benchmark(b, callers, open) })
	}
}

func benchmark(b *testing.B, callers int, open func(b *testing.B) (s store.Store, commits func() int64)) {
	s, commits := open(b)
	defer s.Close()
	payload := bytes.Repeat([]byte("12345678"), 1024)
	var next atomic.Int64
	var group sync.WaitGroup
	before, cpu := commits(), cpuTime()
	b.ResetTimer()
	for range callers {
		group.Go(func() {
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				job := NewJob(n)
				job.Payload = payload
				if err := wholeLife(b, s, job); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
	b.ReportMetric((cpuTime()-cpu).Seconds()*1e6/float64(b.N), "cpu-µs/job")
	b.ReportMetric(float64(commits()-before)/float64(b.N), "commits/job")
}

func wholeLife(b *testing.B, s store.Store, n store.NewJob) error {
	job, err := s.InsertJob(b.Context(), n)
	if err != nil {
		return err
	}
	if err := s.StartJob(b.Context(), job.ID, job.Epoch, time.Now()); err != nil {
		return err
	}
	s.DropPayload(job.ID)
	if err := s.FinishJob(b.Context(), job.ID, job.Epoch, store.Result{State: "success", FinishedAt: time.Now()}); err != nil {
		return err
	}
	return s.DeleteJob(b.Context(), job.ID)
}

// cpuTime is what this process has used so far, in user and kernel.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
