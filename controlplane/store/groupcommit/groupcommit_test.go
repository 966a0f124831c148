package groupcommit_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/groupcommit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type write = groupcommit.Write[int]

// committer notes its calls and runs the writes with the number of the call.
type committer struct {
	mu      sync.Mutex
	batches [][]int64 // for each call its drops, after its number of writes
	refuse  bool      // to drop
}

func (c *committer) commit(batch []*write, drops []int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.Sort(drops)
	c.batches = append(c.batches, append([]int64{int64(len(batch))}, drops...))
	for _, w := range batch {
		w.Err = w.Run(len(c.batches))
	}
	return !c.refuse
}

func (c *committer) calls() [][]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.batches)
}

func nothing(int) error { return nil }

func TestWritesThatWaitShareACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &committer{}
		q := groupcommit.New(c.commit, 0)
		free := make(chan struct{})
		first, err := q.Add(t.Context(), func(int) error { <-free; return nil })
		require.NoError(t, err)
		synctest.Wait()

		// While it is under way, the queue takes so many and no more.
		waiting := make([]*write, groupcommit.QueueLength)
		for i := range waiting {
			waiting[i], err = q.Add(t.Context(), nothing)
			require.NoError(t, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = q.Add(ctx, nothing)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, first.Wait(ctx), context.DeadlineExceeded)

		close(free)
		require.NoError(t, first.Wait(t.Context()))
		for _, w := range waiting {
			require.NoError(t, w.Wait(t.Context()))
		}
		require.Equal(t, [][]int64{{1}, {groupcommit.BatchLimit}, {groupcommit.BatchLimit}}, c.calls())
		q.Close()
		require.Len(t, c.calls(), 3, "there was nothing left")
	})
}

func TestDropsGoWithTheNextCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &committer{refuse: true}
		q := groupcommit.New(c.commit, 0)
		q.Drop(1)
		q.Drop(2)
		synctest.Wait()
		require.Empty(t, c.calls(), "they wait")
		require.NoError(t, q.Do(t.Context(), nothing))
		require.NoError(t, q.Do(t.Context(), nothing))
		require.Equal(t, [][]int64{{1, 1, 2}, {1, 1, 2}}, c.calls(), "what was not dropped comes again")
		c.refuse = false
		require.NoError(t, q.Do(t.Context(), nothing))
		require.Empty(t, q.Drops())

		for job := range int64(groupcommit.DropLimit) {
			q.Drop(job)
		}
		synctest.Wait()
		require.Len(t, c.calls(), 4)
		require.Len(t, c.calls()[3], 1+groupcommit.DropLimit, "so many make a commit of their own")

		q.Drop(7)
		q.Close()
		require.Equal(t, []int64{0, 7}, c.calls()[4])
	})
}

func TestTheErrorIsTheCallers(t *testing.T) {
	c := &committer{}
	q := groupcommit.New(c.commit, 0)
	mine := errors.New("mine")
	require.ErrorIs(t, q.Do(t.Context(), func(int) error { return mine }), mine)
	q.Close()
	q.Close()
	require.ErrorIs(t, q.Do(t.Context(), nothing), store.ErrClosed)
}

func TestBeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &committer{}
		q := groupcommit.New(c.commit, time.Second)
		<-time.After(3500 * time.Millisecond)
		require.Equal(t, [][]int64{{0}, {0}, {0}}, c.calls())
		require.NoError(t, q.Do(t.Context(), nothing))
		<-time.After(900 * time.Millisecond)
		require.Len(t, c.calls(), 4, "a commit is as good as a beat")
		q.Close()
	})
}
