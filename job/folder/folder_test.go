//go:build unix

package folder_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func create(t *testing.T, spec folder.Spec) *folder.Folder {
	t.Helper()
	path := filepath.Join(t.TempDir(), "job")
	require.NoError(t, folder.Create(path, spec, []byte(`{"id": 7}`)))
	f, err := folder.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	f := create(t, folder.Spec{Job: 7, Epoch: 3, Shells: []string{"bash"}, KillGrace: time.Second})

	spec, err := f.Spec()
	require.NoError(t, err)
	require.Equal(t, folder.Spec{Version: 1, Job: 7, Epoch: 3, Shells: []string{"bash"}, KillGrace: time.Second}, spec)
	payload, err := f.Payload()
	require.NoError(t, err)
	require.Equal(t, `{"id": 7}`, string(payload))

	_, err = f.Started()
	require.ErrorIs(t, err, folder.ErrNotStarted)
	_, err = f.Result()
	require.ErrorIs(t, err, folder.ErrNoResult)

	started := folder.Started{Version: 1, PID: 12, BootID: "b", At: time.Now().UTC().Round(0)}
	require.NoError(t, f.WriteStarted(started))
	require.ErrorIs(t, f.WriteStarted(started), fs.ErrExist)
	got, err := f.Started()
	require.NoError(t, err)
	require.Equal(t, started, got)

	result := folder.Result{Version: 1, State: runnerapi.StateFailed, ExitCode: 3, TraceLength: 5}
	require.NoError(t, f.WriteResult(result))
	gotResult, err := f.Result()
	require.NoError(t, err)
	require.Equal(t, result, gotResult)
}

func TestModesAreClosed(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "job")
	require.NoError(t, os.Mkdir(path, 0o777))
	require.NoError(t, folder.Create(path, folder.Spec{}, nil))
	f, err := folder.Open(path)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.WriteStarted(folder.Started{}))
	require.NoError(t, f.WriteResult(folder.Result{State: runnerapi.StateSuccess}))
	require.NoError(t, f.WriteSuffix([]byte("x")))
	lock, ok, err := f.TryLock()
	require.NoError(t, err)
	require.True(t, ok)
	require.NoError(t, lock.Close())

	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o700), info.Mode().Perm())
	entries, err := os.ReadDir(path)
	require.NoError(t, err)
	require.Len(t, entries, 6)
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o600), info.Mode(), e.Name())
	}
}

func TestSpecIsWrittenOnce(t *testing.T) {
	f := create(t, folder.Spec{Job: 1})
	require.ErrorIs(t, f.WriteSpec(folder.Spec{Job: 2}), fs.ErrExist)
	require.ErrorIs(t, f.WritePayload(nil), fs.ErrExist)
	require.ErrorIs(t, folder.Create(f.Path(), folder.Spec{Job: 2}, nil), fs.ErrExist)
	require.NoError(t, f.WriteSuffix([]byte("a")))
	require.ErrorIs(t, f.WriteSuffix([]byte("b")), fs.ErrExist)
}

func TestSpecNeedsItsPrefixAndPayload(t *testing.T) {
	f, err := folder.Make(filepath.Join(t.TempDir(), "job"))
	require.NoError(t, err)
	defer f.Close()
	_, err = f.Spec()
	require.ErrorIs(t, err, folder.ErrNoSpec)
	_, err = f.Payload()
	require.ErrorIs(t, err, folder.ErrNoPayload)
	require.ErrorIs(t, f.WriteSpec(folder.Spec{}), fs.ErrNotExist)
	require.NoError(t, f.WritePayload([]byte("{}")))

	prefix, err := f.OpenPrefix()
	require.NoError(t, err)
	_, err = prefix.WriteString("four")
	require.NoError(t, err)
	require.NoError(t, prefix.Close())
	require.ErrorContains(t, f.WriteSpec(folder.Spec{PrefixLength: 5}), "prefix has 4 bytes, prefix_length is 5")
	require.ErrorContains(t, f.WriteSpec(folder.Spec{}), "prefix has 4 bytes, prefix_length is 0")
	require.NoError(t, f.WriteSpec(folder.Spec{PrefixLength: 4}))
}

