package transfer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newClient(t *testing.T, o Options) *Client {
	t.Helper()
	c, err := New(o)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// content is a file of n bytes of which no two parts are alike.
func content(n int) []byte {
	var b bytes.Buffer
	for sum := sha256.Sum256(nil); b.Len() < n; sum = sha256.Sum256(sum[:]) {
		b.Write(sum[:])
	}
	return b.Bytes()[:n]
}

// cut lets at most n bytes of a body through and breaks the connection then.
type cut struct {
	http.ResponseWriter
	left int
}

func (c *cut) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b[:min(len(b), c.left)])
	if c.left -= n; c.left == 0 && err == nil {
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// origin is a server of one file.
type fileServer struct {
	*httptest.Server
	mu       sync.Mutex
	data     []byte
	etag     string
	cuts     []int // of the next answers
	plain    bool  // knows no ranges
	careless bool  // heeds no If-Range
	ranges   []string
	tokens   []string
	before   func(w http.ResponseWriter, r *http.Request) bool
}

func newFileServer(t *testing.T, data []byte) *fileServer {
	t.Helper()
	s := &fileServer{data: data, etag: `"one"`}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

func (s *fileServer) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.ranges = append(s.ranges, r.Header.Get("Range"))
	s.tokens = append(s.tokens, r.Header.Get("JOB-TOKEN"))
	before := s.before
	s.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	s.mu.Lock()
	data, etag, plain, careless := s.data, s.etag, s.plain, s.careless
	out := w
	if len(s.cuts) > 0 {
		if s.cuts[0] > 0 {
			out = &cut{w, s.cuts[0]}
		}
		s.cuts = s.cuts[1:]
	}
	s.mu.Unlock()
	if etag != "" {
		w.Header().Set("ETag", etag)
	}
	if plain {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = out.Write(data)
		return
	}
	if careless {
		r.Header.Del("If-Range")
	}
	http.ServeContent(out, r, "", time.Time{}, bytes.NewReader(data))
}

// get downloads what there is at url.
func get(t *testing.T, url string, change func(*Download)) ([]byte, []string, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	require.NoError(t, err)
	defer f.Close()
	var again []string
	d := Download{
		Client: newClient(t, Options{UserAgent: "switchyard test"}), File: f,
		Request: func(ctx context.Context, _ int, _ bool) (*http.Request, error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err == nil {
				req.Header.Set("JOB-TOKEN", "secret")
			}
			return req, err
		},
		Patience: Patience{Tries: 3, Least: time.Second, Most: time.Second, Wait: func(context.Context, time.Duration) error { return nil }},
		Again:    func(err error) { again = append(again, err.Error()) },
	}
	if change != nil {
		change(&d)
	}
	err = d.Run(t.Context())
	got, readErr := os.ReadFile(f.Name())
	require.NoError(t, readErr)
	return got, again, err
}

func TestABrokenDownloadGoesOn(t *testing.T) {
	data := content(3 << 20)
	s := newFileServer(t, data)
	s.cuts = []int{1 << 20, 100, 1 << 20}
	got, again, err := get(t, s.URL, nil)
	require.NoError(t, err)
	require.Equal(t, sha256.Sum256(data), sha256.Sum256(got))
	require.Len(t, again, 3)
	require.Contains(t, again[0], "the connection broke after 1048576 bytes")
	require.Equal(t, []string{"", "bytes=1048576-", "bytes=1048676-", "bytes=2097252-"}, s.ranges)
}

func TestABrokenDownloadBeginsAnew(t *testing.T) {
	data, other := content(2<<20), bytes.Repeat([]byte("other"), 400_000)
	for name, prepare := range map[string]func(*fileServer){
		"no validator": func(s *fileServer) { s.etag = "" },
		"no ranges":    func(s *fileServer) { s.plain = true },
		"another file": func(s *fileServer) {
			s.before = func(http.ResponseWriter, *http.Request) bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				if len(s.ranges) == 2 {
					s.data, s.etag = other, `"two"`
				}
				return false
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFileServer(t, data)
			s.cuts = []int{1 << 20}
			prepare(s)
			got, _, err := get(t, s.URL, nil)
			require.NoError(t, err)
			require.Equal(t, sha256.Sum256(s.data), sha256.Sum256(got))
		})
	}
	t.Run("another file of a server that does not heed If-Range", func(t *testing.T) {
		s := newFileServer(t, data)
		s.careless = true
		s.cuts = []int{1 << 20}
		_, again, err := get(t, s.URL, func(d *Download) {
			tell := d.Again
			d.Again = func(err error) {
				tell(err)
				s.mu.Lock()
				defer s.mu.Unlock()
				s.data, s.etag = other, `"two"`
			}
		})
		require.NoError(t, err)
		require.Contains(t, again[1], "is no part of the same file")
	})
}

