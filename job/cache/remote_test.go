//go:build unix

package cache

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// objects is an object store: what S3 does with signed URLs.
type objects struct {
	*httptest.Server
	mu       sync.Mutex
	data     map[string][]byte
	modified map[string]time.Time
	requests []string
	failures []int // statuses of the next answers; 0 lets it pass, 1 breaks the connection
	header   http.Header
	cut      int
}

func newObjects(t *testing.T) *objects {
	t.Helper()
	o := &objects{data: map[string][]byte{}, modified: map[string]time.Time{}}
	o.Server = httptest.NewServer(o)
	t.Cleanup(o.Close)
	return o
}

func (o *objects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := strings.TrimPrefix(r.URL.Path, "/bucket/")
	o.requests = append(o.requests, r.Method+" "+key)
	if r.URL.Query().Get("signature") != r.Method || r.Header.Get("X-Signed") != "yes" {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>")
		return
	}
	if len(o.failures) > 0 {
		status := o.failures[0]
		o.failures = o.failures[1:]
		switch status {
		case 0:
		case 1:
			panic(http.ErrAbortHandler)
		default:
			w.WriteHeader(status)
			return
		}
	}
	switch r.Method {
	case http.MethodPut:
		if r.ContentLength < 0 || len(r.TransferEncoding) > 0 {
			w.WriteHeader(http.StatusLengthRequired)
			return
		}
		data, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		o.header = r.Header.Clone()
		o.data[key], o.modified[key] = data, time.Now()
	default:
		data, ok := o.data[key]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("ETag", `"`+key+`"`)
		if o.cut > 0 && r.Method == http.MethodGet {
			w.Header().Set("Last-Modified", o.modified[key].UTC().Format(http.TimeFormat))
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data[:o.cut])
			_ = http.NewResponseController(w).Flush()
			o.cut = 0
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, r, "", o.modified[key], bytes.NewReader(data))
	}
}

// asked are the requests so far; it forgets them.
func (o *objects) asked() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	requests := o.requests
	o.requests = nil
	return requests
}

// fail makes the next answers fail.
func (o *objects) fail(statuses ...int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failures = statuses
}

func (b *bench) remote(o *objects) {
	b.stage.Remote = true
	b.stage.Sign = func(_ context.Context, op, key string) (folder.CacheAnswer, error) {
		return folder.CacheAnswer{
			URL: o.URL + "/bucket/" + key + "?signature=" + strings.ToUpper(op), Headers: map[string]string{"X-Signed": "yes"},
		}, nil
	}
}

func TestRemoteCache(t *testing.T) {
	o := newObjects(t)
	b := newBench(t)
	b.remote(o)
	random := rand.Text() + strings.Repeat(rand.Text(), 100_000)
	b.write("vendor/a", random)
	require.Equal(t, "> Checking cache for k...\nWARNING: file does not exist\nWARNING: Failed to extract cache", b.restore(vendor("k")))
	said := b.archive(vendor("k"))
	require.Contains(t, said, "\nUploading cache.zip to "+o.URL+"/bucket/k\n> Created cache")
	require.NotContains(t, said, "signature")
	require.Equal(t, "application/octet-stream", o.header.Get("Content-Type"))
	info, err := os.Stat(b.local("k"))
	require.NoError(t, err)
	require.Equal(t, info.ModTime().UTC().Format(http.TimeFormat), o.header.Get("Last-Modified"))

	other := newBench(t) // another machine
	other.remote(o)
	said = other.restore(vendor("k"))
	require.Contains(t, said, "Downloading cache from "+o.URL+"/bucket/k  ETag=\"\\\"k\\\"\"\n> Successfully extracted cache")
	require.NotContains(t, said, "signature")
	require.Equal(t, random, other.read("vendor/a"))
	require.Contains(t, other.restore(vendor("k")), "cache.zip is up to date\n> Successfully extracted cache")
	require.Contains(t, other.archive(vendor("k")), "Archive is up to date!")
	require.Equal(t, []string{"GET k", "PUT k", "GET k", "GET k"}, o.asked())

	// What is newer in the store replaces what is here.
	require.NoError(t, os.WriteFile(filepath.Join(b.stage.ProjectDir, "vendor/b"), []byte("new"), 0o644))
	o.asked()
	b.archive(vendor("k"))
	o.modified["k"] = time.Now().Add(time.Minute)
	require.Contains(t, other.restore(vendor("k")), "Downloading cache from")
	require.Equal(t, "new", other.read("vendor/b"))
}

