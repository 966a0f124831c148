package agent_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/agent/internal/fakefleet"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/internal/testbed"
	"github.com/switchyard-ci/switchyard/internal/testbinary"
)

// programs is the folder of switchyard-agent and switchyard-job, built by TestMain.
var programs string

func TestMain(m *testing.M) {
	var err error
	if programs, err = testbinary.Build("switchyard-agent", "switchyard-job"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	_ = os.RemoveAll(programs)
	os.Exit(code)
}

// process is an agent that runs as users run it.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{}
}

// spawn starts an agent on a data folder. The test ends it, and whatever jobs it has.
func spawn(t testing.TB, f *fakefleet.Fleet, data string, args ...string) *process {
	t.Helper()
	testbed.Need(t, testbed.Bash)
	token := filepath.Join(filepath.Dir(data), "token")
	if _, err := os.Stat(filepath.Join(data, "agent.crt")); err != nil {
		require.NoError(t, os.WriteFile(token, []byte(f.Token.String()+"\n"), 0o600))
	} else {
		_ = os.Remove(token) // it is not needed any more
	}
	p := &process{t: t, log: &logBuffer{}, done: make(chan struct{})}
	p.cmd = exec.Command(filepath.Join(programs, "switchyard-agent"), append([]string{
		"--server", f.Address, "--token-file", token, "--data", data, "--slots", "2", "--name", "builder", "--log-level", "debug",
	}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.WaitDelay = time.Second
	// Jobs are login shells: what the profile of whoever runs the tests does, and leaves behind when it is killed, is not theirs.
	home := filepath.Join(filepath.Dir(data), "home")
	require.NoError(t, os.MkdirAll(home, 0o700))
	p.cmd.Env = append(os.Environ(), "HOME="+home)
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.signal(syscall.SIGKILL)
		<-p.done
		if t.Failed() {
			t.Log(p.log.String())
		}
	})
	return p
}

func (p *process) signal(s os.Signal) { _ = p.cmd.Process.Signal(s) }

// wait returns the exit code.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(fakefleet.Patience):
		p.t.Fatal("the agent does not leave")
		return 0
	}
}

// bash is the payload of a job that runs these commands.
func bash(job int64, commands ...string) []byte {
	b, err := json.Marshal(runnerapi.Job{
		ID: job, JobInfo: runnerapi.JobInfo{ID: job, Name: "job", ProjectID: 1, ProjectFullPath: "group/project"},
		GitInfo:    runnerapi.GitInfo{RepoURL: "http://127.0.0.1:1/group/project.git", SHA: strings.Repeat("0", 40), RefType: "branch"},
		RunnerInfo: runnerapi.RunnerInfo{Timeout: 120},
		Variables:  []runnerapi.Variable{{Key: "GIT_STRATEGY", Value: "none", Public: true}},
		Steps:      []runnerapi.Step{{Name: "script", Script: commands}},
		Features:   runnerapi.JobFeatures{TraceSections: true, FailureReasons: []runnerapi.FailureReason{runnerapi.ReasonCanceled}},
	})
	if err != nil {
		panic(err)
	}
	return b
}

