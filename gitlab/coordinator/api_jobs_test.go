package coordinator

import (
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// running gives a job that runs.
func running(t testing.TB, s *server) runnerapi.Job {
	t.Helper()
	p := s.project(fmt.Sprintf("g/p%d", s.lastID["project"]+1))
	s.run(p, ciconfig.Job{})
	return s.claim(s.runner())
}

func (s *server) trace(j runnerapi.Job) string {
	s.t.Helper()
	r, err := s.Trace(j.ID, 0)
	require.NoError(s.t, err)
	b, err := io.ReadAll(r)
	require.NoError(s.t, err)
	return string(b)
}

func checksum(text string) string { return fmt.Sprintf("crc32:%08x", crc32.ChecksumIEEE([]byte(text))) }

// TestTraceVectors are those of GitLab's own specification: a trace of 11 bytes, and what is sent next.
func TestTraceVectors(t *testing.T) {
	const begin = "BUILD TRACE"
	for _, c := range []struct {
		name         string
		contentRange string
		text         string
		status       int
		size         string
		trace        string
	}{
		{"at the end", "11-20", " appended", 202, "0-20", begin + " appended"},
		{"at the end, with an end that is one too far", "11-21", " appended", 202, "0-20", begin + " appended"},
		{"with a total", "11-20/21", " appended", 202, "0-20", begin + " appended"},
		{"a gap", "15-20/6", " appended", 416, "0-11", begin},
		{"an overlap", "8-20/13", " appended", 416, "0-11", begin},
		{"the same again", "0-10", begin, 416, "0-11", begin},
		{"its end again", "6-10", "TRACE", 416, "0-11", begin},
		{"its begin again", "0-4", "BUILD", 416, "0-11", begin},
		{"nothing, at the end", "11-11", "", 202, "0-11", begin},
		{"nothing, elsewhere", "5-5", "", 416, "0-11", begin},
		{"no number", "x-y", "z", 416, "0-11", begin},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, Options{})
			j := running(t, s)
			w := s.patch(j, "0-10", begin)
			require.Equal(t, 202, w.Code)
			require.Equal(t, "0-11", w.Header().Get("Range"), "the size, not the last offset")
			w = s.patch(j, c.contentRange, c.text)
			require.Equal(t, c.status, w.Code)
			require.Equal(t, c.size, w.Header().Get("Range"))
			if c.status == 202 {
				require.Equal(t, "running", w.Header().Get("Job-Status"))
				require.Equal(t, "60", w.Header().Get("X-GitLab-Trace-Update-Interval"))
			}
			require.Equal(t, c.trace, s.trace(j))
		})
	}
}

func TestALostTraceIsSentAgain(t *testing.T) {
	s := newServer(t, Options{})
	j := running(t, s)
	require.Equal(t, 202, s.patch(j, "0-27", strings.Repeat("x", 28)).Code)
	require.NoError(t, s.LoseTrace(j.ID))
	w := s.patch(j, "28-32/5", "12345")
	require.Equal(t, 416, w.Code)
	require.Equal(t, "0-0", w.Header().Get("Range"))
	whole := strings.Repeat("x", 28) + "1234567"
	w = s.patch(j, "0-34/35", whole)
	require.Equal(t, 202, w.Code)
	require.Equal(t, "0-35", w.Header().Get("Range"))
	require.Equal(t, whole, s.trace(j))
	require.Equal(t, 1, s.job(j.ID).RangeErrors)
	require.EqualValues(t, 1, s.Stats().RangeErrors)
}

