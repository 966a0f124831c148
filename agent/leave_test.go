package agent_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/agent"
	"github.com/switchyard-ci/switchyard/agent/datadir"
	"github.com/switchyard-ci/switchyard/agent/identity"
	"github.com/switchyard-ci/switchyard/agent/internal/fakefleet"
	"github.com/switchyard-ci/switchyard/agent/internal/fakejob"
	"github.com/switchyard-ci/switchyard/executors"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

func TestDrainFinishesAndReportsBeforeItLeaves(t *testing.T) {
	x := fakejob.New(t)
	r, f, s := connect(t, x)
	end := filepath.Join(t.TempDir(), "end")
	f.SetPayload(1, fakejob.Payload(1, "after "+end, "print done"))
	run(s, one)
	s.Started(one)
	r.Drain()
	require.True(t, s.Status().GetDraining())
	s.Offer(two)
	require.Contains(t, s.Refused(two), "being stopped")
	require.NoError(t, os.WriteFile(end, nil, 0o600))
	result := s.Finished(one)
	require.Contains(t, f.WholeTrace(1, result), "done\n")
	select {
	case err := <-r.ended:
		require.NoError(t, err)
		t.Fatal("it left before GitLab had the result")
	case <-time.After(100 * time.Millisecond):
	}
	s.Forget(one)
	require.NoError(t, r.wait())
	require.Equal(t, 1, r.log.count("waiting before leaving"))
	<-s.Ended()
}

func TestDrainWaitsForAControlPlaneThatIsAway(t *testing.T) {
	x := fakejob.New(t)
	r, f, s := connect(t, x)
	end := filepath.Join(t.TempDir(), "end")
	f.SetPayload(1, fakejob.Payload(1, "after "+end))
	run(s, one)
	s.Started(one)
	f.Stop()
	r.Drain()
	require.NoError(t, os.WriteFile(end, nil, 0o600))
	require.Eventually(t, func() bool { return r.log.count(`msg="job finished"`) == 1 }, fakefleet.Patience, time.Millisecond)
	f.Restart()
	s = f.Next()
	require.True(t, s.Hello.GetDraining())
	require.Equal(t, fleetv1.JobState_JOB_STATE_FINISHED, s.Hello.GetJobs()[0].GetState())
	s.Welcome(period, forever, &fleetv1.JobVerdict{Ref: one.Proto(), Verdict: fleetv1.Verdict_VERDICT_FORGET})
	require.NoError(t, r.wait())
}

func TestASecondSignalCancelsTheJobs(t *testing.T) {
	x := fakejob.New(t)
	r, f, s := connect(t, x)
	f.SetPayload(1, fakejob.Payload(1, "wait"))
	f.SetPayload(2, fakejob.Payload(2, "wait"))
	run(s, one)
	s.Started(one)
	s.Offer(two)
	s.Accepted(two)
	r.CancelJobs()
	require.True(t, s.Status().GetDraining())
	require.Contains(t, f.WholeTrace(1, s.Finished(one)), "canceled gracefully")
	s.Start(two) // was on its way: it must end with a result too
	result := s.Finished(two)
	require.Equal(t, "job_canceled", result.GetFailureReason())
	f.WholeTrace(2, result)
	require.NoError(t, r.wait(), "it does not wait for GitLab")
	require.Zero(t, x.Starts(2))
}

func TestAnIdleAgentLeavesAtOnce(t *testing.T) {
	r, _, s := connect(t, fakejob.New(t))
	r.Drain()
	require.NoError(t, r.wait())
	<-s.Ended()

	f := fakefleet.New(t)
	f.Address = "127.0.0.1:1"
	r = start(t, f, fakejob.New(t), t.TempDir()) // cannot even enrol
	r.Drain()
	require.NoError(t, r.wait())
}

func TestTheLease(t *testing.T) {
	const stopAfter = 2 * time.Second
	x := fakejob.New(t)
	f := fakefleet.Start(t)
	r := start(t, f, x, t.TempDir())
	s := f.Next()
	s.Welcome(100*time.Millisecond, stopAfter)
	f.SetPayload(1, fakejob.Payload(1, "hang"))
	run(s, one)
	s.Started(one)
	// It is passed on, and not at each ping.
	require.Eventually(t, func() bool { return len(x.Leases(1)) >= 3 }, fakefleet.Patience, time.Millisecond)
	require.Less(t, len(x.Leases(1)), int(s.Pings()))
	for _, lease := range x.Leases(1) {
		require.LessOrEqual(t, lease, stopAfter)
		require.Greater(t, lease, stopAfter/2)
	}
	f.Stop()
	lost := time.Now()
	require.Eventually(t, func() bool { return x.Running() == 0 }, fakefleet.Patience, time.Millisecond)
	require.InDelta(t, stopAfter.Seconds(), time.Since(lost).Seconds(), 0.5)
	require.Equal(t, 1, r.log.count("the control plane was not heard for too long"))
	f.Restart()
	s = f.Next()
	require.Equal(t, fleetv1.JobState_JOB_STATE_FINISHED, s.Hello.GetJobs()[0].GetState())
	s.Welcome(period, forever, s.Keep(one))
	s.Finished(one)
}

func TestSessionsThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"a clone":     {status.Error(codes.AlreadyExists, "agent builder is here from host a"), "a data folder was copied"},
		"superseded":  {status.Error(codes.Aborted, "a newer session took over"), "a data folder was copied"},
		"removed":     {status.Error(codes.Unauthenticated, "agent builder was removed"), "does not accept this agent: agent builder was removed"},
		"too old":     {status.Error(codes.FailedPrecondition, "protocol 7 to 9 is needed"), "do not fit together: protocol 7 to 9"},
		"not a fleet": {status.Error(codes.Unimplemented, "unknown service"), "is no Switchyard control plane"},
	} {
		t.Run(name, func(t *testing.T) {
			f := fakefleet.New(t)
			tries := make(chan struct{}, 100)
			f.OnSession = func() error {
				tries <- struct{}{}
				return tc.err
			}
			f.Serve(f.Authority.Server(t, "switchyard", time.Now().Add(-time.Minute), time.Now().Add(time.Hour)))
			r := start(t, f, fakejob.New(t), t.TempDir())
			require.Eventually(t, func() bool { return r.log.count(tc.want) == 1 }, fakefleet.Patience, time.Millisecond, "%s", r.log)
			require.Len(t, tries, 1)
			require.Equal(t, 1, r.log.count("level=ERROR"))
			r.Drain()
			require.NoError(t, r.wait(), "it can leave")
		})
	}
}

// A process with a copy of the data folder has the names of the original's jobs: it must not take them for its own leftovers.
func TestWhatIsLeftIsRemovedOnlyByAnAgentThatWasLetIn(t *testing.T) {
	f, x := fakefleet.New(t), fakejob.New(t)
	var clones atomic.Bool
	f.OnSession = func() error {
		if clones.Load() {
			return status.Error(codes.AlreadyExists, "agent builder is here from host a")
		}
		return nil
	}
	f.Serve(f.Authority.Server(t, "switchyard", time.Now().Add(-time.Minute), time.Now().Add(time.Hour)))
	original := t.TempDir()
	start(t, f, x, original)
	s := f.Next()
	s.Welcome(period, forever)
	f.SetPayload(1, fakejob.Payload(1, "wait"))
	run(s, one)
	s.Started(one)

	dir := t.TempDir()
	for _, file := range []string{"agent.crt", "agent.key", "agent.json", "ca.crt"} {
		b, err := os.ReadFile(filepath.Join(original, file))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), b, 0o600))
	}
	clones.Store(true)
	r := start(t, f, x, dir)
	require.Eventually(t, func() bool { return r.log.count("a data folder was copied") == 1 }, fakefleet.Patience, time.Millisecond, "%s", r.log)
	r.Drain()
	require.NoError(t, r.wait())
	require.Equal(t, 1, x.Running(), "the original's job goes on")

	clones.Store(false) // the control plane says that there is no other
	start(t, f, x, dir)
	f.Next().Welcome(period, forever)
	require.Eventually(t, func() bool { return x.Running() == 0 }, fakefleet.Patience, time.Millisecond)
}

// Of jobs in a copy of a data folder nothing is said while the original is there: their processes are not here.
func TestTheJobsInACopiedFolderAreTheOriginals(t *testing.T) {
	f, x := fakefleet.Start(t), fakejob.New(t)
	dir := t.TempDir()
	original := filepath.Join(dir, "original")
	end := filepath.Join(dir, "end")
	f.SetPayload(1, fakejob.Payload(1, "after "+end, "print done"))
	r := start(t, f, x, original)
	s := f.Next()
	s.Welcome(period, forever)
	run(s, one)
	s.Started(one)
	r.leave()
	require.NoError(t, r.wait())

	copied := filepath.Join(dir, "copy")
	out, err := exec.Command("cp", "-a", original, copied).CombinedOutput()
	require.NoError(t, err, "%s", out)
	r = start(t, f, x, copied)
	s = f.Next()
	require.Empty(t, s.Hello.GetJobs())
	require.Equal(t, 1, r.log.count("the data folder is a copy"))
	s.Welcome(period, forever)
	r.noJobFolders()
	require.Equal(t, 1, x.Running(), "the original's goes on")
	f.SetPayload(2, fakejob.Payload(2, "wait"))
	run(s, two)
	s.Started(two)
	r.leave()
	require.NoError(t, r.wait())

	r = start(t, f, x, copied) // it was let in, so what it has is its own
	s = f.Next()
	require.EqualValues(t, 2, s.Hello.GetJobs()[0].GetRef().GetJob())
	s.Welcome(period, forever, s.Keep(two))
	r.leave()
	require.NoError(t, r.wait())

	start(t, f, x, original)
	s = f.Next()
	require.Equal(t, fleetv1.JobState_JOB_STATE_STARTED, s.Hello.GetJobs()[0].GetState())
	require.NoError(t, os.WriteFile(end, nil, 0o600))
	s.Welcome(period, forever, s.Keep(one))
	require.Equal(t, "success", s.Finished(one).GetState())
}

