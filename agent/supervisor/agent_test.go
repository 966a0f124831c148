//go:build linux

package supervisor_test

import (
	"context"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/supervisor"
	"github.com/switchyard-ci/switchyard/agent/tracestream"
	"github.com/switchyard-ci/switchyard/executors"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

const (
	patience = 30 * time.Second
	limit    = 1 << 20 // of output
)

var one = ledger.Ref{Job: 1, Epoch: 1}

// agent is one process of an agent, as far as jobs are concerned. Its jobs are all of one executor.
type agent struct {
	t       *testing.T
	config  supervisor.Config
	log     *logBuffer
	leave   context.CancelFunc
	ctx     context.Context
	tasks   sync.WaitGroup
	limit   int64
	payload []byte

	mu    sync.Mutex
	kinds []supervisor.Kind // of all events, in their order
	news  chan struct{}     // closed, and replaced, with each
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newAgent makes an agent's data folder and its first process.
func newAgent(t *testing.T, x executors.Executor, payload []byte, change ...func(*agent)) *agent {
	t.Helper()
	a := &agent{t: t, payload: payload, limit: limit}
	a.config = supervisor.Config{
		Jobs: filepath.Join(t.TempDir(), "jobs"), Fleet: "f", JobBinary: jobBinary, Executors: map[string]executors.Executor{"shell": x},
	}
	require.NoError(t, os.Mkdir(a.config.Jobs, 0o700))
	for _, f := range change {
		f(a)
	}
	a.begin()
	return a
}

func (a *agent) begin() {
	events := make(chan supervisor.Event, 64)
	a.log = &logBuffer{}
	a.config.Log = slog.New(slog.NewTextHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	a.config.Traces, a.config.Events = tracestream.New(), events
	payload := a.payload
	a.config.Fetch = func(context.Context, ledger.Ref) (supervisor.Fetched, error) {
		return supervisor.Fetched{Payload: payload}, nil
	}
	a.ctx, a.leave = context.WithCancel(context.Background())
	a.kinds, a.news = nil, make(chan struct{})
	ctx, log := a.ctx, a.log
	a.tasks.Go(func() {
		for {
			select {
			case e := <-events:
				a.mu.Lock()
				a.kinds = append(a.kinds, e.Kind)
				close(a.news)
				a.news = make(chan struct{})
				a.mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	})
	a.t.Cleanup(func() {
		a.leave()
		a.tasks.Wait()
		if a.t.Failed() {
			a.t.Log(log.String())
		}
	})
}

// start accepts the job and launches it.
func (a *agent) start() *supervisor.Job {
	a.t.Helper()
	j := a.accept()
	j.Launch(0, 0)
	return j
}

func (a *agent) accept() *supervisor.Job {
	a.t.Helper()
	return supervisor.Accept(a.ctx, &a.config, supervisor.Intent{
		Version: 1, Job: 1, Epoch: 1, Executor: "shell", OutputLimit: a.limit,
		Runner: supervisor.Runner{ID: 1, Name: "runner", ShortToken: "abcdefghi", SystemID: "s_1"}, Timeout: time.Hour,
	}, a.tasks.Go)
}

// again ends this process of the agent, unless it has ended, and starts another. nil: it finds no job.
func (a *agent) again() *supervisor.Recovered {
	a.t.Helper()
	a.leave()
	a.tasks.Wait()
	a.begin()
	jobs, err := supervisor.Recover(a.ctx, &a.config, a.tasks.Go)
	require.NoError(a.t, err)
	if len(jobs) == 0 {
		return nil
	}
	require.Len(a.t, jobs, 1)
	return &jobs[0]
}

// await waits for an event of that kind.
func (a *agent) await(kind supervisor.Kind) {
	a.t.Helper()
	timeout := time.After(patience)
	for {
		a.mu.Lock()
		news, n := a.news, 0
		for _, k := range a.kinds {
			if k == kind {
				n++
			}
		}
		a.mu.Unlock()
		if n > 0 {
			return
		}
		select {
		case <-news:
		case <-timeout:
			a.t.Fatalf("event %d does not come; there were %v", kind, a.kinds)
		}
	}
}

func (a *agent) count(kind supervisor.Kind) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range a.kinds {
		if k == kind {
			n++
		}
	}
	return n
}

// finished waits for the job's result, which must fit the trace on this host.
func (a *agent) finished(j *supervisor.Job) (*fleetv1.Result, string) {
	a.t.Helper()
	if j.Result() == nil {
		a.await(supervisor.Finished)
	}
	r, trace := j.Result(), a.trace()
	require.Len(a.t, trace, int(r.GetTraceLength()))
	require.Equal(a.t, r.GetTraceCrc32(), crc32.ChecksumIEEE([]byte(trace)))
	return r, trace
}

// trace is the job's, as far as it is on this host.
func (a *agent) trace() string {
	a.t.Helper()
	f, err := folder.Open(filepath.Join(a.dir(), "job"))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	require.NoError(a.t, err)
	defer f.Close()
	trace, err := f.OpenTrace()
	require.NoError(a.t, err)
	defer trace.Close()
	size, err := trace.Size()
	require.NoError(a.t, err)
	b := make([]byte, size)
	n, err := trace.ReadAt(b, 0)
	if !errors.Is(err, io.EOF) {
		require.NoError(a.t, err)
	}
	return string(b[:n])
}

func (a *agent) awaitTrace(text string) {
	a.t.Helper()
	require.Eventually(a.t, func() bool { return strings.Contains(a.trace(), text) }, patience, time.Millisecond, "%q", text)
}

func (a *agent) dir() string { return filepath.Join(a.config.Jobs, supervisor.Name("f", one)) }

// forget has the job removed, and checks that nothing is left.
func (a *agent) forget(j *supervisor.Job, elsewhere string) {
	a.t.Helper()
	a.await(supervisor.Freed)
	j.Discard()
	a.await(supervisor.Gone)
	for _, dir := range []string{a.config.Jobs, elsewhere} {
		entries, err := os.ReadDir(dir)
		require.NoError(a.t, err)
		require.Empty(a.t, entries, dir)
	}
}

// script is the payload of a job that runs these commands.
func script(commands ...string) []byte {
	b, err := json.Marshal(runnerapi.Job{
		ID: 1, JobInfo: runnerapi.JobInfo{ID: 1, Name: "job", ProjectID: 1, ProjectFullPath: "group/project"},
		GitInfo:    runnerapi.GitInfo{RepoURL: "http://127.0.0.1:1/group/project.git", SHA: strings.Repeat("0", 40), RefType: "branch"},
		RunnerInfo: runnerapi.RunnerInfo{Timeout: 120},
		Variables:  []runnerapi.Variable{{Key: "GIT_STRATEGY", Value: "none", Public: true}},
		Steps: []runnerapi.Step{
			{Name: "script", Script: commands, When: "on_success"},
			{Name: "after_script", Script: []string{`echo "after $CI_JOB_STATUS"`}, When: "always"},
		},
		Features: runnerapi.JobFeatures{FailureReasons: []runnerapi.FailureReason{runnerapi.ReasonCanceled}},
	})
	if err != nil {
		panic(err)
	}
	return b
}
