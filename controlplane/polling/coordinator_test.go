package polling

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// fleet is the embedded GitLab behind a real socket, and pollers that ask it. Every claim finds a slot at once; jobs are
// taken and left alone.
type fleet struct {
	testing.TB
	gitlab  *coordinator.Coordinator
	project coordinator.Project
	pollers []*Poller
	claimed chan arrival
}

// arrival is a job and when it was safe.
type arrival struct {
	id int64
	at time.Time
}

type freeSlots struct{}

func (freeSlots) Release() {}

func (f *fleet) Reserve(ctx context.Context, _ string) (Reservation, error) {
	return freeSlots{}, ctx.Err()
}

func (f *fleet) Claimed(_ context.Context, _ string, _ Reservation, c Claim) error {
	f.claimed <- arrival{c.Envelope.ID, time.Now()}
	return nil
}

func startFleet(t testing.TB, runners int, o coordinator.Options, runner func(i int) coordinator.RunnerOptions) *fleet {
	t.Helper()
	o.Dir = t.TempDir()
	o.LegacyCommit = true
	gitlab, err := coordinator.New(o)
	require.NoError(t, err)
	server := httptest.NewServer(gitlab.Handler())
	f := &fleet{TB: t, gitlab: gitlab, claimed: make(chan arrival, 10000)}
	f.project, err = gitlab.AddProject(t.Context(), coordinator.ProjectOptions{Path: "group/project"})
	require.NoError(t, err)
	c, err := client.New(client.Options{URL: server.URL})
	require.NoError(t, err)

	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		stop()
		running.Wait()
		c.Close()
		require.NoError(t, gitlab.Close())
		server.Close()
	})
	for i := range runners {
		options := coordinator.RunnerOptions{RunUntagged: true}
		if runner != nil {
			options = runner(i)
		}
		r, err := gitlab.AddRunner(options)
		require.NoError(t, err)
		p, err := New(Options{
			Runner: fmt.Sprint("runner-", i), Token: func() string { return r.Token }, SystemID: "r_abcdefghijkl", Client: c, Dispatcher: f,
			Info: func() runnerapi.Info { return runnerapi.Info{Name: "switchyard"} }, RequestsPerMinute: -1,
		})
		require.NoError(t, err)
		f.pollers = append(f.pollers, p)
		running.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Errorf("poller %d: %v", i, err)
			}
		})
	}
	f.allWatch()
	return f
}

// allWatch waits until all pollers hold a watch.
func (f *fleet) allWatch() {
	f.Helper()
	require.Eventually(f, func() bool {
		for _, p := range f.pollers {
			if s := p.Status(); !s.Watching {
				return false
			}
		}
		return int(f.gitlab.Stats().Held) >= len(f.pollers)
	}, 20*time.Second, 5*time.Millisecond)
}

// push makes n jobs pending.
func (f *fleet) push(n int, tags ...string) {
	f.Helper()
	config := &ciconfig.Pipeline{Stages: []string{"test"}}
	for i := range n {
		name := fmt.Sprint("job", i)
		config.Jobs = append(config.Jobs, ciconfig.Job{
			Name: name, Group: name, Stage: "test", When: ciconfig.OnSuccess, Script: []string{"true"}, Tags: tags,
		})
	}
	_, err := f.gitlab.CreatePipeline(f.Context(), f.project.ID, coordinator.PipelineOptions{Config: config})
	require.NoError(f, err)
}

// next returns how long the next job took from pending to claimed.
func (f *fleet) next() time.Duration {
	f.Helper()
	select {
	case a := <-f.claimed:
		j, err := f.gitlab.Job(a.id)
		require.NoError(f, err)
		return a.at.Sub(j.QueuedAt)
	case <-time.After(30 * time.Second):
		f.Fatal("a job was not claimed within 30 s")
		return 0
	}
}

// A change between a claim and the watch after it, and any other moment, must not wait for the hold time.
func TestNoRandomPushWaitsForTheHoldTime(t *testing.T) {
	f := startFleet(t, 1, coordinator.Options{}, nil)
	var slowest time.Duration
	for range 1000 {
		f.push(1)
		slowest = max(slowest, f.next())
		// The next push falls somewhere into: claim, empty claim, watch on its way, watch held.
		<-time.After(time.Duration(rand.IntN(1500)) * time.Microsecond)
	}
	t.Logf("slowest of 1000: %s", slowest)
	require.Less(t, slowest, 10*time.Second)
	s, stats := f.pollers[0].Status(), f.gitlab.Stats()
	require.EqualValues(t, 1000, s.Counters.Jobs+s.Counters.WatchJobs)
	require.Zero(t, stats.HeldTimeouts)
	require.Zero(t, s.Counters.Errors)
	t.Logf("%+v", s.Counters)
}

func TestHoldTimeIsLearned(t *testing.T) {
	f := startFleet(t, 1, coordinator.Options{Hold: 1500 * time.Millisecond}, nil)
	require.Eventually(t, func() bool { return f.gitlab.Stats().HeldTimeouts >= 3 }, 20*time.Second, 10*time.Millisecond)
	s := f.pollers[0].Status()
	require.InDelta(t, 1.5, s.Hold.Seconds(), 0.2)
	require.EqualValues(t, 2, s.Counters.Claims, "one at the start, one to learn; then watch follows watch")
}

