package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/agent"
	"github.com/switchyard-ci/switchyard/agent/internal/fakefleet"
	"github.com/switchyard-ci/switchyard/agent/internal/fakejob"
	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/executors"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// connect starts an agent and welcomes it.
func connect(t *testing.T, x executors.Executor) (*runner, *fakefleet.Fleet, *fakefleet.Session) {
	t.Helper()
	f := fakefleet.Start(t)
	r := start(t, f, x, t.TempDir())
	s := f.Next()
	s.Welcome(period, forever)
	return r, f, s
}

func TestJobsThatCannotBeRunFailInTheAgentsWords(t *testing.T) {
	for name, tc := range map[string]struct {
		payload   []byte
		onPrepare func(context.Context, io.Writer) error
		reason    runnerapi.FailureReason
		want      string
	}{
		"the payload is no JSON": {
			payload: []byte(`{"id": "seven"`), reason: runnerapi.ReasonRunnerSystem,
			want: "\n\x1b[31;1mERROR: Job failed (system failure): read the job's payload: unexpected end of JSON input\x1b[0;m\n",
		},
		"the payload is gone": {reason: runnerapi.ReasonRunnerSystem, want: "get the job's payload: no such payload"},
		"preparing fails": {
			payload: fakejob.Payload(1), reason: runnerapi.ReasonRunnerSystem,
			onPrepare: func(_ context.Context, trace io.Writer) error {
				_, _ = io.WriteString(trace, "half a li")
				return errors.New("no disk")
			},
			want: "\x1b[0Khalf a li\x1b[0;m\nsection_end:%:prepare_executor\r\x1b[0K\n\x1b[31;1mERROR: Job failed (system failure): prepare environment: no disk\x1b[0;m\n",
		},
		"preparing fails for a reason": {
			payload: fakejob.Payload(1), reason: runnerapi.ReasonImagePull,
			onPrepare: func(context.Context, io.Writer) error {
				return &executors.Error{Reason: runnerapi.ReasonImagePull, Err: errors.New("no such image")}
			},
			want: "prepare environment: no such image",
		},
		"the process dies": {
			payload: fakejob.Payload(1, "print begun", "die"), reason: runnerapi.ReasonRunnerSystem,
			want: "begun\n\x1b[31;1mERROR: Job failed (system failure): the job's process was killed (SIGKILL: by hand, or because memory ran out) and left no result\x1b[0;m\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := fakejob.New(t)
			x.OnPrepare = tc.onPrepare
			r, f, s := connect(t, x)
			if tc.payload != nil {
				f.SetPayload(1, tc.payload)
			}
			run(s, one)
			result := s.Finished(one)
			require.Equal(t, "failed", result.GetState())
			require.EqualValues(t, tc.reason, result.GetFailureReason())
			require.NotEmpty(t, result.GetMessage())
			trace := f.WholeTrace(1, result)
			head, tail, _ := strings.Cut(tc.want, "%")
			require.Contains(t, trace, head)
			require.True(t, strings.HasSuffix(trace, tail), "the trace is %q", trace)
			require.Contains(t, trace, "Running with switchyard")

			r.stop() // the result is kept: another process says the same
			start(t, f, x, r.dir)
			s = f.Next()
			held := s.Hello.GetJobs()
			require.Len(t, held, 1)
			require.Equal(t, fleetv1.JobState_JOB_STATE_FINISHED, held[0].GetState())
			require.Equal(t, result.GetTraceCrc32(), held[0].GetResult().GetTraceCrc32())
			require.Equal(t, result.GetMessage(), held[0].GetResult().GetMessage())
		})
	}
}

