package coordinator

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
)

func TestTwoPhaseCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		p, r := s.project("g/p"), s.runner()
		run := s.run(p, ciconfig.Job{})
		j := s.claimWith(r, obj{"info": twoPhase()})
		waiting := s.job(j.ID)
		require.Equal(t, "pending", waiting.Status)
		require.True(t, waiting.WaitingForAck)
		require.Zero(t, waiting.StartedAt)
		require.Equal(t, 204, s.request(r, nil).Code, "nobody else gets it")

		w := s.patch(j, "0-1", "x")
		require.Equal(t, 403, w.Code)
		require.Equal(t, "pending", w.Header().Get("Job-Status"))
		for _, state := range []string{"success", "failed", "canceled", ""} {
			w = s.put(j, obj{"state": state})
			require.Equal(t, 400, w.Code, "%q before the confirmation", state)
			require.Equal(t, "pending", w.Header().Get("Job-Status"))
		}
		for range 5 { // each keep-alive buys two minutes
			pass(119 * time.Second)
			w = s.put(j, obj{"state": "pending"})
			require.Equal(t, 200, w.Code)
			require.Equal(t, "pending", w.Header().Get("Job-Status"))
		}
		pass(119 * time.Second)
		w = s.put(j, obj{"state": "running"})
		require.Equal(t, 200, w.Code)
		require.Equal(t, "running", w.Header().Get("Job-Status"))
		running := s.job(j.ID)
		require.Equal(t, "running", running.Status)
		require.Equal(t, time.Now(), running.StartedAt, "it starts with the confirmation")
		require.Equal(t, 5, running.KeepAlives)

		require.Equal(t, 200, s.put(j, obj{"state": "running"}).Code, "a touch")
		require.Equal(t, 400, s.put(j, obj{"state": "pending"}).Code, "it runs")
		pass(10 * time.Minute)
		s.finish(j, "success")
		end, err := s.Wait(t.Context(), run.ID)
		require.NoError(t, err)
		require.Equal(t, "success", end.Status)
		stats := s.Stats()
		require.Equal(t, []int64{1, 5, 1, 0}, []int64{stats.Acks, stats.KeepAlives, stats.Started, stats.AckExpired})
	})
}

func TestAJobThatIsNeverConfirmedIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		p, r := s.project("g/p"), s.runner()
		run := s.run(p, ciconfig.Job{})
		value := s.request(s.runnerWith(RunnerOptions{RunUntagged: true, Paused: true}), nil).Header().Get(lastUpdate)
		require.NotEmpty(t, value)
		for attempt := 1; attempt <= 3; attempt++ {
			j := s.claimWith(r, obj{"info": twoPhase()})
			pass(2*time.Minute - 1)
			synctest.Wait()
			require.Equal(t, "pending", s.job(j.ID).Status)
			pass(1)
			synctest.Wait()
			dropped := s.job(j.ID)
			require.Equal(t, "failed", dropped.Status)
			require.EqualValues(t, "runner_provisioning_timeout", dropped.FailureReason)
			require.Equal(t, attempt, dropped.Attempt)
			require.Equal(t, attempt < 3, dropped.Retried)
			w := s.put(j, obj{"state": "running"})
			require.Equal(t, 403, w.Code)
			require.Equal(t, "failed", w.Header().Get("Job-Status"))
		}
		end, err := s.Wait(t.Context(), run.ID)
		require.NoError(t, err)
		require.Equal(t, "failed", end.Status)
		require.EqualValues(t, 3, s.Stats().AckExpired)
	})
}

func TestCancelWhileWaitingForTheConfirmation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		p, r := s.project("g/p"), s.runner()
		s.run(p, ciconfig.Job{})
		j := s.claimWith(r, obj{"info": twoPhase()})
		canceled, err := s.Cancel(j.ID, false)
		require.NoError(t, err)
		require.Equal(t, "canceled", canceled.Status, "it does not run yet")
		w := s.put(j, obj{"state": "running"})
		require.Equal(t, 403, w.Code)
		require.Equal(t, "canceled", w.Header().Get("Job-Status"))
		pass(time.Hour)
		synctest.Wait()
		require.Zero(t, s.Stats().AckExpired)
	})
}

func TestLegacyCommit(t *testing.T) {
	s := newServer(t, Options{LegacyCommit: true})
	p, r := s.project("g/p"), s.runner()
	s.run(p, ciconfig.Job{})
	j := s.claimWith(r, obj{"info": twoPhase()})
	require.Equal(t, "running", s.job(j.ID).Status)
	w := s.put(j, obj{"state": "pending"})
	require.Equal(t, 400, w.Code)
	require.Equal(t, "running", w.Header().Get("Job-Status"))
}
