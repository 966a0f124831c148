package relay

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/relay/report"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// embedded is the embedded GitLab behind HTTP, with running jobs.
type embedded struct {
	*bench
	c      *coordinator.Coordinator
	client *client.Client
	jobs   []runnerapi.Envelope

	mu   sync.Mutex
	seen map[string]int // "PATCH 202" → how often
	// mishap is called before GitLab handles a request; it says what happens instead.
	mishap func(r *http.Request) mishap
}

type mishap int

const (
	none     mishap = iota
	reset           // the connection breaks before GitLab has the request
	mute            // GitLab does what it is asked to, and the answer is lost
	overload        // 502, as from a proxy
)

func newEmbedded(t *testing.T, jobs int, o coordinator.Options) *embedded {
	t.Helper()
	o.Dir, o.Hold = t.TempDir(), -1
	c, err := coordinator.New(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	e := &embedded{c: c, seen: make(map[string]int)}
	srv := httptest.NewServer(http.HandlerFunc(e.serve))
	t.Cleanup(srv.Close)
	e.client, err = client.New(client.Options{URL: srv.URL})
	require.NoError(t, err)
	t.Cleanup(e.client.Close)

	project, err := c.AddProject(t.Context(), coordinator.ProjectOptions{Path: "group/project"})
	require.NoError(t, err)
	runner, err := c.AddRunner(coordinator.RunnerOptions{RunUntagged: true})
	require.NoError(t, err)
	def := &ciconfig.Pipeline{Stages: []string{"test"}}
	for i := range jobs {
		name := fmt.Sprint("job ", i)
		def.Jobs = append(def.Jobs, ciconfig.Job{
			Name: name, Group: name, Stage: "test", When: ciconfig.OnSuccess, Script: []string{"true"}, AllowFailure: true,
		})
	}
	_, err = c.CreatePipeline(t.Context(), project.ID, coordinator.PipelineOptions{Config: def})
	require.NoError(t, err)
	for range jobs {
		res, err := e.client.RequestJob(t.Context(), runnerapi.JobRequest{
			Token: runner.Token, Info: runnerapi.Info{Features: runnerapi.Features{Cancelable: true, CancelGracefully: true}},
		}, client.LaneClaim)
		require.NoError(t, err)
		require.Equal(t, client.JobReceived, res.Status)
		e.jobs = append(e.jobs, res.Envelope)
	}
	e.bench = newBench(t)
	return e
}

type statusWriter struct {
	http.ResponseWriter
	code int
}

func (w *statusWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

func (e *embedded) serve(w http.ResponseWriter, r *http.Request) {
	what := none
	e.mu.Lock()
	if e.mishap != nil {
		what = e.mishap(r)
	}
	e.mu.Unlock()
	switch what {
	case reset:
		panic(http.ErrAbortHandler)
	case overload:
		http.Error(w, "<html>bad gateway</html>", http.StatusBadGateway)
		return
	case mute:
		e.c.Handler().ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	case none:
	}
	s := &statusWriter{ResponseWriter: w, code: http.StatusOK}
	e.c.Handler().ServeHTTP(s, r)
	e.mu.Lock()
	e.seen[fmt.Sprint(r.Method, " ", s.code)]++
	e.mu.Unlock()
}

func (e *embedded) count(what string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.seen[what]
}

func (e *embedded) setMishap(f func(r *http.Request) mishap) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mishap = f
}

// openAs opens the i-th of GitLab's jobs under the fleet's id i+1.
func (e *embedded) openAs(i int, limit int64) {
	e.t.Helper()
	_, err := e.r.Open(int64(i+1), 1, Target{
		Instance: e.client.URL(), GitLab: e.client, JobID: e.jobs[i].ID, Token: e.jobs[i].Token,
		Info: func() runnerapi.Info { return runnerapi.Info{} }, OutputLimit: limit,
	})
	require.NoError(e.t, err)
}

// requireReported checks GitLab's view of the i-th job.
func (e *embedded) requireReported(i int, want []byte) coordinator.Job {
	e.t.Helper()
	require.Equal(e.t, OutcomeAccepted, e.events.outcome(e.t, int64(i+1)))
	j, err := e.c.Job(e.jobs[i].ID)
	require.NoError(e.t, err)
	section, err := e.c.Trace(e.jobs[i].ID, 0)
	require.NoError(e.t, err)
	got, err := io.ReadAll(section)
	require.NoError(e.t, err)
	require.Len(e.t, got, len(want))
	require.True(e.t, bytes.Equal(want, got))
	require.True(e.t, j.Report.ChecksumOK)
	require.True(e.t, j.Report.SizeOK || len(want) == 0)
	return j
}

func TestJobsOverHTTP(t *testing.T) {
	const jobs = 40
	e := newEmbedded(t, jobs, coordinator.Options{})
	traces := make([][]byte, jobs)
	var wg sync.WaitGroup
	for i := range jobs {
		traces[i] = pattern(300 * i * i)
		wg.Go(func() {
			id := int64(i + 1)
			e.openAs(i, 4<<20)
			for at := 0; at < len(traces[i]); at += 64 << 10 {
				e.r.Append(id, 1, int64(at), traces[i][at:min(at+64<<10, len(traces[i]))])
			}
			e.finish(id, traces[i])
		})
	}
	wg.Wait()
	for i, trace := range traces {
		require.Equal(t, "success", e.requireReported(i, trace).Status)
	}
	require.Equal(t, jobs-1, e.count("PATCH 202"), "one for each that has a trace")
	require.Equal(t, jobs, e.count("PUT 200"))
	require.Zero(t, e.count("PATCH 416"))
}

func TestMishapsOverHTTP(t *testing.T) {
	type event struct {
		method string
		what   mishap
	}
	// To each job something else happens, once.
	plan := []event{{"PATCH", reset}, {"PATCH", mute}, {"PATCH", overload}, {"PUT", reset}, {"PUT", mute}, {"PUT", overload}}
	e := newEmbedded(t, len(plan), coordinator.Options{})
	pending := make(map[string]event)
	for i, p := range plan {
		pending[fmt.Sprint("/api/v4/jobs/", e.jobs[i].ID)] = p
	}
	e.setMishap(func(r *http.Request) mishap {
		job := strings.TrimSuffix(r.URL.Path, "/trace")
		if p, ok := pending[job]; ok && p.method == r.Method {
			delete(pending, job)
			return p.what
		}
		return none
	})
	for i := range plan {
		trace := pattern(1<<20 + 500_000*i)
		e.openAs(i, 8<<20)
		e.r.Append(int64(i+1), 1, 0, trace)
		e.finish(int64(i+1), trace)
	}
	for i := range plan {
		e.requireReported(i, pattern(1<<20+500_000*i))
	}
	require.Empty(t, pending)
	require.Equal(t, 1, e.count("PATCH 416"), "where the answer was lost")
	require.Equal(t, 1, e.count("PUT 403"), "and there")
}

func TestAGitLabThatStillMovesTheTrace(t *testing.T) {
	e := newEmbedded(t, 1, coordinator.Options{AcceptDelay: 500 * time.Millisecond})
	e.openAs(0, 1<<20)
	e.append(1, 0, "hello\n")
	e.finish(1, []byte("hello\n"))
	e.requireReported(0, []byte("hello\n"))
	require.Equal(t, 1, e.count("PUT 202"))
	require.Equal(t, 1, e.count("PUT 200"))
	require.Equal(t, 1, e.count("PATCH 202"))
}

func TestAGitLabThatLosesATrace(t *testing.T) {
	e := newEmbedded(t, 1, coordinator.Options{})
	trace := pattern(3<<20 + 17)
	e.openAs(0, 8<<20)
	e.r.Append(1, 1, 0, trace[:2<<20])
	e.events.wait(t, "two full pieces", func() bool {
		list := e.events.received[1]
		return len(list) > 0 && list[len(list)-1].Reported == 2<<20
	})
	require.NoError(t, e.c.LoseTrace(e.jobs[0].ID))
	e.r.Append(1, 1, 2<<20, trace[2<<20:])
	e.finish(1, trace)
	e.requireReported(0, trace)
	require.Equal(t, 1, e.count("PATCH 416"))
}

func TestCancelsOverHTTP(t *testing.T) {
	t.Run("graceful", func(t *testing.T) {
		e := newEmbedded(t, 1, coordinator.Options{})
		_, err := e.c.Cancel(e.jobs[0].ID, false)
		require.NoError(t, err)
		e.openAs(0, 1<<20)
		e.append(1, 0, "hello\n")
		e.events.wait(t, "cancel", func() bool { return len(e.events.statuses[1]) > 0 })
		require.Equal(t, []string{StatusCanceling}, e.events.status(1))
		e.finish(1, []byte("hello\n"))
		require.Equal(t, "canceled", e.requireReported(0, []byte("hello\n")).Status)
	})
	t.Run("forced", func(t *testing.T) {
		e := newEmbedded(t, 1, coordinator.Options{})
		_, err := e.c.Cancel(e.jobs[0].ID, true)
		require.NoError(t, err)
		e.openAs(0, 1<<20)
		e.append(1, 0, "hello\n")
		e.events.wait(t, "cancel", func() bool { return len(e.events.statuses[1]) > 0 })
		require.Equal(t, []string{StatusGone}, e.events.status(1))
		require.NoError(t, e.r.Finish(1, 1, store.Result{State: "failed"}))
		require.Equal(t, OutcomeGone, e.events.outcome(t, 1))
	})
}

// GitLab asks for a minute between two pieces; only a full piece and the end come sooner.
func TestAnIntervalOfAMinuteOverHTTP(t *testing.T) {
	e := newEmbedded(t, 1, coordinator.Options{})
	e.openAs(0, 4<<20)
	trace := []byte("hello\n")
	e.r.Append(1, 1, 0, trace)
	e.events.wait(t, "the first piece", func() bool { return len(e.events.received[1]) > 0 && e.count("PATCH 202") == 1 })
	more := func(b []byte) {
		e.r.Append(1, 1, int64(len(trace)), b)
		trace = append(trace, b...)
	}
	ticker := time.NewTicker(report.Interval / 10)
	defer ticker.Stop()
	for range 13 { // longer than what counts where GitLab asks for nothing
		more([]byte("another line\n"))
		<-ticker.C
	}
	require.Equal(t, 1, e.count("PATCH 202"))
	more(pattern(report.PatchSize))
	e.events.wait(t, "a full piece", func() bool { return e.count("PATCH 202") == 2 })
	more([]byte("the last line\n"))
	e.finish(1, trace)
	e.requireReported(0, trace)
	require.Equal(t, 3, e.count("PATCH 202"))
	require.Zero(t, e.count("PATCH 416"))
}
