//go:build unix

package cache

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

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