func TestWhoMaySendATrace(t *testing.T) {
	s := newServer(t, Options{})
	j := running(t, s)
	path := jobPath(j) + "/trace"
	for _, c := range []struct {
		name    string
		path    string
		headers []string
		want    int
		text    string
	}{
		{"the token in the header", path, []string{"Job-Token", j.Token, "Content-Range", "0-0"}, 202, "202"},
		{"the token in the address", path + "?token=" + j.Token, []string{"Content-Range", "1-1"}, 202, "202"},
		{"no Content-Range", path, []string{"Job-Token", j.Token}, 400, `{"error":"400 Missing header Content-Range"}`},
		{"no token", path, []string{"Content-Range", "2-2"}, 403, `{"message":"403 Forbidden"}`},
		{"a wrong token", path, []string{"Job-Token", "glcbt-no", "Content-Range", "2-2"}, 403, `{"message":"403 Forbidden"}`},
		{"a job that does not exist", "/api/v4/jobs/99999/trace", []string{"Job-Token", j.Token, "Content-Range", "0-0"}, 403, `{"message":"403 Forbidden"}`},
		{"an id that is none", "/api/v4/jobs/x/trace", []string{"Job-Token", j.Token, "Content-Range", "0-0"}, 400, `{"error":"id is invalid"}`},
	} {
		w := s.do(http.MethodPatch, c.path, "x", c.headers...)
		require.Equal(t, c.want, w.Code, c.name)
		require.Equal(t, c.text, w.Body.String(), c.name)
	}
	require.Equal(t, "xx", s.trace(j))
	w := s.do(http.MethodPatch, path+"?debug_trace=true", "x", "Job-Token", j.Token, "Content-Range", "2-2")
	require.Equal(t, 202, w.Code)
	require.False(t, s.job(j.ID).Debug, "only the first piece says so")
	require.Equal(t, 3, s.job(j.ID).Patches)
	j = running(t, s)
	w = s.do(http.MethodPatch, jobPath(j)+"/trace?debug_trace=true", "x", "Job-Token", j.Token, "Content-Range", "0-0")
	require.Equal(t, 202, w.Code)
	require.True(t, s.job(j.ID).Debug)
}

func TestTheIntervalWhileSomeoneWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		j := running(t, s)
		interval := func() string { return s.patch(j, "0-0", "").Header().Get("X-GitLab-Trace-Update-Interval") }
		require.Equal(t, "60", interval())
		require.NoError(t, s.WatchTrace(j.ID))
		require.Equal(t, "3", interval())
		pass(10*time.Second - 1)
		require.Equal(t, "3", interval())
		pass(1)
		require.Equal(t, "60", interval())
		require.ErrorIs(t, s.WatchTrace(999), ErrNotFound)
	})
}

func TestATraceHasALimit(t *testing.T) {
	s := newServer(t, Options{MaxTrace: 10})
	j := running(t, s)
	require.Equal(t, 202, s.patch(j, "0-9", "0123456789").Code)
	w := s.patch(j, "10-10", "x")
	require.Equal(t, 403, w.Code)
	dropped := s.job(j.ID)
	require.Equal(t, "failed", dropped.Status)
	require.EqualValues(t, "trace_size_exceeded", dropped.FailureReason)
	require.EqualValues(t, 10, dropped.TraceSize)

	p := s.projectWith(ProjectOptions{Path: "g/generous", MaxTrace: 20})
	s.run(p, ciconfig.Job{})
	j = s.claim(s.runner())
	require.Equal(t, 202, s.patch(j, "0-14", strings.Repeat("x", 15)).Code)

	w = s.do(http.MethodPatch, jobPath(j)+"/trace", make([]byte, maxPatch+1), "Job-Token", j.Token, "Content-Range", "15-15")
	require.Equal(t, 413, w.Code)
	require.Equal(t, "running", s.job(j.ID).Status)
}

func TestAnyBytesArriveIntact(t *testing.T) {
	s := newServer(t, Options{TraceMemory: 1000, MaxTrace: 1 << 30})
	j := running(t, s)
	var all strings.Builder
	for i, size := range []int{0, 1, 5, 4096, 4097, 65536, 1 << 20, 3 << 20, 10} {
		piece := make([]byte, size)
		for k := range piece {
			piece[k] = byte(k*7 + i + k/251) // NUL, carriage returns, invalid UTF-8
		}
		w := s.do(http.MethodPatch, jobPath(j)+"/trace", piece, "Job-Token", j.Token, "Content-Range", fmt.Sprintf("%d-", all.Len()))
		require.Equal(t, 202, w.Code)
		all.Write(piece)
	}
	require.Equal(t, checksum(all.String()), checksum(s.trace(j)))
	w := s.put(j, obj{"state": "success", "output": obj{"checksum": checksum(all.String()), "bytesize": all.Len()}})
	require.Equal(t, 200, w.Code)
	require.True(t, s.job(j.ID).Report.ChecksumOK)
	require.True(t, s.job(j.ID).Report.SizeOK)
	require.EqualValues(t, all.Len(), s.Stats().TraceBytes)
}