func TestADownloadGivesUp(t *testing.T) {
	s := newFileServer(t, content(1000))
	for name, c := range map[string]struct {
		answer   func(w http.ResponseWriter)
		requests int
		message  string
	}{
		"404": {func(w http.ResponseWriter) { w.WriteHeader(404) }, 1, "404 Not Found"},
		"500": {func(w http.ResponseWriter) { w.WriteHeader(500) }, 3, "500 Internal Server Error"},
		"429": {func(w http.ResponseWriter) { w.WriteHeader(429) }, 3, "429 Too Many Requests"},
		"an object store's": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(403)
			_, _ = io.WriteString(w, `<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message><Secret>x</Secret></Error>`)
		}, 1, "403 Forbidden: AccessDenied: Request has expired"},
		"GitLab's": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(400)
			_, _ = io.WriteString(w, `{"message":{"file":["is\u001b[31m bad"],"a":["b"]}}`)
		}, 1, "400 Bad Request: a: b; file: is [31m bad"},
		"nothing": {func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, 3, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int32
			s.before = func(w http.ResponseWriter, _ *http.Request) bool {
				requests.Add(1)
				c.answer(w)
				return true
			}
			_, _, err := get(t, s.URL+"/a?signature=hidden", nil)
			require.ErrorContains(t, err, c.message)
			require.ErrorContains(t, err, "GET "+s.URL+"/a")
			require.NotContains(t, err.Error(), "hidden")
			require.EqualValues(t, c.requests, requests.Load())
		})
	}
	t.Run("a connection that breaks again and again", func(t *testing.T) {
		s := newFileServer(t, content(1<<20))
		for range 100 {
			s.cuts = append(s.cuts, 10)
		}
		_, again, err := get(t, s.URL, nil)
		require.ErrorContains(t, err, "the connection broke after 130 bytes")
		require.Len(t, again, maxResumes+2)
	})
	t.Run("a file that is too large", func(t *testing.T) {
		s := newFileServer(t, content(1001))
		_, _, err := get(t, s.URL, func(d *Download) { d.Limit = 1000 })
		require.ErrorContains(t, err, "larger than")
		s.before = func(w http.ResponseWriter, _ *http.Request) bool { // of unknown length
			for range 1001 {
				_, _ = w.Write([]byte("x"))
				_ = http.NewResponseController(w).Flush()
			}
			return true
		}
		got, _, err := get(t, s.URL, func(d *Download) { d.Limit = 1000 })
		require.ErrorContains(t, err, "larger than")
		require.LessOrEqual(t, len(got), 1000)
	})
	t.Run("a server that says nothing", func(t *testing.T) {
		s := newFileServer(t, nil)
		s.before = func(_ http.ResponseWriter, r *http.Request) bool {
			<-r.Context().Done()
			return true
		}
		_, _, err := get(t, s.URL+"?signature=hidden", func(d *Download) { d.Timeout = 20 * time.Millisecond })
		require.ErrorContains(t, err, "it took too long (20ms)")
		require.NotContains(t, err.Error(), "hidden")
	})
	t.Run("the end of the context", func(t *testing.T) {
		cause := errors.New("canceled by somebody")
		ctx, cancel := context.WithCancelCause(t.Context())
		s := newFileServer(t, nil)
		s.before = func(_ http.ResponseWriter, r *http.Request) bool {
			cancel(cause)
			<-r.Context().Done()
			return true
		}
		f, err := os.Create(filepath.Join(t.TempDir(), "file"))
		require.NoError(t, err)
		defer f.Close()
		d := Download{Client: newClient(t, Options{}), File: f, Request: func(ctx context.Context, _ int, _ bool) (*http.Request, error) {
			return http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
		}, Patience: Patience{Tries: 3}}
		require.ErrorIs(t, d.Run(ctx), cause)
	})
}