func TestADiskThatIsNearlyFull(t *testing.T) {
	var full atomic.Bool
	f := fakefleet.Start(t)
	r := start(t, f, fakejob.New(t), t.TempDir(), func(a *agent.Agent) {
		a.SetRoom(func() error {
			if full.Load() {
				return errors.New("the disk is nearly full")
			}
			return nil
		})
	})
	s := f.Next()
	require.False(t, s.Hello.GetDraining())
	s.Welcome(short, forever)
	f.SetPayload(1, fakejob.Payload(1, "wait"))
	run(s, one)
	s.Started(one)
	full.Store(true)
	require.True(t, s.Status().GetDraining(), "it is said without being asked")
	s.Offer(two)
	require.Equal(t, "the disk is nearly full", s.Refused(two))
	full.Store(false)
	require.False(t, s.Status().GetDraining())
	s.Offer(two)
	s.Accepted(two)
	s.Cancel(one, graceful)
	s.Finished(one)
	require.Equal(t, 1, r.log.count("taking no jobs until there is room"))
}

func TestADiskThatIsFull(t *testing.T) {
	r, f, s := connect(t, fakejob.New(t))
	f.SetPayload(1, fakejob.Payload(1))
	jobs := filepath.Join(r.dir, "jobs")
	s.Offer(one)
	s.Accepted(one)
	require.NoError(t, os.Rename(jobs, jobs+".away")) // nothing can be written, even by root
	require.NoError(t, os.WriteFile(jobs, nil, 0o600))
	s.Start(one)
	result := s.Finished(one)
	require.Equal(t, "runner_system_failure", result.GetFailureReason())
	require.Contains(t, f.WholeTrace(1, result), "the agent cannot keep the job")
	require.NoError(t, os.Remove(jobs))
	require.NoError(t, os.Rename(jobs+".away", jobs))
	s.Forget(one)
	f.SetPayload(2, fakejob.Payload(2))
	run(s, two)
	require.Equal(t, "success", s.Finished(two).GetState())
}

func TestCancel(t *testing.T) {
	for name, tc := range map[string]struct {
		command string
		modes   []fleetv1.CancelMode
		want    string
		reason  string
	}{
		"gracefully":     {"wait", []fleetv1.CancelMode{graceful}, "canceled gracefully", "job_canceled"},
		"at once":        {"hang", []fleetv1.CancelMode{kill}, "canceled\n", "job_canceled"},
		"first so, then": {"hang", []fleetv1.CancelMode{graceful, kill}, "canceled\n", "job_canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			_, f, s := connect(t, fakejob.New(t))
			f.SetPayload(1, fakejob.Payload(1, tc.command))
			run(s, one)
			s.Started(one)
			for _, mode := range tc.modes {
				s.Cancel(one, mode)
			}
			result := s.Finished(one)
			require.Equal(t, tc.reason, result.GetFailureReason())
			require.Contains(t, f.WholeTrace(1, result), tc.want)
		})
	}
}

func TestCancelWhileTheEnvironmentIsPrepared(t *testing.T) {
	x := fakejob.New(t)
	preparing := make(chan struct{})
	x.OnPrepare = func(ctx context.Context, _ io.Writer) error {
		close(preparing)
		<-ctx.Done()
		return ctx.Err()
	}
	_, f, s := connect(t, x)
	f.SetPayload(1, fakejob.Payload(1, "print x"))
	run(s, one)
	<-preparing
	s.Cancel(one, graceful)
	result := s.Finished(one)
	require.Equal(t, "job_canceled", result.GetFailureReason())
	require.Contains(t, f.WholeTrace(1, result), "ERROR: Job failed: canceled")
	require.Zero(t, x.Starts(1))
}

func TestAJobThatIsKilledByVerdict(t *testing.T) {
	x := fakejob.New(t)
	r, f, s := connect(t, x)
	f.SetPayload(1, fakejob.Payload(1, "numb"))
	run(s, one)
	s.Started(one)
	f.Restart()
	s = f.Next()
	s.Welcome(period, forever, &fleetv1.JobVerdict{Ref: one.Proto(), Verdict: fleetv1.Verdict_VERDICT_KILL})
	r.noJobFolders()
	require.Zero(t, x.Running())
	s.Quiet(20 * time.Millisecond) // a killed job is not reported
}

