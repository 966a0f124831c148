//go:build linux

package supervisor_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/supervisor"
	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// liar is an executor whose environments say what a test wants.
type liar struct {
	// say writes a stream. offset is where it was asked to begin.
	say    func(ctx context.Context, offset int64, out io.Writer) (code int, err error)
	deaf   bool // it reads no orders
	execs  atomic.Int32
	killed atomic.Int32

	done chan struct{}
	err  error
}

func (x *liar) Name() string                 { return "shell" }
func (x *liar) Features() executors.Features { return executors.Features{} }
func (x *liar) Check(context.Context) error  { return nil }

func (x *liar) Prepare(context.Context, executors.Spec, io.Writer) (executors.Environment, error) {
	return x, nil
}

func (x *liar) Recover(context.Context, executors.Spec) (executors.Environment, error) {
	return x, nil
}
func (x *liar) Sweep(context.Context, func(string) bool) error { return nil }
func (x *liar) Job() executors.Place                           { return executors.Place{Folder: "/f", Binary: "/b"} }
func (x *liar) LocalFolder() (string, bool)                    { return "", false }
func (x *liar) Done() <-chan struct{}                          { return x.done }
func (x *liar) Destroy(context.Context) error                  { return nil }

func (x *liar) Err() error {
	select {
	case <-x.done:
		return x.err
	default:
		return nil
	}
}

func (x *liar) Kill(context.Context) error {
	x.killed.Add(1)
	return nil
}

