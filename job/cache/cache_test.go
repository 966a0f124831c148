//go:build unix

package cache

import (
	"archive/zip"
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
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
	"github.com/switchyard-ci/switchyard/job/transfer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a project folder, a cache folder and what the stages say.
type bench struct {
	t        *testing.T
	stage    Stage
	values   map[string]string
	said     []string
	progress strings.Builder
	pauses   []time.Duration
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, values: map[string]string{"KEY": "my key", "POLICY": "pull"}}
	line := func(prefix string) func(string) { return func(text string) { b.said = append(b.said, prefix+text) } }
	b.stage = Stage{
		ProjectDir: filepath.Join(t.TempDir(), "project"), CacheDir: filepath.Join(t.TempDir(), "cache", "group", "project"),
		JobName: "build", Ref: "main",
		Expand: func(text string) (string, error) {
			return os.Expand(text, func(k string) string { return b.values[k] }), nil
		},
		Value: func(k string) string { return b.values[k] },
		Flag:  func(k string) bool { return b.values[k] == "true" },
		Lines: transfer.Lines{
			Notice: line("> "), Say: line(""), Warn: line("WARNING: "), Fail: line("ERROR: "),
			Progress: func(text string) { b.progress.WriteString(text) },
		},
		wait: func(_ context.Context, d time.Duration) error {
			b.pauses = append(b.pauses, d)
			return nil
		},
	}
	require.NoError(t, os.MkdirAll(b.stage.ProjectDir, 0o755))
	return b
}

// write makes a file of the project, an hour old.
func (b *bench) write(name, content string) {
	b.t.Helper()
	name = filepath.Join(b.stage.ProjectDir, name)
	require.NoError(b.t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(b.t, os.WriteFile(name, []byte(content), 0o644))
	old := time.Now().Add(-time.Hour)
	require.NoError(b.t, os.Chtimes(name, old, old))
}

// emptyProject begins a new project folder.
func (b *bench) emptyProject() {
	b.t.Helper()
	b.stage.ProjectDir = filepath.Join(b.t.TempDir(), "project")
	require.NoError(b.t, os.MkdirAll(b.stage.ProjectDir, 0o755))
}

func (b *bench) read(name string) string {
	content, err := os.ReadFile(filepath.Join(b.stage.ProjectDir, name))
	if err != nil {
		return "missing"
	}
	return string(content)
}

func (b *bench) local(key string) string { return filepath.Join(b.stage.CacheDir, key, "cache.zip") }

// restore runs the stage and returns what it said.
func (b *bench) restore(caches ...runnerapi.Cache) string {
	b.t.Helper()
	b.said = nil
	require.NoError(b.t, b.stage.Restore(b.t.Context(), caches))
	return strings.Join(b.said, "\n")
}

func (b *bench) archive(caches ...runnerapi.Cache) string {
	b.t.Helper()
	b.said = nil
	require.NoError(b.t, b.stage.Archive(b.t.Context(), caches, true))
	return strings.Join(b.said, "\n")
}

func vendor(key string) runnerapi.Cache { return runnerapi.Cache{Key: key, Paths: []string{"vendor/"}} }

func TestLocalCache(t *testing.T) {
	b := newBench(t)
	const noURL = "No URL provided, cache will not be downloaded from shared cache server. Instead a local version of cache will be extracted.\n"
	require.Equal(t, "> Checking cache for default-protected...\n"+noURL+
		"WARNING: Cache file does not exist\nWARNING: Failed to extract cache", b.restore(vendor("default-protected")))
	b.write("vendor/a/lib", "one")
	require.Equal(t, "> Creating cache default-protected...\nvendor/: found 3 matching artifact files and directories\n"+
		"No URL provided, cache will not be uploaded to shared cache server. Cache will be stored only locally.\n> Created cache",
		strings.ReplaceAll(b.archive(vendor("default-protected")), " and directories \n", " and directories\n"))
	entries, err := os.ReadDir(filepath.Dir(b.local("default-protected")))
	require.NoError(t, err)
	require.Len(t, entries, 1)

	b.emptyProject()
	require.Equal(t, "> Checking cache for default-protected...\n"+noURL+"> Successfully extracted cache", b.restore(vendor("default-protected")))
	require.Equal(t, "one", b.read("vendor/a/lib"))
	before, err := os.Stat(b.local("default-protected"))
	require.NoError(t, err)
	require.Contains(t, b.archive(vendor("default-protected")), "Archive is up to date!\n> Created cache")
	after, err := os.Stat(b.local("default-protected"))
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after))

	require.NoError(t, os.WriteFile(filepath.Join(b.stage.ProjectDir, "vendor/new"), nil, 0o644))
	future := time.Now().Add(time.Minute)
	require.NoError(t, os.Chtimes(filepath.Join(b.stage.ProjectDir, "vendor/new"), future, future))
	require.NotContains(t, b.archive(vendor("default-protected")), "up to date")
	after, err = os.Stat(b.local("default-protected"))
	require.NoError(t, err)
	require.False(t, os.SameFile(before, after))
}

