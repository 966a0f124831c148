package relay

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func TestBytesArriveInAnyOverlapButWithoutAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		require.Equal(t, Stop, b.append(1, 0, "early").Verdict, "the job is not open")
		b.open(1)
		require.EqualValues(t, 4, b.append(1, 0, "0123").Written)
		require.EqualValues(t, 4, b.append(1, 0, "0123").Written, "again")
		require.EqualValues(t, 4, b.append(1, 2, "2").Written)
		require.EqualValues(t, 6, b.append(1, 2, "2345").Written)

		p := b.append(1, 7, "7")
		require.Equal(t, Resend, p.Verdict)
		require.True(t, p.Tell)
		require.EqualValues(t, 6, p.Written)
		require.Equal(t, Resend, b.r.Progress(1, 1).Verdict, "until the agent goes back")
		require.False(t, b.append(1, 8, "8").Tell, "it was told")
		require.False(t, b.append(1, 9, "9").Tell)
		require.EqualValues(t, 6, b.append(1, 5, "5").Written)
		require.Equal(t, Continue, b.r.Progress(1, 1).Verdict)
		require.EqualValues(t, 10, b.append(1, 6, "6789").Written)
		require.True(t, b.append(1, 11, "x").Tell, "another gap")
		require.EqualValues(t, 10, b.append(1, 10, "").Written)
		p = b.append(1, 8, "89")
		require.True(t, p.Tell, "an agent that went back hears how far it may go")
		require.EqualValues(t, 10+4<<20, p.Limit)
		require.False(t, b.append(1, 10, "").Tell, "once")
		b.append(1, -1, "never")

		require.Equal(t, Stop, b.r.Append(1, 2, 10, []byte("x")).Verdict, "another epoch")
		require.Equal(t, Stop, b.r.Append(9, 1, 0, []byte("x")).Verdict, "another job")
		require.Equal(t, Stop, b.r.Progress(1, 2).Verdict)
		b.finish(1, []byte("0123456789"))
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		b.gitlab.requireTrace(t, 1, []byte("0123456789"))
	})
}

func TestReceivedMeansSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		speak := make(chan struct{})
		b.gitlab.fault = func(context.Context, call) *answer { <-speak; return nil }
		b.open(1)
		require.Zero(t, b.append(1, 0, "hello").Received)
		pass(900 * time.Millisecond)
		require.Zero(t, b.append(1, 5, " world").Received)
		pass(99 * time.Millisecond)
		require.Zero(t, b.events.events(1))
		pass(time.Millisecond)
		synctest.Wait()
		require.EqualValues(t, 11, b.events.last(1).Received, "in groups, a second after the first byte")
		require.EqualValues(t, 11, b.r.Progress(1, 1).Received)
		pass(10 * time.Second)
		require.Equal(t, 1, b.events.events(1), "once")

		b.append(1, 11, "\n")
		b.finish(1, []byte("hello world\n"))
		require.False(t, b.events.last(1).Complete)
		pass(finishSync)
		synctest.Wait()
		p := b.events.last(1)
		require.EqualValues(t, 12, p.Received)
		require.True(t, p.Complete, "the result can be acknowledged")
		require.False(t, b.events.ended(1))
		close(speak)
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		require.Equal(t, 2, b.events.events(1), "that is said once")
	})
}

func TestASyncFromBeforeARewindSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.open(1)
		b.append(1, 0, "hello")
		j := b.r.jobs[1]
		before := j.sync()
		require.NoError(t, b.r.Finish(1, 1, store.Result{State: "failed", TraceLength: 5, TraceCRC32: 1}))
		b.append(1, 0, "hell")
		n := b.events.events(1)
		j.synchronized(before)
		require.Zero(t, b.r.Progress(1, 1).Received)
		require.Equal(t, n, b.events.events(1))
		j.synchronized(j.sync())
		require.EqualValues(t, 4, b.r.Progress(1, 1).Received)
	})
}

