//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// serving starts `serve` and returns its socket and process.
func serving(t *testing.T, change func(*exec.Cmd)) (socket string, c *exec.Cmd) {
	t.Helper()
	dir := t.TempDir()
	socket = filepath.Join(dir, "s")
	token := filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(token, []byte("the-token\n"), 0o600))
	c = program(t, "serve", "--socket", socket, "--token-file", token, "--grace", "1s")
	c.Env = append(c.Env, "OF_THE_CONTAINER=yes")
	if change != nil {
		change(c)
	}
	stdout, err := c.StdoutPipe()
	require.NoError(t, err)
	if err := c.Start(); errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) {
		t.Skip("no namespaces here: ", err)
	} else {
		require.NoError(t, err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, " ready\n")
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		_ = c.Wait()
	})
	return socket, c
}

func TestScriptsThatRunElsewhere(t *testing.T) {
	socket, _ := serving(t, nil)
	there := func(script ...string) *testJob {
		j := newJob(t, script...)
		j.spec.ScriptSocket, j.spec.ScriptToken = socket, "the-token"
		j.spec.Executor = "docker"
		return j
	}
	j := there(`echo "$OF_THE_CONTAINER,$CI_DISPOSABLE_ENVIRONMENT,$SECRET"; echo err >&2; echo c >/dev/stdout; exit 5`)
	j.variable("SECRET", "secret-value", masked)
	j.afterScript("echo after $CI_JOB_STATUS")
	r := j.run()
	require.Equal(t, 5, r.ExitCode)
	require.Equal(t, "yes,true,[MASKED]\nerr\nc\n", j.said())
	require.Contains(t, j.trace(), "\nafter failed\n")

	t.Run("a timeout", func(t *testing.T) {
		sleep := sleeper(t)
		j := there("echo begun; setsid " + sleep + " & " + sleep)
		j.payload.RunnerInfo.Timeout = 1
		require.Equal(t, runnerapi.ReasonExecutionTimeout, j.run().FailureReason)
		gone(t, sleep)
	})
	t.Run("a cancel", func(t *testing.T) {
		sleep := sleeper(t)
		j := there("trap '' TERM; echo begun; " + sleep + "; " + sleep)
		j.spec.KillGrace = 200 * time.Millisecond
		j.afterScript("echo status $CI_JOB_STATUS")
		j.start()
		w := j.follow()
		j.until(w, "\nbegun\n")
		require.NoError(t, w.Cancel(false))
		require.Equal(t, "canceled", j.result().Message)
		require.Contains(t, j.trace(), "\nstatus canceled\n")
		gone(t, sleep)
	})
	t.Run("a killed job", func(t *testing.T) {
		sleep := sleeper(t)
		j := there("echo begun; " + sleep)
		j.start()
		j.until(j.follow(), "\nbegun\n")
		require.NoError(t, j.cmd.Process.Kill())
		gone(t, sleep)
	})
	t.Run("a wrong token", func(t *testing.T) {
		j := there("echo ran")
		j.spec.ScriptToken = "another"
		r := j.run()
		require.Equal(t, runnerapi.ReasonRunnerSystem, r.FailureReason)
		require.Contains(t, r.Message, "the token is wrong")
	})
	t.Run("sources are got here", func(t *testing.T) {
		j := there("cat file; echo $OF_THE_CONTAINER")
		newRepository(t).use(j)
		j.payload.Hooks = []runnerapi.Hook{{Name: "post_get_sources_script", Script: []string{"echo hooked [$OF_THE_CONTAINER]"}}}
		require.Equal(t, runnerapi.StateSuccess, j.run().State, j.trace())
		require.Equal(t, "threeyes\n", j.said())
		require.Contains(t, j.trace(), "\nhooked []\n")
	})
}

func TestServeAsProcessOne(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may make a PID namespace")
	}
	socket, c := serving(t, func(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID} })
	j := newJob(t, "echo $PPID; (setsid sh -c 'sleep 0.05; exit 3' &); sleep 0.2; exit 4")
	j.spec.ScriptSocket, j.spec.ScriptToken = socket, "the-token"
	require.Equal(t, 4, j.run().ExitCode)
	require.NotEqual(t, "1\n", j.said(), "process 1 only reaps")
	require.NoError(t, c.Process.Signal(syscall.SIGTERM))
	_ = c.Wait()
	require.Equal(t, 0, c.ProcessState.ExitCode(), "it passes signals on and takes the exit code over")
}