func TestKeys(t *testing.T) {
	b := newBench(t)
	b.write("vendor/a", "x")
	for _, c := range []struct {
		key, file, said string
		hash            bool
	}{
		{"", "build/main", "> Creating cache build/main...", false},
		{"$KEY-$$", "my key-", "", false},
		{"../../evil", "evil", `WARNING: cache key "../../evil" sanitized to "evil"`, false},
		{"..", "", `WARNING: cache key ".." could not be sanitized` + "\n> Skipping cache archiving due to empty cache key", false},
		{"$NONE", "", "> Skipping cache archiving due to empty cache key", false},
		{"../../evil", "", "> Creating cache ../../evil...", true},
	} {
		b.values["FF_HASH_CACHE_KEYS"] = fmt.Sprint(c.hash)
		require.NoError(t, os.RemoveAll(b.stage.CacheDir))
		require.Contains(t, b.archive(vendor(c.key)), c.said)
		found, err := filepath.Glob(filepath.Join(b.stage.CacheDir, "*", "cache.zip"))
		require.NoError(t, err)
		if c.hash {
			require.Len(t, found, 1)
			require.Regexp(t, `/[0-9a-f]{64}/cache\.zip$`, found[0])
		} else if c.file != "" {
			require.FileExists(t, b.local(c.file))
		} else {
			require.Empty(t, found)
		}
	}
}

func TestHashedKeysTakeOverWhatThereWas(t *testing.T) {
	b := newBench(t)
	b.write("vendor/a", "x")
	b.archive(vendor("k"))
	b.emptyProject()
	b.values["FF_HASH_CACHE_KEYS"] = "true"
	require.Contains(t, b.restore(vendor("k")), "Successfully extracted cache")
	require.Equal(t, "x", b.read("vendor/a"))
	require.NoFileExists(t, b.local("k"))
}

func TestFallbackKeys(t *testing.T) {
	b := newBench(t)
	b.write("vendor/a", "of the fallback")
	b.archive(vendor("main-non_protected"))
	b.emptyProject()
	c := vendor("feature-non_protected")
	c.FallbackKeys = []string{"", "other", "$BRANCH-non_protected"}
	b.values["BRANCH"] = "main"
	said := b.restore(c)
	require.Equal(t, "of the fallback", b.read("vendor/a"))
	require.Less(t, strings.Index(said, "Checking cache for feature-non_protected"), strings.Index(said, "Checking cache for other"))
	require.Less(t, strings.Index(said, "Checking cache for other"), strings.Index(said, "Checking cache for main-non_protected"))

	b.emptyProject()
	b.values["CACHE_FALLBACK_KEY"] = "main-non_protected"
	require.Contains(t, b.restore(vendor("nothing")), "Successfully extracted cache")
	require.Equal(t, "of the fallback", b.read("vendor/a"))
	for _, key := range []string{"main-protected", "main-protected ", "main-protected/", "main%2d/../x-protected"} {
		b.values["CACHE_FALLBACK_KEY"] = key
		said := b.restore(vendor("nothing"))
		require.Contains(t, said, `not allowed to end in "-protected"`)
		require.Equal(t, 1, strings.Count(said, "Checking cache for"))
	}
}

