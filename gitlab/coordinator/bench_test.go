package coordinator

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
)

// cpu is the processor time of this process, in milliseconds.
func cpu(b *testing.B) float64 {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return float64(time.Duration(u.Utime.Nano()+u.Stime.Nano())) / 1e6
}

// BenchmarkJob is one job from request to end (confirmation, a piece of trace, the final update) while 1,000 are
// pending and 1,000 run, without sockets.
func BenchmarkJob(b *testing.B) {
	s := newServer(b, Options{})
	r := s.runner()
	for i := range 20 {
		s.run(s.project(fmt.Sprintf("g/p%d", i)), make([]ciconfig.Job, 100)...)
	}
	for range 1000 {
		s.claim(r)
	}
	feed := s.project("g/feed")
	text := "a line of a trace\n"
	sum := checksum(text)
	before := cpu(b)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if i%1000 == 0 {
			b.StopTimer()
			s.run(feed, make([]ciconfig.Job, 1000)...)
			b.StartTimer()
		}
		j := s.claimWith(r, obj{"info": twoPhase()})
		s.put(j, obj{"state": "running"})
		s.patch(j, "0-17", text)
		if w := s.put(j, obj{"state": "success", "output": obj{"checksum": sum, "bytesize": len(text)}}); w.Code != 200 {
			b.Fatal(w.Code)
		}
	}
	b.ReportMetric((cpu(b)-before)/float64(b.N), "cpu-ms/job")
	require.Zero(b, s.Stats().BadChecksums)
}

// BenchmarkTrace133MB receives a trace of 133 MB in pieces of 1 MiB over a socket. The figure includes the sender.
func BenchmarkTrace133MB(b *testing.B) {
	const pieces = 127
	s := newServer(b, Options{MaxTrace: 1 << 30})
	srv := httptest.NewServer(s.Handler())
	defer srv.Close()
	r := s.runner()
	p := s.project("g/p")
	piece := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	b.SetBytes(pieces << 20)
	before := cpu(b)
	b.ResetTimer()
	for range b.N {
		s.run(p, ciconfig.Job{})
		j := s.claim(r)
		for i := range pieces {
			req, err := http.NewRequestWithContext(b.Context(), http.MethodPatch, srv.URL+jobPath(j)+"/trace", bytes.NewReader(piece))
			require.NoError(b, err)
			req.Header.Set("Job-Token", j.Token)
			req.Header.Set("Content-Range", fmt.Sprintf("%d-", i<<20))
			res, err := srv.Client().Do(req)
			require.NoError(b, err)
			require.NoError(b, res.Body.Close())
			require.Equal(b, 202, res.StatusCode)
		}
		s.finish(j, "success")
		require.EqualValues(b, pieces<<20, s.job(j.ID).TraceSize)
		require.NoError(b, s.Erase(j.ID))
	}
	b.ReportMetric((cpu(b)-before)/float64(b.N)/(pieces<<20)*1e6, "cpu-ms/MB")
}

// BenchmarkBigPipeline is a pipeline of 10,000 jobs from its making to its end.
func BenchmarkBigPipeline(b *testing.B) {
	for range b.N {
		s := newServer(b, Options{})
		r := s.runner()
		jobs := make([]ciconfig.Job, 10_000)
		for i := range jobs {
			jobs[i].Stage = fmt.Sprint(i / 1000)
		}
		run := s.run(s.project("g/p"), jobs...)
		for range jobs {
			s.finish(s.claim(r), "success")
		}
		end, err := s.Wait(b.Context(), run.ID)
		require.NoError(b, err)
		require.Equal(b, "success", end.Status)
	}
}