func TestABytesWayToGitLabSavesItsWayToTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.gitlab.fault = func(_ context.Context, c call) *answer {
			if c.state != "" {
				pass(time.Minute / 2) // GitLab has the trace, and ponders on the result
			}
			return nil
		}
		b.open(1)
		b.append(1, 0, "hello\n")
		b.finish(1, []byte("hello\n"))
		synctest.Wait()
		p := b.events.last(1)
		require.True(t, p.Complete)
		require.Zero(t, p.Received)
		require.EqualValues(t, 6, p.Reported)
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		require.Equal(t, 1, b.events.events(1))
	})
}

func TestTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		target := b.target(1)
		target.OutputLimit = 20 << 20
		_, err := b.r.Open(1, 1, target)
		require.NoError(t, err)
		const frame = 256 << 10
		at, tells := int64(0), 0
		var limit atomic.Int64
		limit.Store(frame)
		b.events.on = func(_ int64, p Progress) { limit.Store(max(limit.Load(), p.Limit)) }
		for capacity := int64(20<<20 + TraceAllowance); at < capacity; {
			n := min(frame, capacity-at)
			require.LessOrEqual(t, at+n, limit.Load(), "an agent is told in time")
			p := b.r.Append(1, 1, at, make([]byte, n))
			require.Equal(t, Continue, p.Verdict)
			require.LessOrEqual(t, p.Limit, capacity)
			at += n
			require.Equal(t, at, p.Written)
			if p.Tell {
				tells++
				limit.Store(p.Limit)
			}
		}
		require.Equal(t, at, limit.Load())
		require.LessOrEqual(t, tells, 12, "and not for each frame")

		p := b.r.Append(1, 1, at, []byte("one too many"))
		require.Equal(t, Stop, p.Verdict)
		require.Equal(t, at, p.Written)
		require.NoError(t, b.r.Finish(1, 1, store.Result{State: "failed", TraceLength: at + 12, TraceCRC32: 1}))
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		b.gitlab.requireTrace(t, 1, make([]byte, at))
	})
}

func TestAResultThatSpeaksOfMoreThanTheLimitWaitsForTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		target := b.target(1)
		target.OutputLimit = 1
		_, err := b.r.Open(1, 1, target)
		require.NoError(t, err)
		trace := pattern(1 + TraceAllowance + 500)
		b.r.Append(1, 1, 0, trace[:1000])
		b.finish(1, trace)
		require.Equal(t, Continue, b.r.Progress(1, 1).Verdict)
		b.r.Append(1, 1, 1000, trace[1000:])
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		b.gitlab.requireTrace(t, 1, trace[:1+TraceAllowance])
	})
}

func TestAResultWaitsForTheBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.open(1)
		b.append(1, 0, "first ")
		b.finish(1, []byte("first second"))
		b.finish(1, []byte("another result")) // does nothing
		pass(time.Hour)
		require.False(t, b.events.ended(1))
		require.Greater(t, len(b.gitlab.list(1)), 100, "the job is kept alive")
		require.Equal(t, Continue, b.append(1, 6, "second").Verdict)
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		b.gitlab.requireTrace(t, 1, []byte("first second"))
	})
}

func TestATraceWithAnotherCRCIsAskedForAgainOnce(t *testing.T) {
	good, bad := "hello world\n", "hello wOrld\n"
	begin := func(t *testing.T) *bench {
		b := newBench(t)
		b.gitlab.interval = time.Hour
		b.open(1)
		b.append(1, 0, bad)
		b.finish(1, []byte(good))
		require.Empty(t, b.gitlab.list(1), "bytes in doubt are not sent")
		p := b.events.last(1)
		require.Equal(t, Resend, p.Verdict)
		require.True(t, p.Tell)
		require.Zero(t, p.Received)
		require.Zero(t, p.Written)
		require.Equal(t, Resend, b.r.Progress(1, 1).Verdict, "also for an agent that comes back")
		return b
	}
	t.Run("and comes right", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := begin(t)
			require.Zero(t, b.append(1, 3, "was under way").Written)
			b.append(1, 0, good[:4])
			pass(4 * time.Minute)
			b.append(1, 4, good[4:8])
			pass(4 * time.Minute)
			b.append(1, 8, good[8:])
			require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
			b.gitlab.requireTrace(t, 1, []byte(good))
		})
	})
	t.Run("and is wrong again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := begin(t)
			b.append(1, 0, bad)
			require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
			b.gitlab.requireTrace(t, 1, []byte(bad))
		})
	})
	t.Run("and does not come", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := begin(t)
			asked := time.Now()
			b.append(1, 0, good[:4])
			require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
			require.Equal(t, resendFor, time.Since(asked))
			b.gitlab.requireTrace(t, 1, []byte(bad))
		})
	})
	t.Run("and the agent is lost", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := begin(t)
			require.NoError(t, b.r.Fail(1, 1, store.Result{State: "failed"}, "lost"))
			require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
			b.gitlab.requireTrace(t, 1, []byte(bad+"lost\n"))
		})
	})
	t.Run("and the control plane restarts", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := begin(t)
			b.append(1, 0, good[:4])
			b.restart()
			b.r.rand = func() float64 { return 0.9 } // the result is known before the first request
			require.EqualValues(t, len(bad), b.open(1).Received)
			b.finish(1, []byte(good))
			b.append(1, 0, good)
			require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
			b.gitlab.requireTrace(t, 1, []byte(good))
		})
	})
}

