package liveview

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// gitlab is an embedded GitLab with one pipeline, and the runner of its jobs.
type gitlab struct {
	*coordinator.Coordinator
	t        *testing.T
	token    string
	pipeline int64
}

func newGitLab(t *testing.T, jobs ...ciconfig.Job) *gitlab {
	c, err := coordinator.New(coordinator.Options{Dir: t.TempDir(), Hold: -1})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	r, err := c.AddRunner(coordinator.RunnerOptions{RunUntagged: true})
	require.NoError(t, err)
	p, err := c.AddProject(t.Context(), coordinator.ProjectOptions{Path: "group/app"})
	require.NoError(t, err)
	def := &ciconfig.Pipeline{Stages: []string{"test"}}
	for _, j := range jobs {
		j.Stage, j.Script = "test", []string{"true"}
		if j.When == "" {
			j.When = ciconfig.OnSuccess
		}
		def.Jobs = append(def.Jobs, j)
	}
	run, err := c.CreatePipeline(t.Context(), p.ID, coordinator.PipelineOptions{Config: def})
	require.NoError(t, err)
	return &gitlab{c, t, r.Token, run.ID}
}

func (g *gitlab) do(method, path string, body []byte, headers ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequestWithContext(context.Background(), method, "http://gitlab.test/api/v4"+path, bytes.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	g.Handler().ServeHTTP(w, req)
	return w
}

// claim takes the next job.
func (g *gitlab) claim() runnerapi.Job {
	w := g.do(http.MethodPost, "/jobs/request", []byte(`{"token":"`+g.token+`"}`))
	require.Equal(g.t, http.StatusCreated, w.Code)
	var j runnerapi.Job
	require.NoError(g.t, json.Unmarshal(w.Body.Bytes(), &j))
	return j
}

func (g *gitlab) write(j runnerapi.Job, offset int, text string) {
	w := g.do(http.MethodPatch, fmt.Sprintf("/jobs/%d/trace", j.ID), []byte(text), "Job-Token", j.Token,
		"Content-Range", fmt.Sprintf("%d-%d", offset, offset+len(text)-1), "Content-Type", "text/plain")
	require.Equal(g.t, http.StatusAccepted, w.Code)
}

func (g *gitlab) finish(j runnerapi.Job, state string, code int) {
	body := fmt.Sprintf(`{"token":%q,"state":%q,"exit_code":%d,"failure_reason":"script_failure"}`, j.Token, state, code)
	require.Equal(g.t, http.StatusOK, g.do(http.MethodPut, fmt.Sprintf("/jobs/%d", j.ID), []byte(body)).Code)
}

// record is a view that writes down what it is told.
type record struct {
	mu     sync.Mutex
	output map[string][]string
	ended  []string
	status string
}

func (r *record) Pipeline(p coordinator.Pipeline) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = p.Status
}

func (r *record) Output(j coordinator.Job, lines []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.output == nil {
		r.output = map[string][]string{}
	}
	r.output[j.Name] = append(r.output[j.Name], lines...)
}

func (r *record) Partial(coordinator.Job, string) {}

func (r *record) Ended(j coordinator.Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = append(r.ended, j.Name+" "+j.Status+" "+fmt.Sprint(len(r.output[j.Name])))
}

func TestFollowShowsEverythingBeforeItReturns(t *testing.T) {
	g := newGitLab(t, ciconfig.Job{Name: "one"}, ciconfig.Job{Name: "two"}, ciconfig.Job{Name: "later", When: ciconfig.Manual, AllowFailure: true})
	go func() {
		one, two := g.claim(), g.claim()
		g.write(one, 0, "first\nsec")
		g.write(two, 0, strings.Repeat("line\n", 100_000))
		g.write(one, 9, "ond\nrest")
		g.finish(one, "success", 0)
		g.finish(two, "failed", 3)
	}()
	var view record
	p, err := Follow(t.Context(), g, g.pipeline, &view, Options{})
	require.NoError(t, err)
	require.Equal(t, "failed", p.Status)
	require.Equal(t, "failed", view.status)
	require.Equal(t, []string{"first", "second", "rest"}, view.output["one"])
	require.Len(t, view.output["two"], 100_000)
	require.ElementsMatch(t, []string{"one success 3", "two failed 100000"}, view.ended)
}

