package sqlite_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/conformance"
	"github.com/switchyard-ci/switchyard/controlplane/store/sqlite"
)

// BenchmarkJob measures a job's whole life in the store (InsertJob, StartJob, DropPayload, FinishJob, DeleteJob) with
// payloads of 8 KiB.
func BenchmarkJob(b *testing.B) {
	for _, callers := range []int{1, 10, 100} {
		b.Run(fmt.Sprint(callers, "-at-once"), func(b *testing.B) { benchmarkJob(b, callers) })
	}
}

func benchmarkJob(b *testing.B, callers int) {
	s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "store.db"), key)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	payload := bytes.Repeat([]byte("12345678"), 1024)
	var next atomic.Int64
	var group sync.WaitGroup
	cpu := cpuTime()
	b.ResetTimer()
	for range callers {
		group.Go(func() {
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				job := conformance.NewJob(n)
				job.Payload = payload
				if err := life(b, s, job); err != nil {
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
}

func life(b *testing.B, s store.Store, n store.NewJob) error {
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
