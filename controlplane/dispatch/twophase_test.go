package dispatch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// embedded is the embedded GitLab, asked without a network, so that time can be virtual.
type embedded struct {
	*coordinator.Coordinator
	t       *testing.T
	project coordinator.Project
	runner  coordinator.Runner
	// before is asked before a PUT gets to GitLab; what it returns is the answer instead, if it is one.
	before func(ctx context.Context, state string) (*client.UpdateResult, error)

	mu   sync.Mutex
	puts []string // state and code of each that GitLab answered
}

func newEmbedded(t *testing.T, o coordinator.Options) *embedded {
	t.Helper()
	o.URL, o.Dir = "http://gitlab", t.TempDir()
	c, err := coordinator.New(o)
	require.NoError(t, err)
	g := &embedded{Coordinator: c, t: t}
	g.project, err = c.AddProject(t.Context(), coordinator.ProjectOptions{Path: "group/project"})
	require.NoError(t, err)
	g.runner, err = c.AddRunner(coordinator.RunnerOptions{RunUntagged: true})
	require.NoError(t, err)
	return g
}

func (g *embedded) do(ctx context.Context, method, path string, body any, header ...string) *httptest.ResponseRecorder {
	var b []byte
	switch v := body.(type) {
	case []byte:
		b = v
	default:
		var err error
		b, err = json.Marshal(v)
		require.NoError(g.t, err)
	}
	r := httptest.NewRequest(method, "http://gitlab/api/v4/"+path, bytes.NewReader(b)).WithContext(ctx)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	g.Handler().ServeHTTP(w, r)
	return w
}

func (g *embedded) UpdateJob(ctx context.Context, id int64, u runnerapi.UpdateRequest) (*client.UpdateResult, error) {
	if g.before != nil {
		if res, err := g.before(ctx, u.State); res != nil || err != nil {
			return res, err
		}
	}
	w := g.do(ctx, http.MethodPut, fmt.Sprintf("jobs/%d", id), u, "Content-Type", "application/json")
	g.mu.Lock()
	g.puts = append(g.puts, fmt.Sprintf("%s %d", u.State, w.Code))
	g.mu.Unlock()
	res := answerWith(w.Code, w.Header().Get("Job-Status"))
	return &res, nil
}

func (g *embedded) PatchTrace(ctx context.Context, id int64, token string, start int64, body client.TraceBody, _ bool) (*client.PatchResult, error) {
	data, err := io.ReadAll(io.NewSectionReader(body, 0, body.Size()))
	require.NoError(g.t, err)
	w := g.do(ctx, http.MethodPatch, fmt.Sprintf("jobs/%d/trace", id), data,
		"Job-Token", token, "Content-Range", fmt.Sprintf("%d-%d", start, start+int64(len(data))-1))
	res := &client.PatchResult{Report: client.Report{Code: w.Code, JobStatus: w.Header().Get("Job-Status")}, Range: -1}
	if _, end, ok := strings.Cut(w.Header().Get("Range"), "-"); ok {
		res.Range, err = strconv.ParseInt(end, 10, 64)
		require.NoError(g.t, err)
	}
	return res, nil
}

// asked takes the states and codes of the PUTs so far, without final ones.
func (g *embedded) asked() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := strings.Join(g.puts, ", ")
	g.puts = nil
	return all
}

func (g *embedded) state(id int64) coordinator.Job {
	g.t.Helper()
	j, err := g.Job(id)
	require.NoError(g.t, err)
	return j
}

// claimFrom has GitLab hand out a new job and the dispatcher take it over, with a slot or without one.
func (f *fleet) claimFrom(g *embedded, slot bool) int64 {
	f.t.Helper()
	compiled, err := ciconfig.Compile(".gitlab-ci.yml", []byte("job: {script: [make], variables: {GIT_STRATEGY: none}}"), ciconfig.Options{})
	require.NoError(f.t, err)
	_, err = g.CreatePipeline(f.t.Context(), g.project.ID, coordinator.PipelineOptions{Config: compiled})
	require.NoError(f.t, err)
	var r *Reservation
	if slot {
		r, err = f.d.Reserve(f.t.Context(), "any")
		require.NoError(f.t, err)
	}
	w := g.do(f.t.Context(), http.MethodPost, "jobs/request", runnerapi.JobRequest{
		Token: g.runner.Token, Info: runnerapi.Info{Features: runnerapi.Features{TwoPhaseJobCommit: true, Refspecs: true, Variables: true}},
	}, "Content-Type", "application/json")
	require.Equal(f.t, http.StatusCreated, w.Code, w.Body.String())
	var e runnerapi.Envelope
	require.NoError(f.t, json.Unmarshal(w.Body.Bytes(), &e))
	require.NoError(f.t, f.d.Claimed(f.t.Context(), "any", r, Claim{Payload: w.Body.Bytes(), Envelope: e, At: time.Now()}))
	return e.ID
}