func (x *liar) Exec(ctx context.Context, c executors.Command) (int, error) {
	x.execs.Add(1)
	if c.Argv[1] == "launch" {
		if _, _, err := attach.ReadHeader(c.Stdin); err != nil {
			return 0, err
		}
	}
	if !x.deaf {
		go func() { _, _ = io.Copy(io.Discard, c.Stdin) }()
	}
	var offset int64
	if _, err := fmt.Sscan(c.Argv[4], &offset); err != nil {
		return 0, err
	}
	type end struct {
		code int
		err  error
	}
	ended := make(chan end, 1)
	var saying sync.WaitGroup
	saying.Go(func() {
		code, err := x.say(ctx, offset, c.Stdout)
		ended <- end{code, err}
	})
	select {
	case e := <-ended:
		return e.code, e.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func frame(kind attach.Kind, content string) string {
	return string(binary.BigEndian.AppendUint32([]byte{byte(kind)}, uint32(len(content)))) + content
}

func hello(offset int64) string {
	return frame(attach.Hello, fmt.Sprintf(`{"version":1,"job":1,"epoch":1,"offset":%d,"started":{"version":1,"at":"2026-01-02T03:04:05Z"}}`, offset))
}

func data(offset int64, text string) string {
	return frame(attach.Data, string(binary.BigEndian.AppendUint64(nil, uint64(offset)))+text)
}

func newLiar(say func(ctx context.Context, offset int64, out io.Writer) (int, error)) *liar {
	return &liar{say: say, done: make(chan struct{})}
}

// Whatever an environment says: the job ends, once, with a reason, and what the agent keeps of it is bounded.
func TestHostileEnvironments(t *testing.T) {
	quickly(t)
	write := func(f func(offset int64) string) func(context.Context, int64, io.Writer) (int, error) {
		return func(_ context.Context, offset int64, out io.Writer) (int, error) {
			_, _ = io.WriteString(out, f(offset))
			return 0, nil
		}
	}
	endless := func(piece func(n int64) string) func(context.Context, int64, io.Writer) (int, error) {
		return func(_ context.Context, offset int64, out io.Writer) (int, error) {
			_, err := io.WriteString(out, hello(offset))
			for n := offset; err == nil; {
				var k int
				k, err = io.WriteString(out, piece(n))
				n += int64(k) - 13 // what a data frame has beside the trace
			}
			return 1, nil
		}
	}
	exits := func(code int) func(context.Context, int64, io.Writer) (int, error) {
		return func(context.Context, int64, io.Writer) (int, error) { return code, nil }
	}
	for name, c := range map[string]struct {
		say     func(context.Context, int64, io.Writer) (int, error)
		message string
		execs   int32
		fenced  int
	}{
		"no frames": {write(func(int64) string { return "HTTP/1.1 200 OK\r\n\r\n<html>" }), "read a frame", 1, 0},
		"another job": {write(func(o int64) string {
			return frame(attach.Hello, fmt.Sprintf(`{"version":1,"job":2,"epoch":1,"offset":%d}`, o))
		}), "runs job 2, epoch 1", 1, 0},
		"another offset": {write(func(o int64) string { return hello(o - 1) }), "the trace begins at", 1, 0},
		"a hole":         {write(func(o int64) string { return hello(o) + data(o+1, "x") }), "expected at", 1, 1},
		"a log without end": {
			endless(func(n int64) string { return data(n, strings.Repeat("x", 60_000)) }),
			"longer than its limit of 1048576 bytes", 1, 1,
		},
		"stages without end":    {endless(func(int64) string { return frame(attach.Stage, "x") }), "more than 10000 stages", 1, 1},
		"questions without end": {endless(func(int64) string { return frame(attach.Ask, `{"id":1,"op":"get","key":"k"}`) }), "more than 10000", 1, 1},
		"a result too early": {write(func(o int64) string {
			return hello(o) + frame(attach.Result, `{"version":1,"state":"success","trace_length":5}`)
		}), "has 0 bytes, but its result says 5", 1, 1},
		"a wrong checksum": {write(func(o int64) string {
			return hello(o) + frame(attach.Result, `{"version":1,"state":"success"}`)
		}), "the job's log was damaged", 1, 1},
		"gone":                            {write(func(o int64) string { return hello(o) + frame(attach.Gone, "") }), "is gone and left no result", 1, 1},
		"it cannot be started":            {write(func(int64) string { return frame(attach.Failed, "no space left") }), "no space left", 1, 0},
		"it cannot be followed":           {write(func(o int64) string { return hello(o) + frame(attach.Failed, "no files left") }), "no files left", 6, 1},
		"the program is missing":          {exits(127), "ended with exit code 127", 6, 0},
		"it greets and ends":              {write(hello), "ended with exit code 0", 6, 1},
		"a reason of a hundred kilobytes": {write(func(int64) string { return frame(attach.Failed, strings.Repeat("ü", 8000)) }), "üüü", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			x := newLiar(c.say)
			a := newAgent(t, x, script("true"), func(a *agent) {
				a.config.Sign = func(ctx context.Context, _ ledger.Ref, r folder.CacheRequest) folder.CacheAnswer {
					<-ctx.Done()
					return folder.CacheAnswer{ID: r.ID}
				}
			})
			j := a.start()
			r, trace := a.finished(j)
			require.Equal(t, "failed", r.GetState())
			require.Equal(t, "runner_system_failure", r.GetFailureReason())
			require.Contains(t, r.GetMessage(), c.message)
			require.LessOrEqual(t, len(r.GetMessage()), 4096)
			require.Contains(t, trace, "ERROR: Job failed (system failure)")
			require.LessOrEqual(t, len(trace), limit+5000)
			require.Equal(t, c.execs, x.execs.Load())
			require.Positive(t, x.killed.Load())
			require.Equal(t, c.fenced, a.count(supervisor.Fenced))
			a.await(supervisor.Freed)
		})
	}
}

func TestQuestionsAreAnsweredSoManyAtOnce(t *testing.T) {
	var now, most atomic.Int32
	release := make(chan struct{})
	asked := make(chan struct{}, 100)
	x := newLiar(func(_ context.Context, offset int64, out io.Writer) (int, error) {
		_, _ = io.WriteString(out, hello(offset))
		for id := range 50 {
			_, _ = io.WriteString(out, frame(attach.Ask, fmt.Sprintf(`{"id":%d,"op":"get","key":"k"}`, id+1)))
		}
		_, _ = io.WriteString(out, data(offset, "asked\n"))
		<-release
		_, _ = io.WriteString(out, frame(attach.Gone, ""))
		return 3, nil
	})
	a := newAgent(t, x, script("true"), func(a *agent) {
		a.config.Sign = func(ctx context.Context, _ ledger.Ref, r folder.CacheRequest) folder.CacheAnswer {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			asked <- struct{}{}
			<-ctx.Done()
			return folder.CacheAnswer{ID: r.ID}
		}
	})
	j := a.start()
	a.awaitTrace("asked\n")
	for range 16 {
		<-asked
	}
	require.EqualValues(t, 16, most.Load())
	close(release)
	a.finished(j)
	require.EqualValues(t, 16, most.Load())
	require.Contains(t, a.log.String(), "asks too much at once")
}

func TestAnEnvironmentThatIsDeaf(t *testing.T) {
	quickly(t)
	x := newLiar(func(ctx context.Context, offset int64, out io.Writer) (int, error) {
		_, err := io.WriteString(out, hello(offset))
		for id := 1; err == nil; id++ {
			_, err = io.WriteString(out, frame(attach.Ask, fmt.Sprintf(`{"id":%d,"op":"get","key":"k"}`, id)))
		}
		return 1, nil
	})
	x.deaf = true
	a := newAgent(t, x, script("true"))
	r, _ := a.finished(a.start())
	require.Contains(t, r.GetMessage(), "takes no orders")
	require.EqualValues(t, 6, x.execs.Load())
}

func TestAnEnvironmentThatDies(t *testing.T) {
	for name, c := range map[string]struct {
		why    error
		reason string
	}{
		"of itself": {fmt.Errorf("the container ran out of memory"), "runner_system_failure"},
		"for a reason": {
			&executors.Error{Reason: "image_pull_failure", Err: fmt.Errorf("the container ran out of memory")}, "runner_system_failure",
		},
	} {
		t.Run(name, func(t *testing.T) {
			last := make(chan struct{})
			x := newLiar(func(ctx context.Context, offset int64, out io.Writer) (int, error) {
				_, _ = io.WriteString(out, hello(offset)+data(offset, "begun\n"))
				<-last
				_, _ = io.WriteString(out, data(offset+6, "last words\n"))
				return 137, nil
			})
			a := newAgent(t, x, script("true"))
			j := a.start()
			a.awaitTrace("begun\n")
			x.err = c.why
			close(x.done)
			close(last)
			r, trace := a.finished(j)
			require.Equal(t, c.reason, r.GetFailureReason())
			require.Contains(t, trace, "begun\nlast words\n")
			require.Contains(t, trace, "the environment is gone: the container ran out of memory")
			require.EqualValues(t, 1, x.execs.Load())
		})
	}
	t.Run("in silence", func(t *testing.T) {
		x := newLiar(func(ctx context.Context, offset int64, out io.Writer) (int, error) {
			_, _ = io.WriteString(out, hello(offset)+data(offset, "begun\n"))
			<-ctx.Done()
			return 0, ctx.Err()
		})
		a := newAgent(t, x, script("true"))
		j := a.start()
		a.awaitTrace("begun\n")
		x.err = fmt.Errorf("the node is lost")
		began := time.Now()
		close(x.done)
		_, trace := a.finished(j)
		require.Contains(t, trace, "the environment is gone: the node is lost")
		require.Less(t, time.Since(began), 20*time.Second)
	})
}
