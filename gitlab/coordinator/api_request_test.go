package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

const (
	lastUpdate = "X-GitLab-Last-Update"
	polling    = "Gitlab-Ci-Builds-Polling"
)

func TestRequestNeedsAToken(t *testing.T) {
	s := newServer(t, Options{})
	r := s.runner()
	for _, c := range []struct {
		name   string
		body   any
		header string
		want   int
		text   string
	}{
		{"none", obj{}, "", 400, `{"error":"token is missing"}`},
		{"no body", nil, "", 400, `{"error":"token is missing"}`},
		{"a wrong one", obj{"token": "glrt-no"}, "", 403, `{"message":"403 Forbidden"}`},
		{"a wrong one in the header", obj{}, "glrt-no", 403, `{"message":"403 Forbidden"}`},
		{"in the body", obj{"token": r.Token}, "", 204, ""},
		{"in the header", obj{}, r.Token, 204, ""},
		{"the body's counts", obj{"token": "glrt-no"}, r.Token, 403, `{"message":"403 Forbidden"}`},
		{"unknown fields are ignored", obj{"token": r.Token, "job_age": 5, "future": obj{"a": []int{1}}}, "", 204, ""},
	} {
		var headers []string
		if c.header != "" {
			headers = []string{"Runner-Token", c.header}
		}
		w := s.do(http.MethodPost, "/api/v4/jobs/request", c.body, headers...)
		require.Equal(t, c.want, w.Code, c.name)
		require.Equal(t, c.text, w.Body.String(), c.name)
	}
	require.EqualValues(t, 3, s.Stats().Forbidden)
	w := s.do(http.MethodPost, "/api/v4/jobs/request?token="+r.Token, nil)
	require.Equal(t, 204, w.Code, "in the address")
	w = s.do(http.MethodPost, "/api/v4/jobs/request", []byte("token="+r.Token+"&system_id=s_form"), "Content-Type", "application/x-www-form-urlencoded")
	require.Equal(t, 204, w.Code, "as a form")
	w = s.do(http.MethodPost, "/api/v4/jobs/request", []byte("{"), "Content-Type", "application/json")
	require.Equal(t, 400, w.Code)
	require.Contains(t, w.Body.String(), "no valid JSON")
	got, err := s.Runner(r.ID)
	require.NoError(t, err)
	require.Equal(t, []string{"<legacy>", "s_form"}, got.Managers)
	require.WithinDuration(t, time.Now(), got.ContactedAt, time.Minute)
}

func TestTheQueueValue(t *testing.T) {
	s := newServer(t, Options{})
	p, r := s.project("g/p"), s.runner()
	tagged := s.runnerWith(RunnerOptions{Tags: []string{"gpu"}})
	ask := func(r Runner, last string) (int, string) {
		w := s.request(r, obj{"last_update": last})
		require.Empty(t, w.Header().Get(polling), "nothing is held")
		return w.Code, w.Header().Get(lastUpdate)
	}
	code, v1 := ask(r, "")
	require.Equal(t, 204, code)
	require.Regexp(t, "^[0-9a-f]{32}$", v1)
	code, again := ask(r, v1)
	require.Equal(t, 204, code)
	require.Equal(t, v1, again, "the present value is echoed")
	require.EqualValues(t, 1, s.Stats().Cached)
	code, again = ask(r, "outdated")
	require.Equal(t, 204, code)
	require.Equal(t, v1, again, "an outdated one is answered by the present one")
	_, t1 := ask(tagged, "")
	require.NotEqual(t, v1, t1, "each runner has its own")

	s.run(p, ciconfig.Job{}, ciconfig.Job{})
	w := s.request(r, obj{"last_update": v1})
	require.Equal(t, 201, w.Code)
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	require.Empty(t, w.Header().Values(lastUpdate), "a job comes without a value")
	_, t2 := ask(tagged, t1)
	require.Equal(t, t1, t2, "a job that a runner cannot take does not change its value")

	s.claim(r)
	_, v2 := ask(r, "")
	require.NotEqual(t, v1, v2)

	require.NoError(t, s.SetPaused(r.ID, true))
	s.run(p, ciconfig.Job{})
	code, v3 := ask(r, "")
	require.Equal(t, 204, code, "a paused runner gets nothing")
	require.NotEqual(t, v2, v3)
	code, v4 := ask(r, v3)
	require.Equal(t, 204, code)
	require.Equal(t, v3, v4)
	require.NoError(t, s.SetPaused(r.ID, false))
	w = s.request(r, obj{"last_update": v4})
	require.Equal(t, 201, w.Code, "to go on is a change")
}

func TestTheQueueValueLivesAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		r := s.runner()
		v1 := s.request(r, nil).Header().Get(lastUpdate)
		pass(60*time.Minute - 1)
		require.Equal(t, v1, s.request(r, obj{"last_update": v1}).Header().Get(lastUpdate))
		pass(1)
		w := s.request(r, obj{"last_update": v1})
		require.NotEqual(t, v1, w.Header().Get(lastUpdate))
		require.EqualValues(t, 2, s.Stats().NoJob, "and the queue is looked at")
	})
}

func TestARequestIsHeldWhileNothingChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{Hold: DefaultHold})
		p, r := s.project("g/p"), s.runner()
		start := time.Now()
		w := s.request(r, nil)
		require.Equal(t, 204, w.Code)
		require.Equal(t, "yes", w.Header().Get(polling))
		value := w.Header().Get(lastUpdate)
		require.Zero(t, time.Since(start), "without last_update nothing is held")

		w = s.request(r, obj{"last_update": value})
		require.Equal(t, 50*time.Second, time.Since(start))
		bare(t, w)

		start = time.Now()
		time.AfterFunc(10*time.Second, func() { s.run(p, ciconfig.Job{}) })
		w = s.request(r, obj{"last_update": value})
		require.Equal(t, 10*time.Second, time.Since(start), "a change is answered")
		bare(t, w)

		w = s.request(r, obj{"last_update": value})
		require.Equal(t, 201, w.Code, "and the next request gets the job")
		require.Equal(t, "yes", w.Header().Get(polling))
		require.Equal(t, 10*time.Second, time.Since(start))

		stats := s.Stats()
		require.Equal(t, []int64{2, 1, 1}, []int64{stats.Held, stats.HeldChanged, stats.HeldTimeouts})
	})
}

// bare expects a 204 that says nothing.
func bare(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	require.Equal(t, 204, w.Code)
	require.Empty(t, w.Header().Values(lastUpdate))
	require.Equal(t, "yes", w.Header().Get(polling))
	require.Empty(t, w.Body.String())
}

func TestWhatIsNotHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{Hold: DefaultHold})
		r := s.runner()
		value := s.request(r, nil).Header().Get(lastUpdate)
		body := func(v any) []byte {
			b, err := json.Marshal(v)
			require.NoError(t, err)
			return b
		}
		start := time.Now()
		full := obj{"token": r.Token, "last_update": value}
		for _, c := range []struct {
			name    string
			body    any
			headers []string
			want    int
		}{
			{"not JSON", body(full), []string{"Content-Type", "text/plain", "Runner-Token", r.Token}, 204},
			{"no token in the body", obj{"last_update": value}, []string{"Runner-Token", r.Token}, 204},
			{"no last_update", obj{"token": r.Token}, nil, 204},
			{"a stale last_update", obj{"token": r.Token, "last_update": "x"}, nil, 204},
			{"an unknown token", obj{"token": "glrt-no", "last_update": value}, nil, 403},
			{"broken JSON", []byte("{"), []string{"Content-Type", "application/json"}, 400},
			{"32 KiB and a byte", body(obj{"token": r.Token, "x": strings.Repeat("x", 32<<10)}), []string{"Content-Type", "application/json"}, 413},
		} {
			w := s.do(http.MethodPost, "/api/v4/jobs/request", c.body, c.headers...)
			require.Equal(t, c.want, w.Code, c.name)
			require.Equal(t, "yes", w.Header().Get(polling), c.name)
		}
		require.Zero(t, time.Since(start))
		require.Zero(t, s.Stats().Held)
	})
}

func TestAHeldRequestEndsWithItsClientAndWithTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{Hold: DefaultHold})
		r := s.runner()
		value := s.request(r, nil).Header().Get(lastUpdate)
		start := time.Now()
		hold := func(ctx context.Context) {
			text := fmt.Sprintf(`{"token":%q,"last_update":%q}`, r.Token, value)
			req := httptest.NewRequestWithContext(ctx, http.MethodPost, "/api/v4/jobs/request", strings.NewReader(text))
			req.Header.Set("Content-Type", "application/json")
			s.Handler().ServeHTTP(httptest.NewRecorder(), req)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		hold(ctx)
		require.Equal(t, time.Second, time.Since(start))
		time.AfterFunc(time.Second, s.cancel)
		hold(t.Context())
		require.Equal(t, 2*time.Second, time.Since(start))
		require.Equal(t, 503, s.request(r, nil).Code, "and then there is no server")
	})
}

