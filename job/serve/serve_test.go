//go:build linux

package serve_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/job/process"
	"github.com/switchyard-ci/switchyard/job/serve"
)

// The server owns all children of its process, so it runs in a copy of the test binary.
func TestMain(m *testing.M) {
	if socket := os.Getenv("SERVE_TEST_SOCKET"); socket != "" {
		if err := server(socket); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

const token = "the-token"

func server(socket string) error {
	group, err := process.NewGroup()
	if err != nil {
		return err
	}
	l, err := serve.Listen(socket)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test lets go
		cancel()
	}()
	s := serve.Server{Token: token, Group: group, Environment: os.Environ(), Log: slog.New(slog.DiscardHandler)}
	_, _ = os.Stdout.WriteString("ready\n")
	return s.Serve(ctx, l, time.Second)
}

// start returns the server's socket and a function that stops it.
func start(t *testing.T) (socket string, stop func() error) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "SERVE_TEST_SOCKET="+socket, "OF_THE_SERVER=yes")
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	require.NoError(t, err)
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	b := make([]byte, 6)
	_, err = io.ReadFull(out, b)
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	stopped := false
	stop = func() error {
		stopped = true
		_ = in.Close()
		return <-ended
	}
	t.Cleanup(func() {
		if !stopped {
			require.NoError(t, stop())
		}
	})
	return socket, stop
}

func dial(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	c, err := serve.Dial(t.Context(), socket, token)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

type remote struct {
	*serve.Remote
	stdout, stderr *os.File
}

func run(t *testing.T, socket, script string, change ...func(*serve.Command)) remote {
	t.Helper()
	c := serve.Command{Shells: []string{"no-such-shell", "sh"}, Dir: "/", Env: []string{"ADDED=a b"}}
	for _, f := range change {
		f(&c)
	}
	stdin, err := os.CreateTemp(t.TempDir(), "script")
	require.NoError(t, err)
	defer stdin.Close()
	_, err = stdin.WriteString(script)
	require.NoError(t, err)
	_, err = stdin.Seek(0, io.SeekStart)
	require.NoError(t, err)
	outR, outW, err := os.Pipe()
	require.NoError(t, err)
	errR, errW, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { _ = outR.Close(); _ = errR.Close() })
	r, err := serve.Start(dial(t, socket), c, stdin, outW, errW)
	_ = outW.Close()
	_ = errW.Close()
	require.NoError(t, err)
	t.Cleanup(r.Close)
	return remote{r, outR, errR}
}

func (r remote) output(t *testing.T) (stdout, stderr string) {
	t.Helper()
	b, err := io.ReadAll(r.stdout)
	require.NoError(t, err)
	e, err := io.ReadAll(r.stderr)
	require.NoError(t, err)
	return string(b), string(e)
}