func TestRanges(t *testing.T) {
	data := content(10<<20 + 7)
	ranges := func(d *Download) { d.Ranges = Ranges{Connections: 4, Chunk: 1 << 20} }
	t.Run("at the same time", func(t *testing.T) {
		s := newFileServer(t, data)
		// Three answers wait for one another: they are under way at the same time.
		var waiting sync.WaitGroup
		waiting.Add(3)
		var n atomic.Int32
		s.before = func(http.ResponseWriter, *http.Request) bool {
			if i := n.Add(1); i > 1 && i <= 4 {
				waiting.Done()
				waiting.Wait()
			}
			return false
		}
		var meter *Meter
		got, again, err := get(t, s.URL, func(d *Download) {
			ranges(d)
			meter = StartMeter("x", 0, time.Hour, func(string) {})
			d.Meter = meter
		})
		meter.Stop()
		require.NoError(t, err)
		require.Empty(t, again)
		require.Equal(t, sha256.Sum256(data), sha256.Sum256(got))
		require.Len(t, s.ranges, 11)
		require.EqualValues(t, len(data), meter.n.Load())
	})
	t.Run("one after another if it may not be otherwise", func(t *testing.T) {
		s := newFileServer(t, data)
		got, again, err := get(t, s.URL, func(d *Download) {
			ranges(d)
			d.Ranges.If = func(*http.Response) bool { return false }
		})
		require.NoError(t, err)
		require.Empty(t, again)
		require.Equal(t, sha256.Sum256(data), sha256.Sum256(got))
		require.Equal(t, []string{"bytes=0-1048575", "bytes=1048576-"}, s.ranges)
	})
	for name, prepare := range map[string]func(*fileServer){
		"no ranges":          func(s *fileServer) { s.plain = true },
		"no validator":       func(s *fileServer) { s.etag = "" },
		"a small file":       func(s *fileServer) { s.data = data[:1000] },
		"an empty file":      func(s *fileServer) { s.data = nil },
		"a part that breaks": func(s *fileServer) { s.cuts = []int{0, 0, 1000} },
		"another file meanwhile": func(s *fileServer) {
			s.before = func(http.ResponseWriter, *http.Request) bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				if len(s.ranges) == 3 {
					s.data, s.etag = content(5<<20), `"two"`
				}
				return false
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFileServer(t, data)
			prepare(s)
			got, _, err := get(t, s.URL, ranges)
			require.NoError(t, err)
			require.Equal(t, sha256.Sum256(s.data), sha256.Sum256(got))
		})
	}
	for text, want := range map[string][2]int64{
		"bytes 0-9/10": {0, 10}, "bytes 5-5/6": {5, 6}, "bytes 5-9/*": {-1}, "bytes 9-5/10": {-1}, "bytes 0-10/10": {-1}, "": {-1}, "bytes -1-5/9": {-1},
	} {
		start, total, ok := contentRange(http.Header{"Content-Range": {text}})
		require.Equal(t, want[0] >= 0, ok, text)
		if ok {
			require.Equal(t, want, [2]int64{start, total})
		}
	}
}