func TestARealJob(t *testing.T) {
	f := fakefleet.Start(t)
	data := filepath.Join(t.TempDir(), "data")
	p := spawn(t, f, data, "--label", "os=linux")
	s := f.Next()
	require.Equal(t, "bash", s.Hello.GetExecutors()[0].GetShell())
	s.Welcome(period, forever)
	f.SetPayload(1, bash(1, "echo hello; env", "exit 3"))
	run(s, one)
	result := s.Finished(one)
	require.EqualValues(t, 3, result.GetExitCode())
	trace := f.WholeTrace(1, result)
	require.Contains(t, trace, "hello\n")
	require.Contains(t, trace, "CI_CONCURRENT_ID=0\n")
	require.NotContains(t, trace, f.Token.String())
	require.Regexp(t, `(?s)Running with switchyard.*Preparing the "shell" executor.*Using Shell \(bash\) executor.*Preparing environment`, trace)
	p.signal(syscall.SIGTERM)
	require.True(t, s.Status().GetDraining())
	s.Forget(one)
	require.Zero(t, p.wait())
	entries, err := os.ReadDir(filepath.Join(data, "jobs"))
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestAJobWhoseProgramIsMissing(t *testing.T) {
	f := fakefleet.Start(t)
	dir := t.TempDir()
	program := filepath.Join(dir, "switchyard-job")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\necho broken program >&2\nexit 1\n"), 0o755))
	spawn(t, f, filepath.Join(dir, "data"), "--job-binary", program)
	s := f.Next()
	s.Welcome(period, forever)
	f.SetPayload(1, bash(1, "echo never"))
	run(s, one)
	result := s.Finished(one)
	require.Equal(t, "runner_system_failure", result.GetFailureReason())
	require.Contains(t, f.WholeTrace(1, result), "ended with exit code 1 and left no result: broken program")

	require.NoError(t, os.Remove(program))
	f.SetPayload(2, bash(2, "echo never"))
	run(s, two)
	result = s.Finished(two)
	require.Equal(t, "runner_system_failure", result.GetFailureReason())
	require.Contains(t, f.WholeTrace(2, result), program)
}

func TestTheAgentIsKilledWhileARealJobRuns(t *testing.T) {
	f := fakefleet.Start(t)
	data := filepath.Join(t.TempDir(), "data")
	const lines = 4000
	f.SetPayload(1, bash(1, fmt.Sprintf(`for ((i = 0; i < %d; i++)); do echo "line $i"; if ((i %% 100 == 0)); then sleep 0.03; fi; done`, lines), "exit 6"))
	p := spawn(t, f, data)
	s := f.Next()
	s.Welcome(period, forever)
	run(s, one)
	s.Started(one)
	for range 5 {
		have := f.Received(1)
		f.WaitTrace(1, func(trace string) bool { return int64(len(trace)) > have })
		<-time.After(rand.N(40 * time.Millisecond)) // any moment is as good as another
		p.signal(syscall.SIGKILL)
		<-p.done
		p = spawn(t, f, data)
		s = f.Next()
		require.Len(t, s.Hello.GetJobs(), 1)
		s.Welcome(period, forever, s.Keep(one))
	}
	result := s.Finished(one)
	require.EqualValues(t, 6, result.GetExitCode())
	trace := f.WholeTrace(1, result)
	_, rest, ok := strings.Cut(trace, "\nline 0\n")
	require.True(t, ok)
	rest = "line 0\n" + rest
	for i := range lines {
		line := fmt.Sprintf("line %d\n", i)
		require.True(t, strings.HasPrefix(rest, line), "after line %d comes %.40q", i-1, rest)
		rest = rest[len(line):]
	}
	require.Equal(t, 1, strings.Count(trace, "Running with"))
	require.Equal(t, 1, f.Enrolled())
	s.Forget(one)
}

// TestTheAgentIsKilledAtAnyMoment kills it over and over while jobs come and go, and checks that each job ran exactly once
// and ended with a whole trace.
func TestTheAgentIsKilledAtAnyMoment(t *testing.T) {
	f := fakefleet.Start(t)
	dir := t.TempDir()
	data, ran := filepath.Join(dir, "data"), filepath.Join(dir, "ran")
	const jobs = 12
	for job := range int64(jobs) {
		f.SetPayload(job+1, bash(job+1, fmt.Sprintf("echo run >> %s.%d; sleep 0.02; echo out", ran, job+1)))
	}
	p := spawn(t, f, data)
	s := f.Next()
	s.Welcome(period, forever)
	for job := range int64(jobs) {
		ref := one
		ref.Job = job + 1
		run(s, ref)
		<-time.After(rand.N(60 * time.Millisecond)) // from before the intent is written to after the result
		p.signal(syscall.SIGKILL)
		<-p.done
		p = spawn(t, f, data)
		s = f.Next()
		var verdicts []*fleetv1.JobVerdict
		held := false
		for _, j := range s.Hello.GetJobs() {
			if j.GetRef().GetJob() == ref.Job {
				held = true
				verdicts = append(verdicts, s.Keep(ref))
			} else { // it was killed before it had done what Forget says
				verdicts = append(verdicts, &fleetv1.JobVerdict{Ref: j.GetRef(), Verdict: fleetv1.Verdict_VERDICT_FORGET})
			}
		}
		s.Welcome(period, forever, verdicts...)
		if !held { // it was killed before it had written the job down: as good as lost before the start
			_, err := os.Stat(fmt.Sprintf("%s.%d", ran, ref.Job))
			require.ErrorIs(t, err, os.ErrNotExist)
			continue
		}
		s.Start(ref) // as the control plane does for a job that it has as started
		result := s.Finished(ref)
		require.Equal(t, "success", result.GetState(), "job %d: %s", ref.Job, result.GetMessage())
		trace := f.WholeTrace(ref.Job, result)
		require.Equal(t, 1, strings.Count(trace, "\nout\n"))
		b, err := os.ReadFile(fmt.Sprintf("%s.%d", ran, ref.Job))
		require.NoError(t, err)
		require.Equal(t, "run\n", string(b), "job %d", ref.Job)
		s.Forget(ref)
	}
}

func TestSIGQUITLeavesTheJobsAlone(t *testing.T) {
	f := fakefleet.Start(t)
	dir := t.TempDir()
	data, end := filepath.Join(dir, "data"), filepath.Join(dir, "end")
	f.SetPayload(1, bash(1, "echo begun; while ! test -e "+end+"; do sleep 0.02; done; echo ended"))
	p := spawn(t, f, data)
	s := f.Next()
	s.Welcome(period, forever)
	run(s, one)
	s.Started(one)
	p.signal(syscall.SIGQUIT)
	require.Zero(t, p.wait())
	require.NoError(t, os.WriteFile(end, nil, 0o600))
	p = spawn(t, f, data)
	s = f.Next()
	s.Welcome(period, forever, s.Keep(one))
	result := s.Finished(one)
	require.Equal(t, "success", result.GetState())
	require.Contains(t, f.WholeTrace(1, result), "ended\n")
	p.signal(syscall.SIGTERM)
	s.Status()
	s.Forget(one)
	require.Zero(t, p.wait())
}

func TestTwoSignalsCancelRealJobs(t *testing.T) {
	f := fakefleet.Start(t)
	f.SetPayload(1, bash(1, "echo begun; sleep 600"))
	p := spawn(t, f, filepath.Join(t.TempDir(), "data"))
	s := f.Next()
	s.Welcome(period, forever)
	run(s, one)
	s.Started(one)
	p.signal(syscall.SIGTERM)
	s.Status()
	p.signal(syscall.SIGINT)
	result := s.Finished(one)
	require.Equal(t, "job_canceled", result.GetFailureReason())
	f.WholeTrace(1, result)
	require.Zero(t, p.wait())
}

func TestExitCodes(t *testing.T) {
	f := fakefleet.Start(t)
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	command := func(args ...string) (int, string) {
		t.Helper()
		c := exec.Command(filepath.Join(programs, "switchyard-agent"), args...)
		out, err := c.CombinedOutput()
		if exit := (*exec.ExitError)(nil); err != nil {
			require.ErrorAs(t, err, &exit)
		}
		return c.ProcessState.ExitCode(), string(out)
	}
	code, out := command("--server", "h:1", "--slots", "many")
	require.Equal(t, 2, code)
	require.Contains(t, out, "--slots")
	code, out = command("--version")
	require.Zero(t, code)
	require.Contains(t, out, "switchyard-agent ")

	code, out = command("--server", f.Address, "--data", data)
	require.Equal(t, 3, code)
	require.Contains(t, out, "--token-file")
	code, out = command("--server", f.Address, "--data", data, "--token-file", filepath.Join(dir, "none"))
	require.Equal(t, 3, code)
	require.Contains(t, out, "no such file")
	used := filepath.Join(dir, "used")
	require.NoError(t, os.WriteFile(used, []byte(strings.Replace(f.Token.String(), f.Token.String()[70:], strings.Repeat("a", 32), 1)), 0o644))
	code, out = command("--server", f.Address, "--data", data, "--token-file", used)
	require.Equal(t, 3, code)
	require.Contains(t, out, "the join token is not known")
	require.Contains(t, out, "others can read the join token")

	p := spawn(t, f, data)
	f.Next().Welcome(period, forever)
	code, out = command("--server", f.Address, "--data", data)
	require.Equal(t, 5, code)
	require.Contains(t, out, fmt.Sprintf("process %d", p.cmd.Process.Pid))
}
