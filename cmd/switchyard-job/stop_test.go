//go:build unix

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// sleeper is a command that sleeps and that gone can find.
func sleeper(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("sleep 300.%d", time.Now().UnixNano()%1_000_000_000)
}

func TestTheJobsTimeout(t *testing.T) {
	sleep := sleeper(t)
	j := newJob(t, "echo begun; "+sleep)
	j.payload.RunnerInfo.Timeout = 1
	j.afterScript("echo no time for this")
	j.variable("F", "secret", file)
	r := j.run()
	require.Equal(t, runnerapi.StateFailed, r.State)
	require.Equal(t, runnerapi.ReasonExecutionTimeout, r.FailureReason)
	require.Zero(t, r.ExitCode)
	require.Equal(t, "execution took longer than 1s seconds", r.Message)
	require.Contains(t, j.trace(), "\nbegun\n")
	require.NotContains(t, j.trace(), "no time for this")
	require.Contains(t, j.trace(), warn+"step_script could not run to completion because the timeout was exceeded.")
	require.True(t, strings.HasSuffix(j.trace(), red+"ERROR: Job failed: execution took longer than 1s seconds"+reset+"\n"))
	require.NoFileExists(t, filepath.Join(j.builds, "abcdefghi/1/group/project.tmp/F"))
	gone(t, sleep)
}

func TestTheScriptsTimeout(t *testing.T) {
	sleep := sleeper(t)
	j := newJob(t, "echo begun; "+sleep)
	j.variable("RUNNER_SCRIPT_TIMEOUT", "300ms")
	j.afterScript("echo status $CI_JOB_STATUS")
	r := j.run()
	require.Equal(t, runnerapi.ReasonExecutionTimeout, r.FailureReason)
	require.Contains(t, r.Message, "RUNNER_SCRIPT_TIMEOUT")
	require.Contains(t, j.trace(), "\nstatus timedout\n")
	require.Contains(t, j.plain(), "section_start:T:cleanup_file_variables")
	gone(t, sleep)
}

func TestAfterScriptsTimeout(t *testing.T) {
	sleep := sleeper(t)
	for ignore, want := range map[string]string{"true": runnerapi.StateSuccess, "false": runnerapi.StateFailed} {
		j := newJob(t, "true")
		j.variable("RUNNER_AFTER_SCRIPT_TIMEOUT", "200ms")
		j.variable("AFTER_SCRIPT_IGNORE_ERRORS", ignore)
		j.afterScript(sleep)
		require.Equal(t, want, j.run().State)
		require.Contains(t, j.trace(), "after_script took longer than 200ms")
		gone(t, sleep)
	}
}

func TestAGracefulCancelOfTheScript(t *testing.T) {
	sleep := sleeper(t)
	for name, reasons := range map[string][]runnerapi.FailureReason{"known": {runnerapi.ReasonCanceled}, "unknown": nil} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, "trap 'echo cleaned up; exit 3' TERM; echo begun; "+sleep+" & wait")
			j.payload.Features.FailureReasons = reasons
			j.afterScript("echo status $CI_JOB_STATUS")
			j.start()
			w := j.follow()
			j.until(w, "\nbegun\n")
			require.NoError(t, w.Cancel(false))
			r := j.result()
			require.Equal(t, runnerapi.StateFailed, r.State)
			want := runnerapi.ReasonUnknown
			if reasons != nil {
				want = runnerapi.ReasonCanceled
			}
			require.Equal(t, want, r.FailureReason)
			require.Equal(t, "canceled", r.Message)
			require.Zero(t, r.ExitCode)
			require.Contains(t, j.trace(), "\ncleaned up\n")
			require.Contains(t, j.trace(), warn+"script canceled externally (UI, API)"+reset+"\n")
			require.Contains(t, j.trace(), "\nstatus canceled\n")
			require.True(t, strings.HasSuffix(j.trace(), red+"ERROR: Job failed: canceled"+reset+"\n"))
			gone(t, sleep)
		})
	}
}

