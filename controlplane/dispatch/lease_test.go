package dispatch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// leases gives runner "gpu" a lease of its own.
func leases(stopAfter, lostAfter time.Duration) func(*Config) {
	return func(c *Config) {
		r := &c.Runners[2]
		r.Selector, r.StopAfter, r.LostAfter = nil, stopAfter, lostAfter
	}
}

func on(host string, h *fleetv1.Hello) *fleetv1.Hello {
	h.HostId = "machine-" + host
	return h
}

func TestEachJobIsLostAtTheEndOfItsOwnLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		f := start(t, t.TempDir(), g, leases(4*time.Hour, 5*time.Hour))
		defer f.stop()
		a, w := f.join("a", hello("1", 2))
		require.Equal(t, DefaultStopAfter, w.GetStopAfter().AsDuration(), "the shortest there is, for agents that know one only")
		long := f.claim("gpu")
		o := a.next().GetOffer()
		require.Equal(t, 4*time.Hour, o.GetStopAfter().AsDuration())
		a.reply(o.GetRef(), true)
		require.NotNil(t, a.next().GetStart())
		a.report(o.GetRef(), fleetv1.JobState_JOB_STATE_STARTED, nil)
		require.NotNil(t, a.next().GetReportAck())
		short := f.claim("any")
		a.begin()
		left := time.Now()
		a.leave()
		pause(t, DefaultLostAfter-time.Second)
		_, _, ended := g.result(short)
		require.False(t, ended)
		pause(t, time.Second)
		u, trace, ended := g.result(short)
		require.True(t, ended)
		require.EqualValues(t, "runner_system_failure", u.FailureReason)
		require.Contains(t, trace, "agent agent-a was lost: nothing was heard of it since "+left.UTC().Format(time.RFC3339))
		pause(t, 5*time.Hour-DefaultLostAfter-time.Second)
		_, _, ended = g.result(long)
		require.False(t, ended)
		pause(t, time.Second)
		_, _, ended = g.result(long)
		require.True(t, ended)
	})
}

func TestAShortLeaseIsWhatAgentsWithOneForAllAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab(), leases(time.Minute, 2*time.Minute))
		defer f.stop()
		a, w := f.join("a", hello("1", 1))
		defer a.leave()
		require.Equal(t, time.Minute, w.GetStopAfter().AsDuration())
	})
}

// An agent that was told four hours goes on for four hours, whatever the control plane is configured with by now.
func TestALeaseOutlivesItsConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, dir := newGitLab(), t.TempDir()
		f := start(t, dir, g, leases(4*time.Hour, 5*time.Hour))
		a, _ := f.join("a", hello("1", 1))
		job := f.claim("gpu")
		ref := a.begin()
		f.stop()
		a.leave()
		f = start(t, dir, g, leases(time.Minute, 2*time.Minute))
		a, w := f.join("a", helloWith("1", 1, ref, fleetv1.JobState_JOB_STATE_STARTED))
		require.Equal(t, time.Minute, w.GetStopAfter().AsDuration())
		a.leave()
		pause(t, 5*time.Hour-time.Second)
		_, _, ended := g.result(job)
		require.False(t, ended)
		f.stop()

		f = start(t, dir, g) // and counted anew by one that has heard nothing
		defer f.stop()
		restarted := time.Now()
		pause(t, 5*time.Hour-time.Second)
		_, _, ended = g.result(job)
		require.False(t, ended)
		pause(t, time.Second)
		_, trace, ended := g.result(job)
		require.True(t, ended)
		require.Contains(t, trace, "agent agent-a was lost: nothing was heard of it since "+restarted.UTC().Format(time.RFC3339)+", when the control plane was started")
	})
}

// A copy of a data folder that comes in on another host while the agent is cut off knows nothing of its jobs: they may run
// there, until their lease is over.
func TestACloneDoesNotEndTheJobsOfTheOriginal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		f := start(t, t.TempDir(), g)
		defer f.stop()
		a, _ := f.join("a", on("1", hello("1", 2)))
		lives := f.claim("any")
		ref := a.begin()
		dies := f.claim("any")
		other := a.begin()
		a.leave()

		h := helloWith("2", 2, other, fleetv1.JobState_JOB_STATE_FINISHED)
		h.Jobs[0].Result = &fleetv1.Result{State: "failed"}
		clone, w := f.join("a", on("2", h))
		require.Equal(t, fleetv1.Verdict_VERDICT_KILL, w.GetJobs()[0].GetVerdict(), "what it says of a process of another host's is worth nothing")
		synctest.Wait()
		require.Len(t, f.d.Jobs(), 2)
		clone.leave()

		h = helloWith("1", 2, ref, fleetv1.JobState_JOB_STATE_STARTED)
		a, w = f.join("a", on("1", h))
		require.Equal(t, fleetv1.Verdict_VERDICT_KEEP, w.GetJobs()[0].GetVerdict())
		synctest.Wait()
		_, trace, ended := g.result(dies)
		require.True(t, ended, "what the host itself does not have any more is lost")
		require.Contains(t, trace, "came back without the job")
		back := time.Now()
		a.leave()

		clone, _ = f.join("a", on("2", hello("3", 1)))
		defer clone.leave()
		for time.Since(back) < DefaultLostAfter-DefaultPingPeriod {
			wait(t, clone, DefaultPingPeriod)
		}
		_, _, ended = g.result(lives)
		require.False(t, ended)
		wait(t, clone, 2*DefaultPingPeriod)
		_, trace, ended = g.result(lives)
		require.True(t, ended)
		require.Contains(t, trace, "agent agent-a was lost: host host-1 with the job was heard last at "+back.UTC().Format(time.RFC3339)+
			"; since then another one answers for the agent (host-3)")
	})
}

func TestANewcomerTakesOverFromAnAgentThatFellSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		a, _ := f.join("a", on("1", hello("1", 1)))
		defer a.leave()
		pause(t, DefaultPingPeriod-time.Second)
		early := f.dial("a")
		defer early.leave()
		early.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Hello{Hello: on("2", hello("2", 1))}})
		_, err := early.stream.Recv()
		require.Equal(t, codes.AlreadyExists, status.Code(err), "it is silent for less than a ping period")
		pause(t, time.Second)
		clone, _ := f.join("a", on("2", hello("2", 1)))
		defer clone.leave()
		for err = nil; err == nil; {
			_, err = a.stream.Recv()
		}
		require.Equal(t, codes.Aborted, status.Code(err))
	})
}

// A control plane that was restarted does not know on which host a job runs: an agent that comes back without it may be
// another host with the agent's name.
func TestAfterARestartAJobIsNotLostBeforeItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		dir := t.TempDir()
		f := start(t, dir, g)
		a, _ := f.join("a", on("1", hello("1", 1)))
		job := f.claim("any")
		a.begin()
		a.leave()
		f.stop()

		f = start(t, dir, g)
		defer f.stop()
		restarted := time.Now()
		a, _ = f.join("a", on("2", hello("2", 1)))
		defer a.leave()
		for time.Since(restarted) < DefaultLostAfter-DefaultPingPeriod {
			wait(t, a, DefaultPingPeriod)
		}
		_, _, ended := g.result(job)
		require.False(t, ended)
		wait(t, a, 2*DefaultPingPeriod)
		_, trace, ended := g.result(job)
		require.True(t, ended)
		require.Contains(t, trace, "agent agent-a was lost: it came back without the job, and nothing was heard of another host with the job "+
			"since the control plane was started at "+restarted.UTC().Format(time.RFC3339))
	})
}
