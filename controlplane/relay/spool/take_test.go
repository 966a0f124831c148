package spool

import (
	"bytes"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

var key1 = Key{Job: 1, Epoch: 1, Limit: 1}

// power opens a spool in another run of the kernel.
func power(t *testing.T, dir string) *Spool {
	t.Helper()
	s := open(t, dir, 0)
	s.log.boot = boot{0xff}
	return s
}

func TestATraceOfAnOlderVersionIsTakenAsItIs(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "v1-1-1-1"), []byte("hello"), 0o600))
	s := open(t, dir, 0)
	f := take(t, s, 1)
	require.EqualValues(t, 5, f.Length())
	require.Zero(t, f.Synced(), "nobody knows")
	require.Equal(t, crc32.ChecksumIEEE([]byte("hello")), f.CRC())
	require.NoError(t, f.Append([]byte(" world")))
	commit(t, f)
	require.NoError(t, f.Append([]byte(", and more")))
	require.NoError(t, f.f.Close())
	require.Equal(t, []string{"v1-1-1-1"}, names(t, dir))

	f, loss, err := power(t, dir).Take(1)
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, Loss{Cut: 10}, loss, "from the first checkpoint on it is as good as a new one")
	require.Equal(t, "hello world", read(t, f))
	require.NoError(t, f.Remove())
	require.Empty(t, names(t, dir))
}

func TestAKillLeavesWhatWasNotSynced(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 0)
	if s.log.boot == (boot{}) {
		t.Skip("this kernel does not say which run it is")
	}
	f := create(t, s, key1)
	require.NoError(t, f.Append([]byte("synced, ")))
	commit(t, f)
	require.NoError(t, f.Append([]byte("not synced")))
	require.NoError(t, f.f.Close())

	s = open(t, dir, 0)
	f = take(t, s, 1)
	require.Equal(t, "synced, not synced", read(t, f))
	require.Zero(t, f.Synced(), "that the sync was acknowledged nobody has written down")
	commit(t, f)
	require.EqualValues(t, 18, f.Synced())
	require.NoError(t, f.Close())
	require.EqualValues(t, 18, take(t, open(t, dir, 0), 1).Synced(), "but after an orderly end it is known")
}

func TestWhereTheKernelDoesNotSayWhoItIsNothingIsBelieved(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 0)
	s.log.boot = boot{}
	f := create(t, s, key1)
	require.NoError(t, f.Append([]byte("hello")))
	require.NoError(t, f.Close()) // a checkpoint of all of it
	require.NoError(t, os.WriteFile(filepath.Join(dir, key1.name()), []byte("hello world"), 0o600))
	s = open(t, dir, 0)
	s.log.boot = boot{}
	f, loss, err := s.Take(1)
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, Loss{Cut: 6}, loss)
	require.EqualValues(t, 5, s.Bytes())
}

func TestDamageIsNoticed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 0)
	f := create(t, s, key1)
	trace := bytes.Repeat([]byte("0123456789"), 100_000)
	for at := 0; at < len(trace); at += 250_000 {
		require.NoError(t, f.Append(trace[at:at+250_000]))
		commit(t, f)
	}
	require.NoError(t, f.Close())
	b := bytes.Clone(trace)
	b[600_000] = 'x'
	require.NoError(t, os.WriteFile(filepath.Join(dir, key1.name()), b, 0o600))

	f, loss, err := open(t, dir, 0).Take(1)
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, Loss{Cut: 500_000, Acknowledged: 500_000}, loss)
	require.EqualValues(t, 500_000, f.Length())
	require.EqualValues(t, 500_000, f.Synced())
	require.Equal(t, crc32.ChecksumIEEE(trace[:500_000]), f.CRC())
	info, err := os.Stat(filepath.Join(dir, key1.name()))
	require.NoError(t, err)
	require.EqualValues(t, 500_000, info.Size())
}