// TestTwoPiecesAtOnce holds a write up with a pipe that nobody reads yet.
func TestTwoPiecesAtOnce(t *testing.T) {
	s := newServer(t, Options{TraceMemory: 1})
	j := running(t, s)
	require.NoError(t, syscall.Mkfifo(s.tracePath(j.ID), 0o600))
	first := make(chan int)
	go func() { first <- s.patch(j, "0-4", "first").Code }()
	log, err := s.traceLog(j.ID)
	require.NoError(t, err)
	for !log.Busy() {
		runtime.Gosched()
	}
	w := s.patch(j, "0-5", "second")
	require.Equal(t, 409, w.Code)
	require.JSONEq(t, `{"message":"409 Conflict"}`, w.Body.String())
	require.EqualValues(t, 1, s.Stats().TraceBusy)
	w = s.put(j, obj{"state": "success", "output": obj{"checksum": checksum("first")}})
	require.Equal(t, 202, w.Code, "the trace is not complete")
	require.Equal(t, "1", w.Header().Get("X-GitLab-Trace-Update-Interval"))
	require.Equal(t, "running", w.Header().Get("Job-Status"))

	pipe, err := os.Open(s.tracePath(j.ID))
	require.NoError(t, err)
	require.Equal(t, 500, <-first, "a pipe has no offsets: nothing is stored")
	require.NoError(t, pipe.Close())
	require.NoError(t, os.Remove(s.tracePath(j.ID)))
	require.Equal(t, 202, s.patch(j, "0-4", "first").Code)
	require.Equal(t, 200, s.put(j, obj{"state": "success", "output": obj{"checksum": checksum("first")}}).Code)
	require.True(t, s.job(j.ID).Report.ChecksumOK)
	require.True(t, s.job(j.ID).Finished())
}

// TestABrokenOffPieceLeavesNothing: a body that ends early or has no length.
func TestABrokenOffPieceLeavesNothing(t *testing.T) {
	s := newServer(t, Options{})
	j := running(t, s)
	send := func(body io.Reader, length int64) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, "http://gitlab.test"+jobPath(j)+"/trace", body)
		require.NoError(t, err)
		req.ContentLength = length
		req.Header.Set("Job-Token", j.Token)
		req.Header.Set("Content-Range", "0-4")
		return s.serve(req).Code
	}
	require.Equal(t, 400, send(strings.NewReader("123"), 5))
	require.Empty(t, s.trace(j))
	require.Equal(t, 202, send(strings.NewReader("12345"), -1), "chunked")
	require.Equal(t, "12345", s.trace(j))
	require.Equal(t, 413, send(io.LimitReader(zeros{}, maxPatch+1), -1))
}