func TestTwoRequestsForOneJob(t *testing.T) {
	inside, goOn := make(chan struct{}), make(chan struct{})
	s := newServer(t, Options{DecoratePayload: func(int64, map[string]any) error {
		inside <- struct{}{}
		<-goOn
		return nil
	}})
	p, r := s.project("g/p"), s.runner()
	run := s.run(p, ciconfig.Job{})
	first := make(chan int)
	go func() { first <- s.request(r, nil).Code }()
	<-inside
	w := s.request(r, nil)
	require.Equal(t, 409, w.Code, "the job is being handed out: the answer is not certain")
	require.Empty(t, w.Header().Values(lastUpdate))
	require.JSONEq(t, `{"message":"409 Conflict"}`, w.Body.String())

	second := s.run(p, ciconfig.Job{})
	go func() { goOn <- struct{}{} }()
	require.Equal(t, 201, <-first)
	require.Equal(t, "running", s.job(run.Jobs[0].ID).Status)

	// A job that is cancelled while its payload is made is lost, too.
	go func() { first <- s.request(r, nil).Code }()
	<-inside
	_, err := s.CancelPipeline(second.ID)
	require.NoError(t, err)
	goOn <- struct{}{}
	require.Equal(t, 409, <-first)
	require.EqualValues(t, 2, s.Stats().Conflicts)
}

func TestASecondJobIsFoundBehindALockedOne(t *testing.T) {
	inside, goOn := make(chan int64), make(chan struct{})
	s := newServer(t, Options{DecoratePayload: func(id int64, _ map[string]any) error {
		inside <- id
		<-goOn
		return nil
	}})
	p, r := s.project("g/p"), s.runner()
	run := s.run(p, ciconfig.Job{}, ciconfig.Job{})
	codes := make(chan int)
	for i := range 2 {
		go func() { codes <- s.request(r, nil).Code }()
		require.Equal(t, run.Jobs[i].ID, <-inside)
	}
	close(goOn)
	require.Equal(t, 201, <-codes)
	require.Equal(t, 201, <-codes)
}

func TestAPayloadThatCannotBeMade(t *testing.T) {
	fail := true
	s := newServer(t, Options{DecoratePayload: func(int64, map[string]any) error {
		if fail {
			return errors.New("no storage")
		}
		return nil
	}})
	p, r := s.project("g/p"), s.runner()
	run := s.run(p, ciconfig.Job{})
	w := s.request(r, nil)
	require.Equal(t, 204, w.Code)
	require.NotEmpty(t, w.Header().Get(lastUpdate))
	failed := s.job(run.Jobs[0].ID)
	require.Equal(t, "failed", failed.Status)
	require.EqualValues(t, "scheduler_failure", failed.FailureReason)
	require.Equal(t, r.ID, failed.RunnerID)
	require.True(t, failed.Retried, "this reason is retried twice")

	require.Equal(t, 204, s.request(r, nil).Code)
	require.Equal(t, 204, s.request(r, nil).Code)
	fail = false
	require.Equal(t, 204, s.request(r, nil).Code, "and not a third time")
	end, err := s.Wait(t.Context(), run.ID)
	require.NoError(t, err)
	require.Equal(t, "failed", end.Status)
	require.Len(t, end.Retried, 2)
	require.Equal(t, 3, end.Jobs[0].Attempt)
}

func TestWhatAPayloadMayCarry(t *testing.T) {
	big := strings.Repeat("x", 5<<20)
	s := newServer(t, Options{DecoratePayload: func(_ int64, p map[string]any) error {
		p["future"] = map[string]any{"field": 1}
		p["variables"] = append(p["variables"].([]any), map[string]any{"key": "BIG", "value": big})
		return nil
	}})
	p, r := s.project("g/p"), s.runner()
	s.run(p, ciconfig.Job{})
	w := s.request(r, nil)
	require.Equal(t, 201, w.Code)
	require.Contains(t, w.Body.String(), `"future":{"field":1}`)
	require.Contains(t, w.Body.String(), big)
}

func TestMaxQueueDepth(t *testing.T) {
	s := newServer(t, Options{})
	p, r := s.project("g/p"), s.runner()
	jobs := make([]ciconfig.Job, 60)
	for i := range jobs {
		jobs[i].AllowFailureExitCodes = []int{3}
	}
	s.run(p, jobs...)
	// A runner without the feature that a job needs makes it fail: 45 of them, then the request gives up.
	old := obj{"info": obj{"features": obj{}}}
	require.Equal(t, 409, s.request(r, old).Code)
	counts := map[string]int{}
	snapshot, err := s.Pipeline(1)
	require.NoError(t, err)
	for _, j := range snapshot.Jobs {
		counts[j.Status+" "+string(j.FailureReason)]++
	}
	require.Equal(t, map[string]int{"failed runner_unsupported": 45, "pending ": 15}, counts)
	require.Equal(t, 204, s.request(r, old).Code)
}