func TestPolicies(t *testing.T) {
	b := newBench(t)
	b.write("vendor/a", "x")
	with := func(policy string) runnerapi.Cache {
		c := vendor("k" + policy)
		c.Policy = policy
		return c
	}
	for policy, allowed := range map[string][2]bool{"": {true, true}, "pull-push": {true, true}, "pull": {true, false}, "push": {false, true}, "$POLICY": {true, false}} {
		require.Equal(t, allowed[0], strings.Contains(b.restore(with(policy)), "Checking cache"), policy)
		require.Equal(t, allowed[1], strings.Contains(b.archive(with(policy)), "Created cache"), policy)
	}
	require.Equal(t, "> Not downloading cache kpush due to policy", b.restore(with("push")))
	require.Equal(t, "> Not uploading cache kpull due to policy", b.archive(with("pull")))

	// One that is wrong is reported; the others are done.
	for _, do := range []func() error{
		func() error {
			return b.stage.Restore(t.Context(), []runnerapi.Cache{with("wrong"), with("also wrong"), with("")})
		},
		func() error {
			return b.stage.Archive(t.Context(), []runnerapi.Cache{with("wrong"), with("also wrong"), with("")}, true)
		},
	} {
		b.said = nil
		err := do()
		var policy *PolicyError
		require.ErrorAs(t, err, &policy)
		require.EqualError(t, err, "unknown cache policy wrong for kwrong: it can be pull, push or pull-push")
		require.Regexp(t, `cache (for )?k\.\.\.`, strings.Join(b.said, "\n"))
	}
}

func TestWhen(t *testing.T) {
	for when, kept := range map[string][2]bool{"": {true, false}, "on_success": {true, false}, "on_failure": {false, true}, "always": {true, true}} {
		b := newBench(t)
		b.write("vendor/a", "x")
		c := vendor("k")
		c.When = when
		for i, succeeded := range []bool{true, false} {
			b.said = nil
			require.Equal(t, kept[i], Archives([]runnerapi.Cache{c}, succeeded))
			require.NoError(t, b.stage.Archive(t.Context(), []runnerapi.Cache{c}, succeeded))
			require.Equal(t, kept[i], len(b.said) > 0, when)
		}
	}
	require.False(t, Archives([]runnerapi.Cache{{Key: "k"}}, true))
	require.False(t, Restores([]runnerapi.Cache{{Key: "k"}}))
	require.True(t, Restores([]runnerapi.Cache{{Key: "k", Untracked: true}}))
}

func TestWhatIsArchived(t *testing.T) {
	b := newBench(t)
	b.write("vendor/a", "x")
	b.write("tracked", "x")
	b.write("untracked file", "y")
	b.stage.Git = func(context.Context) ([]byte, error) { return []byte("untracked file\x00"), nil }
	b.values["DIR"] = "vendor"
	b.archive(runnerapi.Cache{Key: "k", Paths: []string{"$DIR/*"}, Untracked: true})
	b.emptyProject()
	b.restore(runnerapi.Cache{Key: "k", Untracked: true})
	require.Equal(t, "x", b.read("vendor/a"))
	require.Equal(t, "y", b.read("untracked file"))
	require.Equal(t, "missing", b.read("tracked"))
	require.Equal(t, "> Creating cache none...\nWARNING: nothing: no matching files. Ensure that the artifact path is relative to the working directory ("+
		b.stage.ProjectDir+")\nWARNING: No files to cache.", strings.ReplaceAll(b.archive(runnerapi.Cache{Key: "none", Paths: []string{"nothing"}}), ") \n", ")\n"))
	require.NoFileExists(t, b.local("none"))
}

