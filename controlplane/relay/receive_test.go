package relay

import (
	"context"
	"fmt"
	"hash/crc32"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/relay/spool"
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
		before, rewinds, ok := j.mark()
		require.True(t, ok)
		old := []spool.Mark{before}
		require.NoError(t, b.r.Finish(1, 1, store.Result{State: "failed", TraceLength: 5, TraceCRC32: 1}))
		b.append(1, 0, "hell")
		n := b.events.events(1)
		require.NoError(t, b.r.spool.Commit(old)[0])
		require.Zero(t, j.file.Synced())
		j.synchronized(before.Length(), rewinds)
		require.Zero(t, b.r.Progress(1, 1).Received)
		require.Equal(t, n, b.events.events(1))
		require.NoError(t, b.r.sync.flush())
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

func TestAnAgentWhoseResultCameFirstIsToldOfItsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		trace := pattern(1 << 20)
		b.open(1)
		b.finish(1, trace)
		require.Zero(t, b.events.events(1))
		p := b.r.Append(1, 1, 0, trace[:firstWindow])
		require.True(t, p.Tell)
		b.r.Append(1, 1, firstWindow, trace[firstWindow:])
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
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
			require.EqualValues(t, len(bad), b.open(1).Written)
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

// eager is an owner that does everything in the calls of Events.
type eager struct {
	r     *Relay
	trace []byte
	ended chan Outcome
}

func (e *eager) JobStatus(job int64, _ string) { e.r.Progress(job, 1) }

func (e *eager) Received(job int64, p Progress) {
	if p.Verdict == Resend {
		e.r.Append(job, 1, p.Received, e.trace[p.Received:])
	}
}

func (e *eager) Reported(job int64, o Outcome) {
	e.r.Forget(job)
	e.ended <- o
}

func TestEventsMayCallTheRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &eager{trace: []byte("hello\n"), ended: make(chan Outcome, 1)}
		b := newBench(t, func(o *Options) { o.Events = e })
		e.r = b.r
		b.open(1)
		b.append(1, 0, "wrong\n")
		b.finish(1, e.trace)
		require.Equal(t, OutcomeAccepted, <-e.ended)
		b.gitlab.requireTrace(t, 1, e.trace)
		require.Empty(t, b.files())
	})
}

func TestAwaitWaitsForTheDiskAndNotForGitLab(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.gitlab.fault = func(context.Context, call) *answer { return &answer{err: errNoAnswer} }
		require.NoError(t, b.r.Await(t.Context(), 1, 1), "a job that is not open")
		b.open(1)
		b.open(2)
		trace := []byte("hello world")
		b.r.Append(1, 1, 0, trace[:5])
		b.finish(1, trace)
		ended := make(chan error, 3)
		for _, id := range []int64{1, 1, 2} {
			go func() { ended <- b.r.Await(t.Context(), id, 1) }()
		}
		pass(time.Hour)
		require.Empty(t, ended, "bytes are missing; the other job runs")
		b.r.Append(1, 1, 5, trace[5:])
		synctest.Wait()
		require.Empty(t, ended, "they are not synced")
		pass(finishSync)
		require.NoError(t, <-ended)
		require.NoError(t, <-ended)
		require.NoError(t, b.r.Await(t.Context(), 1, 1))
		require.Empty(t, ended)
		b.r.Forget(2)
		require.NoError(t, <-ended)

		b.open(3)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, b.r.Await(ctx, 3, 1), context.DeadlineExceeded)
	})
}

// A host that lost its power has lost the end of the trace, or has something else there; what came before is here.
func TestATraceOfAHostThatLostItsPower(t *testing.T) {
	const here = "line 1\nline 2\nline 3\n"
	for name, agents := range map[string]string{
		"cut":          "line 1\n\x1b[31;1mERROR: Job failed (system failure): gone\x1b[0;m\n",
		"zeros":        "line 1\nline 2\n\x00\x00\x00\x00\x00\x00\x00\n\x1b[31;1mERROR: Job failed (system failure): gone\x1b[0;m\n",
		"all is lost":  "ERROR: gone\n",
		"another tail": "line 1\nline 2\nline 3\n\x00\x00\nERROR: Job failed (system failure): gone\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.open(1)
				b.append(1, 0, here)
				pass(time.Second) // acknowledged
				res := success([]byte(agents))
				res.State, res.FailureReason, res.Message = "failed", "runner_system_failure", "gone"
				require.NoError(t, b.r.Finish(1, 1, res))
				b.append(1, 0, agents)
				require.Equal(t, OutcomeAccepted, b.events.outcome(t, 1))
				b.gitlab.mu.Lock()
				defer b.gitlab.mu.Unlock()
				got := string(b.gitlab.jobs[1].trace)
				require.True(t, strings.HasPrefix(got, here), "%q", got)
				require.Equal(t, 1, strings.Count(got, ": gone"), "%q", got)
				require.Equal(t, fmt.Sprintf("crc32:%08x", crc32.ChecksumIEEE([]byte(got))), b.gitlab.jobs[1].result.Checksum)
			})
		})
	}
}
