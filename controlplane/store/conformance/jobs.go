package conformance

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

type opener = func(t *testing.T) store.Store

func insert(t *testing.T, s store.Store, n int64) store.Job {
	t.Helper()
	job, err := s.InsertJob(t.Context(), NewJob(n))
	require.NoError(t, err)
	return job
}

func jobLife(t *testing.T, open opener) {
	s := opened(t, open)
	none, err := s.LoadJobs(t.Context())
	require.NoError(t, err)
	require.Empty(t, none)

	claimed := NewJob(42)
	job, err := s.InsertJob(t.Context(), claimed)
	require.NoError(t, err)
	want := store.Job{
		ID: job.ID, Epoch: 1, State: store.JobClaimed,
		Runner: claimed.Runner, GitLabURL: claimed.GitLabURL, GitLabJobID: 42, Token: claimed.Token, Envelope: claimed.Envelope,
		Agent: claimed.Agent, ClaimedAt: start,
	}
	require.Positive(t, job.ID)
	require.Equal(t, want, job)
	requireJobs(t, s, want)

	want.StartedAt, want.State = start.Add(time.Second), store.JobStarted
	require.NoError(t, s.StartJob(t.Context(), job.ID, 1, want.StartedAt))
	requireJobs(t, s, want)

	result := success()
	want.State, want.Result, want.FinishedAt = store.JobFinished, &result, result.FinishedAt
	require.NoError(t, s.FinishJob(t.Context(), job.ID, 1, result))
	requireJobs(t, s, want)

	require.NoError(t, s.DeleteJob(t.Context(), job.ID))
	requireJobs(t, s)
}

func requireJobs(t *testing.T, s store.Store, want ...store.Job) {
	t.Helper()
	have, err := s.LoadJobs(t.Context())
	require.NoError(t, err)
	require.Equal(t, want, have)
}

func jobTwice(t *testing.T, open opener) {
	s := opened(t, open)
	first := insert(t, s, 42)
	require.NoError(t, s.StartJob(t.Context(), first.ID, 1, start))
	first.State, first.StartedAt = store.JobStarted, start

	again, err := s.InsertJob(t.Context(), NewJob(42))
	require.ErrorIs(t, err, store.ErrExists)
	require.Equal(t, first, again, "the stored job, not the new one")
	requireJobs(t, s, first)

	elsewhere := NewJob(42)
	elsewhere.GitLabURL = "https://other.example.com"
	other, err := s.InsertJob(t.Context(), elsewhere)
	require.NoError(t, err, "the same number at another GitLab is another job")
	require.Greater(t, other.ID, first.ID)

	require.NoError(t, s.DeleteJob(t.Context(), first.ID))
	retried := insert(t, s, 42)
	require.Greater(t, retried.ID, other.ID)
}

func epochs(t *testing.T, open opener) {
	s := opened(t, open)
	job := insert(t, s, 1)

	epoch, err := s.Reoffer(t.Context(), job.ID, 1, "agent-2")
	require.NoError(t, err)
	require.EqualValues(t, 2, epoch)
	job.Epoch, job.Agent = 2, "agent-2"
	requireJobs(t, s, job)

	_, err = s.Reoffer(t.Context(), job.ID, 1, "agent-3")
	require.ErrorIs(t, err, store.ErrStale)
	_, err = s.Reoffer(t.Context(), job.ID, 3, "agent-3")
	require.ErrorIs(t, err, store.ErrStale)
	require.ErrorIs(t, s.StartJob(t.Context(), job.ID, 1, start), store.ErrStale)
	require.ErrorIs(t, s.FinishJob(t.Context(), job.ID, 1, success()), store.ErrStale)
	_, err = s.Payload(t.Context(), job.ID, 1)
	require.ErrorIs(t, err, store.ErrStale)
	requireJobs(t, s, job)

	epoch, err = s.Reoffer(t.Context(), job.ID, 2, "")
	require.NoError(t, err)
	require.EqualValues(t, 3, epoch)
	job.Epoch, job.Agent = 3, ""
	requireJobs(t, s, job)
}