func TestRunFailsAtOnceWhereNoRetryHelps(t *testing.T) {
	f := fakefleet.Start(t)
	config := func(dir string, x executors.Executor) agent.Config {
		return agent.Config{
			Server: f.Address, Data: dir, Slots: 1, Executors: []executors.Executor{x}, JobBinary: "/bin/false",
			Token: func() (jointoken.Token, error) { return jointoken.New(f.Authority.Certificate), nil },
		}
	}
	run := func(c agent.Config) error {
		a, err := agent.New(c)
		require.NoError(t, err)
		return a.Run(t.Context())
	}
	var refused *identity.RefusedError
	require.ErrorAs(t, run(config(t.TempDir(), fakejob.New(t))), &refused)

	dir := t.TempDir()
	taken, err := datadir.Open(t.Context(), dir)
	require.NoError(t, err)
	defer taken.Close()
	var used *datadir.InUseError
	require.ErrorAs(t, run(config(dir, fakejob.New(t))), &used)

	x := fakejob.New(t)
	x.OnCheck = func() error { return errors.New("no shell here") }
	require.ErrorContains(t, run(config(t.TempDir(), x)), "no shell here")

	c := config(t.TempDir(), fakejob.New(t))
	c.Token = nil
	err = run(c)
	require.ErrorIs(t, err, identity.ErrNotEnrolled)
	require.ErrorContains(t, err, "--token-file")
}

func TestAnEnrolledAgentNeedsNoToken(t *testing.T) {
	r, f, _ := connect(t, fakejob.New(t))
	r.stop()
	a, err := agent.New(agent.Config{
		Server: f.Address, Data: r.dir, Slots: 1, Executors: []executors.Executor{fakejob.New(t)}, JobBinary: "/bin/false",
		Token: func() (jointoken.Token, error) {
			t.Error("the token file is read")
			return jointoken.Token{}, errors.New("gone")
		},
	})
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- a.Run(t.Context()) }()
	f.Next().Welcome(period, forever)
	a.Drain()
	require.NoError(t, <-ended)
	require.Equal(t, 1, f.Enrolled())
}

func TestTheCertificateIsRenewedInTime(t *testing.T) {
	f := fakefleet.New(t)
	f.OnEnroll = func(r *fleetv1.EnrollRequest) (*fleetv1.EnrollResponse, error) {
		return f.Grant(r, time.Now().Add(-20*time.Second), time.Now().Add(11*time.Second)) // two thirds are nearly over
	}
	tries := make(chan struct{}, 100)
	f.OnRenew = func(r *fleetv1.RenewRequest) (*fleetv1.RenewResponse, error) {
		tries <- struct{}{}
		if len(tries) == 1 {
			return nil, status.Error(codes.Unavailable, "not now")
		}
		id := f.AgentID("builder")
		return &fleetv1.RenewResponse{CertificateChain: f.Authority.Agent(t, id, r.GetCsr(), time.Now(), time.Now().Add(time.Hour))}, nil
	}
	f.Serve(f.Authority.Server(t, "switchyard", time.Now().Add(-time.Minute), time.Now().Add(time.Hour)))
	r := start(t, f, fakejob.New(t), t.TempDir())
	f.Next().Welcome(period, forever)
	require.Eventually(t, func() bool { return r.log.count("renewed the certificate") == 1 }, fakefleet.Patience, 5*time.Millisecond)
	require.Len(t, tries, 2)
	require.Equal(t, 1, r.log.count("cannot renew the certificate"))
}

func TestConfigIsChecked(t *testing.T) {
	good := agent.Config{Server: "h:1", Data: "d", Slots: 1, Executors: []executors.Executor{fakejob.New(t)}}
	for want, change := range map[string]func(c *agent.Config){
		`server "h": it must be HOST:PORT`:  func(c *agent.Config) { c.Server = "h" },
		"without a scheme":                  func(c *agent.Config) { c.Server = "https://h:1" },
		`"7443x" is no port`:                func(c *agent.Config) { c.Server = "h:7443x" },
		"data: no folder":                   func(c *agent.Config) { c.Data = "" },
		"slots is 0: it must be 1 to 10000": func(c *agent.Config) { c.Slots = 0 },
		`name "a b": it must be`:            func(c *agent.Config) { c.Name = "a b" },
		`label "": a key`:                   func(c *agent.Config) { c.Labels = map[string]string{"": "x"} },
		`label os="a b": a value`:           func(c *agent.Config) { c.Labels = map[string]string{"os": "a b"} },
		"executors: there is none":          func(c *agent.Config) { c.Executors = nil },
		`executors: "shell" is there twice`: func(c *agent.Config) { c.Executors = append(c.Executors, c.Executors[0]) },
	} {
		c := good
		change(&c)
		_, err := agent.New(c)
		require.ErrorContains(t, err, want)
	}
	_, err := agent.New(good)
	require.NoError(t, err)
}