func TestRemoteFailures(t *testing.T) {
	for name, c := range map[string]struct {
		failures []int
		restored bool
		requests int
		said     string
	}{
		"once 503":           {[]int{503}, true, 2, "WARNING: Retrying... GET"},
		"once broken":        {[]int{1}, true, 2, "WARNING: Retrying... GET"},
		"503 and 500":        {[]int{503, 500}, true, 3, "500 Internal Server Error"},
		"503 for ever":       {[]int{503, 503, 503, 503}, false, 3, "503 Service Unavailable"},
		"403":                {[]int{403}, false, 1, "403 Forbidden"},
		"404":                {[]int{404}, false, 1, "file does not exist"},
		"broken for ever":    {[]int{1, 1, 1, 1}, false, 3, "EOF"},
		"429 is asked again": {[]int{429}, true, 2, "429 Too Many Requests"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newObjects(t)
			o.data["k"], o.modified["k"] = zipOf(t, "vendor/a", "x"), time.Now()
			b := newBench(t)
			b.remote(o)
			o.fail(c.failures...)
			said := b.restore(vendor("k"))
			require.Contains(t, said, c.said)
			require.NotContains(t, said, "signature=")
			require.Equal(t, c.restored, b.read("vendor/a") == "x", said)
			require.Len(t, o.asked(), c.requests)
			require.Len(t, b.pauses, c.requests-1)
			if !c.restored {
				require.NoFileExists(t, b.local("k"))
			}
			// The same going up.
			o.fail(c.failures...)
			b.write("vendor/a", "y")
			require.NoError(t, os.RemoveAll(b.local("k")))
			said = b.archive(vendor("k"))
			require.Len(t, o.asked(), c.requests)
			require.Equal(t, c.restored, strings.Contains(said, "Created cache"), said)
			require.Equal(t, !c.restored, strings.Contains(said, "WARNING: Failed to create cache"), said)
			require.NotContains(t, said, "signature=")
			_, err := os.Stat(b.local("k"))
			require.Equal(t, c.restored, err == nil, "what was not uploaded does not pass for up to date later")
		})
	}
	t.Run("a broken download goes on", func(t *testing.T) {
		o := newObjects(t)
		o.data["k"], o.modified["k"] = zipOf(t, "vendor/a", rand.Text()+strings.Repeat("x", 1000)), time.Now()
		o.cut = 50
		b := newBench(t)
		b.remote(o)
		require.Contains(t, b.restore(vendor("k")), "the connection broke after 50 bytes")
		require.NotEqual(t, "missing", b.read("vendor/a"))
	})
	t.Run("a hostile archive", func(t *testing.T) {
		o := newObjects(t)
		o.data["k"], o.modified["k"] = zipOf(t, "../evil", "x"), time.Now()
		b := newBench(t)
		b.remote(o)
		require.Contains(t, b.restore(vendor("k")), "refused archive")
		require.NoFileExists(t, b.local("k"))
	})
}

func TestWithoutTheStoreTheLocalVersionIsUsed(t *testing.T) {
	o := newObjects(t)
	b := newBench(t)
	b.write("vendor/a", "local")
	b.archive(vendor("k"))
	b.remote(o)
	for name, sign := range map[string]func(context.Context, string, string) (folder.CacheAnswer, error){
		"no answer": func(context.Context, string, string) (folder.CacheAnswer, error) {
			return folder.CacheAnswer{}, errors.New("nobody answers")
		},
		"no URL": func(context.Context, string, string) (folder.CacheAnswer, error) {
			return folder.CacheAnswer{Error: "not configured"}, nil
		},
		"no address": func(context.Context, string, string) (folder.CacheAnswer, error) {
			return folder.CacheAnswer{URL: "http://127.0.0.1:1/x?signature=y"}, nil
		},
		"nonsense": func(context.Context, string, string) (folder.CacheAnswer, error) {
			return folder.CacheAnswer{URL: "http://%zz/?signature=y"}, nil
		},
	} {
		b.stage.Sign = sign
		b.emptyProject()
		said := b.restore(vendor("k"))
		require.Contains(t, said, "WARNING: The cache could not be downloaded. The local version of it is extracted instead.\n> Successfully extracted", name)
		require.NotContains(t, said, "signature")
		require.Equal(t, "local", b.read("vendor/a"))
		said = b.restore(vendor("other"))
		require.Contains(t, said, "Failed to extract cache")
	}
	// A cache that somebody removed from the store is gone.
	b.remote(o)
	b.emptyProject()
	require.Contains(t, b.restore(vendor("k")), "file does not exist")
	require.Equal(t, "missing", b.read("vendor/a"))
}

