//go:build unix

// Package fakejob is an executor for tests of the agent whose jobs are goroutines: they keep the job folder's protocol
// (fence, control socket, trace, result) but their scripts are a few words that a test needs. Like real processes they go
// on when the agent leaves, and another agent finds them again.
package fakejob

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Executor runs fake jobs. Fields may be set before it is used.
type Executor struct {
	// OnPrepare may fail it or block it.
	OnPrepare func(ctx context.Context, trace io.Writer) error
	// OnCheck may fail it.
	OnCheck func() error
	// Elsewhere, unless it is empty, is the folder that job folders are in: then they are not the agent's, and its jobs are
	// launched and attached to.
	Elsewhere string
	// OnExec may change a command before it is run, or fail it. The command is waited for until the context that it returns
	// ends.
	OnExec func(ctx context.Context, c *executors.Command) (context.Context, error)

	t         testing.TB
	mu        sync.Mutex
	running   map[string]*process // by folder
	starts    map[string]int      // by environment's name
	destroyed map[string]int

	leases map[int64][]time.Duration
	all    sync.WaitGroup
}

// New makes an executor whose jobs end, at the latest, with the test.
func New(t testing.TB) *Executor {
	x := &Executor{
		t: t, running: make(map[string]*process), starts: make(map[string]int), destroyed: make(map[string]int),
		leases: make(map[int64][]time.Duration),
	}
	t.TempDir() // the test's folders go after the jobs, which write there
	t.Cleanup(func() {
		x.mu.Lock()
		for _, p := range x.running {
			p.kill()
		}
		x.mu.Unlock()
		x.all.Wait()
	})
	return x
}

// Payload makes a job's payload. Its commands: "print TEXT", "bytes N" (of trace), "wait" (for any cancel), "hang" (deaf
// to graceful cancels), "numb" (deaf to all orders), "after FILE" (waits until the file is there), "ask KEY" (for the URL of
// a cache, and prints the answer), "exit N", "die".
func Payload(job int64, commands ...string) []byte { return PayloadWithTimeout(job, 0, commands...) }

// PayloadWithTimeout is Payload with a time limit in seconds; 0 is none.
func PayloadWithTimeout(job int64, timeout int, commands ...string) []byte {
	b, err := json.Marshal(runnerapi.Job{
		ID: job, RunnerInfo: runnerapi.RunnerInfo{Timeout: timeout}, Steps: []runnerapi.Step{{Name: "script", Script: commands}}, Features: runnerapi.JobFeatures{
			TraceSections: true, FailureReasons: []runnerapi.FailureReason{runnerapi.ReasonCanceled, runnerapi.ReasonImagePull},
		},
	})
	if err != nil {
		panic(err)
	}
	return b
}

// Starts is how often a job was started, whatever the epoch.
func (x *Executor) Starts(job int64) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := 0
	for name, starts := range x.starts {
		if strings.Contains(name, "-"+strconv.FormatInt(job, 10)+"-") {
			n += starts
		}
	}
	return n
}

// Running is how many jobs run.
func (x *Executor) Running() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.running)
}

// Leases are the dead man's limits that a job was told.
func (x *Executor) Leases(job int64) []time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append([]time.Duration(nil), x.leases[job]...)
}

// Name is that of the executor that tests ask for.
func (x *Executor) Name() string { return "shell" }

// Features are few.
func (x *Executor) Features() executors.Features {
	return executors.Features{Runner: runnerapi.Features{Variables: true}, Shell: "none", SurvivesAgent: true}
}

// Check calls OnCheck.
func (x *Executor) Check(context.Context) error {
	if x.OnCheck != nil {
		return x.OnCheck()
	}
	return nil
}

// Prepare calls OnPrepare.
func (x *Executor) Prepare(ctx context.Context, spec executors.Spec, trace io.Writer) (executors.Environment, error) {
	if x.OnPrepare != nil {
		if err := x.OnPrepare(ctx, trace); err != nil {
			return nil, err
		}
	}
	_, _ = io.WriteString(trace, "Using a fake executor...\n")
	v := x.environment(spec)
	if x.Elsewhere != "" {
		if err := os.Mkdir(filepath.Dir(v.folder), 0o700); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// Recover always finds the environment if there is a folder.
func (x *Executor) Recover(_ context.Context, spec executors.Spec) (executors.Environment, error) {
	v := x.environment(spec)
	if _, err := os.Stat(filepath.Dir(v.folder)); err != nil {
		return nil, executors.ErrNotFound
	}
	return v, nil
}

func (x *Executor) environment(spec executors.Spec) *environment {
	v := &environment{x: x, spec: spec, folder: spec.Folder, done: make(chan struct{})}
	if x.Elsewhere != "" {
		v.folder = filepath.Join(x.Elsewhere, spec.Name, "job")
	}
	return v
}

// Sweep kills the jobs that are not to be kept.
func (x *Executor) Sweep(_ context.Context, keep func(string) bool) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for path, p := range x.running {
		if name := filepath.Base(filepath.Dir(path)); !keep(name) {
			p.kill()
		}
	}
	return nil
}

// Crash kills all jobs and waits for their ends: what a loss of power does to them.
func (x *Executor) Crash() {
	x.mu.Lock()
	for _, p := range x.running {
		p.kill()
	}
	x.mu.Unlock()
	x.all.Wait()
}
