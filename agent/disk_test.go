//go:build linux

package agent_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/switchyard-ci/switchyard/agent/internal/fakefleet"
	"github.com/switchyard-ci/switchyard/agent/internal/fakejob"
)

// With a real file system that gets full to its last byte while a job runs: no more jobs are taken, the one that runs gets
// its result out, and when there is room again jobs are taken.
func TestADiskThatGetsFullWhileAJobRuns(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	require.NoError(t, os.Mkdir(dir, 0o700))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=32m"); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	f := fakefleet.Start(t)
	f.SetPayload(1, fakejob.Payload(1, "print hello", "wait"))
	f.SetPayload(2, fakejob.Payload(2, "print again"))
	start(t, f, fakejob.New(t), dir)
	s := f.Next()
	require.False(t, s.Hello.GetDraining())
	s.Welcome(short, forever)
	run(s, one)
	s.Started(one)

	filler := filepath.Join(dir, "filler")
	require.ErrorIs(t, os.WriteFile(filler, make([]byte, 40<<20), 0o600), unix.ENOSPC)
	require.True(t, s.Status().GetDraining())
	s.Offer(two)
	require.Contains(t, s.Refused(two), "is nearly full: 0 MiB are free")
	s.Cancel(one, graceful)
	result := s.Finished(one)
	require.Equal(t, "failed", result.GetState())
	s.Forget(one)

	require.NoError(t, os.Remove(filler))
	require.False(t, s.Status().GetDraining())
	run(s, two)
	result = s.Finished(two)
	require.Equal(t, "success", result.GetState())
	require.Contains(t, f.WholeTrace(2, result), "again")
}
