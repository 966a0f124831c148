package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/testbinary"
)

// built is where switchyard and switchyard-job are, built once for all tests that run pipelines.
var built struct {
	once sync.Once
	dir  string
	err  error
}

func programs(t *testing.T) string {
	t.Helper()
	built.once.Do(func() { built.dir, built.err = testbinary.Build("switchyard", "switchyard-job") })
	require.NoError(t, built.err)
	return built.dir
}

// cleaning runs the tests and removes what was built for them.
type cleaning struct{ *testing.M }

func (c cleaning) Run() int {
	defer func() { _ = os.RemoveAll(built.dir) }()
	return c.M.Run()
}

// TestRun runs testdata/run: pipelines of real repositories. Besides the usual commands there are
//
//	code N COMMAND...   runs a command and expects this exit code
//	waitfor FILE        waits until the file exists
//	untouched DIR       the first time it notes refs, index, objects and status of a repository, then compares
//
// At the end of each script nothing may be left of a run: no folder, no process.
func TestRun(t *testing.T) {
	bin := programs(t)
	var mu sync.Mutex
	states := map[string]string{}
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "run"),
		Setup: func(e *testscript.Env) error {
			for _, v := range cleanGit(bin, e.WorkDir) {
				key, value, _ := strings.Cut(v, "=")
				e.Setenv(key, value)
			}
			e.Defer(func() { nothingLeft(t, e.Getenv("TMPDIR"), e.WorkDir) })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"waitfor": waitFor,
			"code": func(ts *testscript.TestScript, _ bool, args []string) {
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				err = ts.Exec(args[1], args[2:]...)
				got := 0
				if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
					got = exit.ExitCode()
				} else {
					ts.Check(err)
				}
				if got != want {
					ts.Fatalf("exit code %d, not %d", got, want)
				}
			},
			"untouched": func(ts *testscript.TestScript, _ bool, args []string) {
				dir := ts.MkAbs(args[0])
				now := repositoryState(ts, dir)
				mu.Lock()
				defer mu.Unlock()
				if was, known := states[dir]; known && was != now {
					ts.Fatalf("the repository has changed from\n%s\nto\n%s", was, now)
				}
				states[dir] = now
			},
		},
	})
}

// cleanGit is the environment of tests with git: no configuration of whoever runs them, a home of their own.
func cleanGit(bin, home string) []string {
	return []string{
		"PATH=" + bin + string(os.PathListSeparator) + os.Getenv("PATH"), "HOME=" + home,
		"GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com",
		"GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com", "LC_ALL=C.UTF-8", "NO_COLOR=",
	}
}

// repositoryState is all of a repository that a run must leave alone.
func repositoryState(ts *testscript.TestScript, dir string) string {
	var state strings.Builder
	for _, args := range [][]string{{"for-each-ref"}, {"count-objects", "-v"}, {"status", "--porcelain"}, {"stash", "list"}, {"worktree", "list"}} {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_OPTIONAL_LOCKS=0")
		out, err := cmd.CombinedOutput()
		ts.Check(err)
		state.Write(out)
	}
	ts.Check(filepath.WalkDir(filepath.Join(dir, ".git"), func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		changed := info.ModTime()
		if strings.HasPrefix(path, filepath.Join(dir, ".git", "objects")) {
			changed = time.Time{} // git touches objects that it would have written, so that gc spares them
		}
		fmt.Fprintln(&state, path, info.Size(), changed.UnixNano())
		return nil
	}))
	return state.String()
}

// nothingLeft checks that a run has left neither folders nor processes.
func nothingLeft(t *testing.T, temp, work string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(temp, "switchyard-*"))
	require.NoError(t, err)
	require.Empty(t, left, "folders")
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	for _, file := range environments {
		environ, err := os.ReadFile(file)
		if err == nil && bytes.Contains(environ, []byte("SWITCHYARD_JOB_FOLDER="+work)) {
			command, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
			require.Fail(t, "a process is left", "%s: %q", file, command)
		}
	}
}

// switchyard prepares a run of the program.
func switchyard(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs(t), "switchyard"), append([]string{"run"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	temp := t.TempDir()
	cmd.Env = append(append(os.Environ(), cleanGit(programs(t), t.TempDir())...), "TMPDIR="+temp)
	t.Cleanup(func() { nothingLeft(t, temp, temp) })
	return cmd
}

// states runs a pipeline and returns what became of its jobs, and its own status.
func states(t *testing.T, wantCode int, args ...string) (map[string]string, string) {
	t.Helper()
	r := resultOf(t, wantCode, args...)
	jobs := map[string]string{}
	for _, j := range r.Jobs {
		jobs[j.Name] = j.Status
	}
	return jobs, r.Status
}

// resultOf runs a pipeline and returns its result.
func resultOf(t *testing.T, wantCode int, args ...string) result {
	t.Helper()
	cmd := switchyard(t, append(args, "-o", "json")...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run()
	require.Equal(t, wantCode, cmd.ProcessState.ExitCode(), stderr.String())
	var r result
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &r), stderr.String())
	return r
}

