//go:build linux

package shell_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/conformance"
	"github.com/switchyard-ci/switchyard/executors/shell"
	"github.com/switchyard-ci/switchyard/internal/testbed"
	"github.com/switchyard-ci/switchyard/internal/testbinary"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// jobBinary is switchyard-job, built by TestMain.
var jobBinary string

func TestMain(m *testing.M) {
	dir, err := testbinary.Build("switchyard-job")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	jobBinary = filepath.Join(dir, "switchyard-job")
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func config(t *testing.T) shell.Config {
	t.Helper()
	dir := t.TempDir()
	jobs := filepath.Join(dir, "jobs")
	require.NoError(t, os.Mkdir(jobs, 0o700))
	// Whoever runs the tests may have a login profile that takes its time.
	environ := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "HOME=") })
	return shell.Config{
		Jobs: jobs, BuildsDir: filepath.Join(dir, "builds"), CacheDir: filepath.Join(dir, "cache"), Environ: append(environ, "HOME="+dir),
		Log: slog.New(slog.DiscardHandler),
	}
}

func newExecutor(t *testing.T, c shell.Config) *shell.Executor {
	t.Helper()
	x, err := shell.New(c)
	require.NoError(t, err)
	return x
}

func TestConformance(t *testing.T) {
	for _, name := range []string{"bash", "sh"} {
		t.Run(name, func(t *testing.T) {
			if name == "bash" {
				testbed.Need(t, testbed.Bash)
			}
			conformance.Run(t, func(t *testing.T) conformance.Harness {
				c := config(t)
				c.Shell = name
				return conformance.Harness{
					Executor: newExecutor(t, c), Again: func(t *testing.T) executors.Executor { return newExecutor(t, c) },
					Jobs: c.Jobs, JobBinary: jobBinary, Processes: processes, Host: "127.0.0.1", Leftovers: leftovers(c),
				}
			})
		})
	}
}

// leftovers lists what is left of jobs: processes, control groups, and files of the folders for temporary files.
func leftovers(c shell.Config) func(t *testing.T) []string {
	return func(t *testing.T) []string {
		t.Helper()
		names, err := shell.GroupNames(t.Context(), newExecutor(t, c))
		require.NoError(t, err)
		environs, err := filepath.Glob("/proc/[0-9]*/environ")
		require.NoError(t, err)
		for _, file := range environs {
			if b, err := os.ReadFile(file); err == nil && bytes.Contains(b, []byte("="+c.Jobs+"/")) {
				names = append(names, file)
			}
		}
		require.NoError(t, filepath.WalkDir(c.BuildsDir, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() && strings.HasSuffix(filepath.Dir(path), ".tmp") {
				names = append(names, path)
			}
			return err
		}))
		return names
	}
}

// processes counts the living processes whose arguments contain text.
func processes(t *testing.T, text string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	require.NoError(t, err)
	n := 0
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")) // empty for zombies
		if err == nil && bytes.HasSuffix(bytes.ReplaceAll(bytes.TrimRight(line, "\x00"), []byte{0}, []byte{' '}), []byte(text)) {
			n++
		}
	}
	return n
}

func TestTheAgentsOwnVariablesAreNotInherited(t *testing.T) {
	require.Equal(t, []string{"PATH=/bin", "HOME=/root", "EMPTY=", "SWITCH=1"}, shell.Inherited([]string{
		"PATH=/bin", "SWITCHYARD_TOKEN_FILE=/t", "NOTIFY_SOCKET=/n", "HOME=/root", "INVOCATION_ID=1", "EMPTY=", "SWITCH=1",
		"CREDENTIALS_DIRECTORY=/c", "SWITCHYARD_JOB_FOLDER=/outer",
	}))
}

func TestConfigIsChecked(t *testing.T) {
	for want, change := range map[string]func(*shell.Config){
		`builds_dir is "builds": it must be an absolute path`: func(c *shell.Config) { c.BuildsDir = "builds" },
		`shell is "zsh": it must be bash or sh`:               func(c *shell.Config) { c.Shell = "zsh" },
	} {
		c := config(t)
		change(&c)
		_, err := shell.New(c)
		require.ErrorContains(t, err, want)
	}
}

func TestAMissingShellSaysSo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := newExecutor(t, config(t)).Check(t.Context())
	require.ErrorContains(t, err, "neither bash nor sh is in PATH: install one")
	c := config(t)
	c.Shell = "bash"
	require.ErrorContains(t, newExecutor(t, c).Check(t.Context()), "bash is not installed")
}

func TestAMissingGitIsOnlyAWarning(t *testing.T) {
	var log bytes.Buffer
	c := config(t)
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	bin := t.TempDir()
	require.NoError(t, os.Symlink("/bin/sh", filepath.Join(bin, "sh")))
	t.Setenv("PATH", bin)
	x := newExecutor(t, c)
	require.NoError(t, x.Check(t.Context()))
	require.Contains(t, log.String(), "git is not installed")
	require.Equal(t, "sh", x.Features().Shell)
}

func TestAHostThatWasRestarted(t *testing.T) {
	c := config(t)
	x := newExecutor(t, c)
	spec := executors.Spec{Name: "sy-a-1-1", Folder: filepath.Join(c.Jobs, "sy-a-1-1", "job")}
	require.NoError(t, os.Mkdir(filepath.Dir(spec.Folder), 0o700))
	require.NoError(t, folder.Create(spec.Folder, folder.Spec{Job: 1}, []byte("{}")))
	f, err := folder.Open(spec.Folder)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.WriteStarted(folder.Started{PID: 1, BootID: "of another boot", At: time.Now()}))

	env, err := x.Recover(t.Context(), spec)
	require.NoError(t, err)
	<-env.Done()
	require.ErrorContains(t, env.Err(), "was restarted while the job ran")
	require.NoError(t, env.Destroy(context.Background()))
}

func TestSupervisedJobsDoNotSurvive(t *testing.T) {
	c := config(t)
	require.True(t, newExecutor(t, c).Features().SurvivesAgent)
	c.Supervised = true
	require.False(t, newExecutor(t, c).Features().SurvivesAgent)
}