func TestATraceThatIsLongerThanTheResultSaysIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.open(1)
		b.append(1, 0, "all of this\n")
		b.finish(1, []byte("all of"))
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		b.gitlab.requireTrace(t, 1, []byte("all of this\n"))
	})
}

func TestAJobWhoseAgentIsLost(t *testing.T) {
	lost := store.Result{State: "failed", FailureReason: "runner_system_failure", TraceLength: 1000, TraceCRC32: 1}
	for name, c := range map[string]struct{ trace, line, want string }{
		"in the midst of a line": {"building", "ERROR: lost", "building\nERROR: lost\n"},
		"at the end of a line":   {"building\n", "ERROR: lost\n", "building\nERROR: lost\n"},
		"without a word":         {"", "ERROR: lost", "ERROR: lost\n"},
		"without a last word":    {"building", "", "building"},
		"a long last word":       {"", strings.Repeat("x", 10_000), strings.Repeat("x", maxLine) + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.open(1)
				b.append(1, 0, c.trace)
				b.append(1, 2000, "after a gap")
				require.NoError(t, b.r.Fail(1, 1, lost, c.line))
				require.NoError(t, b.r.Fail(1, 1, lost, "again"))
				require.Equal(t, Stop, b.append(1, 0, c.trace+"more").Verdict)
				require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
				b.gitlab.requireTrace(t, 1, []byte(c.want))
				require.Equal(t, runnerapi.ReasonRunnerSystem, b.gitlab.job(1).result.FailureReason)
			})
		})
	}
	t.Run("told again after a restart", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			b.gitlab.fault = func(context.Context, call) *answer { return &answer{err: errNoAnswer} }
			res := store.Result{State: "failed", TraceLength: TraceUnknown, Message: "ERROR: lost"}
			for range 3 {
				b.open(1)
				b.append(1, 0, "building")
				require.NoError(t, b.r.Finish(1, 1, res))
				pass(time.Minute)
				b.restart()
			}
			b.gitlab.set(func() { b.gitlab.fault = nil })
			b.open(1)
			require.NoError(t, b.r.Finish(1, 1, res))
			require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
			b.gitlab.requireTrace(t, 1, []byte("building\nERROR: lost\n"))
		})
	})
	t.Run("after a result whose bytes did not come", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			b.open(1)
			b.append(1, 0, "building\n")
			b.finish(1, []byte("building\nand more"))
			require.NoError(t, b.r.Fail(1, 1, store.Result{State: "failed"}, "lost"))
			require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
			b.gitlab.requireTrace(t, 1, []byte("building\nlost\n"))
			require.Equal(t, "failed", b.gitlab.job(1).result.State)
		})
	})
}

func TestAFullSpoolPausesAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, func(o *Options) { o.MaxBytes = 1000 })
		b.open(1)
		b.open(2)
		b.open(3)
		first, second := pattern(900), pattern(500)
		b.r.Append(1, 1, 0, first)
		require.NoError(t, b.r.Err())
		p := b.r.Append(2, 1, 0, second[:200])
		require.Equal(t, Progress{Epoch: 1, Limit: 0, Verdict: Continue, Tell: true}, p, "the window closes")
		require.ErrorContains(t, b.r.Err(), "quota")
		for at := 200; at < 500; at += 100 {
			p := b.r.Append(2, 1, int64(at), second[at:at+100])
			require.Zero(t, p.Written, "what was under way is dropped")
		}
		p = b.r.Append(1, 1, 900, []byte("x"))
		require.EqualValues(t, 900, p.Limit, "for everybody")
		require.True(t, p.Tell)
		require.EqualValues(t, 900, b.r.Progress(1, 1).Limit)

		b.finish(1, first)
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1), "reporting goes on")
		pass(10 * time.Minute)
		require.Zero(t, b.events.events(2))

		begin := time.Now()
		b.r.Forget(1)
		synctest.Wait()
		require.Equal(t, begin, time.Now(), "at once")
		require.Zero(t, b.events.events(3), "it has not waited")
		p = b.events.last(2)
		require.Equal(t, Resend, p.Verdict)
		require.Zero(t, p.Received)
		require.EqualValues(t, 4<<20, p.Limit)
		require.NoError(t, b.r.Err())
		b.r.Append(2, 1, 0, second)
		b.finish(2, second)
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 2))
		b.gitlab.requireTrace(t, 2, second)
	})
}

func TestAFullSpoolLetsFinishedJobsThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, func(o *Options) { o.MaxBytes = 1000 })
		traces := map[int64][]byte{1: pattern(800), 2: pattern(801)}
		for id, trace := range traces {
			b.open(id)
			b.r.Append(id, 1, 0, trace[:500])
		}
		require.Zero(t, b.r.Append(1, 1, 500, traces[1][500:]).Limit-500)
		require.Zero(t, b.r.Append(2, 1, 500, traces[2][500:]).Limit-500)
		require.Error(t, b.r.Err(), "neither can go on")
		b.finish(2, traces[2])
		p := b.events.last(2)
		require.Equal(t, Resend, p.Verdict)
		require.Greater(t, p.Limit, int64(801))
		b.r.Append(2, 1, 500, traces[2][500:])
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 2))
		b.gitlab.requireTrace(t, 2, traces[2])
		require.Error(t, b.r.Err())
		b.r.Forget(2)
		synctest.Wait()
		require.NoError(t, b.r.Err())
		require.Equal(t, Resend, b.events.last(1).Verdict)
	})
}

func TestADiskThatIsFullForFinishedJobsToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, func(o *Options) { o.MinFree = math.MaxInt64 / 2 })
		require.ErrorContains(t, b.r.Err(), "bytes left")
		b.open(1)
		require.Zero(t, b.append(1, 0, "hello").Limit)
		b.finish(1, []byte("hello"))
		require.Equal(t, Resend, b.events.last(1).Verdict)
		p := b.append(1, 0, "hello")
		require.Equal(t, Continue, p.Verdict)
		require.Zero(t, p.Limit)
		require.Zero(t, p.Written)
		require.NoError(t, b.r.Fail(1, 1, store.Result{State: "failed"}, "not even this"))
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		b.gitlab.requireTrace(t, 1, nil)
	})
}

func TestAFullDiskIsLookedAtAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.open(1)
		b.append(1, 0, "hello ")
		// The disk's failure is made by taking the descriptor away; the next write says so.
		b.r.jobs[1].io.Lock()
		good := b.r.jobs[1].file
		require.NoError(t, good.Close())
		b.r.jobs[1].io.Unlock()
		p := b.append(1, 6, "world\n")
		require.EqualValues(t, 6, p.Written)
		require.EqualValues(t, 6, p.Limit)
		require.Error(t, b.r.Err())
		pass(time.Hour)
		require.NoError(t, b.r.Err())
		require.Equal(t, Resend, b.events.last(1).Verdict)
		n := b.events.events(1)
		p = b.append(1, 6, "world\n")
		require.Error(t, b.r.Err(), "and again")
		require.EqualValues(t, 6, p.Limit)
		pass(time.Hour)
		require.Greater(t, b.events.events(1), n)
	})
}

func TestASpoolThatIsFullAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.open(1)
		b.append(1, 0, strings.Repeat("x", 500))
		require.NoError(t, b.r.Close(t.Context()))
		b.o.MaxBytes = 100
		b.start()
		require.ErrorContains(t, b.r.Err(), "quota")
		p := b.open(1)
		require.EqualValues(t, 500, p.Received)
		require.EqualValues(t, 500, p.Limit)
		require.NoError(t, b.r.Fail(1, 1, store.Result{State: "failed"}, "the last word fits in"))
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		b.gitlab.requireTrace(t, 1, []byte(strings.Repeat("x", 500)+"\nthe last word fits in\n"))
	})
}

func TestARestartGoesOnWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		trace := pattern(3 << 20)
		b.open(1)
		b.r.Append(1, 1, 0, trace[:2<<20])
		pass(10 * time.Second)
		b.restart()
		before := len(b.gitlab.list(1))
		p := b.open(1)
		require.Equal(t, Progress{Epoch: 1, Received: 2 << 20, Written: 2 << 20, Limit: 4<<20 + TraceAllowance, Verdict: Continue, Tell: true}, p)
		p.Reported = 0
		again := b.open(1)
		again.Reported = 0
		require.Equal(t, p, again)
		b.r.Append(1, 1, 2<<20, trace[2<<20:])
		b.finish(1, trace)
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		b.gitlab.requireTrace(t, 1, trace)
		calls := b.gitlab.list(1)[before:]
		require.LessOrEqual(t, calls[0].to-calls[0].from, int64(4<<10), "a few bytes find out what GitLab has")
		calls = slices.DeleteFunc(calls, func(c call) bool { return c.state != "" })
		require.Len(t, calls, 2)
	})
}

func TestARestartAfterALossOfPower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		trace := pattern(1000)
		b.open(1)
		b.r.Append(1, 1, 0, trace)
		pass(10 * time.Second) // GitLab has all of it
		require.NoError(t, b.r.Close(t.Context()))
		require.NoError(t, os.Truncate(filepath.Join(b.dir, b.files()[0]), 300))
		b.start()
		require.EqualValues(t, 300, b.open(1).Received)
		pass(10 * time.Second)
		b.finish(1, trace)
		b.r.Append(1, 1, 300, trace[300:])
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		b.gitlab.requireTrace(t, 1, trace)
	})
}

func TestAResultThatGitLabHasAlready(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.open(1)
		b.append(1, 0, "hello\n")
		b.finish(1, []byte("hello\n"))
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
		// The control plane dies before it has written that down.
		b.restart()
		b.events.record(func() { clear(b.events.outcomes) })
		b.open(1)
		b.finish(1, []byte("hello\n"))
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
	})
}

func TestALaterEpochTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.open(1)
		b.append(1, 0, "of the first epoch\n")
		_, err := b.r.Open(1, 2, b.target(1))
		require.NoError(t, err)
		require.Empty(t, b.files())
		require.Equal(t, Stop, b.append(1, 0, "x").Verdict)
		b.r.Append(1, 2, 0, []byte("second"))
		_, err = b.r.Open(1, 1, b.target(1))
		require.ErrorIs(t, err, ErrStale)
		b.restart()
		_, err = b.r.Open(1, 1, b.target(1))
		require.ErrorIs(t, err, ErrStale)
		p, err := b.r.Open(1, 3, b.target(1))
		require.NoError(t, err)
		require.Zero(t, p.Written)
	})
}

func TestALimitThatWasLoweredDoesNotCutARunningJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.open(1)
		b.append(1, 0, "x")
		b.restart()
		target := b.target(1)
		target.OutputLimit = 1
		p, err := b.r.Open(1, 1, target)
		require.NoError(t, err)
		require.EqualValues(t, 4<<20+1, p.Limit)
	})
}

func TestSweepRemovesWhatNobodyOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		for id := int64(1); id <= 3; id++ {
			b.open(id)
			b.append(id, 0, "x")
		}
		b.restart()
		b.open(2)
		b.r.Forget(3)
		n, err := b.r.Sweep()
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.Equal(t, []string{"v1-2-1-4194304"}, b.files())
		require.EqualValues(t, 1, b.r.Bytes())
	})
}
