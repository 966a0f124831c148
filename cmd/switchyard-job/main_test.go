//go:build unix

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// The tests run the program itself: a copy of the test binary that is told to be it.
const beTheProgram = "SWITCHYARD_JOB_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(beTheProgram) != "" {
		os.Exit(command(os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

// program is a command line of switchyard-job.
func program(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	c := exec.Command(self, args...)
	// With the race detector a program sleeps a second before it ends, if it is not told otherwise.
	c.Env = append(os.Environ(), beTheProgram+"=1", "HOME="+t.TempDir(), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	return c
}

// testJob is a job in its folder.
type testJob struct {
	t       testing.TB
	spec    folder.Spec
	payload runnerapi.Job
	raw     []byte // instead of payload, if set
	dir     string // the folder
	builds  string
	folder  *folder.Folder
	env     []string
	cmd     *exec.Cmd
	stderr  string // a file
	ended   chan struct{}
}

func newJob(t testing.TB, script ...string) *testJob {
	t.Helper()
	root := t.TempDir()
	j := &testJob{t: t, dir: filepath.Join(root, "job"), builds: filepath.Join(root, "builds")}
	j.spec = folder.Spec{
		Job: 7, Epoch: 2, OutputLimit: 1 << 30, Executor: "shell", BuildsDir: j.builds, CacheDir: filepath.Join(root, "cache"),
		SharedBuildsDir: true, Shells: []string{"bash", "sh"}, KillGrace: 5 * time.Second, ConcurrentID: 3, ConcurrentProjectID: 1,
		Runner: folder.Runner{ID: 4, Name: "runner", ShortToken: "abcdefghi", SystemID: "s_1", Version: "1.2.3", Revision: "deadbeef"},
	}
	j.payload = runnerapi.Job{
		ID: 7, Token: "job-token-0123456789", JobInfo: runnerapi.JobInfo{ID: 7, Name: "test", ProjectID: 42},
		GitInfo:    runnerapi.GitInfo{RepoURL: "http://gitlab.test/group/project.git", SHA: strings.Repeat("a", 40), Ref: "main", RefType: "branch"},
		RunnerInfo: runnerapi.RunnerInfo{Timeout: 600},
		Variables:  []runnerapi.Variable{{Key: "GIT_STRATEGY", Value: "none", Public: true}},
		Steps:      []runnerapi.Step{{Name: "script", Script: script, Timeout: 600, When: "on_success"}},
		Features:   runnerapi.JobFeatures{TraceSections: true},
	}
	return j
}

func (j *testJob) variable(key, value string, change ...func(*runnerapi.Variable)) {
	v := runnerapi.Variable{Key: key, Value: value}
	for _, f := range change {
		f(&v)
	}
	j.payload.Variables = append(j.payload.Variables, v)
}

func masked(v *runnerapi.Variable) { v.Masked = true }
func file(v *runnerapi.Variable)   { v.File = true }

func (j *testJob) afterScript(script ...string) {
	j.payload.Steps = append(j.payload.Steps, runnerapi.Step{Name: "after_script", Script: script, When: "always"})
}

// create makes the folder.
func (j *testJob) create() {
	j.t.Helper()
	raw := j.raw
	if raw == nil {
		var err error
		raw, err = json.Marshal(j.payload)
		require.NoError(j.t, err)
	}
	require.NoError(j.t, folder.Create(j.dir, j.spec, raw))
	f, err := folder.Open(j.dir)
	require.NoError(j.t, err)
	j.t.Cleanup(func() { _ = f.Close() })
	j.folder = f
}

// start starts the job and waits until it is ready.
func (j *testJob) start() *testJob {
	j.t.Helper()
	j.create()
	require.Equal(j.t, "ready", j.launch())
	return j
}

// launch starts a process for the job and returns what it announces, if anything.
func (j *testJob) launch() string {
	j.t.Helper()
	j.cmd = program(j.t, "run", j.dir)
	j.cmd.Env = append(j.cmd.Env, j.env...)
	j.stderr = filepath.Join(j.t.TempDir(), "stderr")
	stderr, err := os.Create(j.stderr)
	require.NoError(j.t, err)
	j.cmd.Stderr = stderr
	stdout, err := j.cmd.StdoutPipe()
	require.NoError(j.t, err)
	require.NoError(j.t, j.cmd.Start())
	require.NoError(j.t, stderr.Close())
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	cmd, ended := j.cmd, make(chan struct{})
	j.ended = ended
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	j.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // with its processes, if it still runs
		<-ended
	})
	words := strings.Fields(line)
	if len(words) != 3 || words[0] != "switchyard-job" {
		return ""
	}
	return words[2]
}

// wait waits for the end of the process and returns its exit code.
func (j *testJob) wait() int {
	j.t.Helper()
	select {
	case <-j.ended:
	case <-time.After(50 * time.Second):
		_ = j.cmd.Process.Signal(syscall.SIGQUIT)
		j.t.Fatal("the job does not end:\n" + j.trace() + j.log())
	}
	return j.cmd.ProcessState.ExitCode()
}

// result waits for the job's end and returns its result.
func (j *testJob) result() folder.Result {
	j.t.Helper()
	require.Equal(j.t, exitOK, j.wait(), "%s%s", j.complaint(), j.log())
	r, err := j.folder.Result()
	require.NoError(j.t, err)
	return r
}

// run is start and result.
func (j *testJob) run() folder.Result {
	j.t.Helper()
	return j.start().result()
}

func (j *testJob) trace() string {
	b, err := os.ReadFile(filepath.Join(j.dir, folder.TraceFile))
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(j.t, err)
	}
	return string(b)
}

