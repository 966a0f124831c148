package polling

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// What a request with the old token brings is no news about the queue of the new one.
func TestANewTokenMakesDirty(t *testing.T) {
	m := holding(t)
	watch(t, m, at(50))
	m.tokenChanged()
	p := m.plan(at(51), 8)
	require.False(t, p.cancelWatch, "its answer may be on its way")
	require.Equal(t, at(53), p.wake)
	require.True(t, m.plan(at(53), 8).cancelWatch)
	m.watchAnswered(at(53), answer{kind: abandoned, sent: "a", held: 3 * time.Second, old: true})
	require.Empty(t, claim(t, m, at(53)))
	require.False(t, m.outdated)

	for name, a := range map[string]answer{
		"a watch that ended meanwhile":     {sent: "a", held: 50 * time.Second},
		"a watch that Rails answered":      {sent: "a", cursor: "a", rails: true},
		"a watch that Rails answered anew": {sent: "a", cursor: "b", rails: true},
		"a job":                            {kind: job, rails: true},
	} {
		m := holding(t)
		watch(t, m, at(50))
		m.tokenChanged()
		a.old = true
		m.watchAnswered(at(100), a)
		require.True(t, m.dirty, name)
		require.False(t, m.troubled, name)
		require.Equal(t, 50*time.Second, m.hold.known, name)
	}

	m = verified(t)
	claim(t, m, at(0))
	m.tokenChanged()
	m.claimAnswered(at(1), answer{cursor: "a", rails: true, old: true})
	require.True(t, m.dirty)
	require.Empty(t, claim(t, m, at(2)))
	m.claimAnswered(at(3), answer{kind: abandoned})
	require.True(t, m.dirty)
	require.False(t, m.troubled)
	claim(t, m, at(4))
	m.claimAnswered(at(4), answer{cursor: "b", rails: true})
	require.False(t, m.dirty)
}

func TestANewTokenEndsARefusal(t *testing.T) {
	m := verified(t)
	claim(t, m, at(0))
	m.claimAnswered(at(0), answer{kind: refused, rails: true})
	require.False(t, m.plan(at(1), 8).verify)
	m.tokenChanged()
	require.True(t, m.plan(at(1), 8).verify)

	m = verified(t)
	claim(t, m, at(0))
	m.claimAnswered(at(0), answer{kind: throttled, rails: true, wait: time.Minute})
	m.tokenChanged()
	require.False(t, m.plan(at(1), 8).reserve, "what GitLab asked for still counts")
}

func TestRecoveryEndsTheWait(t *testing.T) {
	m := verified(t)
	for i := range 20 { // claims fail although verifications do not
		claim(t, m, at(float64(100*i)))
		m.claimAnswered(at(float64(100*i)), answer{kind: failed})
		m.plan(at(float64(100*i+40)), 8)
		m.verifyAnswered(at(float64(100*i+40)), answer{kind: none, rails: true})
	}
	claim(t, m, at(3000))
	m.claimAnswered(at(3000), answer{kind: failed})
	require.False(t, m.plan(at(3001), 8).verify)
	m.gitlabRecovered(at(3001))
	require.True(t, m.plan(at(3002), 8).verify)

	m = verified(t)
	claim(t, m, at(0))
	m.claimAnswered(at(0), answer{kind: refused, rails: true})
	m.gitlabRecovered(at(1))
	require.False(t, m.plan(at(3), 8).verify, "the token is not known for all that")
}

// A watch with the old token is replaced, and jobs that come then are found.
func TestPollerChangesItsToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var token atomic.Value
		token.Store("old")
		b := startBench(t, 1, func(_ *fakeGitLab, o *Options) { o.Token = func() string { return token.Load().(string) } })
		pass(time.Minute)
		require.True(t, b.poller.Status().Watching)
		token.Store("new")
		before, _ := b.gitlab.count()
		b.poller.TokenChanged()
		b.poller.TokenChanged()
		pass(5 * time.Second)
		b.gitlab.mu.Lock()
		after := b.gitlab.requests[before:]
		b.gitlab.mu.Unlock()
		require.Len(t, after, 2, "a claim and a watch")
		for _, r := range after {
			require.Equal(t, "new", r.Token)
		}
		require.Empty(t, after[0].LastUpdate)
		b.gitlab.push(1)
		pass(time.Second)
		require.Len(t, b.dispatcher.jobs(), 1)
		require.NoError(t, b.end())
	})
}