func TestFormats(t *testing.T) {
	for format, magic := range map[string]string{"": "PK", "zip": "PK", "ZIP": "PK", "zipzstd": "PK", "TarZstd": "\x28\xb5\x2f\xfd", "rar": "PK"} {
		b := newBench(t)
		b.values["CACHE_COMPRESSION_FORMAT"] = format
		b.values["CACHE_COMPRESSION_LEVEL"] = "fastest"
		b.write("vendor/a", strings.Repeat("text ", 1000))
		said := b.archive(vendor("k"))
		require.Equal(t, format == "rar", strings.Contains(said, `CACHE_COMPRESSION_FORMAT: expected zip, tarzstd or zipzstd, got "rar", using zip`))
		data, err := os.ReadFile(b.local("k"))
		require.NoError(t, err)
		require.True(t, bytes.HasPrefix(data, []byte(magic)), format)
		b.emptyProject()
		require.Contains(t, b.restore(vendor("k")), "Successfully extracted cache")
		require.Equal(t, strings.Repeat("text ", 1000), b.read("vendor/a"))
	}
}

// zipOf makes an archive of names and contents.
func zipOf(t *testing.T, pairs ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for i := 0; i < len(pairs); i += 2 {
		f, err := w.Create(pairs[i])
		require.NoError(t, err)
		_, err = io.WriteString(f, pairs[i+1])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

func TestBadArchivesAreRefused(t *testing.T) {
	good := zipOf(t, "vendor/a", strings.Repeat("x", 10_000))
	for name, data := range map[string][]byte{
		"a path out of the folder": zipOf(t, "vendor/ok", "ok", "../evil", "evil"),
		"an absolute path":         zipOf(t, "/tmp/evil", "evil"),
		"nonsense":                 []byte("this is no archive at all"),
		"nothing":                  {},
		"cut off":                  good[:len(good)/2],
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			require.NoError(t, os.MkdirAll(filepath.Dir(b.local("k")), 0o755))
			require.NoError(t, os.WriteFile(b.local("k"), data, 0o644))
			c := vendor("k")
			c.FallbackKeys = []string{"fallback"}
			said := b.restore(c)
			require.Regexp(t, `WARNING: the cache is not used: unpack: (refused|corrupt) archive.*; the local copy is removed`, said)
			require.Contains(t, said, "WARNING: Failed to extract cache\n> Checking cache for fallback...")
			require.NoFileExists(t, b.local("k"))
			require.NoFileExists(t, filepath.Join(b.stage.ProjectDir, "..", "evil"))
		})
	}
}

func TestAnArchiveThatIsNotToBlameStays(t *testing.T) {
	b := newBench(t)
	b.write("vendor/a", "x")
	b.archive(vendor("k"))
	b.stage.ProjectDir = filepath.Join(t.TempDir(), "gone")
	require.Contains(t, b.restore(vendor("k")), "WARNING: open the project folder")
	require.FileExists(t, b.local("k"))
}

func TestCleanUpAfterAFailure(t *testing.T) {
	b := newBench(t)
	b.values["FF_CLEAN_UP_FAILED_CACHE_EXTRACT"] = "true"
	b.write("vendor/old", "x")
	b.write("keep", "x")
	require.NoError(t, os.Mkdir(filepath.Join(b.stage.ProjectDir, "..", "outside"), 0o755))
	said := b.restore(runnerapi.Cache{Key: "k", Paths: []string{"vendor/", ".", "../outside", b.stage.ProjectDir}})
	require.Contains(t, said, "Removing vendor/")
	require.Equal(t, 3, strings.Count(said, "is not within the project folder"))
	require.Equal(t, "missing", b.read("vendor/old"))
	require.Equal(t, "x", b.read("keep"))
	require.DirExists(t, filepath.Join(b.stage.ProjectDir, "..", "outside"))
}

