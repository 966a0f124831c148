package agent_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/agent"
	"github.com/switchyard-ci/switchyard/agent/internal/fakefleet"
	"github.com/switchyard-ci/switchyard/agent/internal/fakejob"
	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/executors"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

const (
	period   = 5 * time.Second        // longer than anything takes
	short    = 200 * time.Millisecond // where pings matter
	forever  = time.Hour
	graceful = fleetv1.CancelMode_CANCEL_MODE_GRACEFUL
	kill     = fleetv1.CancelMode_CANCEL_MODE_KILL
)

var (
	one   = ledger.Ref{Job: 1, Epoch: 1}
	two   = ledger.Ref{Job: 2, Epoch: 1}
	three = ledger.Ref{Job: 3, Epoch: 1}
)

// runner is an agent that runs in this process.
type runner struct {
	*agent.Agent
	t     *testing.T
	fleet *fakefleet.Fleet
	dir   string
	log   *logBuffer
	leave context.CancelFunc
	ended chan error
}

// logBuffer is a log that tests read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs an agent with two slots until the test ends. before may change it.
func start(t *testing.T, f *fakefleet.Fleet, x executors.Executor, dir string, before ...func(*agent.Agent)) *runner {
	t.Helper()
	r := &runner{t: t, fleet: f, dir: dir, log: &logBuffer{}, ended: make(chan error, 1)}
	a, err := agent.New(agent.Config{
		Server: f.Address, Data: dir, Name: "builder", Slots: 2, Labels: map[string]string{"os": "linux"},
		Token: func() (jointoken.Token, error) { return f.Token, nil }, JobBinary: "/bin/false", Executors: []executors.Executor{x},
		Log: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	require.NoError(t, err)
	r.Agent = a
	for _, f := range before {
		f(a)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.leave = cancel
	go func() { r.ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		_ = r.wait()
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	return r
}

// stop ends the agent's process, as it were: its jobs go on.
func (r *runner) stop() {
	r.t.Helper()
	r.leave()
	require.NoError(r.t, r.wait())
}

// wait waits for Run to return.
func (r *runner) wait() error {
	r.t.Helper()
	select {
	case err := <-r.ended:
		r.ended <- nil // for the cleanup
		return err
	case <-time.After(fakefleet.Patience):
		r.t.Fatal("the agent does not leave")
		return nil
	}
}

// run does with a job all that is right, up to its start.
func run(s *fakefleet.Session, ref ledger.Ref) {
	s.Offer(ref)
	s.Accepted(ref)
	s.Start(ref)
}

func (r *runner) noJobFolders() {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		entries, err := os.ReadDir(filepath.Join(r.dir, "jobs"))
		return err == nil && len(entries) == 0
	}, fakefleet.Patience, time.Millisecond)
}

func TestAJobFromOfferToForget(t *testing.T) {
	f, x := fakefleet.Start(t), fakejob.New(t)
	f.SetPayload(1, fakejob.Payload(1, "print hello", "exit 3"))
	r := start(t, f, x, t.TempDir())
	s := f.Next()
	h := s.Hello
	require.NotEmpty(t, h.GetBootId())
	require.EqualValues(t, 1, h.GetProtocolMin())
	require.EqualValues(t, 2, h.GetSlots())
	require.Equal(t, map[string]string{"os": "linux"}, h.GetLabels())
	require.Equal(t, "shell", h.GetExecutors()[0].GetName())
	require.Contains(t, h.GetExecutors()[0].GetFeatures(), "masking")
	require.Contains(t, h.GetExecutors()[0].GetFeatures(), "variables")
	require.Empty(t, h.GetJobs())
	s.Welcome(period, forever)

	run(s, one)
	result := s.Finished(one)
	require.Equal(t, "failed", result.GetState())
	require.Equal(t, "script_failure", result.GetFailureReason())
	require.EqualValues(t, 3, result.GetExitCode())
	trace := f.WholeTrace(1, result)
	require.Regexp(t, `^\x1b\[0KRunning with switchyard \S+ \(\S+\)\x1b\[0;m\n`+
		`\x1b\[0K  on runner abcdefghi, system ID: s_0123456789ab\x1b\[0;m\n`+
		`section_start:\d+:prepare_executor\r\x1b\[0K\x1b\[0K\x1b\[36;1mPreparing the "shell" executor\x1b\[0;m\x1b\[0;m\n`+
		`\x1b\[0KUsing a fake executor\.\.\.\x1b\[0;m\n`+
		`section_end:\d+:prepare_executor\r\x1b\[0Khello\n$`, trace)
	require.DirExists(t, filepath.Join(r.dir, "jobs"))
	entries, err := os.ReadDir(filepath.Join(r.dir, "jobs"))
	require.NoError(t, err)
	require.Len(t, entries, 1, "nothing is deleted before Forget")

	s.Forget(one)
	r.noJobFolders()
	require.Equal(t, 1, f.Fetched())
}

func TestRepeatedAndStaleMessagesDoNoHarm(t *testing.T) {
	f, x := fakefleet.Start(t), fakejob.New(t)
	f.SetPayload(1, fakejob.Payload(1, "wait"))
	start(t, f, x, t.TempDir())
	s := f.Next()
	s.Welcome(period, forever)

	second := ledger.Ref{Job: 1, Epoch: 2}
	s.Offer(second)
	s.Accepted(second)
	s.Offer(second)
	s.Accepted(second)
	s.Start(one) // a stale epoch
	require.Contains(t, s.Refused(one), "does not hold")
	s.Start(second)
	s.Start(second)
	s.Started(second)
	s.Withdraw(second)
	s.Cancel(one, kill)
	s.Offer(ledger.Ref{Job: 1, Epoch: 3})
	require.Contains(t, s.Refused(ledger.Ref{Job: 1, Epoch: 3}), "attempt 2")
	s.Forget(one)
	s.Quiet(50 * time.Millisecond)
	require.Equal(t, 1, x.Running())
	s.Cancel(second, graceful)
	s.Cancel(second, graceful)
	result := s.Finished(second)
	require.Equal(t, "job_canceled", result.GetFailureReason())
	require.Contains(t, f.WholeTrace(1, result), "canceled gracefully")
	require.Equal(t, 1, x.Starts(1))
}

func TestOffersThatAreRefused(t *testing.T) {
	f, x := fakefleet.Start(t), fakejob.New(t)
	for job := int64(1); job <= 3; job++ {
		f.SetPayload(job, fakejob.Payload(job, "wait"))
	}
	start(t, f, x, t.TempDir())
	s := f.Next()
	s.Welcome(period, forever)
	run(s, one)
	s.Started(one)
	s.Offer(two)
	s.Accepted(two)
	s.Offer(three)
	require.Contains(t, s.Refused(three), "no slot is free")
	s.Withdraw(two)
	require.Eventually(t, func() bool { // the slot is free as soon as the promise is gone
		s.Offer(three)
		return s.Reply().GetAccepted()
	}, fakefleet.Patience, time.Millisecond)
	s.Drain("maintenance")
	require.True(t, s.Status().GetDraining())
	s.Withdraw(three)
	fresh := ledger.Ref{Job: 4, Epoch: 1}
	s.Offer(fresh)
	require.Contains(t, s.Refused(fresh), "maintenance")

	s.End(status.Error(codes.Unavailable, "come back"))
	s = f.Next()
	require.False(t, s.Hello.GetDraining(), "a Drain holds for its session")
	s.Welcome(period, forever, s.Keep(one))
	s.Offer(fresh)
	s.Accepted(fresh)
}

func TestAnOfferToASlotThatIsBeingCleared(t *testing.T) {
	f, x := fakefleet.Start(t), fakejob.New(t)
	cleared := filepath.Join(t.TempDir(), "clear")
	f.SetPayload(1, fakejob.Payload(1, "print x"))
	f.SetPayload(2, fakejob.Payload(2, "after "+cleared))
	f.SetPayload(3, fakejob.Payload(3, "print z"))
	start(t, f, x, t.TempDir())
	s := f.Next()
	s.Welcome(period, forever)
	run(s, two)
	s.Started(two)
	for job := int64(10); job < 20; job++ {
		ref := ledger.Ref{Job: job, Epoch: 1}
		f.SetPayload(job, fakejob.Payload(job, "print x"))
		run(s, ref) // right after the last one's result, while its environment is being destroyed
		s.Finished(ref)
	}
	require.NoError(t, os.WriteFile(cleared, nil, 0o600))
	s.Finished(two)
}

func TestAnAcceptedJobIsTakenBackOnAnotherSession(t *testing.T) {
	f, x := fakefleet.Start(t), fakejob.New(t)
	f.SetPayload(1, fakejob.Payload(1, "print x"))
	start(t, f, x, t.TempDir())
	s := f.Next()
	s.Welcome(period, forever)
	s.Offer(one)
	s.Accepted(one)
	f.Restart()
	s = f.Next()
	require.Len(t, s.Hello.GetJobs(), 1)
	require.Equal(t, fleetv1.JobState_JOB_STATE_ACCEPTED, s.Hello.GetJobs()[0].GetState())
	s.Welcome(period, forever, &fleetv1.JobVerdict{Ref: one.Proto(), Verdict: fleetv1.Verdict_VERDICT_KILL})
	next := ledger.Ref{Job: 1, Epoch: 2}
	require.Eventually(t, func() bool {
		s.Offer(next)
		return s.Reply().GetAccepted()
	}, fakefleet.Patience, time.Millisecond)
	s.Start(next)
	s.Finished(next)
	require.Equal(t, 1, x.Starts(1))
}

func TestASessionThatBreaksWhileAJobRuns(t *testing.T) {
	f, x := fakefleet.Start(t), fakejob.New(t)
	end := filepath.Join(t.TempDir(), "end")
	f.SetPayload(1, fakejob.Payload(1, "print before", "after "+end, "bytes 1000000", "print after"))
	r := start(t, f, x, t.TempDir())
	s := f.Next()
	s.Welcome(period, forever)
	run(s, one)
	f.WaitTrace(1, func(trace string) bool { return strings.Contains(trace, "before") })
	f.Restart() // STARTED was not acknowledged
	s = f.Next()
	held := s.Hello.GetJobs()
	require.Len(t, held, 1)
	require.Equal(t, fleetv1.JobState_JOB_STATE_STARTED, held[0].GetState())
	require.Positive(t, held[0].GetTraceLength())
	s.Welcome(period, forever, s.Keep(one))
	s.Started(one) // it is said again
	require.NoError(t, os.WriteFile(end, nil, 0o600))
	result := s.Finished(one)
	require.Contains(t, f.WholeTrace(1, result), "after\n")

	f.Restart() // FINISHED was acknowledged, Forget is lost
	s = f.Next()
	require.Equal(t, fleetv1.JobState_JOB_STATE_FINISHED, s.Hello.GetJobs()[0].GetState())
	require.Equal(t, result.GetTraceCrc32(), s.Hello.GetJobs()[0].GetResult().GetTraceCrc32())
	s.Welcome(period, forever, &fleetv1.JobVerdict{Ref: one.Proto(), Verdict: fleetv1.Verdict_VERDICT_FORGET})
	r.noJobFolders()
	require.Equal(t, 2, r.log.count("level=WARN"), "an outage is told once")
}

func TestAControlPlaneThatFallsSilentIsLeft(t *testing.T) {
	f, x := fakefleet.Start(t), fakejob.New(t)
	r := start(t, f, x, t.TempDir())
	s := f.Next()
	s.Welcome(short, forever)
	require.Eventually(t, func() bool { return s.Pings() >= 2 }, fakefleet.Patience, time.Millisecond)
	s.Mute()
	muted := time.Now()
	next := f.Next()
	require.Less(t, time.Since(muted), 4*short+time.Second)
	require.Equal(t, s.Hello.GetBootId(), next.Hello.GetBootId())
	require.Equal(t, 1, r.log.count("has not been heard for two ping periods"))
	next.Welcome(short, forever)
}

func TestTheControlPlaneSaysWhenToComeBack(t *testing.T) {
	f, x := fakefleet.Start(t), fakejob.New(t)
	start(t, f, x, t.TempDir())
	s := f.Next()
	s.Welcome(period, forever)
	s.ComeBack(time.Second)
	s.End(nil)
	f.NoSession(900 * time.Millisecond)
	f.Next().Welcome(period, forever)
}
