package relay

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

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
		require.Zero(t, b.open(1).Received, "nothing proves the 300 bytes")
		pass(10 * time.Second)
		b.finish(1, trace)
		b.r.Append(1, 1, 0, trace)
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
		require.Equal(t, []string{"v2-2-1-4194304"}, b.files())
		require.EqualValues(t, 1, b.r.Bytes())
	})
}