func TestTheAgentIsRestartedWhileJobsRun(t *testing.T) {
	x := fakejob.New(t)
	end := filepath.Join(t.TempDir(), "end")
	r, f, s := connect(t, x)
	f.SetPayload(1, fakejob.Payload(1, "print before", "after "+end, "bytes 300000", "print after"))
	f.SetPayload(2, fakejob.Payload(2, "print quick"))
	run(s, one)
	s.Started(one)
	run(s, two)
	finished := s.Finished(two)
	require.Eventually(t, func() bool { return x.Running() == 1 }, fakefleet.Patience, time.Millisecond)
	r.stop()
	require.Equal(t, 1, x.Running(), "the job goes on")

	r = start(t, f, x, r.dir)
	s = f.Next()
	require.Len(t, s.Hello.GetJobs(), 2)
	for _, held := range s.Hello.GetJobs() {
		if held.GetRef().GetJob() == 1 {
			require.Equal(t, fleetv1.JobState_JOB_STATE_STARTED, held.GetState())
		} else {
			require.Equal(t, fleetv1.JobState_JOB_STATE_FINISHED, held.GetState())
			require.Equal(t, finished.GetTraceCrc32(), held.GetResult().GetTraceCrc32())
			require.Equal(t, finished.GetTraceLength(), held.GetResult().GetTraceLength())
		}
	}
	s.Welcome(period, forever, s.Keep(one), &fleetv1.JobVerdict{Ref: two.Proto(), Verdict: fleetv1.Verdict_VERDICT_FORGET})
	s.Started(one)
	require.NoError(t, os.WriteFile(end, nil, 0o600))
	result := s.Finished(one)
	require.Equal(t, "success", result.GetState())
	trace := f.WholeTrace(1, result)
	require.Contains(t, trace, "before\n")
	require.True(t, strings.HasSuffix(trace, "after\n"))
	require.Equal(t, 1, x.Starts(1))
	s.Forget(one)
	r.noJobFolders()
}

func TestAJobEndsWhileTheAgentIsAway(t *testing.T) {
	for name, last := range map[string]string{"with a result": "exit 4", "without one": "die"} {
		t.Run(name, func(t *testing.T) {
			x := fakejob.New(t)
			end := filepath.Join(t.TempDir(), "end")
			r, f, s := connect(t, x)
			f.SetPayload(1, fakejob.Payload(1, "after "+end, "bytes 500000", last))
			run(s, one)
			s.Started(one)
			r.stop()
			require.NoError(t, os.WriteFile(end, nil, 0o600))
			require.Eventually(t, func() bool { return x.Running() == 0 }, fakefleet.Patience, time.Millisecond)

			start(t, f, x, r.dir)
			s = f.Next()
			s.Welcome(period, forever, s.Keep(one))
			result := s.Finished(one)
			trace := f.WholeTrace(1, result)
			if last == "die" {
				require.Equal(t, "runner_system_failure", result.GetFailureReason())
				require.Contains(t, trace, "the job's process is gone and left no result")
			} else {
				require.EqualValues(t, 4, result.GetExitCode())
			}
		})
	}
}

