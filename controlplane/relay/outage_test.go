package relay

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/relay/report"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// GitLab is away for long; when it is back, thousands of results get out soon, and not all at once.
func TestManyResultsAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const jobs = 2000
		b := newBench(t)
		b.r.rand = func() float64 { return 0.25 }
		var away atomic.Bool
		away.Store(true)
		b.gitlab.fault = func(_ context.Context, c call) *answer {
			pass(50 * time.Millisecond)
			if away.Load() {
				return code(502, "")
			}
			return nil
		}
		for id := int64(1); id <= jobs; id++ {
			b.open(id)
			b.append(id, 0, "hello\n")
			b.finish(id, []byte("hello\n"))
		}
		pass(15 * time.Minute)
		synctest.Wait()
		away.Store(false)
		back := time.Now()
		b.gitlab.set(func() { b.gitlab.calls = nil })
		for id := int64(1); id <= jobs; id++ {
			require.Equal(t, OutcomeAccepted, b.events.outcome(t, id))
		}
		first := b.gitlab.calls[0].at
		took := time.Since(first)
		t.Logf("%d results in %v", jobs, took)
		require.Less(t, first.Sub(back), report.BackoffMost)
		// 4,000 requests of 50 ms, 64 at once, need 3.2 s.
		require.Less(t, took, 5*time.Second)
		require.LessOrEqual(t, b.gitlab.peak(), defaultConcurrency)

		b.gitlab.mu.Lock()
		defer b.gitlab.mu.Unlock()
		early := 0
		for _, c := range b.gitlab.calls {
			if c.at.Sub(first) < 50*time.Millisecond {
				early++
			}
		}
		require.Less(t, early, jobs/20, "who is back is not run over")
	})
}

// recoveringGitLab tells when it is back.
type recoveringGitLab struct {
	*fakeGitLab
	mu   sync.Mutex
	back chan struct{}
}

func (g *recoveringGitLab) Recovered() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.back
}

var _ recovering = (*client.Client)(nil)

func TestAnAnswerToSomebodyElseWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.gitlab.fault = func(context.Context, call) *answer { return &answer{err: errNoAnswer} }
		g := &recoveringGitLab{fakeGitLab: b.gitlab, back: make(chan struct{})}
		target := b.target(1)
		target.GitLab = g
		_, err := b.r.Open(1, 1, target)
		require.NoError(t, err)
		b.finish(1, nil)
		for range 2 { // it tells more than once
			pass(time.Hour)
			n := len(b.gitlab.list(1))
			pass(time.Second) // of the minute until it is tried again
			synctest.Wait()
			g.mu.Lock()
			close(g.back)
			g.back = make(chan struct{})
			g.mu.Unlock()
			synctest.Wait()
			require.GreaterOrEqual(t, len(b.gitlab.list(1)), n+1)
			require.Zero(t, time.Since(b.gitlab.list(1)[len(b.gitlab.list(1))-1].at), "at once")
		}
		b.gitlab.set(func() { b.gitlab.fault = nil })
		pass(report.BackoffMost)
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
	})
}

// One job whose requests fail while others' succeed is not tried again with each of those.
func TestATroubleOfOneJobIsNotAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.gitlab.fault = func(_ context.Context, c call) *answer {
			if c.job == 1 {
				return code(500, "")
			}
			return nil
		}
		b.open(1)
		b.finish(1, nil)
		b.open(2)
		var n int64
		for range 3600 {
			b.append(2, n, "a line\n")
			n += 7
			pass(time.Second)
		}
		require.Less(t, len(b.gitlab.list(1)), 140, "at most one in half a minute")
	})
}