func TestBadFilesAreRefused(t *testing.T) {
	write := func(f *folder.Folder, name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(f.Path(), name), []byte(text), 0o600))
	}
	for name, c := range map[string]struct{ file, text, message string }{
		"newer":             {folder.ResultFile, `{"version": 2}`, "result.json has format 2, this program reads up to 1: upgrade"},
		"newer, other type": {folder.ResultFile, `{"version": 9, "state": 4}`, "result.json has format 9"},
		"no version":        {folder.ResultFile, `{"state":"success"}`, "names no format version"},
		"not JSON":          {folder.ResultFile, `{"version": 1`, "read result.json: unexpected end"},
		"empty":             {folder.ResultFile, ``, "read result.json: unexpected end"},
		"state":             {folder.ResultFile, `{"version": 1, "state":"running"}`, `state is "running"`},
		"length":            {folder.ResultFile, `{"version": 1, "state":"failed","trace_length":-1}`, "trace_length is -1"},
		"too long":          {folder.ResultFile, strings.Repeat(" ", folder.MaxResult+1), "more than the limit of 65536"},
		"started newer":     {folder.StartedFile, `{"version": 2}`, "started has format 2"},
	} {
		t.Run(name, func(t *testing.T) {
			f := create(t, folder.Spec{})
			write(f, c.file, c.text)
			var err error
			if c.file == folder.ResultFile {
				_, err = f.Result()
			} else {
				_, err = f.Started()
			}
			require.ErrorContains(t, err, c.message)
			require.NotErrorIs(t, err, folder.ErrNoResult)
			require.NotErrorIs(t, err, folder.ErrNotStarted)
		})
	}
	t.Run("a damaged fence is a fence", func(t *testing.T) {
		f := create(t, folder.Spec{})
		write(f, folder.StartedFile, "")
		_, err := f.Started()
		require.NoError(t, err)
		require.ErrorIs(t, f.WriteStarted(folder.Started{}), fs.ErrExist)
	})
	t.Run("a FIFO does not block", func(t *testing.T) {
		f := create(t, folder.Spec{})
		require.NoError(t, syscall.Mkfifo(filepath.Join(f.Path(), folder.ResultFile), 0o600))
		_, err := f.Result()
		require.ErrorContains(t, err, "not a regular file")
	})
	t.Run("a link out of the folder is not followed", func(t *testing.T) {
		f := create(t, folder.Spec{})
		require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(f.Path(), folder.ResultFile)))
		_, err := f.Result()
		require.Error(t, err)
		require.NotErrorIs(t, err, folder.ErrNoResult)
	})
}

func TestLock(t *testing.T) {
	f := create(t, folder.Spec{})
	running, err := f.Running()
	require.NoError(t, err)
	require.False(t, running)

	lock, ok, err := f.TryLock()
	require.NoError(t, err)
	require.True(t, ok)
	running, err = f.Running()
	require.NoError(t, err)
	require.True(t, running)
	_, ok, err = f.TryLock()
	require.NoError(t, err)
	require.False(t, ok)

	waited := make(chan error, 1)
	go func() {
		second, err := f.WaitLock()
		if err == nil {
			err = second.Close()
		}
		waited <- err
	}()
	select {
	case err := <-waited:
		t.Fatal("the lock was taken twice", err)
	case <-time.After(20 * time.Millisecond):
	}
	require.NoError(t, lock.Close())
	require.NoError(t, <-waited)
	running, err = f.Running()
	require.NoError(t, err)
	require.False(t, running)
}

func TestAskingWaitsForAJobThatIsStarting(t *testing.T) {
	f := create(t, folder.Spec{})
	start, err := f.LockStart()
	require.NoError(t, err)
	answer := make(chan bool)
	go func() {
		running, err := f.Running()
		answer <- err == nil && running
	}()
	select {
	case <-answer:
		t.Fatal("it did not wait")
	case <-time.After(20 * time.Millisecond):
	}
	lock, ok, err := f.TryLock()
	require.NoError(t, err)
	require.True(t, ok)
	require.NoError(t, start.Close())
	require.True(t, <-answer)
	require.NoError(t, lock.Close())
}

func TestAReservedResultIsWrittenOver(t *testing.T) {
	f := create(t, folder.Spec{})
	require.NoError(t, f.ReserveResult())
	require.NoError(t, f.ReserveResult())
	_, err := f.Result()
	require.ErrorIs(t, err, folder.ErrNoResult)
	require.NoError(t, os.WriteFile(filepath.Join(f.Path(), ".result.json.new"), bytes.Repeat([]byte("x"), 9000), 0o600))
	require.NoError(t, f.WriteResult(folder.Result{State: runnerapi.StateSuccess}))
	_, err = f.Result()
	require.NoError(t, err)
}

