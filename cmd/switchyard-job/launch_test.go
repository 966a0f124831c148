//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// stream is a `launch` or `attach` that runs.
type stream struct {
	t      testing.TB
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	frames *attach.Reader
	trace  bytes.Buffer
	stderr bytes.Buffer
	ended  chan struct{}
}

const prefixLength = 1000 // of a prefix that is elsewhere

// attachWith starts a command that follows the job. Its folder is not made by the test.
func (j *testJob) attachWith(command string, offset string, args ...string) *stream {
	j.t.Helper()
	s := &stream{t: j.t, ended: make(chan struct{})}
	s.cmd = program(j.t, append([]string{command, j.dir, "--offset", offset}, args...)...)
	s.cmd.Env = append(s.cmd.Env, j.env...)
	s.cmd.Stderr = &s.stderr
	var err error
	s.stdin, err = s.cmd.StdinPipe()
	require.NoError(j.t, err)
	out, w, err := os.Pipe()
	require.NoError(j.t, err)
	s.cmd.Stdout = w
	require.NoError(j.t, s.cmd.Start())
	require.NoError(j.t, w.Close())
	var at int64
	require.NoError(j.t, json.Unmarshal([]byte(offset), &at))
	s.frames = attach.NewReader(out, at)
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait()
	}()
	j.t.Cleanup(func() {
		_ = s.stdin.Close()
		_ = s.cmd.Process.Kill()
		<-s.ended
		_ = out.Close()
	})
	return s
}

// launchThere starts the job by launch, and sees to its end.
func (j *testJob) launchThere(args ...string) *stream {
	j.t.Helper()
	j.spec.PrefixLength, j.spec.PrefixCRC32 = prefixLength, 7
	raw, err := json.Marshal(j.payload)
	require.NoError(j.t, err)
	s := j.attachWith("launch", "1000", args...)
	_ = attach.WriteHeader(s.stdin, j.spec, raw) // it may refuse before it has read all
	j.t.Cleanup(func() {
		f, err := folder.Open(j.dir)
		if err != nil {
			return
		}
		defer f.Close()
		if w, err := f.Follow(j.t.(*testing.T).Context()); err == nil {
			_ = w.Cancel(true)
			_ = w.Close()
		}
		lock, err := f.WaitLock()
		require.NoError(j.t, err)
		_ = lock.Close()
	})
	return s
}

// until reads frames until one is of that kind.
func (s *stream) until(kind attach.Kind) attach.Frame {
	s.t.Helper()
	for {
		f, err := s.frames.Next()
		require.NoError(s.t, err, "%s", &s.stderr)
		s.trace.Write(f.Data)
		if f.Kind == kind {
			return f
		}
	}
}

func (s *stream) code() int {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(50 * time.Second):
		s.t.Fatal("it does not end")
	}
	return s.cmd.ProcessState.ExitCode()
}

func (s *stream) untilSaid(text string) {
	s.t.Helper()
	for !strings.Contains(s.trace.String(), text) {
		s.until(attach.Data)
	}
}

func TestLaunch(t *testing.T) {
	j := newJob(t, "echo hello")
	j.dir = filepath.Join(filepath.Dir(j.dir), "not", "there", "yet", "job")
	s := j.launchThere()
	hello := s.until(attach.Hello)
	require.EqualValues(t, 7, hello.Greeting.Job)
	require.NotNil(t, hello.Greeting.Started, "the fence stands")
	r := s.until(attach.Result).Result
	require.Equal(t, runnerapi.StateSuccess, r.State)
	require.EqualValues(t, s.trace.Len(), r.TraceLength)
	require.Contains(t, s.trace.String(), "\nhello\n")
	require.Equal(t, exitOK, s.code())
	info, err := os.Stat(j.dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())

	again := j.launchThere()
	require.Equal(t, r, again.until(attach.Result).Result)
	require.Equal(t, s.trace.String(), again.trace.String())
	require.Equal(t, exitOK, again.code())

	other := newJob(t)
	other.dir, other.spec.Epoch = j.dir, 3
	refused := other.launchThere()
	require.Contains(t, refused.until(attach.Failed).Text, "is the folder of job 7, epoch 2, not of job 7, epoch 3")
	require.Equal(t, exitFailed, refused.code())
}