func TestAKill(t *testing.T) {
	sleep := sleeper(t)
	j := newJob(t, "trap '' TERM; echo begun; "+sleep+"; "+sleep)
	j.spec.KillGrace = 300 * time.Millisecond
	j.afterScript("echo no")
	j.start()
	w := j.follow()
	j.until(w, "\nbegun\n")
	began := time.Now()
	require.NoError(t, w.Cancel(true))
	r := j.result()
	require.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond, "there is a grace")
	require.Equal(t, "canceled", r.Message)
	require.NotContains(t, j.trace(), "after_script")
	gone(t, sleep)
}

func TestACancelInEachStage(t *testing.T) {
	up := newRepository(t)
	sleep := sleeper(t)
	t.Run("get_sources", func(t *testing.T) {
		j := newJob(t, "echo ran")
		up.use(j)
		j.payload.Hooks = []runnerapi.Hook{{Name: "pre_get_sources_script", Script: []string{"echo hooked; " + sleep}}}
		j.variable("GET_SOURCES_ATTEMPTS", "5")
		j.afterScript("echo after")
		j.start()
		w := j.follow()
		j.until(w, "\nhooked\n")
		require.NoError(t, w.Cancel(false))
		r := j.result()
		require.Equal(t, "canceled", r.Message)
		require.NotContains(t, j.trace(), "echo ran")
		require.NotContains(t, j.trace(), "echo after", "the script never began, so the whole job is canceled")
		require.Equal(t, 1, strings.Count(j.plain(), "section_start:T:get_sources"))
		gone(t, sleep)
	})
	t.Run("after_script, graceful: too late", func(t *testing.T) {
		gate := filepath.Join(t.TempDir(), "gate")
		require.NoError(t, syscall.Mkfifo(gate, 0o600))
		j := newJob(t, "true")
		j.afterScript("echo after; cat " + gate)
		j.start()
		w := j.follow()
		j.until(w, "\nafter\n")
		require.NoError(t, w.Cancel(false))
		require.Eventually(t, func() bool { return strings.Contains(j.log(), "a cancel came after") }, 10*time.Second, time.Millisecond)
		require.NoError(t, os.WriteFile(gate, []byte("go on\n"), 0))
		require.Equal(t, runnerapi.StateSuccess, j.result().State)
	})
	t.Run("after_script, kill", func(t *testing.T) {
		j := newJob(t, "true")
		j.afterScript("echo after; " + sleep)
		j.start()
		w := j.follow()
		j.until(w, "\nafter\n")
		require.NoError(t, w.Cancel(true))
		require.Equal(t, "canceled", j.result().Message)
		gone(t, sleep)
	})
	t.Run("between attempts", func(t *testing.T) {
		j := newJob(t, "true")
		up.use(j)
		j.payload.GitInfo.RepoURL = "http://127.0.0.1:1/group/project.git"
		j.variable("GET_SOURCES_ATTEMPTS", "2")
		j.start()
		w := j.follow()
		j.until(w, "Retrying in ")
		require.NoError(t, w.Cancel(false))
		require.Equal(t, "canceled", j.result().Message)
	})
}

func TestALostLease(t *testing.T) {
	sleep := sleeper(t)
	j := newJob(t, "echo begun; "+sleep)
	j.spec.Lease = 400 * time.Millisecond
	j.afterScript("echo no")
	r := j.run()
	require.Equal(t, runnerapi.ReasonRunnerSystem, r.FailureReason)
	require.Contains(t, r.Message, "lost touch with its control plane for longer than 400ms")
	require.NotContains(t, j.trace(), "after_script")
	gone(t, sleep)
}

func TestALeaseThatIsRenewed(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	require.NoError(t, syscall.Mkfifo(gate, 0o600))
	j := newJob(t, "echo begun; cat "+gate)
	j.spec.Lease = 2 * time.Second
	j.start()
	w := j.follow()
	require.NoError(t, w.Lease(time.Hour))
	<-time.After(2500 * time.Millisecond) // the time is what is tested
	require.NoError(t, os.WriteFile(gate, nil, 0))
	require.Equal(t, runnerapi.StateSuccess, j.result().State)

	j = newJob(t, "echo begun; "+sleeper(t))
	j.start()
	require.NoError(t, j.follow().Lease(time.Millisecond))
	require.Contains(t, j.result().Message, "longer than 1ms")
}

