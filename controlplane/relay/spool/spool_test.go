package spool

import (
	"hash/crc32"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func open(t *testing.T, dir string, maxBytes int64) *Spool {
	t.Helper()
	s, strangers, err := Open(dir, maxBytes, 0)
	require.NoError(t, err)
	require.Empty(t, strangers)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// take takes up a trace of which nothing is missing.
func take(t *testing.T, s *Spool, job int64) *File {
	t.Helper()
	f, loss, err := s.Take(job)
	require.NoError(t, err)
	require.Zero(t, loss)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// commit syncs all that was appended.
func commit(t *testing.T, f *File) {
	t.Helper()
	require.NoError(t, f.s.Commit([]Mark{f.Mark(f.Length(), f.CRC())})[0])
}

func create(t *testing.T, s *Spool, k Key) *File {
	t.Helper()
	f, err := s.Create(k)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func read(t *testing.T, f *File) string {
	t.Helper()
	b := make([]byte, f.Length())
	_, err := f.ReadAt(b, 0)
	require.NoError(t, err)
	return string(b)
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var list []string
	for _, e := range entries {
		if e.Name() != logName {
			list = append(list, e.Name())
		}
	}
	return list
}

func TestOnlyTheOwnerMayRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "spool")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	s := open(t, dir, 0)
	create(t, s, Key{Job: 1, Epoch: 1, Limit: 100})
	for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, "v2-1-1-100"): 0o600} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, want, info.Mode().Perm(), path)
	}
}

func TestWhatWasAppendedIsFoundAgain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 0)
	k := Key{Job: 42, Epoch: 3, Limit: 4 << 20}
	f := create(t, s, k)
	require.NoError(t, f.Append([]byte("first ")))
	require.NoError(t, f.Append([]byte("second")))
	require.EqualValues(t, 12, f.Length())
	require.Equal(t, crc32.ChecksumIEEE([]byte("first second")), f.CRC())
	require.EqualValues(t, 12, s.Bytes())
	commit(t, f)
	require.EqualValues(t, 12, f.Synced())
	require.NoError(t, f.Close())
	require.NoError(t, s.Close())

	s = open(t, dir, 0)
	require.EqualValues(t, 12, s.Bytes())
	found, ok := s.Find(42)
	require.True(t, ok)
	require.Equal(t, k, found)
	_, ok = s.Find(7)
	require.False(t, ok)
	require.Equal(t, []int64{42}, s.Untaken())

	f = take(t, s, 42)
	require.Empty(t, s.Untaken())
	require.Equal(t, k, f.Key())
	require.EqualValues(t, 12, f.Length())
	require.Equal(t, crc32.ChecksumIEEE([]byte("first second")), f.CRC())
	require.NoError(t, f.Append([]byte("!")))
	require.Equal(t, "first second!", read(t, f))
	require.NoError(t, f.Remove())
	require.Zero(t, s.Bytes())
	require.Empty(t, names(t, dir))
}

func TestOfTwoEpochsTheLaterCounts(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"v2-5-1-10": "old", "v2-5-3-10": "newest", "v2-5-2-10": "older"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	s := open(t, dir, 0)
	require.Equal(t, []string{"v2-5-3-10"}, names(t, dir))
	require.EqualValues(t, 6, s.Bytes())
	require.NoError(t, s.Discard(5))
	require.NoError(t, s.Discard(5), "again")
	require.Empty(t, names(t, dir))
	require.Zero(t, s.Bytes())
	require.Empty(t, s.Untaken())
}

func TestStrangersAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	strange := []string{".hidden", "lost+found", "v1", "v2-", "v2-1-2", "v2-1-2-3-4", "v2-01-2-3", "v2-+1-2-3", "v2-1--2-3", "v2-1-2-x", "v0-1-2-3", "vx-1-2-3", "v1-01-2-3"}
	for _, name := range strange {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "v2-9-9-9"), 0o700))
	s, strangers, err := Open(dir, 0, 0)
	require.NoError(t, err)
	require.ElementsMatch(t, append(strange, "v2-9-9-9"), strangers)
	require.Empty(t, s.Untaken())
	require.Len(t, names(t, dir), len(strange)+1)
}

func TestANewerFormatIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "v3-anything"), nil, 0o600))
	_, _, err := Open(dir, 0, 0)
	require.ErrorContains(t, err, "v3-anything")
	require.ErrorContains(t, err, "format 3")
}

func TestRewindAndRestore(t *testing.T) {
	s := open(t, t.TempDir(), 0)
	f := create(t, s, Key{Job: 1, Epoch: 1, Limit: 1})
	require.NoError(t, f.Append([]byte("hallo world")))
	f.Rewind()
	require.Zero(t, f.Length())
	require.NoError(t, f.Append([]byte("hello")))
	require.Equal(t, "hello", read(t, f))
	require.EqualValues(t, 11, s.Bytes(), "the file has kept its bytes")
	require.NoError(t, f.Restore())
	require.Equal(t, "hello world", read(t, f))
	require.Equal(t, crc32.ChecksumIEEE([]byte("hello world")), f.CRC())
	f.Rewind()
	require.NoError(t, f.Append([]byte("a longer text than before")))
	require.EqualValues(t, 25, s.Bytes())
}

