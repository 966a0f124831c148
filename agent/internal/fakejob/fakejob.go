//go:build unix

// Package fakejob is an executor for tests of the agent whose jobs are goroutines: they keep the job folder's protocol
// (fence, control socket, trace, result) but their scripts are a few words that a test needs. Like real processes they go
// on when the agent leaves, and another agent finds them again.
package fakejob

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// Executor runs fake jobs. Fields may be set before it is used.
type Executor struct {
	// OnPrepare may fail it or block it.
	OnPrepare func(ctx context.Context, trace io.Writer) error
	// OnCheck may fail it.
	OnCheck func() error

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
// to graceful cancels), "numb" (deaf to all orders), "after FILE" (waits until the file is there), "exit N", "die".
func Payload(job int64, commands ...string) []byte {
	b, err := json.Marshal(runnerapi.Job{
		ID: job, Steps: []runnerapi.Step{{Name: "script", Script: commands}}, Features: runnerapi.JobFeatures{
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
	return &environment{x: x, spec: spec, done: make(chan struct{})}, nil
}

// Recover always finds the environment if there is a folder.
func (x *Executor) Recover(_ context.Context, spec executors.Spec) (executors.Environment, error) {
	if _, err := os.Stat(spec.Folder); err != nil {
		return nil, executors.ErrNotFound
	}
	return &environment{x: x, spec: spec, done: make(chan struct{})}, nil
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

type environment struct {
	x    *Executor
	spec executors.Spec
	done chan struct{}
}

func (v *environment) Job() executors.Place {
	return executors.Place{Folder: v.spec.Folder, Binary: "fake", BuildsDir: "/b", CacheDir: "/c", KillGrace: 100 * time.Millisecond}
}
func (v *environment) LocalFolder() (string, bool) { return v.spec.Folder, true }
func (v *environment) Done() <-chan struct{}       { return v.done }
func (v *environment) Err() error                  { return nil }

func (v *environment) Exec(ctx context.Context, c executors.Command) (int, error) {
	p := &process{x: v.x, spec: v.spec, killed: make(chan struct{}), ended: make(chan struct{}), graceful: make(chan struct{}), hard: make(chan struct{})}
	v.x.mu.Lock()
	v.x.running[v.spec.Folder] = p
	v.x.starts[v.spec.Name]++
	v.x.mu.Unlock()
	v.x.all.Go(func() { p.main(c.Stdout) })
	select {
	case <-p.ended:
		return p.code, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (v *environment) Kill(context.Context) error {
	v.x.mu.Lock()
	p := v.x.running[v.spec.Folder]
	v.x.mu.Unlock()
	if p != nil {
		p.kill()
		<-p.ended
	}
	return nil
}

func (v *environment) Destroy(ctx context.Context) error {
	v.x.mu.Lock()
	v.x.destroyed[v.spec.Name]++
	v.x.mu.Unlock()
	return v.Kill(ctx)
}

// process is a job that runs.
type process struct {
	x    *Executor
	spec executors.Spec
	code int

	killOnce, gracefulOnce, hardOnce sync.Once
	killed, graceful, hard, ended    chan struct{}

	mu     sync.Mutex
	conns  map[net.Conn]bool
	length int64
	result bool
	closed bool // no connection is taken any more
}

func (p *process) kill() { p.killOnce.Do(func() { close(p.killed) }) }

var errKilled = errors.New("killed")

func (p *process) main(stdout io.Writer) {
	defer func() {
		p.x.mu.Lock()
		delete(p.x.running, p.spec.Folder)
		p.x.mu.Unlock()
		close(p.ended)
	}()
	if err := p.work(stdout); err != nil {
		p.code = 137
		if !errors.Is(err, errKilled) {
			p.x.t.Logf("fake job: %v", err)
		}
	}
}

func (p *process) work(stdout io.Writer) error {
	f, err := folder.Open(p.spec.Folder)
	if err != nil {
		return err
	}
	defer f.Close()
	start, err := f.LockStart()
	if err != nil {
		return err
	}
	defer start.Close()
	lock, ok, err := f.TryLock()
	if err != nil || !ok {
		return fmt.Errorf("lock: %v %w", ok, err)
	}
	defer lock.Close()
	spec, err := f.Spec()
	if err != nil {
		return err
	}
	payload, err := f.Payload()
	if err != nil {
		return err
	}
	var job runnerapi.Job
	if err := json.Unmarshal(payload, &job); err != nil {
		return err
	}
	trace, err := f.OpenForJob(folder.TraceFile)
	if err != nil {
		return err
	}
	defer trace.Close()
	if err := f.WriteStarted(folder.Started{PID: os.Getpid(), At: time.Now()}); err != nil {
		return err
	}
	listener, err := net.Listen("unix", f.SocketPath())
	if err != nil {
		return err
	}
	var serving sync.WaitGroup
	p.conns = make(map[net.Conn]bool)
	serving.Go(func() { p.serve(listener, &serving) })
	defer serving.Wait()
	defer p.closeAll()
	defer listener.Close()
	if err := start.Close(); err != nil {
		return err
	}
	if stdout != nil {
		_, _ = io.WriteString(stdout, "ready\n")
	}
	crc := spec.PrefixCRC32
	put := func(b []byte) {
		_, err := trace.Write(b)
		require.NoError(p.x.t, err)
		crc = crc32.Update(crc, crc32.IEEETable, b)
		p.mu.Lock()
		p.length += int64(len(b))
		p.mu.Unlock()
		p.tell(folder.Event{Kind: folder.EventTrace, TraceLength: p.length})
	}
	result := folder.Result{State: runnerapi.StateSuccess, StartedAt: time.Now()}
	for _, command := range job.Steps[0].Script {
		end, err := p.step(command, put, &result)
		if err != nil {
			return err
		}
		if end {
			break
		}
	}
	result.TraceLength, result.TraceCRC32, result.FinishedAt = p.length, crc, time.Now()
	if err := f.WriteResult(result); err != nil {
		return err
	}
	p.mu.Lock()
	p.result = true
	p.mu.Unlock()
	p.tell(folder.Event{Kind: folder.EventResult})
	return nil
}

// step runs one command; end says that the job is over.
func (p *process) step(command string, put func([]byte), result *folder.Result) (end bool, err error) {
	word, rest, _ := strings.Cut(command, " ")
	fail := func(reason runnerapi.FailureReason, code int) (bool, error) {
		result.State, result.FailureReason, result.ExitCode = runnerapi.StateFailed, reason, code
		return true, nil
	}
	n, _ := strconv.Atoi(rest)
	switch word {
	case "print":
		put([]byte(rest + "\n"))
	case "bytes":
		line := bytes.Repeat([]byte("0123456789abcde\n"), 4096)
		for ; n > 0; n -= min(n, len(line)) {
			put(line[:min(n, len(line))])
		}
	case "wait":
		select {
		case <-p.graceful:
			put([]byte("canceled gracefully\n"))
		case <-p.hard:
			put([]byte("canceled\n"))
		case <-p.killed:
			return true, errKilled
		}
		return fail(runnerapi.ReasonCanceled, 0)
	case "hang":
		select {
		case <-p.hard:
			put([]byte("canceled\n"))
		case <-p.killed:
			return true, errKilled
		}
		return fail(runnerapi.ReasonCanceled, 0)
	case "numb":
		<-p.killed
		return true, errKilled
	case "after":
		for {
			if _, err := os.Stat(rest); err == nil {
				return false, nil
			}
			select {
			case <-time.After(5 * time.Millisecond):
			case <-p.killed:
				return true, errKilled
			}
		}
	case "exit":
		if n != 0 {
			return fail(runnerapi.ReasonScriptFailure, n)
		}
		return true, nil
	case "die":
		return true, errKilled
	default:
		return true, fmt.Errorf("unknown command %q", command)
	}
	return false, nil
}

func (p *process) serve(listener net.Listener, serving *sync.WaitGroup) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			_ = conn.Close()
			return
		}
		hello := folder.Greeting()
		hello = folder.AppendEvent(hello, folder.Event{Kind: folder.EventTrace, TraceLength: p.length})
		if p.result {
			hello = folder.AppendEvent(hello, folder.Event{Kind: folder.EventResult})
		}
		_, _ = conn.Write(hello)
		p.conns[conn] = true
		p.mu.Unlock()
		serving.Go(func() { p.obey(conn) })
	}
}

func (p *process) obey(conn net.Conn) {
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		o, err := folder.ParseOrder(lines.Bytes())
		if err != nil {
			p.x.t.Errorf("the agent sent a bad order: %v", err)
			continue
		}
		switch o.Kind {
		case folder.OrderCancelGraceful:
			p.gracefulOnce.Do(func() { close(p.graceful) })
		case folder.OrderCancelKill:
			p.hardOnce.Do(func() { close(p.hard) })
		case folder.OrderLease:
			p.x.mu.Lock()
			p.x.leases[p.job()] = append(p.x.leases[p.job()], o.Lease)
			p.x.mu.Unlock()
		}
	}
}

// job reads the job's id out of the environment's name.
func (p *process) job() int64 {
	parts := strings.Split(p.spec.Name, "-")
	n, _ := strconv.ParseInt(parts[len(parts)-2], 10, 64)
	return n
}

func (p *process) tell(e folder.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		_, _ = conn.Write(folder.AppendEvent(nil, e))
	}
}

func (p *process) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for conn := range p.conns {
		_ = conn.Close()
	}
}