// While a new token is being made GitLab refuses the old one; that is not the runner's fault and not logged.
func TestPollerWaitsForANewToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var token atomic.Value
		token.Store("old")
		renewed := make(chan struct{})
		refuse := func() error {
			if token.Load() == "new" {
				return nil
			}
			return &client.StatusError{Method: "POST", URL: "http://gitlab/api/v4/jobs/request", Code: http.StatusForbidden}
		}
		b := startBench(t, 1, func(g *fakeGitLab, o *Options) {
			g.push(1)
			g.claim = func(context.Context) error { return refuse() }
			o.Token = func() string { return token.Load().(string) }
			o.Superseded = func(ctx context.Context, used string) bool {
				select {
				case <-renewed:
				case <-ctx.Done():
				}
				return used != token.Load()
			}
		})
		pass(10 * time.Second)
		require.Empty(t, b.dispatcher.jobs())
		require.Len(t, b.dispatcher.slots, 1, "no slot is held meanwhile")
		token.Store("new")
		close(renewed)
		b.poller.TokenChanged()
		pass(time.Second)
		require.Len(t, b.dispatcher.jobs(), 1)
		require.Empty(t, b.log.String())
		require.Zero(t, b.poller.Status().Counters.Errors)
		require.NoError(t, b.end())
	})
}

// A GitLab that recovers is asked at once by those who waited.
func TestPollerHeedsRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		broken.Store(true)
		recovered := make(chan struct{})
		b := startBench(t, 1, func(g *fakeGitLab, o *Options) {
			g.push(1)
			g.verify = func() error {
				if broken.Load() {
					return &client.TransportError{Method: "POST", URL: "http://gitlab", Err: context.DeadlineExceeded}
				}
				return nil
			}
			var once atomic.Bool
			o.Recovered = func() <-chan struct{} {
				if once.Swap(true) {
					return nil
				}
				return recovered
			}
		})
		pass(time.Hour)
		broken.Store(false)
		for time.Until(b.poller.Status().RetryAt) < 5*time.Second {
			broken.Store(true)
			pass(time.Second)
			broken.Store(false)
		}
		close(recovered)
		pass(2 * time.Second)
		require.Len(t, b.dispatcher.jobs(), 1)
		require.NoError(t, b.end())
	})
}

// The embedded GitLab gives the runner a new token behind the poller's back: its watch would be held for the old token
// until its time is up, and jobs would wait that long.
func TestNewTokenAtTheCoordinator(t *testing.T) {
	gitlab, err := coordinator.New(coordinator.Options{Dir: t.TempDir(), LegacyCommit: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, gitlab.Close()) }()
	r, err := gitlab.AddRunner(coordinator.RunnerOptions{RunUntagged: true})
	require.NoError(t, err)
	var token atomic.Value
	token.Store(r.Token)
	server := httptest.NewServer(gitlab.Handler())
	defer server.Close()
	c, err := client.New(client.Options{URL: server.URL})
	require.NoError(t, err)
	defer c.Close()
	p, err := New(Options{
		Runner: "r", Token: func() string { return token.Load().(string) }, Client: c, Dispatcher: &fleet{claimed: make(chan arrival, 1)},
		Info:       func() runnerapi.Info { return runnerapi.Info{} },
		Superseded: func(_ context.Context, used string) bool { return used != token.Load() },
	})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	require.Eventually(t, func() bool { return gitlab.Stats().Held == 1 }, 30*time.Second, time.Millisecond)
	renewed, err := gitlab.ResetToken(r.ID)
	require.NoError(t, err)
	token.Store(renewed.Token)
	p.TokenChanged()
	require.Eventually(t, func() bool { return gitlab.Stats().Held == 2 }, 30*time.Second, 10*time.Millisecond, "a watch with the new token")
	require.Zero(t, p.Status().Counters.Errors)
	stop()
	require.NoError(t, <-done)
}