// complaint is what the last process said before it let go.
func (j *testJob) complaint() string {
	b, err := os.ReadFile(j.stderr)
	require.NoError(j.t, err)
	return string(b)
}

func (j *testJob) log() string {
	b, _ := os.ReadFile(filepath.Join(j.dir, folder.LogFile))
	return string(b)
}

var markers = regexp.MustCompile(`(section_(?:start|end)):\d+:`)

// plain is the trace with the times in section markers left out.
func (j *testJob) plain() string { return markers.ReplaceAllString(j.trace(), "$1:T:") }

// said is what a step's script said after its last echoed command, up to the section's end.
func (j *testJob) said() string {
	j.t.Helper()
	trace := j.plain()
	end := strings.Index(trace, "section_end:T:step_script")
	require.GreaterOrEqual(j.t, end, 0, trace)
	begin := strings.LastIndex(trace[:end], "\x1b[32;1m$ ")
	require.GreaterOrEqual(j.t, begin, 0, trace)
	_, said, ok := strings.Cut(trace[begin:end], "\x1b[0;m\n")
	require.True(j.t, ok, trace)
	return said
}

// follow connects to the running job.
func (j *testJob) follow() *folder.Follower {
	j.t.Helper()
	w, err := j.folder.Follow(j.t.Context())
	require.NoError(j.t, err)
	j.t.Cleanup(func() { _ = w.Close() })
	return w
}

// until reads events until the trace has text.
func (j *testJob) until(w *folder.Follower, text string) {
	j.t.Helper()
	for !strings.Contains(j.trace(), text) {
		_, err := w.Next()
		require.NoError(j.t, err, j.trace())
	}
}

// gone waits until no process has the text in its command line.
func gone(t testing.TB, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return len(processesWith(text)) == 0 }, 10*time.Second, 5*time.Millisecond,
		"processes with %q: %v", text, processesWith(text))
}

// processesWith returns the processes that have the text in their command line, arguments separated by spaces.
func processesWith(text string) []string {
	var found []string
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil && bytes.Contains(bytes.ReplaceAll(b, []byte{0}, []byte{' '}), []byte(text)) {
			found = append(found, filepath.Base(filepath.Dir(name)))
		}
	}
	return found
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args   string
		code   int
		stdout string
		stderr string
	}{
		{"version", exitOK, "switchyard-job ", ""},
		{"--help", exitOK, "switchyard-job run FOLDER", ""},
		{"", exitUsage, "", "a command is missing"},
		{"walk", exitUsage, "", `"walk" is not a command`},
		{"run", exitUsage, "", "run: 1 arguments, not 0"},
		{"run /no/such/folder", exitFailed, "", "open job folder: "},
		{"attach x y", exitUsage, "", "attach: 1 arguments, not 2"},
		{"attach x --offset -1", exitUsage, "", `--offset "-1" is not a number of bytes`},
		{"attach x --lease=1", exitUsage, "", `--lease "1" is not a duration`},
		{"attach x --speed 1", exitUsage, "", "--speed is not an option"},
		{"attach x --offset", exitUsage, "", "--offset needs a value"},
		{"serve", exitUsage, "", "--socket PATH is missing"},
		{"serve --socket /tmp/s --grace never", exitUsage, "", `--grace "never" is not a duration`},
		{"serve --socket /tmp/s --token-file /no/such/file", exitFailed, "", "read the token: open /no/such/file"},
	} {
		t.Run(c.args, func(t *testing.T) {
			p := program(t, strings.Fields(c.args)...)
			var stdout, stderr bytes.Buffer
			p.Stdout, p.Stderr = &stdout, &stderr
			_ = p.Run()
			require.Equal(t, c.code, p.ProcessState.ExitCode())
			require.Contains(t, stdout.String(), c.stdout)
			require.Contains(t, stderr.String(), c.stderr)
			if c.stderr == "" {
				require.Empty(t, stderr.String())
			}
		})
	}
}

func TestWhatItLinks(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	require.NoError(t, err)
	for line := range strings.Lines(string(out)) {
		for _, heavy := range []string{"google.golang.org", "buf.build", "protovalidate", "go.yaml.in", "text/template", "modernc.org", "github.com/alecthomas"} {
			require.NotContains(t, line, heavy)
		}
	}
	require.Contains(t, string(out), "job/folder\n")
	_, _ = io.Discard.Write(out)
}

func TestThatProcessesAreFound(t *testing.T) {
	sleep := sleeper(t)
	c := exec.Command("sleep", strings.Fields(sleep)[1])
	require.NoError(t, c.Start())
	require.Len(t, processesWith(sleep), 1)
	require.NoError(t, c.Process.Kill())
	_ = c.Wait()
	require.Empty(t, processesWith(sleep))
}