func TestTheAgentIsRestartedBeforeTheJobHasStarted(t *testing.T) {
	x := fakejob.New(t)
	preparing := make(chan struct{}, 1)
	attempt := 0
	x.OnPrepare = func(ctx context.Context, trace io.Writer) error {
		attempt++
		_, _ = fmt.Fprintf(trace, "attempt %d\n", attempt)
		if attempt > 2 {
			return nil
		}
		preparing <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	r, f, s := connect(t, x)
	f.SetPayload(1, fakejob.Payload(1, "print once"))
	run(s, one)
	for n := 1; n <= 2; n++ {
		<-preparing
		f.WaitTrace(1, func(trace string) bool { return strings.Contains(trace, fmt.Sprintf("attempt %d", n)) })
		r.stop()
		r = start(t, f, x, r.dir)
		s = f.Next()
		require.Equal(t, fleetv1.JobState_JOB_STATE_ACCEPTED, s.Hello.GetJobs()[0].GetState(), "it can still be started, and only here")
		s.Welcome(period, forever, s.Keep(one))
		s.Start(one)
	}
	result := s.Finished(one)
	require.Equal(t, "success", result.GetState())
	trace := f.WholeTrace(1, result) // what was received is still true
	require.Equal(t, 1, strings.Count(trace, "Running with"), "%q", trace)
	require.Equal(t, 2, strings.Count(trace, "prepared anew"))
	require.Equal(t, 3, strings.Count(trace, "section_start:"))
	require.Equal(t, 3, strings.Count(trace, "section_end:"))
	require.True(t, strings.HasSuffix(trace, "once\n"))
	require.Equal(t, 1, x.Starts(1))
	s.Forget(one)
	r.noJobFolders()
}

func TestLeftoversOfEarlierRunsAreSwept(t *testing.T) {
	x := fakejob.New(t)
	dir := t.TempDir()
	jobs := filepath.Join(dir, "jobs")
	for _, name := range []string{"sy-0-1-1", ".trash-sy-0-2-1", "sy-0-3-1"} {
		require.NoError(t, os.MkdirAll(filepath.Join(jobs, name, "job"), 0o700))
	}
	require.NoError(t, os.WriteFile(filepath.Join(jobs, "sy-0-3-1", "intent.json"), []byte(`{"version": 9}`), 0o600))
	f := fakefleet.Start(t)
	r := start(t, f, x, dir)
	s := f.Next()
	require.Empty(t, s.Hello.GetJobs())
	entries, err := os.ReadDir(jobs)
	require.NoError(t, err)
	require.Len(t, entries, 1, "only what a newer agent wrote is left alone")
	require.Equal(t, 1, r.log.count("made by a newer agent"))
}

func TestAPayloadOfFiveMegabytes(t *testing.T) {
	_, f, s := connect(t, fakejob.New(t))
	f.SetPayload(1, fakejob.Payload(1, "print "+strings.Repeat("x", 5<<20)))
	run(s, one)
	result := s.Finished(one)
	require.Equal(t, "success", result.GetState())
	require.Greater(t, result.GetTraceLength(), int64(5<<20))
	f.WholeTrace(1, result)
}

func TestAPayloadThatIsAskedForTooEarly(t *testing.T) {
	_, f, s := connect(t, fakejob.New(t))
	s.Offer(one)
	s.Accepted(one)
	require.Eventually(t, func() bool { return f.Fetched() > 0 }, fakefleet.Patience, time.Millisecond)
	f.SetPayload(1, fakejob.Payload(1, "print x"))
	s.Start(one)
	require.Equal(t, "success", s.Finished(one).GetState())
}

func TestConcurrentIDsAreTheLowestThatAreFree(t *testing.T) {
	r, f, s := connect(t, fakejob.New(t))
	dir := t.TempDir()
	id := func(ref ledger.Ref) (n int) {
		t.Helper()
		spec, err := filepath.Glob(filepath.Join(r.dir, "jobs", "*-"+ref.String()[:1]+"-1", "intent.json"))
		require.NoError(t, err)
		require.Len(t, spec, 1)
		b, err := os.ReadFile(spec[0])
		require.NoError(t, err)
		_, rest, _ := strings.Cut(string(b), `"concurrent_project_id":`)
		return int(rest[0] - '0')
	}
	for job, ref := range []ledger.Ref{one, two, three} {
		f.SetPayload(ref.Job, fakejob.Payload(ref.Job, "after "+filepath.Join(dir, ref.String()[:1])))
		if job < 2 {
			run(s, ref)
			s.Started(ref)
			require.Equal(t, job, id(ref))
		}
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "1"), nil, 0o600))
	s.Finished(one)
	run(s, three)
	s.Started(three)
	require.Equal(t, 0, id(three), "the number of the job that has ended, though it is still held")
}