func TestATornCheckpointCostsNoOther(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 0)
	f := create(t, s, key1)
	for range 3 {
		require.NoError(t, f.Append([]byte("0123456789")))
		commit(t, f)
	}
	require.NoError(t, f.f.Close())
	path := filepath.Join(dir, logName)
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Len(t, whole, 4*recordSize) // creation and three commits
	for cut, want := range map[int]string{
		len(whole) - 1:            "01234567890123456789",
		len(whole) - recordSize:   "01234567890123456789",
		len(whole) - recordSize/2: "01234567890123456789",
		recordSize:                "",
	} {
		require.NoError(t, os.WriteFile(path, whole[:cut], 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(dir, key1.name()), bytes.Repeat([]byte("0123456789"), 3), 0o600))
		f, loss, err := power(t, dir).Take(1)
		require.NoError(t, err)
		require.Equal(t, want, read(t, f), cut)
		require.Zero(t, loss.Acknowledged)
		commit(t, f)
		require.NoError(t, f.Append([]byte("x")))
		commit(t, f)
		require.NoError(t, f.f.Close())
		f, loss, err = power(t, dir).Take(1)
		require.NoError(t, err)
		require.Equal(t, want+"x", read(t, f), "what is written behind a torn record is found")
		require.Zero(t, loss)
		require.NoError(t, f.f.Close())
	}
	damaged := bytes.Clone(whole)
	damaged[2*recordSize+20]++
	require.NoError(t, os.WriteFile(path, damaged, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, key1.name()), bytes.Repeat([]byte("0123456789"), 3), 0o600))
	require.EqualValues(t, 30, take(t, power(t, dir), 1).Length(), "each proves itself")
}

func TestTheLogIsWrittenAnew(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 0)
	s.log.least = 10 * recordSize
	gone := create(t, s, Key{Job: 2, Epoch: 1, Limit: 1})
	require.NoError(t, gone.Append([]byte("gone")))
	commit(t, gone)
	require.NoError(t, gone.Remove())
	f := create(t, s, key1)
	var want string
	for range 100 {
		require.NoError(t, f.Append([]byte("0123456789")))
		want += "0123456789"
		commit(t, f)
		require.LessOrEqual(t, s.log.size, int64(20*recordSize))
	}
	require.NoError(t, f.f.Close())
	b, err := os.ReadFile(filepath.Join(dir, logName))
	require.NoError(t, err)
	list, broken := parseCheckpoints(b)
	require.Zero(t, broken)
	for _, c := range list {
		require.EqualValues(t, 1, c.job)
	}
	require.Equal(t, want, read(t, take(t, power(t, dir), 1)))
}

func TestALogWhoseSyncFailedIsWrittenAnew(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 0)
	f := create(t, s, key1)
	require.NoError(t, f.Append([]byte("hello")))
	require.NoError(t, s.log.f.Close()) // a bad disk is made by taking the descriptor away
	require.ErrorIs(t, s.Commit([]Mark{f.Mark(f.Length(), f.CRC())})[0], os.ErrClosed)
	require.Zero(t, f.Synced())
	s.log.broken = true
	commit(t, f)
	require.EqualValues(t, 5, f.Synced())
	require.Equal(t, "hello", read(t, take(t, power(t, dir), 1)))
}

func TestRewindingIsWrittenDown(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 0)
	f := create(t, s, key1)
	require.NoError(t, f.Append([]byte("hallo")))
	commit(t, f)
	f.Rewind()
	require.Zero(t, f.Synced())
	require.NoError(t, f.Append([]byte("hel")))
	require.NoError(t, f.f.Close())
	f = take(t, open(t, dir, 0), 1) // no damage: nothing of it was acknowledged a second time
	require.EqualValues(t, 5, f.Length())
	require.NoError(t, f.f.Close())
	f, loss, err := power(t, dir).Take(1)
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, Loss{Cut: 5}, loss)
}
