package tracestream_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/agent/tracestream"
)

// await starts to wait for what the control plane has of a trace.
func await(ctx context.Context, s *tracestream.Sender) <-chan int64 {
	has := make(chan int64, 1)
	go func() { has <- s.Await(ctx, one) }()
	synctest.Wait()
	return has
}

func TestAwaitWaitsForAWelcomeAndThenNotForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := tracestream.New()
		s.Add(one, &memory{})
		has := await(t.Context(), s)
		<-time.After(time.Hour)
		require.Empty(t, has, "the control plane is away")
		began := time.Now()
		s.Resume(one, 5)
		require.EqualValues(t, 5, <-has)
		require.LessOrEqual(t, time.Since(began), time.Minute, "it says nothing more about this trace")
	})
}

func TestAwaitEndsWithTheTraceAndTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := tracestream.New()
		s.Add(one, &memory{})
		has := await(t.Context(), s)
		s.Remove(one)
		require.Zero(t, <-has)
		s.Add(one, &memory{})
		ctx, cancel := context.WithCancel(t.Context())
		has = await(ctx, s)
		require.Empty(t, has)
		cancel()
		require.Zero(t, <-has)
	})
}