func TestTheReservedEndOfATraceIsGivenBack(t *testing.T) {
	f := create(t, folder.Spec{})
	require.NoError(t, f.ReleaseTrace(), "there is none")
	require.NoError(t, f.ReserveTrace())
	require.FileExists(t, filepath.Join(f.Path(), ".spare"))
	require.NoError(t, f.ReleaseTrace())
	require.NoFileExists(t, filepath.Join(f.Path(), ".spare"))
}

func TestTraceIsThreeSegments(t *testing.T) {
	f, err := folder.Make(filepath.Join(t.TempDir(), "job"))
	require.NoError(t, err)
	defer f.Close()
	tr, err := f.OpenTrace()
	require.NoError(t, err)
	defer tr.Close()

	read := func(off int64, n int) string {
		b := make([]byte, n)
		k, err := tr.ReadAt(b, off)
		if k < n {
			require.ErrorIs(t, err, io.EOF)
		} else {
			require.NoError(t, err)
		}
		return string(b[:k])
	}
	size := func() int64 {
		n, err := tr.Size()
		require.NoError(t, err)
		return n
	}
	appendTo := func(name, text string) {
		w, err := os.OpenFile(filepath.Join(f.Path(), name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		require.NoError(t, err)
		_, err = w.WriteString(text)
		require.NoError(t, err)
		require.NoError(t, w.Close())
	}

	require.Equal(t, "", read(0, 10))
	appendTo(folder.PrefixFile, "pre")
	require.Equal(t, "pre", read(0, 10))
	appendTo(folder.PrefixFile, "fix|")
	require.Equal(t, "fix|", read(3, 10))
	appendTo(folder.TraceFile, "jo")
	require.EqualValues(t, 9, size())
	appendTo(folder.TraceFile, "b|")
	require.Equal(t, "x|jo", read(5, 4))
	require.Equal(t, "b|", read(9, 9))
	require.Equal(t, "", read(11, 9))
	require.NoError(t, f.WriteSuffix([]byte("end")))
	require.EqualValues(t, 14, size())
	require.Equal(t, "prefix|job|end", read(0, 100))
	require.Equal(t, "d", read(13, 1))
	require.Equal(t, "", read(1000, 1))
	_, err = tr.ReadAt(make([]byte, 1), -1)
	require.Error(t, err)
}

// listen makes the job's side of the control socket.
func listen(t *testing.T, f *folder.Folder, serve func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("unix", f.SocketPath())
	require.NoError(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
}

func TestFollow(t *testing.T) {
	t.Run("nobody", func(t *testing.T) {
		f := create(t, folder.Spec{})
		_, err := f.Follow(context.Background())
		require.ErrorIs(t, err, folder.ErrGone)
	})
	t.Run("a socket that is left over", func(t *testing.T) {
		f := create(t, folder.Spec{})
		l, err := net.Listen("unix", f.SocketPath())
		require.NoError(t, err)
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		require.NoError(t, l.Close())
		_, err = f.Follow(context.Background())
		require.ErrorIs(t, err, folder.ErrGone)
	})
	t.Run("events and orders in a deep folder", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
		require.NoError(t, folder.Create(path, folder.Spec{}, nil))
		f, err := folder.Open(path)
		require.NoError(t, err)
		defer f.Close()

		orders := make(chan string, 1)
		listen(t, f, func(c net.Conn) {
			var b bytes.Buffer
			b.Write(folder.Greeting())
			b.Write(folder.AppendEvent(nil, folder.Event{Kind: folder.EventStage, Stage: "get_sources"}))
			for i := range 50 {
				b.Write(folder.AppendEvent(nil, folder.Event{Kind: folder.EventTrace, TraceLength: int64(i)}))
			}
			b.WriteString("weather fine\n")
			b.Write(folder.AppendEvent(nil, folder.Event{Kind: folder.EventStage, Stage: "step_script"}))
			b.Write(folder.AppendEvent(nil, folder.Event{Kind: folder.EventTrace, TraceLength: 60}))
			b.Write(folder.AppendEvent(nil, folder.Event{Kind: folder.EventResult}))
			_, _ = c.Write(b.Bytes())
			text := make([]byte, 0, 100)
			for bytes.Count(text, []byte("\n")) < 3 {
				k, err := c.Read(text[len(text):cap(text)])
				if err != nil {
					break
				}
				text = text[:len(text)+k]
			}
			orders <- string(text)
		})
		w, err := f.Follow(context.Background())
		require.NoError(t, err)
		defer w.Close()
		for _, want := range []folder.Event{
			{Kind: folder.EventStage, Stage: "get_sources"},
			{Kind: folder.EventTrace, TraceLength: 49},
			{Kind: folder.EventStage, Stage: "step_script"},
			{Kind: folder.EventTrace, TraceLength: 60},
			{Kind: folder.EventResult},
		} {
			e, err := w.Next()
			require.NoError(t, err)
			require.Equal(t, want, e)
		}
		require.NoError(t, w.Cancel(false))
		require.NoError(t, w.Cancel(true))
		require.NoError(t, w.Lease(90*time.Second))
		require.Equal(t, "cancel graceful\ncancel kill\nlease 90000\n", <-orders)
		_, err = w.Next()
		require.ErrorIs(t, err, folder.ErrGone)
	})
	t.Run("the context ends it", func(t *testing.T) {
		f := create(t, folder.Spec{})
		gone := make(chan struct{})
		listen(t, f, func(c net.Conn) {
			_, _ = c.Write(folder.Greeting())
			_, _ = c.Read(make([]byte, 1))
			close(gone)
		})
		ctx, cancel := context.WithCancelCause(context.Background())
		w, err := f.Follow(ctx)
		require.NoError(t, err)
		time.AfterFunc(10*time.Millisecond, func() { cancel(errors.New("enough")) })
		_, err = w.Next()
		require.ErrorIs(t, err, context.Canceled)
		require.NoError(t, w.Close())
		<-gone
	})
	for name, c := range map[string]struct{ text, message string }{
		"another program": {"HTTP/1.1 400\n", "not switchyard-job"},
		"a newer format":  {"switchyard-job 2\n", "format 2"},
		"no number":       {"switchyard-job x\n", "not a number"},
		"a long line":     {"switchyard-job 1\nstage " + strings.Repeat("x", folder.MaxLine) + "\n", "longer than 16384"},
		"a bad length":    {"switchyard-job 1\ntrace -4\n", "not a number of bytes"},
		"no question":     {"switchyard-job 1\nask {}\n", "has no id"},
	} {
		t.Run("hostile: "+name, func(t *testing.T) {
			f := create(t, folder.Spec{})
			listen(t, f, func(conn net.Conn) { _, _ = io.WriteString(conn, c.text) })
			w, err := f.Follow(context.Background())
			if err == nil {
				defer w.Close()
				_, err = w.Next()
			}
			require.ErrorContains(t, err, c.message)
			require.NotErrorIs(t, err, folder.ErrGone)
		})
	}
}

func TestOrders(t *testing.T) {
	for _, o := range []folder.Order{
		{Kind: folder.OrderCancelGraceful},
		{Kind: folder.OrderCancelKill},
		{Kind: folder.OrderLease, Lease: 25 * time.Minute},
		{Kind: folder.OrderLease, Lease: time.Millisecond},
		{Kind: folder.OrderAnswer, Answer: folder.CacheAnswer{
			ID: 7, URL: "https://s3.test/b/k?a=1&b=<2>", Headers: map[string]string{"x-amz-a": "b\n"},
		}},
		{Kind: folder.OrderAnswer, Answer: folder.CacheAnswer{ID: 1 << 63, Error: "no\nstore"}},
	} {
		line := folder.AppendOrder(nil, o)
		got, err := folder.ParseOrder(bytes.TrimSuffix(line, []byte("\n")))
		require.NoError(t, err)
		require.Equal(t, o, got)
	}
	for _, line := range []string{
		"", "cancel", "cancel now", "lease", "lease x", "lease 0", "lease -1", "lease 9223372036854775807", "cancel kill ",
		"answer", "answer ", "answer {", "answer {}", `answer {"id":-1}`, "answer null",
	} {
		_, err := folder.ParseOrder([]byte(line))
		require.Error(t, err, "%q", line)
	}
}