func TestPickingAsDocumented(t *testing.T) {
	set := func(t *testing.T) (*server, Runner) {
		s := newServer(t, Options{})
		for i, n := range []int{3, 2, 1} {
			s.run(s.project(fmt.Sprintf("g/p%d", i+1)), make([]ciconfig.Job, n)...)
		}
		return s, s.runner()
	}
	t.Run("several at once", func(t *testing.T) {
		s, r := set(t)
		for _, want := range []int64{1, 4, 6, 2, 5, 3} {
			require.Equal(t, want, s.claim(r).ID)
		}
		require.Equal(t, 204, s.request(r, nil).Code)
	})
	t.Run("one at a time", func(t *testing.T) {
		s, r := set(t)
		for _, want := range []int64{1, 2, 4, 5, 6, 3} {
			j := s.claim(r)
			require.Equal(t, want, j.ID)
			if want == 1 || want == 4 {
				s.finish(j, "success")
			}
		}
	})
	t.Run("jobs on other runners and unconfirmed ones do not count", func(t *testing.T) {
		s, r := set(t)
		own := s.runnerWith(RunnerOptions{Type: ProjectRunner, Projects: []string{"g/p1"}, RunUntagged: true})
		require.EqualValues(t, 1, s.claim(own).ID)
		require.EqualValues(t, 2, s.claimWith(r, obj{"info": twoPhase()}).ID)
		j := s.claim(r)
		require.EqualValues(t, 3, j.ID, "project 1 has nothing that counts as running")
		require.EqualValues(t, 4, s.claim(r).ID)
	})
}

func TestWhoServesAProject(t *testing.T) {
	s := newServer(t, Options{})
	shared := s.project("top/sub/shared")
	s.project("top/other")
	alone := s.projectWith(ProjectOptions{Path: "top/sub/alone", NoSharedRunners: true, NoGroupRunners: true})
	runners := map[string]Runner{
		"instance":        s.runner(),
		"group top":       s.runnerWith(RunnerOptions{Type: GroupRunner, Group: "top", RunUntagged: true}),
		"group sub":       s.runnerWith(RunnerOptions{Type: GroupRunner, Group: "top/sub", RunUntagged: true}),
		"group elsewhere": s.runnerWith(RunnerOptions{Type: GroupRunner, Group: "elsewhere", RunUntagged: true}),
		"project alone":   s.runnerWith(RunnerOptions{Type: ProjectRunner, Projects: []string{"top/sub/alone"}, RunUntagged: true}),
		"project other":   s.runnerWith(RunnerOptions{Type: ProjectRunner, Projects: []string{"top/other"}, RunUntagged: true}),
		"tagged":          s.runnerWith(RunnerOptions{Tags: []string{"a", "b"}}),
		"protected":       s.runnerWith(RunnerOptions{RunUntagged: true, RefProtected: true}),
	}
	for _, c := range []struct {
		name    string
		project Project
		ref     string
		tags    []string
		served  []string
	}{
		{"a shared project", shared, "feature", nil, []string{"instance", "group top", "group sub"}},
		{"its protected branch", shared, "main", nil, []string{"instance", "group top", "group sub", "protected"}},
		{"a job with a tag", shared, "main", []string{"b"}, []string{"tagged"}},
		{"a job with an unknown tag", shared, "main", []string{"b", "c"}, nil},
		{"a project that keeps to itself", alone, "main", nil, []string{"project alone"}},
	} {
		for name, r := range runners {
			before := s.request(r, nil).Header().Get(lastUpdate)
			run := s.runWith(c.project, PipelineOptions{Ref: c.ref, Config: config(ciconfig.Job{Tags: c.tags})})
			w := s.request(r, obj{"last_update": before})
			want := 204
			for _, who := range c.served {
				if who == name {
					want = 201
				}
			}
			require.Equal(t, want, w.Code, "%s, %s", c.name, name)
			if want == 204 {
				require.Equal(t, before, w.Header().Get(lastUpdate), "%s, %s: not told", c.name, name)
			}
			_, err := s.CancelPipeline(run.ID)
			require.NoError(t, err)
		}
	}
}

func TestTheTimeoutIsTheSmallest(t *testing.T) {
	s := newServer(t, Options{})
	p := s.projectWith(ProjectOptions{Path: "g/p", Timeout: 30 * time.Minute})
	every := s.runner()
	short := s.runnerWith(RunnerOptions{RunUntagged: true, MaximumTimeout: 20 * time.Minute})
	for _, c := range []struct {
		r    Runner
		job  time.Duration
		want int
	}{{every, 0, 1800}, {every, 2 * time.Hour, 7200}, {every, time.Minute, 60}, {short, 0, 1200}, {short, time.Minute, 60}, {short, time.Hour, 1200}} {
		s.run(p, ciconfig.Job{Timeout: c.job})
		require.Equal(t, c.want, s.claim(c.r).RunnerInfo.Timeout)
	}
}

func TestHeaderNames(t *testing.T) {
	require.Equal(t, runnerapi.HeaderLastUpdate, http.CanonicalHeaderKey(lastUpdate))
	require.Equal(t, runnerapi.HeaderBuildsPolling, http.CanonicalHeaderKey(polling))
}
