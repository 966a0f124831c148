//go:build unix

package cache

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
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