func TestFollowLeavesOutWhatNobodyCanRead(t *testing.T) {
	g := newGitLab(t, ciconfig.Job{Name: "one"})
	j := g.claim()
	var text strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&text, "line %d\n", i)
	}
	g.write(j, 0, text.String())
	g.finish(j, "success", 0)
	var view record
	_, err := Follow(t.Context(), g, g.pipeline, &view, Options{Newest: 1000})
	require.NoError(t, err)
	lines := view.output["one"]
	require.Less(t, len(lines), 200)
	require.Equal(t, "line 99999", lines[len(lines)-1])
	for _, line := range lines {
		require.Regexp(t, `^line \d{5}$`, line, "no half lines")
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	g := newGitLab(t, ciconfig.Job{Name: "one"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Follow(ctx, g, g.pipeline, &record{}, Options{})
	require.ErrorIs(t, err, context.Canceled)
}

func TestFollowEndsWhereAPersonIsNeeded(t *testing.T) {
	g := newGitLab(t, ciconfig.Job{Name: "gate", When: ciconfig.Manual})
	p, err := Follow(t.Context(), g, g.pipeline, &record{}, Options{})
	require.NoError(t, err)
	require.Equal(t, "manual", p.Status)
}

func TestPlain(t *testing.T) {
	g := newGitLab(t, ciconfig.Job{Name: "one"}, ciconfig.Job{Name: "two: [漢字]"})
	one, two := g.claim(), g.claim()
	g.write(one, 0, "\x1b[32mgreen\x1b[0m\n\n")
	g.write(two, 0, "\x1b[2Jhostile\x1b]0;x\x07\nno line break")
	g.finish(one, "success", 0)
	g.finish(two, "failed", 3)
	var out strings.Builder
	view := NewPlain(&out, 0, Style{})
	p, err := Follow(t.Context(), g, g.pipeline, view, Options{Color: true})
	require.NoError(t, err)
	require.NoError(t, view.Finish(p))
	text := durations.ReplaceAllString(out.String(), "0.0s")
	for _, line := range []string{
		"one         │ green\n", "one         │\n", "one         ✓ passed after 0.0s\n",
		"two: [漢字] │ hostile\n", "two: [漢字] │ no line break\n", "two: [漢字] ✗ failed, exit code 3 after 0.0s\n",
		" test  ✓ one            0.0s\n", "✗ pipeline failed after 0.0s: 1 of 2 jobs failed: two: [漢字]\n",
	} {
		require.Contains(t, text, line)
	}
	require.NotContains(t, text, "\x1b")
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestPlainTellsThatNobodyReads(t *testing.T) {
	view := NewPlain(brokenPipe{}, 0, Style{})
	view.Print("x")
	require.ErrorIs(t, view.Finish(coordinator.Pipeline{}), io.ErrClosedPipe)
}

func TestLiveDrawsAtMostTenTimesASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := newTerminal(80, 24)
		frames := &counter{Writer: term}
		view := NewLive(frames, func() (int, int) { return 80, 24 }, "app", Style{})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { view.loop(ctx, nil) })
		p := pipeline("running", job("test", "one", "running"), job("test", "two", "failed", exit(1)))
		p.CreatedAt = time.Now()
		p.Jobs[0].StartedAt = time.Now()
		for i := range 1000 {
			view.Output(p.Jobs[0], []string{fmt.Sprint("line ", i)})
			view.Pipeline(p)
			time.Sleep(time.Millisecond)
		}
		view.Partial(p.Jobs[0], "a prompt? ")
		view.Output(p.Jobs[1], []string{"why"})
		time.Sleep(time.Second)
		synctest.Wait()
		require.Contains(t, term.text(), "       │ a prompt?")
		view.Ended(p.Jobs[0])
		view.Ended(p.Jobs[1])
		view.Print("a warning")
		view.Say("canceling")
		synctest.Wait()
		require.LessOrEqual(t, frames.n.Load(), int64(14))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.InDelta(t, 18, frames.n.Load(), 2, "the time is shown every second")
		require.Contains(t, term.text(), "a warning")
		require.Contains(t, term.text(), "canceling")
		cancel()
		running.Wait()
		p.Status, p.FinishedAt = "failed", time.Now()
		require.NoError(t, view.Finish(p))
		require.False(t, term.hidden)
		text := strings.Join(term.text(), "\n")
		require.Contains(t, text, "a warning\n── two exit code 1 ─")
		require.Contains(t, text, "─\nwhy\n\n test  ● one")
		require.NotContains(t, text, "line 999")
	})
}

type counter struct {
	io.Writer
	n atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n.Add(1)
	return c.Writer.Write(p)
}
