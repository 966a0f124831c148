//go:build linux

package datadir

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOneAgentPerFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "data")
	first, err := Open(t.Context(), path)
	require.NoError(t, err)

	_, err = Open(t.Context(), path)
	var used *InUseError
	require.ErrorAs(t, err, &used)
	require.Equal(t, os.Getpid(), used.PID)
	require.ErrorContains(t, err, "--data")

	require.NoError(t, first.Close())
	again, err := Open(t.Context(), path)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(path, "jobs"), again.Jobs())
	info, err := os.Stat(again.Jobs())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	require.NoError(t, again.Close())
}

func TestALockThatOutlivesItsOwnerIsWaitedFor(t *testing.T) {
	path := t.TempDir()
	first, err := Open(t.Context(), path)
	require.NoError(t, err)
	gone := exec.Command("true")
	require.NoError(t, gone.Run())
	require.NoError(t, os.WriteFile(filepath.Join(path, lockName), fmt.Appendf(nil, "%d\n", gone.Process.Pid), 0o600))
	opened := make(chan error, 1)
	go func() {
		second, err := Open(t.Context(), path)
		if err == nil {
			err = second.Close()
		}
		opened <- err
	}()
	<-time.After(3 * lockPause)
	require.NoError(t, first.Close())
	require.NoError(t, <-opened)
}

func TestOpenSaysWhatToDoWhenItCannot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := Open(t.Context(), filepath.Join(file, "data"))
	require.ErrorContains(t, err, "--data")
}

func TestACopyIsToldFromAFolderThatWasMoved(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	copyOf := func(name string) string {
		d, err := Open(t.Context(), path(name))
		require.NoError(t, err)
		require.NoError(t, d.Close())
		return d.CopyOf()
	}
	require.Empty(t, copyOf("original"))
	require.Empty(t, copyOf("original"))
	require.NoError(t, exec.Command("cp", "-a", path("original"), path("copy")).Run())
	require.Equal(t, path("original"), copyOf("copy"))
	require.Equal(t, path("original"), copyOf("copy"), "it stays one")
	require.Empty(t, copyOf("original"))

	require.NoError(t, os.Symlink(path("original"), path("link")))
	require.Empty(t, copyOf("link"), "the same folder")
	require.Empty(t, copyOf("original"))
	require.NoError(t, os.Rename(path("original"), path("moved")))
	require.Empty(t, copyOf("moved"))

	require.NoError(t, exec.Command("cp", "-a", path("moved"), path("new disk")).Run())
	require.NoError(t, os.RemoveAll(path("moved")))
	require.Empty(t, copyOf("new disk"), "moved to another file system")
	require.Empty(t, copyOf("copy"), "the original is gone")

	require.NoError(t, exec.Command("cp", "-a", path("copy"), path("heir")).Run())
	d, err := Open(t.Context(), path("heir"))
	require.NoError(t, err)
	require.Equal(t, path("copy"), d.CopyOf())
	require.NoError(t, d.Settle())
	require.NoError(t, d.Close())
	require.Empty(t, copyOf("heir"), "it was made a folder of its own")
}

func TestRoom(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for name, tc := range map[string]struct {
		free, size, freeInodes, inodes, least uint64
		want                                  string
	}{
		"plenty":                        {free: 50 * gib, size: 100 * gib, freeInodes: 1e6, inodes: 2e6},
		"1 % of 50 GiB":                 {free: 511 * mib, size: 50 * gib, want: "511 MiB are free, 512 MiB are needed"},
		"exactly 1 %":                   {free: 512 * mib, size: 50 * gib},
		"at least 100 MiB":              {free: 99 * mib, size: 2 * gib, want: "100 MiB are needed"},
		"at most 1 GiB":                 {free: 1 * gib, size: 900 * gib},
		"small filesystem":              {free: 20 * mib, size: 100 * mib},
		"small filesystem, nearly full": {free: 9 * mib, size: 100 * mib, want: "10 MiB are needed"},
		"no inodes":                     {free: 50 * gib, size: 100 * gib, freeInodes: 999, inodes: 1e6, want: "999 free inodes"},
		"as much as is asked for":       {free: 3 * gib, size: 900 * gib, least: 4 * gib, want: "4096 MiB are needed"},
		"as little as is asked for":     {free: 5 * mib, size: 900 * gib, least: 5 * mib},
		"inodes unlimited":              {free: 50 * gib, size: 100 * gib},
	} {
		t.Run(name, func(t *testing.T) {
			err := room("/data", tc.free, tc.size, tc.freeInodes, tc.inodes, tc.least)
			if tc.want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, tc.want)
			}
		})
	}
	d, err := Open(t.Context(), t.TempDir())
	require.NoError(t, err)
	_ = d.Room(0) // whatever it says: it must not fail to look
	require.NoError(t, d.Close())
}
