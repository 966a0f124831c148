//go:build unix

package attach_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/control"
	"github.com/switchyard-ci/switchyard/job/folder"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func frame(kind attach.Kind, content string) string {
	return string(binary.BigEndian.AppendUint32([]byte{byte(kind)}, uint32(len(content)))) + content
}

func data(offset int64, text string) string {
	return frame(attach.Data, string(binary.BigEndian.AppendUint64(nil, uint64(offset)))+text)
}

const hello = `{"version":1,"job":7,"epoch":2,"offset":5}`

func TestAStreamIsRead(t *testing.T) {
	stream := frame(attach.Hello, hello) + frame(attach.Stage, "get_sources") + data(5, "ab") + data(7, strings.Repeat("x", attach.MaxData)) +
		frame(attach.Result, `{"version":1,"state":"failed","exit_code":3}`)
	r := attach.NewReader(strings.NewReader(stream), 5)
	next := func() attach.Frame {
		t.Helper()
		f, err := r.Next()
		require.NoError(t, err)
		return f
	}
	require.Equal(t, attach.Greeting{Version: 1, Job: 7, Epoch: 2, Offset: 5}, next().Greeting)
	require.Equal(t, "get_sources", next().Stage)
	f := next()
	require.Equal(t, "ab", string(f.Data))
	require.EqualValues(t, 5, f.Offset)
	require.Len(t, next().Data, attach.MaxData)
	require.EqualValues(t, 7+attach.MaxData, r.Offset())
	require.Equal(t, 3, next().Result.ExitCode)
	_, err := r.Next()
	require.ErrorIs(t, err, io.EOF)
}

func TestHostileStreams(t *testing.T) {
	h := frame(attach.Hello, hello)
	for name, c := range map[string]struct{ stream, message string }{
		"nothing":              {"", "ended early"},
		"half a head":          {"H\x00", "ended early"},
		"half a frame":         {h[:10], "ended early"},
		"no end":               {h, "ended early"},
		"no greeting":          {data(5, "x"), "before the greeting"},
		"two greetings":        {h + h, "second greeting"},
		"another version":      {frame(attach.Hello, `{"version":2}`), "version 2 of frames"},
		"no JSON":              {frame(attach.Hello, `{`), "read the greeting"},
		"another offset":       {frame(attach.Hello, `{"version":1,"offset":4}`), "begins at 4, not at 5"},
		"a gap":                {h + data(6, "x"), "data at 6, expected at 5"},
		"a repetition":         {h + data(5, "x") + data(5, "x"), "data at 5, expected at 6"},
		"a negative offset":    {h + data(-1, "x"), "data at -1"},
		"no data":              {h + data(5, ""), "no data"},
		"too much data":        {h + data(5, strings.Repeat("x", attach.MaxData+1)), "more than the limit"},
		"a huge length":        {h + "S\xff\xff\xff\xff", "4294967295 bytes, more than the limit"},
		"a long stage":         {h + frame(attach.Stage, strings.Repeat("x", 2000)), "2000 bytes, more than the limit"},
		"an empty stage":       {h + frame(attach.Stage, ""), "has no bytes"},
		"too many stages":      {h + strings.Repeat(frame(attach.Stage, "x"), 10_000), "more than 10000 stages"},
		"a bad question":       {h + frame(attach.Ask, `{"id":1,"op":"steal","key":"k"}`), `asks for "steal"`},
		"a long question":      {h + frame(attach.Ask, strings.Repeat(" ", folder.MaxLine+1)), "more than the limit"},
		"a long end":           {h + frame(attach.Result, strings.Repeat(" ", folder.MaxResult+1)), "more than the limit"},
		"an unknown kind":      {h + frame('?', ""), `unknown kind '?'`},
		"a result of nonsense": {h + frame(attach.Result, `{"version":1,"state":"maybe"}`), `state is "maybe"`},
		"a newer result":       {h + frame(attach.Result, `{"version":9}`), "format 9"},
	} {
		t.Run(name, func(t *testing.T) {
			r := attach.NewReader(strings.NewReader(c.stream), 5)
			var err error
			for err == nil {
				_, err = r.Next()
			}
			require.ErrorContains(t, err, c.message)
			require.NotErrorIs(t, err, io.EOF)
			var invalid *attach.InvalidError
			require.Equal(t, c.message != "ended early", errors.As(err, &invalid), "%v", err)
		})
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte(frame(attach.Hello, hello) + data(5, "x") + frame(attach.Gone, "")))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := attach.NewReader(bytes.NewReader(stream), 5)
		offset := int64(5)
		for {
			fr, err := r.Next()
			if err != nil {
				return
			}
			offset += int64(len(fr.Data))
			if r.Offset() != offset || fr.Kind == attach.Data && fr.Offset+int64(len(fr.Data)) != offset {
				t.Fatalf("offset %d, %d expected", r.Offset(), offset)
			}
		}
	})
}

// running is a job folder whose job is played by the test.
type running struct {
	*folder.Folder
	t       *testing.T
	lock    *folder.Lock
	control *control.Server
	trace   *os.File
	length  int64
	orders  chan folder.Order
}