func startWith(t *testing.T, dir string, g *embedded) *fleet {
	t.Helper()
	return start(t, dir, newGitLab(), func(c *Config) {
		for i := range c.Runners {
			c.Runners[i].GitLab = g
		}
	})
}

func inBubble(t *testing.T, o coordinator.Options, test func(t *testing.T, g *embedded, f *fleet, a *fake)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		g := newEmbedded(t, o)
		defer func() { require.NoError(t, g.Close()) }()
		f := startWith(t, t.TempDir(), g)
		defer f.stop()
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		test(t, g, f, a)
	})
}

func TestTwoPhaseCommitIsFoundOutPerRunner(t *testing.T) {
	for name, legacy := range map[string]bool{TwoPhaseOn: false, TwoPhaseOff: true} {
		t.Run(name, func(t *testing.T) {
			answer := map[bool]string{false: "pending 200, ", true: "pending 400, "}[legacy]
			inBubble(t, coordinator.Options{LegacyCommit: legacy}, func(t *testing.T, g *embedded, f *fleet, a *fake) {
				require.Equal(t, TwoPhaseUnknown, f.d.TwoPhase("any"))
				require.Equal(t, TwoPhaseUnknown, f.d.TwoPhase("nobody"))
				job := func(want string) {
					t.Helper()
					id := f.claimFrom(g, true)
					ref := a.begin()
					require.Equal(t, want+"running 200", g.asked())
					a.finish(ref, "done\n")
					synctest.Wait()
					require.Equal(t, "success", g.state(id).Status)
					g.asked()
				}
				job(answer)
				require.Equal(t, name, f.d.TwoPhase("any"))
				require.Equal(t, TwoPhaseUnknown, f.d.TwoPhase("gpu"), "each runner has an answer of its own")
				job("")
				wait(t, a, probeEvery-time.Second)
				job("")
				wait(t, a, time.Second)
				job(answer)
				job("")
			})
		})
	}
}

// wait lets virtual time pass while the agent answers pings; other messages it overhears.
func wait(t *testing.T, a *fake, d time.Duration) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		step := min(DefaultPingPeriod, time.Until(end))
		pause(t, step)
		a.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Ping{Ping: &fleetv1.Ping{Seq: 1}}})
		for a.next().GetPong() == nil {
		}
	}
}

// pause lets virtual time pass.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
	synctest.Wait()
}

func TestTheOfferDoesNotWaitForTheAcknowledgement(t *testing.T) {
	inBubble(t, coordinator.Options{}, func(t *testing.T, g *embedded, f *fleet, a *fake) {
		answered := make(chan struct{})
		g.before = func(ctx context.Context, state string) (*client.UpdateResult, error) {
			if state == runnerapi.StatePending {
				<-answered
			}
			return nil, nil //nolint:nilnil // GitLab itself answers
		}
		f.claimFrom(g, true)
		ref := a.next().GetOffer().GetRef()
		require.NotNil(t, ref, "the agent is asked while GitLab is")
		a.reply(ref, true)
		synctest.Wait()
		require.Empty(t, g.asked(), "the start waits for GitLab's word")
		close(answered)
		require.NotNil(t, a.next().GetStart())
		require.Equal(t, "pending 200, running 200", g.asked())
		a.finish(ref, "")
	})
}

func TestAnAcknowledgementWithoutAUsableAnswer(t *testing.T) {
	for name, answer := range map[string]func(context.Context) (*client.UpdateResult, error){
		"409": func(context.Context) (*client.UpdateResult, error) { r := answerWith(409, ""); return &r, nil },
		"500": func(context.Context) (*client.UpdateResult, error) { r := answerWith(500, ""); return &r, nil },
		"429": func(context.Context) (*client.UpdateResult, error) { r := answerWith(429, ""); return &r, nil },
		"none": func(ctx context.Context) (*client.UpdateResult, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		"reset": func(context.Context) (*client.UpdateResult, error) { return nil, errors.New("connection reset") },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, coordinator.Options{}, func(t *testing.T, g *embedded, f *fleet, a *fake) {
				var well atomic.Bool
				g.before = func(ctx context.Context, state string) (*client.UpdateResult, error) {
					if state == runnerapi.StatePending && !well.Load() {
						return answer(ctx)
					}
					return nil, nil //nolint:nilnil // GitLab itself answers
				}
				began := time.Now()
				f.claimFrom(g, true)
				ref := a.begin()
				require.LessOrEqual(t, time.Since(began), probePatience, "the job starts all the same")
				require.Equal(t, "running 200", g.asked())
				require.Equal(t, TwoPhaseUnknown, f.d.TwoPhase("any"))
				a.finish(ref, "")
				synctest.Wait()
				g.asked()
				well.Store(true)
				f.claimFrom(g, true)
				a.finish(a.begin(), "")
				synctest.Wait()
				require.Contains(t, g.asked(), "pending 200, running 200", "the next job tries again")
				require.Equal(t, TwoPhaseOn, f.d.TwoPhase("any"))
			})
		})
	}
}