// TestAPieceThatComesTooLate: the job ends while the body is on its way.
func TestAPieceThatComesTooLate(t *testing.T) {
	s := newServer(t, Options{})
	j := running(t, s)
	reader, writer := io.Pipe()
	done := make(chan *httptest.ResponseRecorder)
	go func() {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPatch, jobPath(j)+"/trace", reader)
		req.Header.Set("Job-Token", j.Token)
		req.Header.Set("Content-Range", "0-4")
		done <- s.serve(req)
	}()
	_, err := writer.Write([]byte("la"))
	require.NoError(t, err)
	s.finish(j, "success")
	_, err = writer.Write([]byte("te"))
	require.NoError(t, err)
	require.NoError(t, writer.Close())
	w := <-done
	require.Equal(t, 403, w.Code)
	require.Equal(t, "success", w.Header().Get("Job-Status"))
	require.Empty(t, s.trace(j))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestUpdateStates(t *testing.T) {
	for _, c := range []struct {
		name   string
		fields obj
		status int
		job    string
		reason string
		exit   int
	}{
		{"running is a touch", obj{"state": "running"}, 200, "running", "", 0},
		{"success", obj{"state": "success"}, 200, "success", "", 0},
		{"failed without a reason", obj{"state": "failed"}, 200, "failed", "unknown_failure", 0},
		{"a script's failure", obj{"state": "failed", "failure_reason": "script_failure", "exit_code": 7}, 200, "failed", "script_failure", 7},
		{"a reason of a newer runner", obj{"state": "failed", "failure_reason": "sunspots"}, 200, "failed", "unknown_failure", 0},
		{"the runner's fault", obj{"state": "failed", "failure_reason": "runner_system_failure"}, 200, "failed", "runner_system_failure", 0},
		{"pending", obj{"state": "pending"}, 400, "running", "", 0},
		{"canceled", obj{"state": "canceled"}, 400, "running", "", 0},
		{"no state", obj{}, 400, "running", "", 0},
		{"unknown fields", obj{"state": "success", "future": 1, "info": modern()}, 200, "success", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, Options{})
			j := running(t, s)
			w := s.put(j, c.fields)
			require.Equal(t, c.status, w.Code)
			require.Equal(t, fmt.Sprint(c.status), w.Body.String())
			require.Equal(t, c.job, w.Header().Get("Job-Status"))
			require.Empty(t, w.Header().Get("X-GitLab-Trace-Update-Interval"))
			got := s.job(j.ID)
			require.Equal(t, c.job, got.Status)
			require.EqualValues(t, c.reason, got.FailureReason)
			require.Equal(t, c.exit, got.ExitCode)
		})
	}
}

func TestUpdateByForm(t *testing.T) {
	s := newServer(t, Options{})
	j := running(t, s)
	require.Equal(t, 202, s.patch(j, "0-2", "abc").Code)
	body := "token=" + j.Token + "&state=failed&failure_reason=script_failure&exit_code=3&output[bytesize]=3&output[checksum]=" + checksum("abc")
	w := s.do(http.MethodPut, jobPath(j), []byte(body), "Content-Type", "application/x-www-form-urlencoded")
	require.Equal(t, 200, w.Code)
	got := s.job(j.ID)
	require.Equal(t, Report{State: "failed", Checksum: checksum("abc"), Bytesize: 3, ChecksumOK: true, SizeOK: true}, got.Report)
	require.Equal(t, 3, got.ExitCode)
}

func TestAJobThatHasEndedIsRefused(t *testing.T) {
	s := newServer(t, Options{})
	j := running(t, s)
	s.finish(j, "success")
	for _, w := range []*httptest.ResponseRecorder{s.put(j, obj{"state": "success"}), s.patch(j, "0-0", "x")} {
		require.Equal(t, 403, w.Code)
		require.Equal(t, "success", w.Header().Get("Job-Status"))
		require.JSONEq(t, `{"message":"403 Forbidden - Job is not processing on runner"}`, w.Body.String())
	}
	require.Equal(t, 2, s.job(j.ID).LateRequests)
	require.Empty(t, s.put(runnerapi.Job{ID: j.ID, Token: "no"}, obj{"state": "success"}).Header().Get("Job-Status"), "without the token nothing is said")
	require.NoError(t, s.Erase(j.ID))
	w := s.put(j, obj{"state": "success"})
	require.Equal(t, 403, w.Code)
	require.JSONEq(t, `{"message":"403 Forbidden - Job has been erased!"}`, w.Body.String())
}