func (r remote) code(t *testing.T) int {
	t.Helper()
	select {
	case <-r.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	exit, err := r.Exit()
	require.NoError(t, err)
	return exit.Code
}

func TestPrograms(t *testing.T) {
	socket, _ := start(t)
	r := run(t, socket, `echo "$OF_THE_SERVER,$ADDED,$(pwd)"; echo err >&2; exit 3`)
	require.Equal(t, 3, r.code(t))
	stdout, stderr := r.output(t)
	require.Equal(t, "yes,a b,/\n", stdout)
	require.Equal(t, "err\n", stderr)
	require.True(t, strings.HasSuffix(r.Started().Shell, "/sh"))

	require.Equal(t, 137, run(t, socket, "kill -9 $$").code(t))
	r = run(t, socket, "echo $0 $-", func(c *serve.Command) { c.Shells = []string{"bash"} })
	require.Equal(t, 0, r.code(t))
	stdout, _ = r.output(t)
	require.Contains(t, stdout, "bash ")
}

func TestManyAtOnce(t *testing.T) {
	socket, _ := start(t)
	var all []remote
	for i := range 20 {
		all = append(all, run(t, socket, fmt.Sprintf("sleep 0.05; exit %d", i)))
	}
	for i, r := range all {
		require.Equal(t, i, r.code(t))
	}
}

func TestSignals(t *testing.T) {
	socket, _ := start(t)
	r := run(t, socket, "trap 'echo caught; exit 7' TERM; echo up; while :; do sleep 0.01; done")
	b := make([]byte, 3)
	_, err := io.ReadFull(r.stdout, b)
	require.NoError(t, err)
	require.NoError(t, r.Signal(syscall.SIGTERM, false))
	require.Equal(t, 7, r.code(t))

	r = run(t, socket, "setsid sleep 301 & echo up; wait")
	_, err = io.ReadFull(r.stdout, b)
	require.NoError(t, err)
	require.NoError(t, r.Signal(syscall.SIGKILL, true))
	require.Equal(t, 137, r.code(t))
	_, err = io.ReadAll(r.stdout) // ends only when the daemon is gone too
	require.NoError(t, err)
}

func TestAClientThatGoesAway(t *testing.T) {
	socket, _ := start(t)
	r := run(t, socket, "echo up; sleep 302", func(c *serve.Command) { c.KillWithClient = true })
	b := make([]byte, 3)
	_, err := io.ReadFull(r.stdout, b)
	require.NoError(t, err)
	r.Close()
	_, err = r.Exit()
	require.ErrorIs(t, err, serve.ErrLost)
	_, err = io.ReadAll(r.stdout) // ends when the program is killed
	require.NoError(t, err)

	socket, _ = start(t) // what is killed is all that the first has started
	marker := filepath.Join(t.TempDir(), "went-on")
	r = run(t, socket, "echo up; sleep 0.1; echo x >"+marker)
	_, err = io.ReadFull(r.stdout, b)
	require.NoError(t, err)
	r.Close()
	_, err = io.ReadAll(r.stdout)
	require.NoError(t, err)
	require.FileExists(t, marker)
}

func TestTheServersEndIsTheProgramsEnd(t *testing.T) {
	socket, stop := start(t)
	r := run(t, socket, "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done")
	b := make([]byte, 3)
	_, err := io.ReadFull(r.stdout, b)
	require.NoError(t, err)
	require.NoError(t, stop())
	require.Equal(t, 9, r.code(t))
}

func TestAServerThatDies(t *testing.T) {
	socket, stop := start(t)
	gate := filepath.Join(t.TempDir(), "gate")
	require.NoError(t, syscall.Mkfifo(gate, 0o600))
	r := run(t, socket, "cat "+gate+"; kill -9 $PPID; sleep 303")
	require.NoError(t, os.WriteFile(gate, nil, 0))
	<-r.Done()
	_, err := r.Exit()
	require.ErrorIs(t, err, serve.ErrLost)
	for _, pid := range with("sleep\x00303") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	require.Error(t, stop())
}

func with(text string) (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && strings.Contains(string(b), text) {
			var pid int
			_, _ = fmt.Sscan(filepath.Base(filepath.Dir(name)), &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestWhatIsRefused(t *testing.T) {
	socket, _ := start(t)
	info, err := os.Stat(socket)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o666), info.Mode().Perm())

	_, err = serve.Dial(t.Context(), socket, "another token")
	require.ErrorContains(t, err, "the token is wrong")
	_, err = serve.Dial(t.Context(), socket, "")
	require.ErrorContains(t, err, "the token is wrong")

	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	_, err = serve.Start(dial(t, socket), serve.Command{Shells: []string{"nothing"}, Dir: "/"}, null, null, null)
	require.ErrorContains(t, err, "no shell found: looked for nothing in ")
	_, err = serve.Start(dial(t, socket), serve.Command{Shells: []string{"sh"}, Dir: "/no/such/folder"}, null, null, null)
	require.ErrorContains(t, err, "start ")

	frame := func(v any) []byte {
		b, err := json.Marshal(v)
		require.NoError(t, err)
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
	}
	type object = map[string]any
	for name, c := range map[string]struct {
		bytes []byte
		want  string
	}{
		"another version":     {frame(object{"hello": object{"version": 9, "token": token}}), "version 9 of the protocol"},
		"no hello":            {frame(object{"exec": object{}}), "the token is wrong"},
		"a huge message":      {[]byte{0xff, 0xff, 0xff, 0xff}, "more than 4096"},
		"no JSON":             {[]byte{0, 0, 0, 1, '{'}, "does not follow the protocol"},
		"a command, no files": {append(frame(object{"hello": object{"version": 1, "token": token}}), frame(object{"exec": object{"shells": []string{"sh"}}})...), "does not follow the protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("unix", socket)
			require.NoError(t, err)
			defer conn.Close()
			_, err = conn.Write(c.bytes)
			require.NoError(t, err)
			answer, _ := io.ReadAll(conn)
			require.Contains(t, string(answer), c.want)
		})
	}
	require.Equal(t, 0, run(t, socket, "true").code(t), "it still works")
}

func TestAServerThatIsNotThereYet(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := serve.Dial(ctx, socket, token)
	require.ErrorContains(t, err, "connect to where the script runs")

	dialed := make(chan error, 1)
	go func() {
		c, err := serve.Dial(t.Context(), socket, token)
		if err == nil {
			_ = c.Close()
		}
		dialed <- err
	}()
	<-time.After(30 * time.Millisecond) // it has been refused a few times
	there, _ := start(t)
	require.NoError(t, os.Rename(there, socket))
	require.NoError(t, <-dialed)
}