func TestLimitsOfUploads(t *testing.T) {
	o := newObjects(t)
	b := newBench(t)
	b.remote(o)
	b.stage.MaxUploaded = 100
	b.write("vendor/a", rand.Text()+rand.Text()+rand.Text()+rand.Text())
	require.Regexp(t, `Cache archive size \(\d+\) is too big \(Limit is set to 100\)\. Cache will be stored only locally\.\n> Created cache`, b.archive(vendor("k")))
	require.Empty(t, o.asked())
	require.FileExists(t, b.local("k"))
}

func TestSlowStores(t *testing.T) {
	b := newBench(t)
	cause := errors.New("canceled by somebody")
	ctx, cancel := context.WithCancelCause(t.Context())
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel(cause)
		<-r.Context().Done()
	}))
	defer slow.Close()
	b.stage.Remote = true
	b.stage.Sign = func(context.Context, string, string) (folder.CacheAnswer, error) {
		return folder.CacheAnswer{URL: slow.URL}, nil
	}
	require.ErrorIs(t, b.stage.Restore(ctx, []runnerapi.Cache{vendor("k")}), cause)
	b.values["CACHE_REQUEST_TIMEOUT"] = "0"
	b.stage.Sign = func(context.Context, string, string) (folder.CacheAnswer, error) {
		return folder.CacheAnswer{Error: "x"}, nil
	}
	require.Contains(t, b.restore(vendor("k")), `CACHE_REQUEST_TIMEOUT: expected minutes, got "0", using 10m0s`)
}

func TestRemoteWithHashedKeys(t *testing.T) {
	o := newObjects(t)
	b := newBench(t)
	b.remote(o)
	b.write("vendor/a", "x")
	b.archive(vendor("k"))
	other := newBench(t)
	other.remote(o)
	other.values["FF_HASH_CACHE_KEYS"] = "true"
	o.asked()
	require.Contains(t, other.restore(vendor("k")), "Successfully extracted cache")
	require.Contains(t, other.archive(vendor("k")), "Uploading cache.zip")
	require.Contains(t, other.archive(vendor("k")), "Archive is up to date!")
	const hash = "8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a" // of k
	require.Equal(t, []string{"GET " + hash, "GET k", "HEAD " + hash, "PUT " + hash, "HEAD " + hash}, o.asked())
}

func TestParallelCacheAndMeter(t *testing.T) {
	o := newObjects(t)
	b := newBench(t)
	b.remote(o)
	b.values["FF_USE_PARALLEL_CACHE_TRANSFER"] = "true"
	b.values["CACHE_CHUNK_SIZE"] = fmt.Sprint(1 << 20)
	b.values["CACHE_CONCURRENCY"] = "4"
	b.values["CACHE_COMPRESSION_LEVEL"] = "fastest"
	b.values["TRANSFER_METER_FREQUENCY"] = "1h"
	noise := make([]byte, 5<<20)
	_, _ = rand.Read(noise)
	b.write("vendor/a", string(noise))
	b.archive(vendor("k"))
	require.Regexp(t, `^\rUploading cache 0 B/5\.24 MB \(0 B/s\) +\rUploading cache 5\.24 MB/5\.24 MB \(.*B/s\) +\n$`, b.progress.String())
	other := newBench(t)
	other.remote(o)
	other.values = b.values
	o.asked()
	require.Contains(t, other.restore(vendor("k")), "Successfully extracted cache")
	require.Equal(t, string(noise), other.read("vendor/a"))
	require.Len(t, o.asked(), 6)
	require.Regexp(t, `\rDownloading cache 5\.24 MB/5\.24 MB \(.*B/s\) +\n$`, other.progress.String())
}