func TestABadChecksumIsCountedOnly(t *testing.T) {
	s := newServer(t, Options{})
	for i, c := range []struct {
		fields   obj
		ok, size bool
	}{
		{obj{"output": obj{"checksum": checksum("abc"), "bytesize": 3}}, true, true},
		{obj{"checksum": checksum("abc")}, true, false}, // the old field
		{obj{"output": obj{"checksum": checksum("abd"), "bytesize": 3}}, false, true},
		{obj{"output": obj{"checksum": checksum("abc"), "bytesize": 4}}, true, false},
		{obj{}, false, false},
	} {
		j := running(t, s)
		require.Equal(t, 202, s.patch(j, "0-2", "abc").Code)
		c.fields["state"] = "success"
		require.Equal(t, 200, s.put(j, c.fields).Code)
		got := s.job(j.ID)
		require.Equal(t, "success", got.Status)
		require.Equal(t, c.ok, got.Report.ChecksumOK, i)
		require.Equal(t, c.size, got.Report.SizeOK, i)
	}
	stats := s.Stats()
	require.Equal(t, []int64{1, 1, 5}, []int64{stats.BadChecksums, stats.BadSizes, stats.Finished})
}

func TestAFinalUpdateIsAcceptedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{AcceptDelay: 20 * time.Second})
		j := running(t, s)
		require.Equal(t, 202, s.patch(j, "0-2", "abc").Code)
		require.Equal(t, 200, s.put(j, obj{"state": "running", "output": obj{"checksum": checksum("abc")}}).Code, "only a final one")
		final := obj{"state": "success", "output": obj{"checksum": checksum("abc"), "bytesize": 3}}
		var waits []string
		for {
			w := s.put(j, final)
			if w.Code == 200 {
				break
			}
			require.Equal(t, 202, w.Code)
			require.Equal(t, "202", w.Body.String())
			wait := w.Header().Get("X-GitLab-Trace-Update-Interval")
			waits = append(waits, wait)
			d, err := time.ParseDuration(wait + "s")
			require.NoError(t, err)
			pass(d)
		}
		require.Equal(t, []string{"1", "1", "1", "1", "2", "2", "4", "4", "8"}, waits)
		require.Equal(t, "success", s.job(j.ID).Status)
		require.True(t, s.job(j.ID).Report.ChecksumOK)
		require.EqualValues(t, 9, s.Stats().Accepted)

		j = running(t, s)
		require.Equal(t, 200, s.put(j, obj{"state": "success"}).Code, "without a checksum at once")
	})
}

func TestAFinalUpdateIsAcceptedAfterFiveMinutesInAnyCase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{AcceptDelay: time.Hour})
		j := running(t, s)
		final := obj{"state": "success", "output": obj{"checksum": checksum("")}}
		require.Equal(t, 202, s.put(j, final).Code)
		pass(5*time.Minute - 1)
		require.Equal(t, 202, s.put(j, final).Code)
		pass(1)
		require.Equal(t, 200, s.put(j, final).Code)
	})
}

func TestBackoff(t *testing.T) {
	for age, want := range map[int]int{
		0: 1, 1: 1, 2: 1, 3: 1, 4: 2, 7: 2, 8: 4, 15: 4, 16: 8, 31: 8, 32: 16, 64: 32, 128: 64, 255: 64, 256: 64, 1000: 64,
	} {
		require.Equal(t, want, backoffSeconds(time.Duration(age)*time.Second), "%d s", age)
	}
}

func TestExitCodesThatAreAllowed(t *testing.T) {
	s := newServer(t, Options{})
	r := s.runner()
	for _, c := range []struct {
		exit     int
		pipeline string
	}{{42, "success"}, {43, "failed"}, {0, "failed"}} {
		p := s.project(fmt.Sprintf("g/exit%d", c.exit))
		run := s.run(p, ciconfig.Job{AllowFailureExitCodes: []int{1, 42}})
		j := s.claim(r)
		require.Equal(t, 200, s.put(j, obj{"state": "failed", "failure_reason": "script_failure", "exit_code": c.exit}).Code)
		require.Equal(t, "failed", s.job(j.ID).Status)
		require.Equal(t, c.pipeline == "success", s.job(j.ID).AllowFailure)
		end, err := s.Wait(t.Context(), run.ID)
		require.NoError(t, err)
		require.Equal(t, c.pipeline, end.Status, "exit code %d", c.exit)
	}
}