func TestAttachToARunningJob(t *testing.T) {
	j := newJob(t, "echo begun; "+sleeper(t))
	j.start()
	j.until(j.follow(), "\nbegun\n")
	a := program(t, "attach", j.dir, "--offset", "10", "--lease=1h")
	orders, err := a.StdinPipe()
	require.NoError(t, err)
	out, err := a.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, a.Start())
	r := attach.NewReader(out, 10)
	var trace bytes.Buffer
	canceled := false
	for {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		require.NotEqual(t, attach.Failed, f.Kind, f.Text)
		trace.Write(f.Data)
		if !canceled && strings.Contains(trace.String(), "\nbegun\n") {
			_, err := io.WriteString(orders, "cancel kill\n")
			require.NoError(t, err)
			canceled = true
		}
		if f.Kind == attach.Result {
			require.Equal(t, "canceled", f.Result.Message)
		}
	}
	require.Equal(t, exitOK, j.wait())
	require.Equal(t, j.trace()[10:], trace.String())
	require.NoError(t, a.Wait())

	// Once more, now that it has ended.
	b, err := program(t, "attach", j.dir).Output()
	require.NoError(t, err)
	r = attach.NewReader(bytes.NewReader(b), 0)
	trace.Reset()
	for {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		trace.Write(f.Data)
	}
	require.Equal(t, j.trace(), trace.String())
}

func TestAttachToADeadJob(t *testing.T) {
	sleep := sleeper(t)
	j := newJob(t, "echo begun; "+sleep)
	j.start()
	j.until(j.follow(), "\nbegun\n")
	require.NoError(t, j.cmd.Process.Kill())
	j.wait()
	a := program(t, "attach", j.dir)
	b, err := a.Output()
	require.Error(t, err)
	require.Equal(t, exitStartedBefore, a.ProcessState.ExitCode())
	require.Equal(t, string(attach.Gone)+"\x00\x00\x00\x00", string(b[len(b)-5:]))
	for _, pid := range processesWith(sleep) {
		_ = syscall.Kill(atoi(pid), syscall.SIGKILL)
	}
}

// A full disk ends neither the job nor what is known of it.
func TestAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may mount a small disk")
	}
	small := t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("cannot mount a small disk: ", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
	proof := filepath.Join(t.TempDir(), "proof")
	j := newJob(t, "head -c 3000000 /dev/zero | tr '\\0' x", "echo went on >"+proof, "exit $FAIL")
	j.variable("FAIL", "0")
	j.dir = filepath.Join(small, "job")
	r := j.run()
	require.Equal(t, runnerapi.StateFailed, r.State)
	require.Equal(t, runnerapi.ReasonRunnerSystem, r.FailureReason)
	require.Contains(t, r.Message, "the job's log is incomplete: write the trace: ")
	require.Contains(t, r.Message, "no space left on device")
	require.FileExists(t, proof, "the script is not disturbed")
	require.EqualValues(t, len(j.trace()), r.TraceLength)
	require.Regexp(t, "x\n\\S*ERROR: the rest of the job's log is missing: write the trace: .*no space left on device\\S*\n$", j.trace())
	require.NoError(t, os.RemoveAll(j.dir))

	j.spec.Job, j.payload.Variables[1].Value = 8, "3"
	r = j.run()
	require.Equal(t, 3, r.ExitCode, "the script's own failure comes first")
	require.Equal(t, runnerapi.ReasonScriptFailure, r.FailureReason)
}

func TestADiskThatIsFullFromTheStart(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may mount a small disk")
	}
	for name, pages := range map[string]int{"no room at all": 0, "room for the result only": 1} {
		t.Run(name, func(t *testing.T) {
			small := t.TempDir()
			if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=256k"); err != nil {
				t.Skip("cannot mount a small disk: ", err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
			j := newJob(t, "echo ran")
			j.dir = filepath.Join(small, "job")
			j.create()
			fill := func(i int) string { return filepath.Join(small, fmt.Sprint("fill", i)) }
			for i := 0; os.WriteFile(fill(i), make([]byte, os.Getpagesize()), 0o600) == nil; i++ {
				require.Less(t, i, 1000)
			}
			for i := range pages {
				require.NoError(t, os.Remove(fill(i)))
			}
			require.Empty(t, j.launch())
			code := j.wait()
			require.Contains(t, j.complaint(), "no space left on device")
			r, err := j.folder.Result()
			if pages == 0 {
				require.Equal(t, exitFailed, code)
				require.ErrorIs(t, err, folder.ErrNoResult)
				_, err = j.folder.Started()
				require.ErrorIs(t, err, folder.ErrNotStarted, "it can be tried again")
				return
			}
			// The fence may stand, so the job has an end: with a result.
			require.Equal(t, exitOK, code)
			require.NoError(t, err)
			require.Equal(t, runnerapi.ReasonRunnerSystem, r.FailureReason)
			require.Contains(t, r.Message, "write started: ")
			require.Empty(t, j.trace())
		})
	}
}