func TestASignal(t *testing.T) {
	sleep := sleeper(t)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		j := newJob(t, "echo begun; "+sleep)
		j.payload.Features.FailureReasons = []runnerapi.FailureReason{runnerapi.ReasonInterrupted}
		j.start()
		j.until(j.follow(), "\nbegun\n")
		require.NoError(t, j.cmd.Process.Signal(syscall.SIGHUP)) // whoever started it went away
		require.NoError(t, j.cmd.Process.Signal(signal))
		r := j.result()
		require.Equal(t, runnerapi.ReasonInterrupted, r.FailureReason)
		require.Equal(t, "aborted: "+signal.String(), r.Message)
		gone(t, sleep)
	}
}

func TestScriptsHaveTheirSignals(t *testing.T) {
	j := newJob(t, "set +e; sh -c 'kill -PIPE $$'; echo $?; sh -c 'kill -HUP $$'; echo $?; yes | head -n 1 >/dev/null; echo ${PIPESTATUS[0]}")
	j.run()
	require.Equal(t, "141\n129\n141\n", lastLines(j.said(), 3), "a signal that this program ignores is not ignored by scripts")
}

func lastLines(text string, n int) string {
	lines := strings.SplitAfter(strings.TrimSuffix(text, "\n"), "\n")
	var kept []string
	for _, l := range lines {
		if strings.TrimSpace(l) != "" && strings.Trim(l, "0123456789\n") == "" {
			kept = append(kept, strings.TrimSuffix(l, "\n")+"\n")
		}
	}
	return strings.Join(kept[max(0, len(kept)-n):], "")
}

func TestDaemons(t *testing.T) {
	for name, start := range map[string]string{
		"in the background":        "SLEEP &",
		"in a session of its own":  "setsid SLEEP &",
		"twice forked":             "(setsid sh -c 'SLEEP & exit 0' &); sleep 0.1",
		"that ignores SIGTERM":     "(trap '' TERM; exec SLEEP) &",
		"that is stopped":          "SLEEP & kill -STOP $!",
		"that holds no output":     "SLEEP >/dev/null 2>&1 </dev/null &",
		"that has another process": "sh -c 'trap \"\" TERM; SLEEP & SLEEP' &",
	} {
		t.Run(name, func(t *testing.T) {
			if strings.Contains(start, "setsid") && !has("setsid") {
				t.Skip("no setsid here")
			}
			sleep := sleeper(t)
			j := newJob(t, strings.ReplaceAll(start, "SLEEP", sleep)+"\necho script done")
			j.spec.KillGrace = 200 * time.Millisecond
			j.afterScript("pgrep -f '" + strings.Replace(sleep, "sleep", "slee[p]", 1) + "' >/dev/null 2>&1 && echo alive || echo unknown")
			began := time.Now()
			require.Equal(t, runnerapi.StateSuccess, j.run().State)
			require.Less(t, time.Since(began), 20*time.Second)
			require.Contains(t, j.trace(), "\nscript done\n")
			require.Empty(t, processesWith(sleep), "nothing of a job outlives it")
		})
	}
}

func has(command string) bool {
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if _, err := os.Stat(filepath.Join(dir, command)); err == nil {
			return true
		}
	}
	return false
}

func TestWhatADaemonSaysLast(t *testing.T) {
	j := newJob(t, "(trap 'echo bye from the daemon; exit' TERM; echo up >&2; while :; do sleep 0.02; done) &\nsleep 0.2")
	require.Equal(t, runnerapi.StateSuccess, j.run().State)
	require.Contains(t, j.trace(), "bye from the daemon\n")
	require.True(t, strings.HasSuffix(j.trace(), green+"Job succeeded"+reset+"\n"))
}

func TestADaemonThatNeverCeasesToTalk(t *testing.T) {
	j := newJob(t, "(while :; do echo chatter; done) &\necho script done")
	j.spec.KillGrace = 100 * time.Millisecond
	j.spec.OutputLimit = 1 << 20
	began := time.Now()
	require.Equal(t, runnerapi.StateSuccess, j.run().State)
	require.Less(t, time.Since(began), 30*time.Second)
}

