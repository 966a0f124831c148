package relay

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

func code(n int, status string) *answer {
	return &answer{PatchResult: client.PatchResult{Report: client.Report{Code: n, JobStatus: status}, Range: -1}}
}

func TestATrivialJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		begin := time.Now()
		require.Equal(t, Progress{Epoch: 1, Limit: 4 << 20, Verdict: Continue, Tell: true}, b.open(1))
		p := b.append(1, 0, "hello ")
		require.Equal(t, Progress{Epoch: 1, Written: 6, Limit: 4<<20 + 6, Verdict: Continue}, p, "nothing that the agent must hear of")
		b.append(1, 6, "world\n")
		require.NoError(t, b.r.Finish(1, 1, store.Result{
			State: "failed", FailureReason: "script_failure", ExitCode: 3, TraceLength: 12, TraceCRC32: 0xaf083b2d,
		}))
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		b.gitlab.requireTrace(t, 1, []byte("hello world\n"))
		calls := b.gitlab.list(1)
		require.Len(t, calls, 2, "one PATCH, one PUT")
		require.EqualValues(t, 12, calls[0].to)
		u := calls[1].update
		require.Equal(t, "token-1", u.Token)
		require.Equal(t, "test", u.Info.Name)
		require.Equal(t, "failed", u.State)
		require.Equal(t, runnerapi.ReasonScriptFailure, u.FailureReason)
		require.Equal(t, 3, u.ExitCode)
		require.Zero(t, time.Since(begin), "nothing was waited for")
		require.True(t, b.events.last(1).Complete)
		require.Empty(t, b.events.status(1))

		require.Equal(t, []string{"v2-1-1-4194304"}, b.files())
		require.Equal(t, Stop, b.append(1, 12, "more").Verdict)
		b.r.Forget(1)
		require.Empty(t, b.files())
		require.Zero(t, b.r.Bytes())
		b.r.Forget(1)
		require.ErrorIs(t, b.r.Finish(1, 1, store.Result{}), ErrNotOpen)
	})
}

func TestAJobWithoutATrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.open(1)
		b.finish(1, nil)
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		b.gitlab.requireTrace(t, 1, nil)
		require.Len(t, b.gitlab.list(1), 1)
		require.Empty(t, b.files())
		require.True(t, b.events.last(1).Complete, "there is nothing to be made safe")
	})
}

func TestGitLabsIntervalIsObeyedThroughoutAJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.gitlab.interval = time.Minute
		b.open(1)
		var trace []byte
		for i := range 600 { // ten minutes, a line per second
			line := "line " + time.Duration(i).String() + "\n"
			b.append(1, int64(len(trace)), line)
			trace = append(trace, line...)
			pass(time.Second)
		}
		calls := b.gitlab.list(1)
		require.InDelta(t, 10, len(calls), 1)
		for i, c := range calls[1:] {
			require.GreaterOrEqual(t, c.at.Sub(calls[i].at), time.Minute)
		}
		end := time.Now()
		b.finish(1, trace)
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		require.Equal(t, end, time.Now(), "the end waits for nothing")
		b.gitlab.requireTrace(t, 1, trace)
	})
}

func TestASilentJobIsKeptAliveWhileItsAgentIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.open(1)
		b.append(1, 0, "hello\n")
		pass(10 * time.Minute)
		calls := b.gitlab.list(1)
		require.Len(t, calls, 20)
		for _, c := range calls[1:] {
			require.Equal(t, "running", c.state)
			require.Equal(t, runnerapi.Output{Checksum: "crc32:363a3020", Bytesize: 6}, c.update.Output)
		}
	})
}

func TestGitLabAsksForACancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.gitlab.interval = time.Minute
		b.open(1)
		b.append(1, 0, "hello\n")
		pass(time.Second)
		b.gitlab.set(func() { b.gitlab.job(1).status = runnerapi.StateCanceling })
		pass(2 * time.Minute)
		require.Equal(t, []string{StatusCanceling}, b.events.status(1))
		b.append(1, 6, "after_script\n")
		b.finish(1, []byte("hello\nafter_script\n"))
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		require.Equal(t, []string{StatusCanceling}, b.events.status(1))
	})
}