func play(t *testing.T) *running {
	t.Helper()
	r := &running{t: t, orders: make(chan folder.Order, 10)}
	path := filepath.Join(t.TempDir(), "job")
	require.NoError(t, folder.Create(path, folder.Spec{Job: 7, Epoch: 2}, []byte("{}")))
	var err error
	r.Folder, err = folder.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func (r *running) begin() {
	start, err := r.LockStart()
	require.NoError(r.t, err)
	var ok bool
	r.lock, ok, err = r.TryLock()
	require.NoError(r.t, err)
	require.True(r.t, ok)
	r.control, err = control.Listen(r.Folder, func(o folder.Order) { r.orders <- o }, slog.New(slog.DiscardHandler))
	require.NoError(r.t, err)
	r.trace, err = r.OpenForJob(folder.TraceFile)
	require.NoError(r.t, err)
	require.NoError(r.t, start.Close())
}

func (r *running) say(text string) {
	n, err := r.trace.WriteString(text)
	require.NoError(r.t, err)
	r.length += int64(n)
	r.control.Trace(r.length)
}

func (r *running) end(result bool) {
	if result {
		require.NoError(r.t, r.WriteResult(folder.Result{State: runnerapi.StateSuccess, TraceLength: r.length}))
		r.control.Result()
	}
	r.control.Close()
	require.NoError(r.t, r.trace.Close())
	require.NoError(r.t, r.lock.Close())
}

// attached runs Serve and collects what comes.
type attached struct {
	trace  bytes.Buffer
	stages []string
	last   attach.Frame
	orders *io.PipeWriter
	grown  chan struct{}
	asked  chan folder.CacheRequest
	done   chan error
}

func (r *running) attach(offset int64, lease time.Duration) *attached {
	a := &attached{grown: make(chan struct{}, 100), asked: make(chan folder.CacheRequest, 10), done: make(chan error, 1)}
	in, orders := io.Pipe()
	a.orders = orders
	out, w := io.Pipe()
	go func() {
		_, err := attach.Serve(context.Background(), r.Folder, offset, lease, in, w)
		_ = w.CloseWithError(err) // a caller that has left does not see why
	}()
	go func() {
		reader := attach.NewReader(out, offset)
		for {
			f, err := reader.Next()
			if err != nil {
				_ = in.Close()
				_ = orders.Close()
				a.done <- err
				return
			}
			a.trace.Write(f.Data)
			if f.Kind == attach.Stage {
				a.stages = append(a.stages, f.Stage)
			}
			a.last = f
			switch f.Kind {
			case attach.Data:
				a.grown <- struct{}{}
			case attach.Ask:
				a.asked <- f.Ask
			}
		}
	}()
	return a
}

func TestARunningJob(t *testing.T) {
	r := play(t)
	r.begin()
	r.control.Stage("step_script")
	r.say("hello ")
	a := r.attach(2, time.Minute)
	require.Equal(t, folder.Order{Kind: folder.OrderLease, Lease: time.Minute}, <-r.orders)
	<-a.grown
	r.say("world")
	<-a.grown
	_, err := io.WriteString(a.orders, "nonsense\ncancel graceful\n")
	require.NoError(t, err)
	require.Equal(t, folder.OrderCancelGraceful, (<-r.orders).Kind)
	r.say("!")
	r.end(true)
	require.ErrorIs(t, <-a.done, io.EOF)
	require.Equal(t, "llo world!", a.trace.String())
	require.Equal(t, []string{"step_script"}, a.stages)
	require.Equal(t, attach.Result, a.last.Kind)
	require.Equal(t, runnerapi.StateSuccess, a.last.Result.State)
}

func TestAFinishedJob(t *testing.T) {
	r := play(t)
	r.begin()
	r.say(strings.Repeat("0123456789", 100_000))
	r.end(true)
	a := r.attach(999_990, 0)
	require.ErrorIs(t, <-a.done, io.EOF)
	require.Equal(t, "0123456789", a.trace.String())
	require.Equal(t, attach.Result, a.last.Kind)
	a = r.attach(0, 0)
	require.ErrorIs(t, <-a.done, io.EOF)
	require.Equal(t, 1_000_000, a.trace.Len())
}

func TestADeadJob(t *testing.T) {
	r := play(t)
	r.begin()
	r.say("last words")
	a := r.attach(0, 0)
	<-a.grown
	r.end(false)
	require.ErrorIs(t, <-a.done, io.EOF)
	require.Equal(t, "last words", a.trace.String())
	require.Equal(t, attach.Gone, a.last.Kind)

	a = r.attach(5, 0)
	require.ErrorIs(t, <-a.done, io.EOF)
	require.Equal(t, "words", a.trace.String())
	require.Equal(t, attach.Gone, a.last.Kind)
}

func TestAJobThatIsStarting(t *testing.T) {
	r := play(t)
	start, err := r.LockStart()
	require.NoError(t, err)
	a := r.attach(0, 0)
	<-time.After(20 * time.Millisecond) // it finds nobody listening, and waits
	r.lock, _, err = r.TryLock()
	require.NoError(t, err)
	r.control, err = control.Listen(r.Folder, func(folder.Order) {}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	r.trace, err = r.OpenForJob(folder.TraceFile)
	require.NoError(t, err)
	require.NoError(t, start.Close())
	r.say("hi")
	<-a.grown
	r.end(true)
	require.ErrorIs(t, <-a.done, io.EOF)
	require.Equal(t, attach.Result, a.last.Kind)
}

func TestWhatCannotBeAttachedTo(t *testing.T) {
	r := play(t)
	for offset, message := range map[int64]string{-1: "must not be negative", 1: "has 0 bytes"} {
		var out bytes.Buffer
		_, err := attach.Serve(context.Background(), r.Folder, offset, 0, silence(t), &out)
		require.ErrorContains(t, err, message)
		f, err := attach.NewReader(&out, offset).Next()
		require.NoError(t, err)
		require.Equal(t, attach.Failed, f.Kind)
		require.Contains(t, f.Text, message)
	}
	require.NoError(t, os.WriteFile(filepath.Join(r.Path(), folder.ResultFile), []byte(`{"version":8}`), 0o600))
	_, err := attach.Serve(context.Background(), r.Folder, 0, 0, silence(t), io.Discard)
	var version *folder.VersionError
	require.ErrorAs(t, err, &version)
}

func TestAReaderThatGoesAway(t *testing.T) {
	r := play(t)
	r.begin()
	r.say("hello")
	broken := errors.New("broken pipe")
	_, err := attach.Serve(context.Background(), r.Folder, 0, 0, silence(t), failing{broken})
	require.ErrorIs(t, err, broken)
	r.end(true)
}

// silence is a standard input on which nothing comes.
func silence(t *testing.T) io.Reader {
	r, w := io.Pipe()
	t.Cleanup(func() { _ = w.Close() })
	return r
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestTheContextEndsIt(t *testing.T) {
	r := play(t)
	r.begin()
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	_, err := attach.Serve(ctx, r.Folder, 0, 0, silence(t), io.Discard)
	require.ErrorIs(t, err, context.Canceled)
	r.end(true)
}

func TestTheCallerIsGone(t *testing.T) {
	r := play(t)
	r.begin()
	r.say("hello")
	a := r.attach(0, 0)
	<-a.grown
	require.NoError(t, a.orders.Close())
	require.ErrorIs(t, <-a.done, attach.ErrLeft)
	b := r.attach(0, 0) // the job goes on
	<-b.grown
	r.end(true)
	require.ErrorIs(t, <-b.done, io.EOF)
	require.Equal(t, attach.Result, b.last.Kind)
}

func TestQuestionsAndAnswers(t *testing.T) {
	r := play(t)
	r.begin()
	a := r.attach(0, 0)
	answers := make(chan folder.CacheAnswer)
	go func() {
		answer, _ := r.control.Ask(context.Background(), folder.CacheRequest{Op: "put", Key: "k"})
		answers <- answer
	}()
	q := <-a.asked
	require.Equal(t, folder.CacheRequest{ID: q.ID, Op: "put", Key: "k"}, q)
	_, err := a.orders.Write(folder.AppendOrder(nil, folder.Order{Kind: folder.OrderAnswer, Answer: folder.CacheAnswer{ID: q.ID, URL: "https://s3.test"}}))
	require.NoError(t, err)
	require.Equal(t, "https://s3.test", (<-answers).URL)
	r.end(true)
	require.ErrorIs(t, <-a.done, io.EOF)
}

func TestAResultIsNotWaitedFor(t *testing.T) {
	r := play(t)
	r.begin()
	r.say("all")
	a := r.attach(0, 0)
	<-a.grown
	require.NoError(t, r.WriteResult(folder.Result{State: runnerapi.StateSuccess, TraceLength: r.length}))
	r.control.Result()
	require.ErrorIs(t, <-a.done, io.EOF) // its process still has the lock
	require.Equal(t, attach.Result, a.last.Kind)
	r.control.Close()
	require.NoError(t, r.lock.Close())
}

func TestTheFenceIsTold(t *testing.T) {
	r := play(t)
	var out bytes.Buffer
	greeting := func() attach.Greeting {
		t.Helper()
		out.Reset()
		_, err := attach.Serve(context.Background(), r.Folder, 0, 0, silence(t), &out)
		require.NoError(t, err)
		f, err := attach.NewReader(&out, 0).Next()
		require.NoError(t, err)
		return f.Greeting
	}
	require.Nil(t, greeting().Started)
	at := time.Now().UTC()
	require.NoError(t, r.WriteStarted(folder.Started{PID: 4, At: at}))
	require.Equal(t, at, greeting().Started.At)
}

func TestGreetingIsStable(t *testing.T) {
	b, err := json.Marshal(attach.Greeting{Version: 1, Job: 7, Epoch: 2, Offset: 5})
	require.NoError(t, err)
	require.Equal(t, hello, string(b))
}
