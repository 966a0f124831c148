package relay

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// sinkVariable makes the test binary a GitLab that takes everything and keeps nothing: benchmarks run it as a process of
// its own, so that its CPU time does not count.
const sinkVariable = "SWITCHYARD_RELAY_SINK"

// serveSink serves until standard input ends.
func serveSink(address string) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stdout, listener.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	buffers := sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}
	_ = http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buffer := buffers.Get().(*[]byte)
		defer buffers.Put(buffer)
		n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r.Body}, *buffer)
		w.Header().Set("Job-Status", "running")
		if r.Method == http.MethodPatch {
			start, _, _ := strings.Cut(r.Header.Get("Content-Range"), "-")
			from, _ := strconv.ParseInt(start, 10, 64)
			w.Header().Set("Range", "0-"+strconv.FormatInt(from+n, 10))
			w.Header().Set("X-Gitlab-Trace-Update-Interval", "60")
			w.WriteHeader(http.StatusAccepted)
		}
	}))
	os.Exit(1)
}

// startSink returns the URL of a sink.
func startSink(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), sinkVariable+"=127.0.0.1:0")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	address, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	return "http://" + strings.TrimSpace(address)
}