func TestGitLabWantsNothingMore(t *testing.T) {
	for name, c := range map[string]struct {
		code   int
		status string
	}{
		"canceled":       {202, runnerapi.StateCanceled},
		"dropped":        {403, runnerapi.StateFailed},
		"token is wrong": {403, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.gitlab.fault = func(context.Context, call) *answer { return code(c.code, c.status) }
				b.open(1)
				require.Equal(t, Continue, b.append(1, 0, "hello").Verdict)
				pass(time.Second)
				require.Equal(t, []string{StatusGone}, b.events.status(1))
				require.False(t, b.events.ended(1), "the owner ends the job")
				p := b.append(1, 5, "more")
				require.Equal(t, Stop, p.Verdict)
				require.EqualValues(t, 5, p.Written)
				pass(time.Hour)
				require.Len(t, b.gitlab.list(1), 1, "GitLab is left alone")

				// The agent's result speaks of bytes that nobody waits for any more.
				require.NoError(t, b.r.Finish(1, 1, store.Result{State: "failed", TraceLength: 9}))
				require.Equal(t, OutcomeGone, b.events.outcome(t, 1))
				require.Len(t, b.gitlab.list(1), 1)
			})
		})
	}
}

func TestGitLabWantsNothingMoreWhileAFinishedJobWaitsForBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.gitlab.fault = func(context.Context, call) *answer { return code(403, "") }
		b.open(1)
		require.NoError(t, b.r.Finish(1, 1, store.Result{State: "failed", TraceLength: 9}))
		require.Equal(t, OutcomeGone, b.events.outcome(t, 1))
		require.Equal(t, []string{StatusGone}, b.events.status(1))
	})
}

func TestAGitLabThatIsAwayGetsEverythingLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.gitlab.fault = func(context.Context, call) *answer { return &answer{err: errNoAnswer} }
		const jobs = 5
		traces := make([][]byte, jobs)
		for i := range traces {
			id := int64(i + 1)
			traces[i] = pattern(1000 * i)
			b.open(id)
			b.r.Append(id, 1, 0, traces[i])
			b.finish(id, traces[i])
		}
		pass(26 * time.Hour)
		require.False(t, b.events.ended(1))
		b.gitlab.set(func() { b.gitlab.fault = nil })
		for i, trace := range traces {
			require.Equal(t, OutcomeAccepted, b.events.outcome(t, int64(i+1)))
			b.gitlab.requireTrace(t, int64(i+1), trace)
		}
	})
}

func TestALostAnswerRepeatsNothingInGitLab(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		lost := map[string]bool{}
		b.gitlab.fault = func(_ context.Context, c call) *answer {
			b.gitlab.mu.Lock()
			defer b.gitlab.mu.Unlock()
			if lost[c.state] {
				return nil
			}
			lost[c.state] = true
			return &answer{err: errNoAnswer, drop: true}
		}
		b.open(1)
		b.append(1, 0, "once\n")
		b.finish(1, []byte("once\n"))
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		b.gitlab.requireTrace(t, 1, []byte("once\n"))
		require.Empty(t, b.events.status(1), "a result that had arrived is no loss")
	})
}

func TestALongTraceGoesInPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		target := b.target(1)
		target.OutputLimit, target.Debug = 32<<20, true
		_, err := b.r.Open(1, 1, target)
		require.NoError(t, err)
		trace := pattern(10<<20 + 123)
		for at := 0; at < len(trace); at += 256 << 10 {
			b.r.Append(1, 1, int64(at), trace[at:min(at+256<<10, len(trace))])
		}
		b.finish(1, trace)
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		b.gitlab.requireTrace(t, 1, trace)
		for _, c := range b.gitlab.list(1) {
			require.LessOrEqual(t, c.to-c.from, int64(1<<20))
			require.Equal(t, c.state == "", c.debug)
		}
	})
}

func TestOneLongTraceDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, func(o *Options) { o.Concurrency = 1 })
		b.gitlab.fault = func(context.Context, call) *answer { pass(100 * time.Millisecond); return nil }
		target := b.target(1)
		target.OutputLimit = 64 << 20
		_, err := b.r.Open(1, 1, target)
		require.NoError(t, err)
		trace := pattern(50 << 20)
		b.r.Append(1, 1, 0, trace)
		b.finish(1, trace)
		pass(50 * time.Millisecond) // the first piece is under way
		begin := time.Now()
		for id := int64(2); id < 5; id++ {
			b.open(id)
			b.append(id, 0, "short\n")
			b.finish(id, []byte("short\n"))
		}
		for id := int64(2); id < 5; id++ {
			require.Equal(t, OutcomeAccepted, b.events.outcome(t, id))
		}
		require.LessOrEqual(t, time.Since(begin), 850*time.Millisecond, "six requests, and one of the long trace before each round")
		require.False(t, b.events.ended(1))
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		b.gitlab.requireTrace(t, 1, trace)
		require.Equal(t, 1, b.gitlab.peak())
	})
}

func TestASlowGitLabDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, func(o *Options) { o.Concurrency = 3 })
		slow := newFakeGitLab()
		slow.fault = func(ctx context.Context, _ call) *answer { <-ctx.Done(); return nil }
		const jobs = 40
		for id := int64(1); id <= jobs; id++ {
			target := b.target(id)
			if id%2 == 0 {
				target.Instance, target.GitLab = "https://slow.test", slow
			}
			_, err := b.r.Open(id, 1, target)
			require.NoError(t, err)
			b.append(id, 0, "hi\n")
			b.finish(id, []byte("hi\n"))
		}
		begin := time.Now()
		for id := int64(1); id <= jobs; id += 2 {
			require.Equal(t, OutcomeAccepted, b.events.outcome(t, id))
		}
		require.Equal(t, begin, time.Now())
		require.LessOrEqual(t, b.gitlab.peak(), 3)
		pass(time.Hour)
		require.Equal(t, 3, slow.peak())
		for id := int64(2); id <= jobs; id += 2 {
			require.NotEmpty(t, slow.list(id), "each has its turn")
		}
	})
}

func TestForgetCutsARequestOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		var cut error
		b.gitlab.fault = func(ctx context.Context, _ call) *answer {
			<-ctx.Done()
			cut = ctx.Err()
			return nil
		}
		b.open(1)
		b.append(1, 0, "hi\n")
		pass(time.Second)
		begin := time.Now()
		b.r.Forget(1)
		synctest.Wait()
		require.ErrorIs(t, cut, context.Canceled)
		require.Equal(t, begin, time.Now())
		pass(time.Hour)
		require.Len(t, b.gitlab.list(1), 1)
		require.False(t, b.events.ended(1))
	})
}

func TestCloseAwaitsRequestsAsLongAsItMay(t *testing.T) {
	for name, c := range map[string]struct {
		takes time.Duration
		want  time.Duration
		err   error
	}{
		"an answer in time": {takes: 3750 * time.Millisecond, want: 3 * time.Second},
		"none":              {takes: time.Minute, want: 10 * time.Second, err: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				var got error
				b.gitlab.fault = func(ctx context.Context, _ call) *answer {
					select {
					case <-time.After(c.takes):
					case <-ctx.Done():
						got = ctx.Err()
					}
					return nil
				}
				b.open(1)
				b.append(1, 0, "hi\n")
				pass(time.Second) // three quarters of it after the request
				begin := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				require.NoError(t, b.r.Close(ctx))
				require.Equal(t, c.want, time.Since(begin))
				require.Equal(t, c.err, got)

				p := b.append(1, 3, "late")
				require.EqualValues(t, 3, p.Written)
				require.EqualValues(t, 3, p.Limit, "the agent keeps what it has")
				require.NotEqual(t, Stop, p.Verdict)
				_, err := b.r.Open(2, 1, b.target(2))
				require.ErrorIs(t, err, ErrClosed)
				require.ErrorIs(t, b.r.Finish(1, 1, store.Result{}), ErrNotOpen)
				require.Len(t, b.files(), 1)
			})
		})
	}
}

func TestAMistakeIsNamed(t *testing.T) {
	b := newBench(t)
	for want, change := range map[string]func(*Target){
		"output limit":    func(t *Target) { t.OutputLimit = 0 },
		"needs a GitLab":  func(t *Target) { t.GitLab = nil },
		"job's token":     func(t *Target) { t.Token = "" },
		"GitLab's job id": func(t *Target) { t.JobID = 0 },
	} {
		target := b.target(1)
		change(&target)
		_, err := b.r.Open(1, 1, target)
		require.ErrorContains(t, err, want)
	}
	_, err := b.r.Open(1, 0, b.target(1))
	require.ErrorContains(t, err, "epoch 0")
	for want, o := range map[string]Options{
		"folder":        {Events: b.events},
		"events":        {Dir: b.dir},
		"sync interval": {Dir: b.dir, Events: b.events, SyncInterval: time.Minute},
		"negative":      {Dir: b.dir, Events: b.events, Window: -1},
	} {
		_, err := New(o)
		require.ErrorContains(t, err, want)
	}
}
