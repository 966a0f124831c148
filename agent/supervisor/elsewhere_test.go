//go:build linux

package supervisor_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/supervisor"
	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/conformance/remoteshell"
	"github.com/switchyard-ci/switchyard/executors/shell"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/internal/testbed"
)

// there is a place whose environments keep their job folders to themselves.
type there struct {
	*remoteshell.Executor
	proof string // where scripts leave their traces
	// exec replaces Exec of the environments, if it is set.
	exec atomic.Pointer[func(ctx context.Context, c executors.Command, run runner) (int, error)]
	// at is called before these methods: Prepare, Destroy.
	at func(method string)
}

type runner func(ctx context.Context, c executors.Command) (int, error)

type wrapped struct {
	executors.Environment
	there *there
}

func (v wrapped) Exec(ctx context.Context, c executors.Command) (int, error) {
	if f := v.there.exec.Load(); f != nil {
		return (*f)(ctx, c, v.Environment.Exec)
	}
	return v.Environment.Exec(ctx, c)
}

func (v wrapped) Destroy(ctx context.Context) error {
	v.there.happens("Destroy")
	if err := ctx.Err(); err != nil {
		return err
	}
	return v.Environment.Destroy(ctx)
}

func (x *there) happens(method string) {
	if x.at != nil {
		x.at(method)
	}
}

// Prepare tells at.
func (x *there) Prepare(ctx context.Context, spec executors.Spec, trace io.Writer) (executors.Environment, error) {
	x.happens("Prepare")
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return x.Executor.Prepare(ctx, spec, trace)
}

func (x *there) onExec(f func(ctx context.Context, c executors.Command, run runner) (int, error)) {
	if f == nil {
		x.exec.Store(nil)
		return
	}
	x.exec.Store(&f)
}

func newThere(t *testing.T, dir string) *there {
	t.Helper()
	c := shell.Config{
		Jobs: filepath.Join(dir, "elsewhere"), BuildsDir: filepath.Join(dir, "builds"), CacheDir: filepath.Join(dir, "cache"),
		Environ: append(os.Environ(), "PROOF="+filepath.Join(dir, "proof")), Shell: "sh", KillGrace: time.Second,
		Log: slog.New(slog.DiscardHandler),
	}
	if err := os.Mkdir(c.Jobs, 0o700); !errors.Is(err, os.ErrExist) {
		require.NoError(t, err)
	}
	inner, err := remoteshell.New(c)
	require.NoError(t, err)
	x := &there{Executor: inner, proof: filepath.Join(dir, "proof")}
	inner.Wrap = func(v executors.Environment) executors.Environment { return wrapped{v, x} }
	t.Cleanup(func() { // whatever a test has left
		require.NoError(t, inner.Sweep(context.Background(), func(string) bool { return false }))
	})
	return x
}

// quickly has broken streams opened again soon.
func quickly(t *testing.T) {
	t.Helper()
	t.Cleanup(supervisor.SetRetry(time.Millisecond, 20*time.Millisecond))
}

func (x *there) ran(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(x.proof)
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(t, err)
	}
	return strings.Count(string(b), "run\n")
}

func TestAJobWhoseFolderIsElsewhere(t *testing.T) {
	x := newThere(t, t.TempDir())
	a := newAgent(t, x, script("echo run >>$PROOF; echo hello", "exit 3"))
	j := a.start()
	a.await(supervisor.Fenced)
	r, trace := a.finished(j)
	require.EqualValues(t, 3, r.GetExitCode())
	require.Contains(t, trace, "Preparing the \"shell\" executor")
	require.Contains(t, trace, "\nhello\n")
	require.True(t, r.GetStartedAt().IsValid())
	require.Equal(t, 1, x.ran(t))
	require.NotContains(t, a.log.String(), "level=WARN")
	a.forget(j, x.Root)
}

// The control plane starts a job as soon as it is accepted; an agent that is killed before it hears of that knows the job.
func TestAnAcceptedJobOutlivesTheAgent(t *testing.T) {
	x := newThere(t, t.TempDir())
	a := newAgent(t, x, script("echo run >>$PROOF", "echo hello"))
	a.accept()
	a.await(supervisor.Held)
	for range 2 {
		r := a.again()
		require.NotNil(t, r)
		require.Equal(t, ledger.Accepted, r.Phase)
		require.Equal(t, one, r.Intent.Ref())
	}
	r := a.again()
	require.NotNil(t, r)
	r.Launch(0, 0)
	result, trace := a.finished(r.Job)
	require.Equal(t, "success", result.GetState())
	require.Contains(t, trace, "\nhello\n")
	require.Equal(t, 1, x.ran(t))
	a.forget(r.Job, x.Root)
}