func TestALaunchThatIsKilled(t *testing.T) {
	j := newJob(t, "echo once >>$PROOF; echo before", "while ! test -e $PROOF.end; do sleep 0.02; done; echo after")
	proof := filepath.Join(filepath.Dir(j.dir), "proof")
	j.variable("PROOF", proof)
	s := j.launchThere("--lease", "1h")
	s.untilSaid("before\n")
	require.NoError(t, s.cmd.Process.Kill())
	s.code()
	head := s.trace.String()

	s = j.attachWith("attach", itoa(prefixLength+len(head)))
	s.until(attach.Hello)
	require.NoError(t, s.stdin.Close()) // the agent is restarted
	require.Equal(t, exitLeft, s.code())

	s = j.attachWith("attach", itoa(prefixLength+len(head)), "--lease=30m")
	require.NoError(t, os.WriteFile(proof+".end", nil, 0o600))
	r := s.until(attach.Result).Result
	require.Equal(t, runnerapi.StateSuccess, r.State)
	require.EqualValues(t, len(head)+s.trace.Len(), r.TraceLength)
	require.Contains(t, s.trace.String(), "after\n")
	require.Equal(t, "once\n", read(t, proof))
}

func TestLaunchesAtTheSameTime(t *testing.T) {
	for range 5 {
		j := newJob(t, "echo once >>$PROOF")
		proof := filepath.Join(filepath.Dir(j.dir), "proof")
		j.variable("PROOF", proof)
		var streams []*stream
		for range 4 {
			streams = append(streams, j.launchThere())
		}
		var all sync.WaitGroup
		for _, s := range streams {
			all.Go(func() {
				for {
					f, err := s.frames.Next()
					if err != nil {
						t.Errorf("no result: %v: %s", err, &s.stderr)
						return
					}
					if f.Kind == attach.Result {
						return
					}
				}
			})
		}
		all.Wait()
		require.Equal(t, "once\n", read(t, proof))
	}
}

func TestALaunchThatCannotStart(t *testing.T) {
	t.Run("no description", func(t *testing.T) {
		j := newJob(t)
		s := j.attachWith("launch", "0")
		_, err := io.WriteString(s.stdin, "cancel kill\n")
		require.NoError(t, err)
		require.Contains(t, s.until(attach.Failed).Text, "read the description of the job")
		require.Equal(t, exitFailed, s.code())
		require.NoDirExists(t, j.dir)
	})
	t.Run("half a description", func(t *testing.T) {
		j := newJob(t)
		s := j.attachWith("launch", "0")
		_, err := io.WriteString(s.stdin, "J\x00\x00\x10\x00{")
		require.NoError(t, errors.Join(err, s.stdin.Close()))
		require.Contains(t, s.until(attach.Failed).Text, "unexpected EOF")
		require.NoDirExists(t, j.dir)
	})
	t.Run("run fails", func(t *testing.T) {
		j := newJob(t)
		require.NoError(t, os.MkdirAll(filepath.Join(j.dir, folder.TraceFile), 0o700))
		s := j.launchThere()
		require.Contains(t, s.until(attach.Failed).Text, "the job cannot be started (exit code 1): open trace")
		require.Equal(t, exitFailed, s.code())
		f, err := folder.Open(j.dir)
		require.NoError(t, err)
		defer f.Close()
		_, err = f.Started()
		require.ErrorIs(t, err, folder.ErrNotStarted)
	})
	t.Run("it was started before", func(t *testing.T) {
		j := newJob(t, "echo ran >>$PROOF")
		j.variable("PROOF", j.dir+".proof")
		require.NoError(t, os.Mkdir(j.dir, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(j.dir, folder.StartedFile), nil, 0o600))
		s := j.launchThere()
		s.until(attach.Gone)
		require.Equal(t, exitStartedBefore, s.code())
		require.NoFileExists(t, j.dir+".proof")
	})
	t.Run("attach to nothing", func(t *testing.T) {
		j := newJob(t)
		s := j.attachWith("attach", "0")
		require.Contains(t, s.until(attach.Failed).Text, "open job folder")
		require.Equal(t, exitFailed, s.code())
	})
}

func TestOrdersReachALaunchedJob(t *testing.T) {
	t.Run("cancel", func(t *testing.T) {
		j := newJob(t, "echo begun; sleep 600")
		j.afterScript("echo after $CI_JOB_STATUS")
		s := j.launchThere()
		s.untilSaid("begun\n")
		_, err := io.WriteString(s.stdin, "cancel graceful\n")
		require.NoError(t, err)
		require.Equal(t, runnerapi.StateFailed, s.until(attach.Result).Result.State)
		require.Contains(t, s.trace.String(), "after canceled\n")
	})
	t.Run("the lease of the command line", func(t *testing.T) {
		s := newJob(t, "sleep 600").launchThere("--lease", "300ms")
		require.Contains(t, s.until(attach.Result).Result.Message, "longer than 300ms")
	})
}

func itoa(n int) string {
	b, _ := json.Marshal(n)
	return string(b)
}
