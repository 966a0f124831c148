package relay

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

func TestMain(m *testing.M) {
	if address := os.Getenv(sinkVariable); address != "" {
		serveSink(address)
		return
	}
	goleak.VerifyTestMain(m)
}

// recorder is the owner of the jobs: it writes down what it is told.
type recorder struct {
	mu       sync.Mutex
	changed  chan struct{} // closed and replaced with each event
	statuses map[int64][]string
	outcomes map[int64][]Outcome
	received map[int64][]Progress
	on       func(job int64, p Progress) // called for each Received
}

func newRecorder() *recorder {
	return &recorder{
		changed: make(chan struct{}), statuses: make(map[int64][]string), outcomes: make(map[int64][]Outcome),
		received: make(map[int64][]Progress),
	}
}

func (e *recorder) record(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *recorder) JobStatus(job int64, s string) {
	e.record(func() { e.statuses[job] = append(e.statuses[job], s) })
}

func (e *recorder) Reported(job int64, o Outcome) {
	e.record(func() { e.outcomes[job] = append(e.outcomes[job], o) })
}

func (e *recorder) Received(job int64, p Progress) {
	e.record(func() { e.received[job] = append(e.received[job], p) })
	if e.on != nil {
		e.on(job, p)
	}
}

// wait returns when cond holds after some event. The limit is for virtual time.
func (e *recorder) wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	limit := time.NewTimer(time.Hour)
	defer limit.Stop()
	for {
		e.mu.Lock()
		ok, changed := cond(), e.changed
		e.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit.C:
			t.Fatalf("%s: did not happen", what)
		}
	}
}

// outcome waits for the end of a job's report.
func (e *recorder) outcome(t testing.TB, job int64) Outcome {
	t.Helper()
	e.wait(t, fmt.Sprintf("report of job %d", job), func() bool { return len(e.outcomes[job]) > 0 })
	e.mu.Lock()
	defer e.mu.Unlock()
	require.Len(t, e.outcomes[job], 1)
	return e.outcomes[job][0]
}

func (e *recorder) ended(job int64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.outcomes[job]) > 0
}

func (e *recorder) status(job int64) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.statuses[job]
}

func (e *recorder) last(job int64) Progress {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.received[job]) == 0 {
		return Progress{}
	}
	return e.received[job][len(e.received[job])-1]
}

func (e *recorder) events(job int64) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.received[job])
}

// call is one request to the fake GitLab.
type call struct {
	at       time.Time
	job      int64
	state    string // of a PUT; "" for a PATCH
	from, to int64
	update   runnerapi.UpdateRequest
	debug    bool
}

// answer is what a fault of the fake GitLab says instead. drop: after the request was carried out.
type answer struct {
	client.PatchResult
	err  error
	drop bool
}

var errNoAnswer = errors.New("connection reset by peer")

// fakeGitLab keeps jobs in memory and answers like GitLab.
type fakeGitLab struct {
	mu       sync.Mutex
	jobs     map[int64]*fakeJob
	calls    []call
	flying   int
	most     int
	interval time.Duration
	// fault is called for each request, without the lock, and may wait; nil lets the request pass.
	fault func(ctx context.Context, c call) *answer
}

type fakeJob struct {
	trace  []byte
	status string
	result *runnerapi.UpdateRequest
}

func newFakeGitLab() *fakeGitLab { return &fakeGitLab{jobs: make(map[int64]*fakeJob)} }

func (g *fakeGitLab) job(id int64) *fakeJob {
	j := g.jobs[id]
	if j == nil {
		j = &fakeJob{status: runnerapi.StateRunning}
		g.jobs[id] = j
	}
	return j
}

