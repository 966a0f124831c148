package relay

import (
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

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

func TestAFileThatCannotBeWrittenHoldsUpItsJobOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.open(1)
		b.open(2)
		b.append(1, 0, "hello ")
		// A bad disk is made by taking the descriptor away.
		require.NoError(t, b.r.jobs[1].file.Close())
		p := b.append(1, 6, "world\n")
		require.EqualValues(t, 6, p.Written)
		require.EqualValues(t, 6, p.Limit)
		require.True(t, p.Tell)
		require.NoError(t, b.r.Err())
		require.Greater(t, b.append(2, 0, "other\n").Limit, int64(6))
		pass(time.Hour)
		require.Equal(t, 1, b.events.events(1), "it is tried again when the agent has sent it again")
		require.Equal(t, Resend, b.events.last(1).Verdict)
		require.Greater(t, b.events.last(1).Limit, int64(6))
		require.EqualValues(t, 6, b.append(1, 6, "world\n").Limit)
		pass(time.Hour)
		require.Equal(t, 2, b.events.events(1))
		require.Equal(t, Continue, b.r.Progress(2, 1).Verdict)
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