func TestCancel(t *testing.T) {
	s := newServer(t, Options{})
	p := s.project("g/p")
	r := s.runner()

	t.Run("a runner that can end the job itself", func(t *testing.T) {
		for state, reason := range map[string]string{"success": "", "failed": "script_failure"} {
			s.run(p, ciconfig.Job{})
			j := s.claim(r)
			got, err := s.Cancel(j.ID, false)
			require.NoError(t, err)
			require.Equal(t, "canceling", got.Status)
			_, err = s.Cancel(j.ID, false)
			require.NoError(t, err, "again is no error")
			w := s.patch(j, "0-0", "x")
			require.Equal(t, 202, w.Code)
			require.Equal(t, "canceling", w.Header().Get("Job-Status"))
			w = s.put(j, obj{"state": "running"})
			require.Equal(t, 200, w.Code)
			require.Equal(t, "canceling", w.Header().Get("Job-Status"))
			w = s.put(j, obj{"state": state, "failure_reason": reason})
			require.Equal(t, 200, w.Code)
			require.Equal(t, "canceled", w.Header().Get("Job-Status"))
			require.Equal(t, "canceled", s.job(j.ID).Status)
			require.Empty(t, s.job(j.ID).FailureReason)
		}
	})
	t.Run("a runner that cannot, and force", func(t *testing.T) {
		for _, force := range []bool{false, true} {
			s.run(p, ciconfig.Job{})
			j := s.claimWith(r, obj{"info": obj{"features": obj{"cancel_gracefully": force}}})
			got, err := s.Cancel(j.ID, force)
			require.NoError(t, err)
			require.Equal(t, "canceled", got.Status)
			for _, w := range []*httptest.ResponseRecorder{s.put(j, obj{"state": "running"}), s.patch(j, "0-0", "x")} {
				require.Equal(t, 403, w.Code)
				require.Equal(t, "canceled", w.Header().Get("Job-Status"))
			}
		}
	})
	t.Run("force after a graceful one", func(t *testing.T) {
		s.run(p, ciconfig.Job{})
		j := s.claim(r)
		_, err := s.Cancel(j.ID, false)
		require.NoError(t, err)
		got, err := s.Cancel(j.ID, true)
		require.NoError(t, err)
		require.Equal(t, "canceled", got.Status)
	})
	t.Run("a job that has ended", func(t *testing.T) {
		s.run(p, ciconfig.Job{})
		j := s.claim(r)
		s.finish(j, "success")
		_, err := s.Cancel(j.ID, false)
		require.EqualError(t, err, `job "job1" cannot be canceled: its status is success`)
	})
	require.Zero(t, s.queue.Running(p.ID), "none counts as running any more")
}

func TestSilentJobsAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		p := s.projectWith(ProjectOptions{Path: "g/p", Timeout: 3 * time.Hour})
		r := s.runner()
		s.run(p, ciconfig.Job{}, ciconfig.Job{}, ciconfig.Job{Timeout: time.Minute})
		touched, silent, short := s.claim(r), s.claim(r), s.claim(r)
		status := func(j runnerapi.Job) string { return s.job(j.ID).Status }
		for range 15 {
			pass(time.Minute)
			require.Equal(t, "running", status(short))
			require.Equal(t, 200, s.put(short, obj{"state": "running"}).Code)
		}
		pass(time.Minute)
		synctest.Wait()
		require.Equal(t, "failed", status(short), "a minute and a quarter of an hour")
		for range 2 {
			pass(30 * time.Minute)
			require.Equal(t, 200, s.put(touched, obj{"state": "running"}).Code)
		}
		synctest.Wait()
		require.Equal(t, "failed", status(silent))
		require.Equal(t, "running", status(touched))
		require.EqualValues(t, "stuck_or_timeout_failure", s.job(silent.ID).FailureReason)
		require.EqualValues(t, 2, s.Stats().StuckDropped)
	})
}