func statesGrow(t *testing.T, open opener) {
	s := opened(t, open)
	job := insert(t, s, 1)
	require.NoError(t, s.StartJob(t.Context(), job.ID, 1, start))
	require.NoError(t, s.StartJob(t.Context(), job.ID, 1, start.Add(time.Hour)), "a repetition")
	job.State, job.StartedAt = store.JobStarted, start
	requireJobs(t, s, job)
	_, err := s.Reoffer(t.Context(), job.ID, 1, "agent-2")
	require.ErrorIs(t, err, store.ErrStale, "a started job is offered to nobody")

	result := success()
	require.NoError(t, s.FinishJob(t.Context(), job.ID, 1, result))
	require.NoError(t, s.FinishJob(t.Context(), job.ID, 1, store.Result{State: "failed"}), "a repetition")
	job.State, job.Result, job.FinishedAt = store.JobFinished, &result, result.FinishedAt
	requireJobs(t, s, job)
	require.ErrorIs(t, s.StartJob(t.Context(), job.ID, 1, start), store.ErrStale)
	require.ErrorIs(t, s.FinishJob(t.Context(), job.ID, 2, result), store.ErrStale)
	_, err = s.Reoffer(t.Context(), job.ID, 1, "agent-2")
	require.ErrorIs(t, err, store.ErrStale)
	requireJobs(t, s, job)

	neverStarted := insert(t, s, 2)
	require.NoError(t, s.FinishJob(t.Context(), neverStarted.ID, 1, store.Result{State: "failed", FailureReason: "stuck_or_timeout_failure"}))
	require.ErrorIs(t, s.StartJob(t.Context(), neverStarted.ID, 1, start), store.ErrStale)
}

func payloads(t *testing.T, open opener) {
	s := opened(t, open)
	small, large, empty := NewJob(1), NewJob(2), NewJob(3)
	large.Payload = bytes.Repeat([]byte("0123456789abcdef"), 5<<20/16)
	empty.Payload = nil
	var ids []int64
	for _, n := range []store.NewJob{small, large, empty} {
		job, err := s.InsertJob(t.Context(), n)
		require.NoError(t, err)
		have, err := s.Payload(t.Context(), job.ID, 1)
		require.NoError(t, err)
		require.True(t, bytes.Equal(n.Payload, have))
		ids = append(ids, job.ID)
	}

	require.NoError(t, s.StartJob(t.Context(), ids[0], 1, start))
	have, err := s.Payload(t.Context(), ids[0], 1)
	require.NoError(t, err, "kept until it is dropped: the agent may ask again")
	require.Equal(t, small.Payload, have)
	s.DropPayload(ids[0])
	require.NoError(t, s.StartJob(t.Context(), ids[1], 1, start)) // some commit
	_, err = s.Payload(t.Context(), ids[0], 1)
	require.ErrorIs(t, err, store.ErrNotFound)
	s.DropPayload(ids[0]) // a repetition

	require.NoError(t, s.FinishJob(t.Context(), ids[1], 1, success()))
	_, err = s.Payload(t.Context(), ids[1], 1)
	require.ErrorIs(t, err, store.ErrNotFound, "nobody needs it any more")

	require.NoError(t, s.DeleteJob(t.Context(), ids[2]))
	_, err = s.Payload(t.Context(), ids[2], 1)
	require.ErrorIs(t, err, store.ErrNotFound)
}

func missing(t *testing.T, open opener) {
	s := opened(t, open)
	const id = 1 << 50
	_, err := s.Reoffer(t.Context(), id, 1, "agent-1")
	require.ErrorIs(t, err, store.ErrNotFound)
	require.ErrorIs(t, s.StartJob(t.Context(), id, 1, start), store.ErrNotFound)
	require.ErrorIs(t, s.FinishJob(t.Context(), id, 1, success()), store.ErrNotFound)
	require.NoError(t, s.DeleteJob(t.Context(), id))
	_, err = s.Payload(t.Context(), id, 1)
	require.ErrorIs(t, err, store.ErrNotFound)
	s.DropPayload(id)
	_, err = s.Agent(t.Context(), "nobody")
	require.ErrorIs(t, err, store.ErrNotFound)
	require.ErrorIs(t, s.RemoveAgent(t.Context(), "nobody"), store.ErrNotFound)
	agents, err := s.Agents(t.Context())
	require.NoError(t, err)
	require.Empty(t, agents)
}

func reopenJobs(t *testing.T, open opener) {
	s := open(t)
	var want []store.Job
	for n := range int64(3) {
		want = append(want, insert(t, s, n+1))
	}
	require.NoError(t, s.StartJob(t.Context(), want[1].ID, 1, start))
	want[1].State, want[1].StartedAt = store.JobStarted, start
	s.DropPayload(want[1].ID)
	require.NoError(t, s.Close())

	s = opened(t, open)
	requireJobs(t, s, want...)
	_, err := s.Payload(t.Context(), want[0].ID, 1)
	require.NoError(t, err)
	_, err = s.Payload(t.Context(), want[1].ID, 1)
	require.ErrorIs(t, err, store.ErrNotFound, "Close writes what is still waiting")
}