func TestEndsWith(t *testing.T) {
	f := create(t, open(t, t.TempDir(), 0), Key{Job: 1, Epoch: 1, Limit: 1})
	for tail, want := range map[string]bool{"": true, "x": false} {
		got, err := f.EndsWith([]byte(tail))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.NoError(t, f.Append([]byte("a line\n")))
	for tail, want := range map[string]bool{"\n": true, "a line\n": true, "line": false, "no a line\n": false} {
		got, err := f.EndsWith([]byte(tail))
		require.NoError(t, err)
		require.Equal(t, want, got, "%q", tail)
	}
}

func TestTheQuotaIsForAllFilesTogether(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 100)
	a, b := create(t, s, Key{Job: 1, Epoch: 1, Limit: 1}), create(t, s, Key{Job: 2, Epoch: 1, Limit: 1})
	require.NoError(t, a.Append(make([]byte, 60)))
	require.NoError(t, b.Append(make([]byte, 40)))
	err := b.Append([]byte("xyz"))
	require.ErrorIs(t, err, ErrQuota)
	require.ErrorContains(t, err, "100 bytes")
	require.ErrorIs(t, s.Err(), ErrQuota)
	require.EqualValues(t, 40, b.Length(), "nothing of it was written")
	require.ErrorIs(t, s.Look(), ErrQuota)

	a.Rewind()
	require.ErrorIs(t, a.Append(make([]byte, 60)), ErrQuota, "until somebody looks")
	require.NoError(t, b.AppendUrgent([]byte("last words")))
	require.EqualValues(t, 110, s.Bytes())

	require.NoError(t, a.Remove())
	require.NoError(t, s.Look())
	require.NoError(t, b.Append(make([]byte, 49)))
	require.ErrorIs(t, b.Append([]byte("xy")), ErrQuota)
	require.ErrorIs(t, s.Look(), ErrQuota, "there is room for a byte, but not for what was refused")
	require.NoError(t, b.Remove())
	require.NoError(t, s.Look())
	b = create(t, s, Key{Job: 3, Epoch: 1, Limit: 1})
	require.NoError(t, s.Err())
	require.NoError(t, b.Append([]byte("x")))
}

func TestFreeSpaceIsKept(t *testing.T) {
	s, _, err := Open(t.TempDir(), 0, math.MaxInt64/2)
	require.NoError(t, err)
	f := create(t, s, Key{Job: 1, Epoch: 1, Limit: 1})
	require.NoError(t, f.Append([]byte("not looked yet")))
	require.ErrorIs(t, s.Look(), ErrFull)
	require.ErrorIs(t, f.Append([]byte("x")), ErrFull)
	require.ErrorContains(t, s.Err(), "bytes left")
	require.ErrorIs(t, f.AppendUrgent([]byte("x")), ErrFull)

	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(s.dir, &st))
	s.minFree = int64(st.Bavail) * int64(st.Bsize) * 3 / 2 //nolint:unconvert // the types differ by platform
	require.ErrorIs(t, f.Append([]byte("x")), ErrFull)
	require.NoError(t, f.AppendUrgent([]byte("half of the reserve")))
	require.ErrorIs(t, s.Err(), ErrFull)

	s, _, err = Open(t.TempDir(), 0, math.MaxInt64/2)
	require.NoError(t, err)
	f = create(t, s, Key{Job: 1, Epoch: 1, Limit: 1})
	piece := make([]byte, 1<<20)
	for range freeCheckEvery / len(piece) {
		if err = f.Append(piece); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, ErrFull, "it is looked at without being asked for")
	require.Less(t, f.Length(), int64(freeCheckEvery))
}

func TestOnlyWantOfSpaceStopsTheSpool(t *testing.T) {
	s := open(t, t.TempDir(), 0)
	f := create(t, s, Key{Job: 1, Epoch: 1, Limit: 1})
	require.NoError(t, f.Append([]byte("ok")))
	require.NoError(t, f.Close())
	require.ErrorIs(t, f.Append([]byte("x")), os.ErrClosed)
	require.EqualValues(t, 2, f.Length())
	require.NoError(t, s.Err(), "one bad file is no reason to refuse all")

	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs a device that is always full: %v", err)
	}
	f.f = full
	defer full.Close()
	f.next.Store(0)
	require.ErrorIs(t, f.Append([]byte("x")), ErrFull)
	require.ErrorIs(t, s.Err(), ErrFull)
	require.ErrorIs(t, s.Err(), unix.ENOSPC)
	require.Zero(t, f.Length())
	require.NoError(t, s.Look())
	require.NoError(t, s.Err())
}

func TestASyncThatFailedIsNotRepeated(t *testing.T) {
	s := open(t, t.TempDir(), 0)
	f := create(t, s, Key{Job: 1, Epoch: 1, Limit: 1})
	f.failed.Store(true)
	require.ErrorIs(t, f.sync(), ErrSync)

	f = create(t, s, Key{Job: 2, Epoch: 1, Limit: 1})
	require.NoError(t, f.Close())
	require.ErrorIs(t, f.sync(), os.ErrClosed)
	require.NotErrorIs(t, f.sync(), ErrSync, "a closed file says nothing about the disk")
}

func TestAFileIsNotMadeTwice(t *testing.T) {
	s := open(t, t.TempDir(), 0)
	create(t, s, Key{Job: 1, Epoch: 1, Limit: 1})
	_, err := s.Create(Key{Job: 1, Epoch: 1, Limit: 1})
	require.ErrorIs(t, err, fs.ErrExist)
}

func TestAFolderThatCannotBeUsed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, _, err := Open(filepath.Join(file, "spool"), 0, 0)
	require.ErrorContains(t, err, "make the spool's folder")
}