func (g *fakeGitLab) do(ctx context.Context, c call, apply func(j *fakeJob) client.PatchResult) (*client.PatchResult, error) {
	c.at = time.Now()
	g.mu.Lock()
	g.calls = append(g.calls, c)
	g.flying++
	g.most = max(g.most, g.flying)
	fault := g.fault
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		g.flying--
		g.mu.Unlock()
	}()
	var instead *answer
	if fault != nil {
		instead = fault(ctx, c)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if instead != nil && !instead.drop {
		return &instead.PatchResult, instead.err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	j := g.job(c.job)
	res := client.PatchResult{Report: client.Report{Code: 403, JobStatus: j.status}, Range: -1}
	if j.status == runnerapi.StateRunning || j.status == runnerapi.StateCanceling {
		res = apply(j)
		res.JobStatus = j.status
	}
	if instead != nil {
		return nil, instead.err
	}
	return &res, nil
}

func (g *fakeGitLab) PatchTrace(ctx context.Context, id int64, _ string, start int64, body client.TraceBody, debug bool) (*client.PatchResult, error) {
	data := make([]byte, body.Size())
	if _, err := body.ReadAt(data, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return g.do(ctx, call{job: id, from: start, to: start + body.Size(), debug: debug}, func(j *fakeJob) client.PatchResult {
		res := client.PatchResult{Report: client.Report{Code: 416}, Range: int64(len(j.trace))}
		if start == int64(len(j.trace)) {
			j.trace = append(j.trace, data...)
			res.Code, res.Range, res.Interval = 202, int64(len(j.trace)), g.interval
		}
		return res
	})
}

func (g *fakeGitLab) UpdateJob(ctx context.Context, id int64, u runnerapi.UpdateRequest) (*client.UpdateResult, error) {
	res, err := g.do(ctx, call{job: id, state: u.State, update: u}, func(j *fakeJob) client.PatchResult {
		if u.State != runnerapi.StateRunning {
			j.result = &u
			if j.status = u.State; j.status == "" {
				j.status = runnerapi.StateFailed
			}
		}
		return client.PatchResult{Report: client.Report{Code: 200}}
	})
	if err != nil {
		return nil, err
	}
	return &client.UpdateResult{Report: res.Report}, nil
}

// set changes the fake under its lock.
func (g *fakeGitLab) set(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

func (g *fakeGitLab) list(job int64) []call {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []call
	for _, c := range g.calls {
		if c.job == job {
			list = append(list, c)
		}
	}
	return list
}

// peak is the greatest number of requests at once.
func (g *fakeGitLab) peak() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.most
}

// requireTrace checks trace and result of a job against what its agent had.
func (g *fakeGitLab) requireTrace(t testing.TB, job int64, want []byte) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	j := g.job(job)
	require.Equal(t, string(want), string(j.trace))
	require.NotNil(t, j.result, "result")
	sum := fmt.Sprintf("crc32:%08x", crc32.ChecksumIEEE(want))
	require.Equal(t, runnerapi.Output{Checksum: sum, Bytesize: int64(len(want))}, j.result.Output)
	require.Equal(t, sum, j.result.Checksum)
}

// bench is a relay with what it needs around it.
type bench struct {
	t      testing.TB
	r      *Relay
	dir    string
	events *recorder
	gitlab *fakeGitLab
	o      Options
}

func newBench(t testing.TB, change ...func(*Options)) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), events: newRecorder(), gitlab: newFakeGitLab()}
	b.o = Options{Dir: b.dir, Events: b.events, MinFree: 1}
	for _, c := range change {
		c(&b.o)
	}
	b.start()
	t.Cleanup(func() { require.NoError(t, b.r.Close(context.Background())) })
	return b
}

func (b *bench) start() {
	b.t.Helper()
	r, err := New(b.o)
	require.NoError(b.t, err)
	r.rand = func() float64 { return 0 }
	b.r = r
}

// restart closes the relay and opens another one on the same spool.
func (b *bench) restart() {
	b.t.Helper()
	require.NoError(b.t, b.r.Close(context.Background()))
	b.start()
}

func (b *bench) target(job int64) Target {
	return Target{
		Instance: "https://gitlab.test", GitLab: b.gitlab, JobID: job, Token: fmt.Sprintf("token-%d", job),
		Info: func() runnerapi.Info { return runnerapi.Info{Name: "test"} }, OutputLimit: 4 << 20,
	}
}

func (b *bench) open(job int64) Progress {
	b.t.Helper()
	p, err := b.r.Open(job, 1, b.target(job))
	require.NoError(b.t, err)
	return p
}

func (b *bench) append(job, offset int64, data string) Progress {
	return b.r.Append(job, 1, offset, []byte(data))
}

func (b *bench) finish(job int64, trace []byte) {
	b.t.Helper()
	require.NoError(b.t, b.r.Finish(job, 1, success(trace)))
}

func success(trace []byte) store.Result {
	return store.Result{State: runnerapi.StateSuccess, TraceLength: int64(len(trace)), TraceCRC32: crc32.ChecksumIEEE(trace)}
}

// files are the names of the spooled traces.
func (b *bench) files() []string {
	b.t.Helper()
	entries, err := os.ReadDir(b.dir)
	require.NoError(b.t, err)
	var list []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "v") {
			list = append(list, e.Name())
		}
	}
	return list
}

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }

// pattern is n bytes that differ from place to place.
func pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(n)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}