// Wherever the agent is killed: the job runs once, and another process of the agent brings it to its end.
func TestTheAgentIsKilledAtEachPoint(t *testing.T) {
	before := func(command, text string) func(*agent, *there) {
		return func(a *agent, x *there) {
			x.onExec(func(ctx context.Context, c executors.Command, run runner) (int, error) {
				if text == "" {
					a.leave()
					return 0, context.Canceled
				}
				c.Stdout = &tripwire{to: c.Stdout, text: []byte(text), trip: a.leave}
				return run(ctx, c)
			})
		}
	}
	for name, c := range map[string]struct {
		kill  func(*agent, *there)
		phase ledger.Phase
	}{
		"before it prepares": {func(a *agent, x *there) {
			x.at = func(m string) {
				if m == "Prepare" {
					a.leave()
				}
			}
		}, ledger.Accepted},
		"before launch":           {before("launch", ""), 0}, // what is written down by then is a matter of luck
		"after launch, no answer": {before("launch", `"version"`), ledger.Started},
		"in the trace":            {before("launch", "middle"), ledger.Started},
		"at the result":           {before("launch", `"state":`), ledger.Started},
		"before it is destroyed": {func(a *agent, x *there) {
			x.at = func(m string) {
				if m == "Destroy" {
					a.leave()
				}
			}
		}, ledger.Finished},
	} {
		t.Run(name, func(t *testing.T) {
			x := newThere(t, t.TempDir())
			a := newAgent(t, x, script("echo run >>$PROOF; echo first", "echo middle", "echo last; exit 7"))
			c.kill(a, x)
			a.start()
			select {
			case <-a.ctx.Done():
			case <-time.After(patience):
				t.Fatal("the agent is not killed")
			}
			a.tasks.Wait()
			x.onExec(nil)
			x.at = nil
			j := a.again()
			require.NotNil(t, j)
			if c.phase != 0 {
				require.Equal(t, c.phase, j.Phase)
			}
			if j.Phase == ledger.Accepted {
				require.Zero(t, x.ran(t))
				j.Launch(0, 0)
			}
			r, trace := a.finished(j.Job)
			require.EqualValues(t, 7, r.GetExitCode(), r.GetMessage())
			require.Equal(t, 1, strings.Count(trace, "\nfirst\n"))
			require.Equal(t, 1, strings.Count(trace, "\nmiddle\n"))
			require.Contains(t, trace, "\nlast\n")
			require.Equal(t, 1, x.ran(t))
			if j.Phase != ledger.Finished && !j.Fenced {
				require.Equal(t, 1, a.count(supervisor.Fenced))
			}
			a.forget(j.Job, x.Root)
		})
	}
}

// tripwire trips before text is passed on; nothing is passed on from then on.
type tripwire struct {
	to      io.Writer
	text    []byte
	trip    func()
	mu      sync.Mutex
	seen    []byte
	tripped bool
}

func (w *tripwire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.tripped {
		w.seen = append(w.seen, b...)
		w.tripped = bytes.Contains(w.seen, w.text)
		if w.tripped {
			w.trip()
		}
	}
	if w.tripped {
		return 0, io.ErrClosedPipe
	}
	return w.to.Write(b)
}