// startOne starts a poller of a server; the function stops it.
func startOne(t *testing.T, handler http.Handler, token string) (*Poller, func()) {
	t.Helper()
	server := httptest.NewServer(handler)
	c, err := client.New(client.Options{URL: server.URL})
	require.NoError(t, err)
	p, err := New(Options{
		Runner: "r", Token: func() string { return token }, Client: c, Dispatcher: &fleet{claimed: make(chan arrival, 1)}, CheckInterval: 50 * time.Millisecond,
		Info: func() runnerapi.Info { return runnerapi.Info{} },
	})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	return p, func() {
		stop()
		require.NoError(t, <-done)
		c.Close()
		server.Close()
	}
}

func TestCoordinatorThatDoesNotHold(t *testing.T) {
	gitlab, err := coordinator.New(coordinator.Options{Hold: -1, Dir: t.TempDir()})
	require.NoError(t, err)
	defer func() { require.NoError(t, gitlab.Close()) }()
	r, err := gitlab.AddRunner(coordinator.RunnerOptions{RunUntagged: true})
	require.NoError(t, err)
	p, stop := startOne(t, gitlab.Handler(), r.Token)
	defer stop()
	require.Eventually(t, func() bool { return gitlab.Stats().Cached > 10 }, 10*time.Second, 5*time.Millisecond)
	require.True(t, p.Status().HoldsNot)
	require.LessOrEqual(t, gitlab.Stats().NoJob, int64(1), "claims carry the cursor, so that GitLab need not look at its queue")
}

func TestHundredIdleRunnersCostNothing(t *testing.T) {
	f := startFleet(t, 100, coordinator.Options{}, nil)
	before := f.gitlab.Stats()
	require.EqualValues(t, 100, before.Held)
	require.EqualValues(t, 100, before.Requests, "one claim each")
	require.Never(t, func() bool { return f.gitlab.Stats() != before }, time.Second, 20*time.Millisecond)
}

func TestServersThatAreNoGood(t *testing.T) {
	gitlab, err := coordinator.New(coordinator.Options{Dir: t.TempDir()})
	require.NoError(t, err)
	defer func() { require.NoError(t, gitlab.Close()) }()
	for name, test := range map[string]struct {
		handler http.Handler
		message string
	}{
		"unknown token": {gitlab.Handler(), `GitLab does not know the token of runner "r"; check it`},
		"no GitLab": {http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write([]byte("<html>It works!</html>"))
		}), "answered with an HTML page; is the URL of the GitLab right?"},
		"broken GitLab": {http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"message":"500 Internal Server Error"}`, http.StatusInternalServerError)
		}), "500 Internal Server Error"},
	} {
		t.Run(name, func(t *testing.T) {
			p, stop := startOne(t, test.handler, "glrt-wrong")
			defer stop()
			require.Eventually(t, func() bool { return p.Status().State == StateError }, 10*time.Second, time.Millisecond)
			s := p.Status()
			require.Contains(t, s.LastError, test.message)
			require.NotContains(t, s.LastError, "glrt-wrong")
			require.Zero(t, s.Counters.Claims)
		})
	}
}

// From pending in GitLab to claimed, one job at a time at random moments, with free slots and long polling.
func BenchmarkPickup(b *testing.B) {
	for _, bench := range []struct {
		name    string
		runners int
		tagged  bool // each runner has a tag of its own, else any may take any job
	}{
		{"1 runner", 1, false},
		{"100 runners, one of them fits", 100, true},
		{"100 runners, all fit", 100, false},
	} {
		b.Run(bench.name, func(b *testing.B) {
			f := startFleet(b, bench.runners, coordinator.Options{}, func(i int) coordinator.RunnerOptions {
				if bench.tagged {
					return coordinator.RunnerOptions{Tags: []string{fmt.Sprint("tag", i)}}
				}
				return coordinator.RunnerOptions{RunUntagged: true}
			})
			var took []time.Duration
			before := f.gitlab.Stats()
			for b.Loop() {
				if bench.tagged {
					f.push(1, fmt.Sprint("tag", rand.IntN(bench.runners)))
				} else {
					f.push(1)
				}
				took = append(took, f.next())
				<-time.After(time.Duration(rand.IntN(100)) * time.Millisecond)
			}
			slices.Sort(took)
			for _, p := range []int{50, 95, 99} {
				b.ReportMetric(float64(took[(len(took)-1)*p/100].Microseconds())/1000, fmt.Sprintf("p%d-ms", p))
			}
			b.ReportMetric(float64(f.gitlab.Stats().Requests-before.Requests)/float64(b.N), "requests/job")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// How fast one runner takes a backlog, with slots for all of it.
func BenchmarkClaims(b *testing.B) {
	f := startFleet(b, 1, coordinator.Options{}, nil)
	const backlog = 500
	var took time.Duration
	for b.Loop() {
		start := time.Now()
		f.push(backlog)
		for range backlog {
			f.next()
		}
		took += time.Since(start)
	}
	b.ReportMetric(float64(backlog*b.N)/took.Seconds(), "claims/s")
	b.ReportMetric(0, "ns/op")
}
