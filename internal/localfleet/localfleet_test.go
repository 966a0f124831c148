package localfleet

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/testbinary"
)

var programs string

func TestMain(m *testing.M) {
	var err error
	if programs, err = testbinary.Build("switchyard-job"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(programs)
		os.Exit(code)
	}))
}

// patience bounds every wait; nothing comes near it unless it hangs.
const patience = 2 * time.Minute

func start(t *testing.T, o Options) *Fleet {
	t.Helper()
	o.Dir = t.TempDir()
	o.JobBinary = filepath.Join(programs, "switchyard-job")
	o.Environ = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	f, err := Start(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

// run makes a pipeline of one project; its jobs need no sources.
func run(t *testing.T, f *Fleet, config string) coordinator.Pipeline {
	t.Helper()
	compiled, err := ciconfig.Compile(".gitlab-ci.yml", []byte("variables: {GIT_STRATEGY: none}\n"+config), ciconfig.Options{})
	require.NoError(t, err)
	p, err := f.GitLab().AddProject(t.Context(), coordinator.ProjectOptions{Path: "group/" + strings.ReplaceAll(t.Name(), "/", "-")})
	require.NoError(t, err)
	pipeline, err := f.GitLab().CreatePipeline(t.Context(), p.ID, coordinator.PipelineOptions{Config: compiled})
	require.NoError(t, err)
	return pipeline
}

func wait(t *testing.T, f *Fleet, p coordinator.Pipeline) coordinator.Pipeline {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := f.GitLab().Wait(ctx, p.ID)
	require.NoError(t, err)
	return p
}

func trace(t *testing.T, f *Fleet, j coordinator.Job) string {
	t.Helper()
	r, err := f.GitLab().Trace(j.ID, 0)
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return string(b)
}

// awaitOutput waits until a job's output has a line with a prefix, and returns the rest of that line.
func awaitOutput(t *testing.T, f *Fleet, j coordinator.Job, prefix string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for size := int64(0); ; {
		text := trace(t, f, j)
		for line := range strings.Lines(text) {
			if rest, ok := strings.CutPrefix(line, prefix); ok && strings.HasSuffix(rest, "\n") {
				return strings.TrimSpace(rest)
			}
		}
		var ended bool
		var err error
		size, ended, err = f.GitLab().WaitTrace(ctx, j.ID, max(size, int64(len(text))))
		require.NoError(t, err)
		require.False(t, ended, "the job ended without %q:\n%s", prefix, text)
	}
}

// requireGone checks that a process has ended. Who reaps it is not the fleet's concern.
func requireGone(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	require.NoError(t, err)
	if stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat")); err == nil {
		require.Contains(t, string(stat), ") Z ")
		return
	}
	require.ErrorIs(t, syscall.Kill(n, 0), syscall.ESRCH)
}

func TestAPipelineRunsAndNothingIsLeft(t *testing.T) {
	f := start(t, Options{Agents: 2, Slots: 2, TracePace: 10 * time.Millisecond})
	p := wait(t, f, run(t, f, `
stages: [one, two]
many: {stage: one, parallel: 6, script: [echo "shard $CI_NODE_INDEX in $CI_BUILDS_DIR"]}
last: {stage: two, script: [exit 3], allow_failure: true}
`))
	require.Equal(t, "success", p.Status)
	for _, j := range p.Jobs[:6] {
		require.Contains(t, trace(t, f, j), "shard "+strings.TrimSuffix(strings.TrimPrefix(j.Name, "many "), "/6"))
		require.True(t, j.Report.ChecksumOK)
	}
	require.Equal(t, 3, p.Jobs[6].ExitCode)
	require.NoError(t, f.Err())
	require.NoError(t, f.Close())
	require.NoDirExists(t, f.Dir())
	require.NoError(t, f.Close(), "again")
}

func TestCloseKillsWhatRuns(t *testing.T) {
	f := start(t, Options{TracePace: 10 * time.Millisecond})
	p := run(t, f, "forever: {script: ['sleep 1000 & echo \"pid $!\"; setsid sleep 1000 & echo \"daemon $!\"; wait']}\n")
	sleep, daemon := awaitOutput(t, f, p.Jobs[0], "pid "), awaitOutput(t, f, p.Jobs[0], "daemon ")
	require.NoError(t, f.Close())
	requireGone(t, sleep)
	requireGone(t, daemon)
}

func TestCancelIsToldAtOnce(t *testing.T) {
	f := start(t, Options{TracePace: 10 * time.Millisecond, KillGrace: time.Second})
	p := run(t, f, "forever: {script: ['echo \"pid $$\"; sleep 1000'], after_script: [echo cleaned up]}\nnext: {stage: deploy, script: [x]}\n")
	pid := awaitOutput(t, f, p.Jobs[0], "pid ")
	began := time.Now()
	require.NoError(t, f.Cancel(p.ID, false))
	p = wait(t, f, p)
	require.Equal(t, "canceled", p.Status)
	require.Equal(t, []string{"canceled", "canceled"}, []string{p.Jobs[0].Status, p.Jobs[1].Status})
	require.Contains(t, trace(t, f, p.Jobs[0]), "\ncleaned up\n")
	require.Less(t, time.Since(began), 25*time.Second, "sooner than the next sign of life of a silent job")
	requireGone(t, pid)
}

func TestKillDoesNotWait(t *testing.T) {
	f := start(t, Options{TracePace: 10 * time.Millisecond})
	p := run(t, f, "forever: {script: ['trap \"\" TERM; echo \"pid $$\"; while true; do sleep 1; done'], after_script: [echo cleaned up]}\n")
	pid := awaitOutput(t, f, p.Jobs[0], "pid ")
	require.NoError(t, f.Cancel(p.ID, false))
	require.NoError(t, f.Cancel(p.ID, true))
	require.Equal(t, "canceled", wait(t, f, p).Status)
	require.NoError(t, f.Close())
	requireGone(t, pid)
}

func TestRunnersAndWhatIsPreparedForThem(t *testing.T) {
	f := start(t, Options{
		Prepare: func(gitlab *coordinator.Coordinator) error {
			_, err := gitlab.AddProject(t.Context(), coordinator.ProjectOptions{Path: "group/app"})
			return err
		},
		Runners: []Runner{
			{RunnerOptions: coordinator.RunnerOptions{Type: coordinator.ProjectRunner, Projects: []string{"group/app"}, Tags: []string{"gpu"}}},
			{RunnerOptions: coordinator.RunnerOptions{RunUntagged: true}, Limit: 1},
		},
	})
	require.Len(t, f.Runners(), 2)
	require.Equal(t, []string{"local", "local-2"}, []string{f.Runners()[0].Description, f.Runners()[1].Description})
	require.Len(t, f.ControlPlane().Runners(), 2)
	require.Equal(t, "success", wait(t, f, run(t, f, "a: {script: [echo]}\n")).Status)
}

func TestWhatCannotBeStarted(t *testing.T) {
	binary := filepath.Join(programs, "switchyard-job")
	for want, o := range map[string]Options{
		"is not absolute":         {JobBinary: "switchyard-job"},
		"look for switchyard-job": {JobBinary: filepath.Join(t.TempDir(), "none")},
		"negative number":         {JobBinary: binary, Agents: -1},
		"make a folder":           {JobBinary: binary, Dir: filepath.Join(t.TempDir(), "none")},
		`runner "local"`:          {JobBinary: binary, Dir: t.TempDir(), Runners: []Runner{{}}},
		"no":                      {JobBinary: binary, Dir: t.TempDir(), Prepare: func(*coordinator.Coordinator) error { return fmt.Errorf("no") }},
		"slots is":                {JobBinary: binary, Dir: t.TempDir(), Slots: 1 << 20},
	} {
		_, err := Start(t.Context(), o)
		require.ErrorContains(t, err, want)
		if o.Dir != "" {
			entries, _ := os.ReadDir(o.Dir)
			require.Empty(t, entries, want)
		}
	}
}

func TestJobsAskNoProxyForTheEmbeddedGitLab(t *testing.T) {
	require.Equal(t, []string{"A=b", "no_proxy=127.0.0.1", "NO_PROXY=127.0.0.1"}, withoutProxy([]string{"A=b"}, loopback))
	require.Equal(t, []string{"http_proxy=x", "no_proxy=127.0.0.1,a,b", "NO_PROXY=127.0.0.1,a,b"},
		withoutProxy([]string{"No_Proxy=a", "http_proxy=x", "NO_PROXY=b"}, loopback))
}

func TestFoldersThatCannotBeWrittenToAreRemovedToo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a", "b", "f"), nil, 0o400))
	require.NoError(t, os.Chmod(filepath.Join(dir, "a", "b"), 0o500))
	require.NoError(t, os.Chmod(filepath.Join(dir, "a"), 0o500))
	require.NoError(t, removeAll(dir))
	require.NoDirExists(t, dir)
}

func TestCachesStayWhereTheyAreTold(t *testing.T) {
	caches := t.TempDir()
	for _, want := range []string{"runs: 1", "runs: 2"} {
		f := start(t, Options{CacheDir: caches, TracePace: 10 * time.Millisecond})
		p := wait(t, f, run(t, f, `
job:
  cache: {key: k, paths: [runs]}
  script: [mkdir -p runs, 'touch runs/$(ls runs | wc -l)', 'echo "runs: $(ls runs | wc -l)"']
`))
		require.Contains(t, trace(t, f, p.Jobs[0]), want+"\n")
		require.NoError(t, f.Close())
	}
}

func TestWithoutAnEngineThereAreNoContainers(t *testing.T) {
	t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(t.TempDir(), "none.sock"))
	f, err := Start(t.Context(), Options{Dir: t.TempDir(), JobBinary: filepath.Join(programs, "switchyard-job"), Docker: &Docker{}})
	require.Nil(t, f)
	require.ErrorContains(t, err, "start a local fleet: ask the Docker Engine for the address of this host in its network: ")
}