// Streams are cut after any number of bytes, in both directions of time: whatever is lost comes again, nothing twice.
func TestStreamsAreCutAnywhere(t *testing.T) {
	quickly(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const lines = 20_000
	for range 4 {
		x := newThere(t, t.TempDir())
		var (
			mu   sync.Mutex
			cuts int
		)
		x.onExec(func(ctx context.Context, c executors.Command, run runner) (int, error) {
			mu.Lock()
			cuts++
			n := 1 << 30
			if cuts <= 20 {
				n = int(random.ExpFloat64() * 20_000)
			}
			mu.Unlock()
			ctx, cut := context.WithCancel(ctx)
			defer cut()
			c.Stdout = &cutter{to: c.Stdout, left: n, cut: cut}
			code, err := run(ctx, c)
			if ctx.Err() != nil {
				return 0, errors.New("the connection was reset")
			}
			return code, err
		})
		a := newAgent(t, x, script("echo run >>$PROOF", fmt.Sprintf(`i=0; while [ $i -lt %d ]; do echo "line $i"; i=$((i+1)); done`, lines)))
		j := a.start()
		r, trace := a.finished(j)
		require.Equal(t, "success", r.GetState(), r.GetMessage())
		require.Equal(t, 1, x.ran(t))
		_, rest, ok := strings.Cut(trace, "\nline 0\n")
		require.True(t, ok)
		for i := 1; i < lines; i++ {
			line := fmt.Sprintf("line %d\n", i)
			require.True(t, strings.HasPrefix(rest, line), "after line %d comes %.40q", i-1, rest)
			rest = rest[len(line):]
		}
		require.Equal(t, 1, a.count(supervisor.Fenced))
		a.forget(j, x.Root)
	}
}

// cutter passes on so many bytes.
type cutter struct {
	to   io.Writer
	mu   sync.Mutex
	left int
	cut  func()
}

func (w *cutter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.to.Write(b[:min(len(b), w.left)])
	if w.left -= n; w.left == 0 && err == nil {
		w.cut()
		return n, io.ErrClosedPipe
	}
	return n, err
}

// broken makes the environment unreachable: streams end, and no new one comes until it is mended.
type broken struct {
	x  *there
	mu sync.Mutex
	is bool
	// tear ends the streams there are.
	tear []context.CancelFunc
}

func breakable(x *there) *broken {
	b := &broken{x: x}
	x.onExec(func(ctx context.Context, c executors.Command, run runner) (int, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		b.mu.Lock()
		is := b.is
		b.tear = append(b.tear, cancel)
		b.mu.Unlock()
		if is {
			return 0, errors.New("cannot connect to the engine")
		}
		code, err := run(ctx, c)
		if err != nil {
			return 0, errors.New("the connection was reset")
		}
		return code, nil
	})
	return b
}

func (b *broken) set(is bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.is = is
	if is {
		for _, f := range b.tear {
			f()
		}
		b.tear = nil
	}
}

func TestOrdersWhileTheEnvironmentIsOutOfReach(t *testing.T) {
	quickly(t)
	for name, c := range map[string]struct {
		order  func(*supervisor.Job)
		result func(*testing.T, *fleetv1.Result, string)
	}{
		"cancel": {
			func(j *supervisor.Job) { j.Cancel(fleetv1.CancelMode_CANCEL_MODE_GRACEFUL) },
			func(t *testing.T, r *fleetv1.Result, trace string) {
				require.Equal(t, "job_canceled", r.GetFailureReason())
				require.Contains(t, trace, "after canceled\n")
			},
		},
		"kill": {
			func(j *supervisor.Job) { j.Cancel(fleetv1.CancelMode_CANCEL_MODE_KILL) },
			func(t *testing.T, r *fleetv1.Result, trace string) {
				require.Equal(t, "failed", r.GetState())
				require.NotContains(t, trace, "after ")
			},
		},
		"lease": {
			func(j *supervisor.Job) { j.Lease(time.Now().Add(time.Second)) },
			func(t *testing.T, r *fleetv1.Result, _ string) {
				require.Contains(t, r.GetMessage(), "lost touch with its control plane")
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newThere(t, t.TempDir())
			b := breakable(x)
			a := newAgent(t, x, script("echo begun; sleep 600"))
			j := a.start()
			j.Lease(time.Now().Add(time.Hour))
			a.await(supervisor.Fenced)
			a.awaitTrace("begun\n")
			b.set(true)
			require.Eventually(t, func() bool {
				return strings.Contains(a.log.String(), "cannot connect") || strings.Contains(a.log.String(), "reset")
			},
				patience, time.Millisecond)
			c.order(j)
			b.set(false)
			r, trace := a.finished(j)
			c.result(t, r, trace)
			a.forget(j, x.Root)
		})
	}
}

func TestAJobThatIsCanceledBeforeItsEnvironmentAnswers(t *testing.T) {
	quickly(t)
	x := newThere(t, t.TempDir())
	b := breakable(x)
	b.set(true)
	a := newAgent(t, x, script("echo run >>$PROOF"))
	j := a.start()
	require.Eventually(t, func() bool { return strings.Contains(a.log.String(), "lost touch") }, patience, time.Millisecond)
	j.Cancel(fleetv1.CancelMode_CANCEL_MODE_GRACEFUL)
	r, trace := a.finished(j)
	require.Equal(t, "job_canceled", r.GetFailureReason())
	require.True(t, strings.HasSuffix(trace, "ERROR: Job failed: canceled\x1b[0;m\n"), trace)
	require.Zero(t, x.ran(t))
	require.Zero(t, a.count(supervisor.Fenced))
	b.set(false)
	a.forget(j, x.Root)
}

func TestAJobIsDiscardedWhileItsEnvironmentIsOutOfReach(t *testing.T) {
	x := newThere(t, t.TempDir())
	b := breakable(x)
	a := newAgent(t, x, script("echo begun; sleep 600"))
	j := a.start()
	a.awaitTrace("begun\n")
	b.set(true)
	j.Discard()
	a.await(supervisor.Gone)
	entries, err := os.ReadDir(x.Root)
	require.NoError(t, err)
	require.Empty(t, entries)
}

// The engine is away, and so is the agent: both come back, the job is still there.
func TestAnEnvironmentThatCannotBeRecoveredAtOnce(t *testing.T) {
	x := newThere(t, t.TempDir())
	a := newAgent(t, x, script("echo run >>$PROOF; echo begun", "while ! test -e $PROOF.end; do sleep 0.02; done"))
	a.start()
	a.awaitTrace("begun\n")
	away := &engineAway{there: x}
	away.times.Store(1)
	a.config.Executors["shell"] = away
	j := a.again()
	require.Equal(t, ledger.Started, j.Phase)
	require.True(t, j.Fenced)
	require.NoError(t, os.WriteFile(x.proof+".end", nil, 0o600))
	r, _ := a.finished(j.Job)
	require.Equal(t, "success", r.GetState(), r.GetMessage())
	require.Contains(t, a.log.String(), "cannot take up the job's environment")
	require.Equal(t, 1, x.ran(t))
	a.forget(j.Job, x.Root)
}

type engineAway struct {
	*there
	times atomic.Int32
}

func (x *engineAway) Recover(ctx context.Context, spec executors.Spec) (executors.Environment, error) {
	if x.times.Add(-1) >= 0 {
		return nil, errors.New("cannot connect to the engine")
	}
	return x.there.Recover(ctx, spec)
}

func TestAnEnvironmentThatIsGone(t *testing.T) {
	x := newThere(t, t.TempDir())
	a := newAgent(t, x, script("echo begun; sleep 600"))
	a.start()
	a.awaitTrace("begun\n")
	a.leave()
	a.tasks.Wait()
	require.NoError(t, x.Sweep(t.Context(), func(string) bool { return false }))
	j := a.again()
	require.Equal(t, ledger.Started, j.Phase)
	r, trace := a.finished(j.Job)
	require.Equal(t, "runner_system_failure", r.GetFailureReason())
	require.Contains(t, trace, "nothing is left of the job's environment")
	a.forget(j.Job, x.Root)
}

// What a loss of power did to the copy is mended from the environment, if that has survived.
func TestTheHostWasRestarted(t *testing.T) {
	x := newThere(t, t.TempDir())
	a := newAgent(t, x, script("echo run >>$PROOF; echo begun", "while ! test -e $PROOF.end; do sleep 0.02; done"))
	a.start()
	a.awaitTrace("begun\n")
	a.leave()
	a.tasks.Wait()
	whole := a.trace()
	copied := filepath.Join(a.dir(), "job", "trace")
	require.NoError(t, os.WriteFile(copied, make([]byte, 100_000), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(a.dir(), supervisor.LaunchedFile), []byte(`{"boot_id":"another"}`), 0o600))
	require.NoError(t, os.Remove(filepath.Join(a.dir(), "job", "started")))
	j := a.again()
	require.Equal(t, ledger.Started, j.Phase)
	a.awaitTrace("begun\n")
	require.NoError(t, os.WriteFile(x.proof+".end", nil, 0o600))
	r, trace := a.finished(j.Job)
	require.Equal(t, "success", r.GetState(), r.GetMessage())
	require.True(t, strings.HasPrefix(trace, whole))
	require.Equal(t, 1, x.ran(t))
	a.forget(j.Job, x.Root)
}

func TestALargeTraceFromElsewhere(t *testing.T) {
	testbed.Need(t, testbed.Bash)
	x := newThere(t, t.TempDir())
	const size = 100 << 20
	a := newAgent(t, x, script(fmt.Sprintf("yes 0123456789abcde | head -c %d", size)), func(a *agent) { a.limit = 2 * size })
	began := time.Now()
	j := a.start()
	r, trace := a.finished(j)
	require.Equal(t, "success", r.GetState(), r.GetMessage())
	require.Greater(t, len(trace), size)
	require.Equal(t, size/16, strings.Count(trace, "0123456789abcde\n"))
	t.Logf("%d MiB in %s", size>>20, time.Since(began))
	a.forget(j, x.Root)
}