func TestTwoRuns(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	require.NoError(t, syscall.Mkfifo(gate, 0o600))
	proof := filepath.Join(t.TempDir(), "proof")
	j := newJob(t, "echo ran >>"+proof+"; cat "+gate)
	j.start()
	first, firstEnd := j.cmd, j.ended
	require.Equal(t, "attached", j.launch())
	select {
	case <-j.ended:
		t.Fatal("the second did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	require.NoError(t, os.WriteFile(gate, nil, 0))
	require.Equal(t, exitAttached, j.wait())
	<-firstEnd
	require.Equal(t, exitOK, first.ProcessState.ExitCode())
	require.Empty(t, j.launch())
	require.Equal(t, exitStartedBefore, j.wait())
	require.Contains(t, j.complaint(), "does not start again")
	b, err := os.ReadFile(proof)
	require.NoError(t, err)
	require.Equal(t, "ran\n", string(b))
}

func TestManyRunsAtOnce(t *testing.T) {
	proof := filepath.Join(t.TempDir(), "proof")
	j := newJob(t, "echo ran >>"+proof+"; sleep 0.2")
	j.create()
	codes := make(chan int, 8)
	for range 8 {
		c := program(t, "run", j.dir)
		require.NoError(t, c.Start())
		go func() {
			_ = c.Wait()
			codes <- c.ProcessState.ExitCode()
		}()
	}
	count := map[int]int{}
	for range 8 {
		count[<-codes]++
	}
	require.Equal(t, 1, count[exitOK], "%v", count)
	require.Equal(t, 8, count[exitOK]+count[exitAttached]+count[exitStartedBefore], "%v", count)
	b, err := os.ReadFile(proof)
	require.NoError(t, err)
	require.Equal(t, "ran\n", string(b))
}

func TestASecondRunOutlivesAKilledFirst(t *testing.T) {
	sleep := sleeper(t)
	j := newJob(t, "echo begun; "+sleep)
	j.start()
	j.until(j.follow(), "\nbegun\n")
	first := j.cmd
	require.Equal(t, "attached", j.launch())
	require.NoError(t, first.Process.Kill())
	require.Equal(t, exitAttachedNoResult, j.wait())
	require.Empty(t, j.launch())
	require.Equal(t, exitStartedBefore, j.wait())
	_, err := j.folder.Result()
	require.ErrorIs(t, err, folder.ErrNoResult)
	for _, pid := range processesWith(sleep) { // what a killed process leaves is its executor's to kill
		_ = syscall.Kill(atoi(pid), syscall.SIGKILL)
	}
}

func atoi(s string) (n int) {
	_, _ = fmt.Sscan(s, &n)
	return n
}

func TestFollowingAJob(t *testing.T) {
	j := newJob(t, "echo hi")
	gate := filepath.Join(t.TempDir(), "gate")
	require.NoError(t, syscall.Mkfifo(gate, 0o600))
	j.payload.Steps[0].Script = []string{"cat " + gate, "echo hi"}
	j.start()
	w := j.follow()
	require.NoError(t, os.WriteFile(gate, nil, 0))
	var stages []string
	var length int64
	resulted := false
	for {
		e, err := w.Next()
		if err != nil {
			require.ErrorIs(t, err, folder.ErrGone)
			break
		}
		switch e.Kind {
		case folder.EventStage:
			stages = append(stages, e.Stage)
		case folder.EventTrace:
			length = e.TraceLength
		case folder.EventResult:
			resulted = true
			r, err := j.folder.Result()
			require.NoError(t, err, "the result is there when it is said to be")
			require.Equal(t, r.TraceLength, length)
		}
	}
	require.True(t, resulted)
	require.Contains(t, stages, "step_script")
	require.Equal(t, "cleanup_file_variables", stages[len(stages)-1])
	require.Equal(t, exitOK, j.wait())
}

func TestItLetsGoOfItsStarter(t *testing.T) {
	j := newJob(t, "ps -o sid= -p $PPID 2>/dev/null | tr -d ' '; echo $PPID")
	j.start() // reads one line and then closes the pipe
	require.Equal(t, runnerapi.StateSuccess, j.result().State)
	if said := strings.Fields(j.said()); len(said) == 2 {
		require.Equal(t, said[1], said[0], "it leads a session of its own")
	}
}