func idsNeverAgain(t *testing.T, open opener) {
	s := open(t)
	last := insert(t, s, 1).ID
	require.NoError(t, s.DeleteJob(t.Context(), last))
	for range 3 {
		require.NoError(t, s.Close())
		s = open(t)
		job := insert(t, s, 1)
		require.Greater(t, job.ID, last)
		last = job.ID
		require.NoError(t, s.DeleteJob(t.Context(), last))
	}
	require.NoError(t, s.Close())
}

// concurrentJobs runs whole lives beside one another, with errors among them that must stay their caller's.
func concurrentJobs(t *testing.T, open opener) {
	s := opened(t, open)
	const callers, each = 16, 25
	var mu sync.Mutex
	ids := map[int64]bool{}
	var group sync.WaitGroup
	for caller := range int64(callers) {
		group.Go(func() {
			for n := range int64(each) {
				err := func() error {
					job, err := s.InsertJob(t.Context(), NewJob(caller*each+n))
					if err != nil {
						return err
					}
					mu.Lock()
					seen := ids[job.ID]
					ids[job.ID] = true
					mu.Unlock()
					if seen {
						return errors.New("an id was given twice")
					}
					if err := s.StartJob(t.Context(), job.ID, 7, start); !errors.Is(err, store.ErrStale) {
						return errors.Join(errors.New("a stale start"), err)
					}
					if _, err := s.InsertJob(t.Context(), NewJob(caller*each+n)); !errors.Is(err, store.ErrExists) {
						return errors.Join(errors.New("inserted twice"), err)
					}
					err = s.StartJob(t.Context(), job.ID, 1, start)
					s.DropPayload(job.ID)
					return errors.Join(err, s.FinishJob(t.Context(), job.ID, 1, success()))
				}()
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	jobs, err := s.LoadJobs(t.Context())
	require.NoError(t, err)
	require.Len(t, jobs, callers*each)
	for i, job := range jobs {
		require.Equal(t, store.JobFinished, job.State)
		require.True(t, i == 0 || jobs[i-1].ID < job.ID, "ordered by id")
		_, err := s.Payload(t.Context(), job.ID, 1)
		require.ErrorIs(t, err, store.ErrNotFound)
	}
}

func oneAgentWins(t *testing.T, open opener) {
	s := opened(t, open)
	job := insert(t, s, 1)
	const callers = 16
	outcomes := make(chan error, callers)
	for range callers {
		go func() {
			_, err := s.Reoffer(t.Context(), job.ID, 1, "agent-2")
			outcomes <- err
		}()
	}
	won := 0
	for range callers {
		if err := <-outcomes; err == nil {
			won++
		} else {
			require.ErrorIs(t, err, store.ErrStale)
		}
	}
	require.Equal(t, 1, won)
}

func cancelled(t *testing.T, open opener) {
	s := opened(t, open)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.InsertJob(ctx, NewJob(1))
	require.ErrorIs(t, err, context.Canceled)
	_, err = s.LoadJobs(ctx)
	require.ErrorIs(t, err, context.Canceled)
	insert(t, s, 2) // others are not touched by it
}

func afterClose(t *testing.T, open opener) {
	s := open(t)
	job := insert(t, s, 1)
	require.NoError(t, s.Close())
	require.NoError(t, s.Close(), "a repetition")

	_, err := s.InsertJob(t.Context(), NewJob(2))
	require.ErrorIs(t, err, store.ErrClosed)
	require.ErrorIs(t, s.DeleteJob(t.Context(), job.ID), store.ErrClosed)
	_, err = s.LoadJobs(t.Context())
	require.ErrorIs(t, err, store.ErrClosed)
	_, err = s.Payload(t.Context(), job.ID, 1)
	require.ErrorIs(t, err, store.ErrClosed)
	_, err = s.Agents(t.Context())
	require.ErrorIs(t, err, store.ErrClosed)
	_, err = s.SystemID(t.Context(), "everything")
	require.ErrorIs(t, err, store.ErrClosed)
	s.DropPayload(job.ID) // forgotten, harmless
}
