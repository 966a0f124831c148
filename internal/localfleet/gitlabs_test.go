package localfleet

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/agent"
	"github.com/switchyard-ci/switchyard/controlplane"
	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/shell"
	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/faults"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

// place is a GitLab that can be broken, with one project and one runner.
type place struct {
	*testing.T
	gitlab  *coordinator.Coordinator
	front   *faults.GitLab
	runner  coordinator.Runner
	project int64
}

func newPlace(t *testing.T, o coordinator.Options) *place {
	t.Helper()
	o.Dir = t.TempDir()
	o.TraceInterval = time.Second
	gitlab, err := coordinator.New(o)
	require.NoError(t, err)
	front, err := faults.NewGitLab(gitlab.Handler())
	require.NoError(t, err)
	require.NoError(t, gitlab.SetURL(front.URL()))
	p := &place{T: t, gitlab: gitlab, front: front}
	p.runner, err = gitlab.AddRunner(coordinator.RunnerOptions{RunUntagged: true})
	require.NoError(t, err)
	project, err := gitlab.AddProject(t.Context(), coordinator.ProjectOptions{Path: "group/project"})
	require.NoError(t, err)
	p.project = project.ID
	return p
}

func (p *place) registration(name string) controlplane.Runner {
	return controlplane.Runner{Runner: registry.Runner{Name: name, URL: p.front.URL(), Token: p.runner.Token, Executor: "shell", OutputLimit: 1 << 20}}
}

func (p *place) run(config string) coordinator.Pipeline {
	p.Helper()
	compiled, err := ciconfig.Compile(".gitlab-ci.yml", []byte("variables: {GIT_STRATEGY: none}\n"+config), ciconfig.Options{})
	require.NoError(p, err)
	pipeline, err := p.gitlab.CreatePipeline(p.Context(), p.project, coordinator.PipelineOptions{Config: compiled})
	require.NoError(p, err)
	return pipeline
}

func (p *place) wait(pipeline coordinator.Pipeline) coordinator.Job {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	pipeline, err := p.gitlab.Wait(ctx, pipeline.ID)
	require.NoError(p, err)
	require.Equal(p, "success", pipeline.Status)
	require.Len(p, pipeline.Jobs, 1)
	return pipeline.Jobs[0]
}

func (p *place) trace(job int64) string {
	p.Helper()
	r, err := p.gitlab.Trace(job, 0)
	require.NoError(p, err)
	b, err := io.ReadAll(r)
	require.NoError(p, err)
	return string(b)
}

func (p *place) close() {
	require.NoError(p, p.gitlab.Close()) // ends held requests first
	require.NoError(p, p.front.Close())
}

// startPlane starts a control plane for these runners and one agent with so many slots; the function ends both.
func startPlane(t *testing.T, slots int, log *slog.Logger, runners ...controlplane.Runner) (plane *controlplane.Server, stop func()) {
	t.Helper()
	dir := t.TempDir()
	data := filepath.Join(dir, "plane")
	require.NoError(t, os.Mkdir(data, 0o700))
	plane, err := controlplane.Open(t.Context(), controlplane.Config{Data: data, Runners: runners, TracePace: 50 * time.Millisecond, Logger: log})
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	life, end := context.WithCancel(context.WithoutCancel(t.Context()))
	served, worked := make(chan error, 1), make(chan error, 1)
	go func() { served <- plane.Serve(life, listener) }()
	token, _, err := plane.Authority().NewJoinToken(t.Context(), 1, time.Hour)
	require.NoError(t, err)
	executor, err := shell.New(shell.Config{
		Jobs: filepath.Join(dir, "jobs"), BuildsDir: filepath.Join(dir, "builds"), CacheDir: filepath.Join(dir, "cache"),
		Environ: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir},
	})
	require.NoError(t, err)
	a, err := agent.New(agent.Config{
		Server: listener.Addr().String(), Data: filepath.Join(dir, "agent"), Name: "one", Slots: slots,
		JobBinary: filepath.Join(programs, "switchyard-job"), Token: func() (jointoken.Token, error) { return token, nil },
		Executors: []executors.Executor{executor},
	})
	require.NoError(t, err)
	working, leave := context.WithCancel(life)
	go func() { worked <- a.Run(working) }()
	return plane, func() {
		leave()
		require.NoError(t, <-worked)
		end()
		require.NoError(t, <-served)
	}
}