func TestRunTheExamples(t *testing.T) {
	t.Parallel()
	kept := t.TempDir()
	r := resultOf(t, 0, "-C", "../../examples/service", "--artifacts", kept)
	require.Equal(t, "success", r.Status)
	jobs, uploads := map[string]string{}, map[string][]string{}
	for _, j := range r.Jobs {
		jobs[j.Name] = j.Status
		for _, a := range j.Artifacts {
			uploads[j.Name] = append(uploads[j.Name], a.Type)
		}
	}
	require.Equal(t, map[string][]string{"unit-tests": {"archive", "junit"}, "package": {"archive", "dotenv"}}, uploads)
	report, err := os.ReadFile(filepath.Join(kept, "unit-tests.reports", "junit.xml"))
	require.NoError(t, err)
	require.Contains(t, string(report), `<testsuite name="greeter" tests="4">`)
	require.Equal(t, map[string]string{
		"shell-syntax": "success", "unit-tests": "success", "licence-scan": "failed", "package": "success", "staging": "success",
		"production": "manual", "clean-up-after-failure": "skipped",
	}, jobs)

	jobs, status := states(t, 0, "-C", "../../examples/matrix")
	require.Equal(t, "success", status)
	want := map[string]string{}
	for _, name := range []string{
		"prepare", "build: [linux, amd64]", "build: [linux, arm64]", "build: [darwin, amd64]", "build: [darwin, arm64]",
		"build: [windows, amd64]", "shards 1/3", "shards 2/3", "shards 3/3", "report",
	} {
		want[name] = "success"
	}
	require.Equal(t, want, jobs)
}

// awaitLine reads until a line has this text, and returns all that was read.
func awaitLine(t *testing.T, from *bufio.Reader, text string) string {
	t.Helper()
	var all strings.Builder
	for {
		line, err := from.ReadString('\n')
		all.WriteString(line)
		require.NoError(t, err, "%q does not come:\n%s", text, all.String())
		if strings.Contains(line, text) {
			return all.String()
		}
	}
}

func TestRunIsCanceledBySignals(t *testing.T) {
	t.Parallel()
	project := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(project, ".gitlab-ci.yml"), []byte(`
wait:
  script: ['echo ready; sleep 1000']
  after_script: [echo cleaned up]
`), 0o600))
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(signal.String(), func(t *testing.T) {
			cmd := switchyard(t, "-C", project)
			stdout, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			out := bufio.NewReader(stdout)
			awaitLine(t, out, "│ ready")
			began := time.Now()
			require.NoError(t, cmd.Process.Signal(signal))
			awaitLine(t, out, "│ cleaned up")
			awaitLine(t, out, "pipeline canceled")
			_ = cmd.Wait()
			require.Equal(t, exitInterrupted, cmd.ProcessState.ExitCode())
			require.Less(t, time.Since(began), 25*time.Second, "the job is told at once")
		})
	}
}

// Nobody reads what is written, so nothing can be shown: the third signal ends the program all the same.
func TestRunLeavesWhenItsOutputIsStuck(t *testing.T) {
	t.Parallel()
	project, mark := t.TempDir(), filepath.Join(t.TempDir(), "mark")
	require.NoError(t, os.WriteFile(filepath.Join(project, ".gitlab-ci.yml"), []byte(`
flood: {script: ['seq 1000000; touch "$MARK"; sleep 1000']}
`), 0o600))
	cmd := switchyard(t, "-C", project, "-v", "MARK="+mark)
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	defer reader.Close()
	cmd.Stdout = writer
	require.NoError(t, cmd.Start())
	require.NoError(t, writer.Close())
	require.Eventually(t, func() bool {
		_, err := os.Stat(mark)
		return err == nil
	}, time.Minute, 10*time.Millisecond)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	for range 2 {
		require.NoError(t, cmd.Process.Signal(os.Interrupt))
		select {
		case <-ended:
			require.Fail(t, "it ended before it was asked three times")
		case <-time.After(time.Second): // two signals at once are one
		}
	}
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	<-ended
	require.Equal(t, exitInterrupted, cmd.ProcessState.ExitCode())
}

// The pipeline of this repository runs these tests, so it must not be run by them where it is running already.
func TestRunThisRepositorysOwnPipeline(t *testing.T) {
	if testing.Short() || os.Getenv("CI_JOB_ID") != "" {
		t.Skip("runs the pipeline that runs the tests")
	}
	if os.Getenv("SWITCHYARD_TEST_OWN_PIPELINE") == "" {
		t.Skip("takes minutes; SWITCHYARD_TEST_OWN_PIPELINE=1 runs it")
	}
	jobs, status := states(t, 0, "-C", "../..")
	require.Equal(t, "success", status)
	require.Equal(t, "success", jobs["build"])
}