func TestAJobThatIsCanceledBeforeItsAcknowledgement(t *testing.T) {
	inBubble(t, coordinator.Options{}, func(t *testing.T, g *embedded, f *fleet, a *fake) {
		canceled := make(chan struct{})
		g.before = func(context.Context, string) (*client.UpdateResult, error) {
			<-canceled
			return nil, nil //nolint:nilnil // GitLab itself answers
		}
		id := f.claimFrom(g, true)
		ref := a.next().GetOffer().GetRef()
		a.reply(ref, true)
		synctest.Wait()
		_, err := g.Cancel(id, false)
		require.NoError(t, err)
		close(canceled)
		require.Equal(t, ref.GetJob(), a.next().GetWithdraw().GetRef().GetJob())
		synctest.Wait()
		require.Equal(t, "pending 403", g.asked(), "nothing else is sent of a job that is not ours")
		require.Empty(t, f.d.Jobs())
		require.Equal(t, 0, f.d.Agents()[0].UsedSlots)
		require.Equal(t, TwoPhaseUnknown, f.d.TwoPhase("any"))
	})
}

func TestAWaitingJobIsKeptByItsAcknowledgement(t *testing.T) {
	inBubble(t, coordinator.Options{}, func(t *testing.T, g *embedded, f *fleet, a *fake) {
		f.claimFrom(g, true)
		first := a.begin()
		g.asked()
		id := f.claimFrom(g, false)
		wait(t, a, 10*time.Minute)
		waiting := g.state(id)
		require.Equal(t, "pending", waiting.Status)
		require.GreaterOrEqual(t, waiting.KeepAlives, 13, "one every 45 seconds")
		b, _ := f.join("b", hello("2", 1))
		defer b.leave()
		ref := b.begin()
		require.Equal(t, "running", g.state(id).Status)
		b.finish(ref, "")
		a.finish(first, "")
	})
}

func TestAnAcknowledgementThatExpiredWhileTheControlPlaneWasDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newEmbedded(t, coordinator.Options{})
		defer func() { require.NoError(t, g.Close()) }()
		dir := t.TempDir()
		f := startWith(t, dir, g)
		id := f.claimFrom(g, false)
		synctest.Wait()
		require.Equal(t, "pending 200", g.asked())
		f.stop()
		pause(t, 3*time.Minute)
		dropped := g.state(id)
		require.Equal(t, "failed", dropped.Status)
		require.True(t, dropped.Retried, "GitLab hands the job out anew, under another id")

		f = startWith(t, dir, g)
		defer f.stop()
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		synctest.Wait()
		require.Equal(t, "pending 403", g.asked(), "it is confirmed before it is offered")
		require.Empty(t, f.d.Jobs())
		require.Equal(t, "failed", g.state(id).Status)
	})
}

func TestAnAcknowledgementThatExpiredBeforeTheStart(t *testing.T) {
	inBubble(t, coordinator.Options{}, func(t *testing.T, g *embedded, f *fleet, a *fake) {
		var down atomic.Bool
		down.Store(true)
		g.before = func(context.Context, string) (*client.UpdateResult, error) {
			if down.Load() {
				return nil, errors.New("connection refused")
			}
			return nil, nil //nolint:nilnil // GitLab itself answers
		}
		f.claimFrom(g, true)
		ref := a.next().GetOffer().GetRef()
		a.reply(ref, true)
		require.Equal(t, ref.GetJob(), a.next().GetWithdraw().GetRef().GetJob(), "a GitLab that is away for long holds no slot")
		wait(t, a, 3*time.Minute)
		down.Store(false)
		wait(t, a, retryMost+time.Second)
		require.Equal(t, "pending 403", g.asked())
		require.Empty(t, f.d.Jobs())
	})
}
