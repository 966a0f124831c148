//go:build unix

package artifacts

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// counted counts what its connections receive.
type counted struct {
	net.Listener
	n atomic.Int64
}

type countedConn struct {
	net.Conn
	n *atomic.Int64
}

func (l *counted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &countedConn{c, &l.n}, err
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

func TestARefusalComesBeforeTheBody(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}))
	listener := &counted{Listener: server.Listener}
	server.Listener = listener
	server.Start()
	defer server.Close()
	b := newBench(t)
	b.stage.ServerURL = server.URL
	b.values["ARTIFACT_COMPRESSION_LEVEL"] = "fastest"
	b.write("f", strings.Repeat("0123456789abcdef", 8<<20/16))
	_, err := b.upload(paths("f"))
	require.ErrorIs(t, err, ErrTooLarge)
	require.Less(t, listener.n.Load(), int64(4<<10))
}

// Whatever the size, memory stays small: both ends of the upload are in this process.
func TestHugeArtifactsNeedLittleMemory(t *testing.T) {
	large, small := int64(5<<30), int64(256<<20)
	switch {
	case testing.Short():
		large, small = 256<<20, 64<<20
	case raceDetector:
		large, small = 512<<20, 64<<20
	}
	for _, c := range []struct {
		name, format, level string
		size                int64
	}{
		{"stored", "zip", "fastest", large},
		{"zip", "zip", "default", small},
		{"zipzstd", "zipzstd", "default", small},
		{"tarzstd", "tarzstd", "default", small},
		{"raw", "raw", "", small},
		{"gzip", "gzip", "default", small},
	} {
		t.Run(c.name, func(t *testing.T) {
			var peak uint64
			var received int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				buffer := make([]byte, 256<<10)
				look := func() {
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					peak = max(peak, m.HeapInuse+m.StackInuse)
				}
				for next := int64(0); ; {
					n, err := r.Body.Read(buffer)
					if received += int64(n); received >= next || err != nil {
						look()
						next = received + 32<<20
					}
					if err != nil {
						break
					}
				}
				w.WriteHeader(http.StatusCreated)
			}))
			defer server.Close()
			b := newBench(t)
			b.stage.ServerURL = server.URL
			b.values["ARTIFACT_COMPRESSION_LEVEL"] = c.level
			f, err := os.Create(filepath.Join(b.stage.ProjectDir, "sparse"))
			require.NoError(t, err)
			require.NoError(t, f.Truncate(c.size))
			require.NoError(t, f.Close())
			runtime.GC()
			begin := time.Now()
			_, err = b.upload(runnerapi.Artifact{Paths: []string{"sparse"}, Format: c.format, Type: "archive"})
			require.NoError(t, err)
			if c.level == "fastest" || c.format == "raw" {
				require.Greater(t, received, c.size)
			}
			took := time.Since(begin)
			t.Logf("%d MiB in %v, %.0f MiB/s, %d MiB sent, at most %d MiB of memory", c.size>>20, took.Round(time.Millisecond),
				float64(c.size>>20)/took.Seconds(), received>>20, peak>>20)
			require.Less(t, peak, uint64(64<<20))
		})
	}
}

// The CPU of an upload of 650 KB of text, GitLab's side included.
func BenchmarkUpload(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusCreated)
	}))
	defer server.Close()
	dir := b.TempDir()
	require.NoError(b, os.WriteFile(filepath.Join(dir, "f"), bytes.Repeat([]byte("some text that is easily compressed, "), 650_000/37), 0o644))
	none := func(string) string { return "" }
	s := Stage{
		ProjectDir: dir, ServerURL: server.URL, JobID: 1, Token: token, Value: none, Flag: func(string) bool { return false },
		Expand: func(text string) (string, error) { return text, nil },
	}
	var before, after syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &before))
	for b.Loop() {
		require.NoError(b, s.Upload(b.Context(), []runnerapi.Artifact{paths("f")}, true))
	}
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &after))
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/1e6/float64(b.N), "cpu-ms/op")
}
