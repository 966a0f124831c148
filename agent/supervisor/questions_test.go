//go:build linux

package supervisor_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/agent/internal/fakejob"
	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/supervisor"
	"github.com/switchyard-ci/switchyard/executors"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// places runs a test with job folders on this host and with some that are elsewhere.
func places(t *testing.T, test func(t *testing.T, x *fakejob.Executor)) {
	t.Run("here", func(t *testing.T) { test(t, fakejob.New(t)) })
	t.Run("elsewhere", func(t *testing.T) {
		x := fakejob.New(t)
		x.Elsewhere = t.TempDir()
		test(t, x)
	})
}

func TestQuestionsAreAnswered(t *testing.T) {
	places(t, func(t *testing.T, x *fakejob.Executor) {
		a := newAgent(t, x, fakejob.Payload(1, "print before", "ask key", "ask another", "print after"), func(a *agent) {
			a.config.Sign = func(_ context.Context, ref ledger.Ref, r folder.CacheRequest) folder.CacheAnswer {
				if r.Key == "another" {
					return folder.CacheAnswer{URL: strings.Repeat("x", folder.MaxLine)} // its ID is the supervisor's
				}
				return folder.CacheAnswer{ID: r.ID, URL: fmt.Sprintf("https://s3.test/%s?op=%s&ref=%s", r.Key, r.Op, ref)}
			}
		})
		r, trace := a.finished(a.start())
		require.Equal(t, "success", r.GetState(), r.GetMessage())
		require.True(t, strings.HasSuffix(trace,
			"before\nhttps://s3.test/key?op=get&ref=1/1\nthe URL of the cache is too long\nafter\n"), trace)
	})
}

func TestQuestionsToAnAgentThatCannotSign(t *testing.T) {
	places(t, func(t *testing.T, x *fakejob.Executor) {
		a := newAgent(t, x, fakejob.Payload(1, "ask key"))
		_, trace := a.finished(a.start())
		require.Contains(t, trace, "this agent cannot ask for the URLs of caches\n")
	})
}

// A job that does not obey is killed, and not waited for.
func TestADeafJobIsKilled(t *testing.T) {
	t.Cleanup(supervisor.SetKillPatience(100 * time.Millisecond))
	places(t, func(t *testing.T, x *fakejob.Executor) {
		a := newAgent(t, x, fakejob.Payload(1, "print begun", "numb"))
		j := a.start()
		a.awaitTrace("begun\n")
		j.Cancel(fleetv1.CancelMode_CANCEL_MODE_KILL)
		r, _ := a.finished(j)
		require.Equal(t, "failed", r.GetState())
		require.Contains(t, r.GetMessage(), "left no result")
		require.Equal(t, 1, x.Starts(1))
		a.await(supervisor.Freed)
	})
	t.Run("in an environment that says nothing of it", func(t *testing.T) {
		x := newLiar(func(ctx context.Context, offset int64, out io.Writer) (int, error) {
			_, _ = io.WriteString(out, hello(offset)+data(offset, "begun\n"))
			<-ctx.Done()
			return 0, ctx.Err()
		})
		a := newAgent(t, x, script("true"))
		j := a.start()
		a.awaitTrace("begun\n")
		j.Cancel(fleetv1.CancelMode_CANCEL_MODE_KILL)
		r, _ := a.finished(j)
		require.Contains(t, r.GetMessage(), "left no result")
		require.EqualValues(t, 1, x.execs.Load())
	})
}

// A question that was on its way when the agent was restarted is asked again.
func TestAQuestionOutlivesTheAgent(t *testing.T) {
	places(t, func(t *testing.T, x *fakejob.Executor) {
		asked := make(chan struct{})
		var once sync.Once
		var times atomic.Int32
		a := newAgent(t, x, fakejob.Payload(1, "ask key"), func(a *agent) {
			a.config.Sign = func(ctx context.Context, _ ledger.Ref, r folder.CacheRequest) folder.CacheAnswer {
				if times.Add(1) == 1 {
					once.Do(func() { close(asked) })
					<-ctx.Done() // the agent is gone before the control plane has answered
					return folder.CacheAnswer{ID: r.ID, Error: "too late"}
				}
				return folder.CacheAnswer{ID: r.ID, URL: "https://s3.test"}
			}
		})
		a.start()
		<-asked
		j := a.again()
		require.Equal(t, ledger.Started, j.Phase)
		r, trace := a.finished(j.Job)
		require.Equal(t, "success", r.GetState())
		require.Contains(t, trace, "https://s3.test\n")
		require.NotContains(t, trace, "too late")
		require.Equal(t, 1, x.Starts(1))
	})
}

// A question outlives the stream that it came by: its answer goes where the job is.
func TestAQuestionOutlivesItsStream(t *testing.T) {
	quickly(t)
	x := fakejob.New(t)
	x.Elsewhere = t.TempDir()
	tear := make(chan context.CancelFunc, 10)
	again := make(chan struct{})
	x.OnExec = func(ctx context.Context, c *executors.Command) (context.Context, error) {
		if c.Argv[1] == "attach" {
			close(again)
		}
		ctx, cancel := context.WithCancel(ctx)
		tear <- cancel
		return ctx, nil
	}
	asked, proceed := make(chan struct{}, 10), make(chan struct{})
	a := newAgent(t, x, fakejob.Payload(1, "ask key", "print after"), func(a *agent) {
		a.config.Sign = func(_ context.Context, _ ledger.Ref, r folder.CacheRequest) folder.CacheAnswer {
			asked <- struct{}{}
			<-proceed
			return folder.CacheAnswer{ID: r.ID, URL: "https://s3.test"}
		}
	})
	j := a.start()
	<-asked
	(<-tear)()
	<-again
	close(proceed)
	_, trace := a.finished(j)
	require.LessOrEqual(t, len(asked), 1, "once for each stream at most")
	(<-tear)()
	require.Contains(t, trace, "https://s3.test\nafter\n")
	require.Equal(t, 1, x.Starts(1))
	require.Equal(t, 1, a.count(supervisor.Fenced))
}