// One GitLab that does not work, in whatever way, slows neither the claims nor the reports of another one, and what it had
// given away is reported when it works again.
//
// The bad one ends what hangs after 10 s, because the test has to see it work again.
func TestABrokenGitLabIsNobodyElsesTrouble(t *testing.T) {
	for name, fault := range map[string]faults.Fault{
		"hangs":  {Kind: faults.Hang, Wait: 10 * time.Second},
		"fails":  {Kind: faults.Status, Code: 503},
		"resets": {Kind: faults.Reset},
		"pages":  {Kind: faults.HTML},
	} {
		t.Run(name, func(t *testing.T) {
			bad, good := newPlace(t, coordinator.Options{Hold: 2 * time.Second}), newPlace(t, coordinator.Options{})
			_, stop := startPlane(t, 2, nil, bad.registration("bad"), good.registration("good"))
			release := filepath.Join(t.TempDir(), "release")
			long := bad.run(fmt.Sprintf("long: {script: [\"echo begins; while ! test -e %s; do echo goes on; sleep 0.1; done; echo ends\"]}", release))
			awaitTrace(bad, long.Jobs[0].ID, "begins")

			bad.front.Set(faults.Rule{Fault: fault})
			for i := 0; i < 6 || bad.front.Injected()[fault.Kind] < 2; i++ {
				good.wait(good.run(fmt.Sprintf("short: {script: [echo %d]}", i)))
			}
			require.NoError(t, os.WriteFile(release, nil, 0o600))
			good.wait(good.run("last: {script: [echo last]}"))

			bad.front.Set()
			job := bad.wait(long)
			require.Equal(t, 1, strings.Count(bad.trace(job.ID), "begins\n"))
			require.Equal(t, 1, strings.Count(bad.trace(job.ID), "ends\n"))
			bad.wait(bad.run("again: {script: [echo again]}"))
			good.close()
			bad.close()
			stop()
		})
	}
}

// awaitTrace waits until a job's trace has a text.
func awaitTrace(p *place, job int64, text string) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	for size := int64(0); !strings.Contains(p.trace(job), text); {
		var err error
		size, _, err = p.gitlab.WaitTrace(ctx, job, size)
		require.NoError(p, err)
	}
}

// A token that expires is replaced while jobs run, come and are reported; nobody is told but the log.
func TestATokenIsReplacedWhileJobsRun(t *testing.T) {
	var log lockedBuffer
	p := newPlace(t, coordinator.Options{RunnerTokenTTL: 4 * time.Second})
	plane, stop := startPlane(t, 2, slog.New(slog.NewTextHandler(&log, nil)), p.registration("expires"))
	release := filepath.Join(t.TempDir(), "release")
	long := p.run(fmt.Sprintf("long: {script: [\"echo short=$CI_RUNNER_SHORT_TOKEN; while ! test -e %s; do sleep 0.1; done; echo ends\"]}", release))
	awaitTrace(p, long.Jobs[0].ID, "short="+registry.ShortToken(p.runner.Token))
	require.Eventually(t, func() bool { return plane.Runners()[0].Token.Rotated }, patience, 20*time.Millisecond)
	renewed, err := p.gitlab.Runner(p.runner.ID)
	require.NoError(t, err)
	require.NotEqual(t, p.runner.Token, renewed.Token)

	job := p.wait(p.run("next: {script: [echo short=$CI_RUNNER_SHORT_TOKEN]}"))
	require.Contains(t, p.trace(job.ID), "short="+registry.ShortToken(renewed.Token))
	require.NoError(t, os.WriteFile(release, nil, 0o600))
	job = p.wait(long)
	require.Contains(t, p.trace(job.ID), "ends\n")
	p.close()
	stop()
	require.NotContains(t, log.String(), "does not know the token")
	require.NotContains(t, log.String(), p.runner.Token)
	require.NotContains(t, log.String(), renewed.Token)
}

// lockedBuffer is a log that is written by many.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