func TestLinksInTheCacheFolderLeadNowhere(t *testing.T) {
	b := newBench(t)
	outside := t.TempDir()
	require.NoError(t, os.MkdirAll(b.stage.CacheDir, 0o755))
	require.NoError(t, os.Symlink(outside, filepath.Join(b.stage.CacheDir, "k")))
	b.write("vendor/a", "x")
	require.Contains(t, b.archive(vendor("k")), "Failed to create cache")
	entries, err := os.ReadDir(outside)
	require.NoError(t, err)
	require.Empty(t, entries)
	require.Equal(t, "> Skipping cache extraction due to unset cache directory", func() string { b.stage.CacheDir = ""; return b.restore(vendor("k")) }())
}

func TestAbandonedFilesAreRemoved(t *testing.T) {
	b := newBench(t)
	b.write("vendor/a", "x")
	dir := filepath.Dir(b.local("k"))
	require.NoError(t, os.MkdirAll(dir, 0o755))
	for name, age := range map[string]time.Duration{"archive_old": 25 * time.Hour, "archive_new": time.Hour, "other": 99 * time.Hour} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		at := time.Now().Add(-age)
		require.NoError(t, os.Chtimes(filepath.Join(dir, name), at, at))
	}
	b.archive(vendor("k"))
	require.NoFileExists(t, filepath.Join(dir, "archive_old"))
	require.FileExists(t, filepath.Join(dir, "archive_new"))
	require.FileExists(t, filepath.Join(dir, "other"))
}

func TestJobsAtTheSameTime(t *testing.T) {
	shared := t.TempDir()
	var jobs sync.WaitGroup
	for i := range 8 {
		b := newBench(t)
		b.stage.CacheDir = shared
		content := strings.Repeat(fmt.Sprint(i), 50_000)
		for n := range 20 {
			b.write(fmt.Sprintf("vendor/%d", n), content)
		}
		jobs.Go(func() {
			for range 10 {
				b.said = nil
				if err := b.stage.Archive(context.Background(), []runnerapi.Cache{vendor("k")}, true); err != nil {
					t.Error(err)
				}
				now := time.Now().Add(time.Hour) // so that it is archived again
				if err := os.Chtimes(filepath.Join(b.stage.ProjectDir, "vendor/0"), now, now); err != nil {
					t.Error(err)
				}
				if err := b.stage.Restore(context.Background(), []runnerapi.Cache{vendor("k")}); err != nil {
					t.Error(err)
				}
				if said := strings.Join(b.said, "\n"); strings.Contains(said, "WARNING") {
					t.Error(said)
				}
				first := b.read("vendor/0")
				for n := range 20 {
					if b.read(fmt.Sprintf("vendor/%d", n)) != first {
						t.Error("files of two archives are mixed")
					}
				}
			}
		})
	}
	jobs.Wait()
}

func TestTheEndOfTheContext(t *testing.T) {
	b := newBench(t)
	b.write("vendor/a", "x")
	b.archive(vendor("k"))
	cause := errors.New("canceled by somebody")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	require.ErrorIs(t, b.stage.Restore(ctx, []runnerapi.Cache{vendor("k")}), cause)
	require.ErrorIs(t, b.stage.Archive(ctx, []runnerapi.Cache{vendor("k")}, true), cause)
	require.FileExists(t, b.local("k"))
}

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
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer slow.Close()
	b.stage.Remote = true
	b.stage.Sign = func(context.Context, string, string) (folder.CacheAnswer, error) {
		return folder.CacheAnswer{URL: slow.URL}, nil
	}
	cause := errors.New("canceled by somebody")
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
	defer stop.Stop()
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
