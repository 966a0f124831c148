package postgres_test

import (
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// smallDisk mounts a disk of that many bytes, which the server can reach. Only root can.
func smallDisk(t *testing.T, size int) (folder string) {
	t.Helper()
	folder, err := os.MkdirTemp("", "small-") //nolint:usetesting // a test's folder is not for the server's user
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(folder)) })
	if err := unix.Mount("tmpfs", folder, "tmpfs", 0, "mode=0700,size="+strconv.Itoa(size)); err != nil {
		t.Skipf("needs a disk that is small: mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(folder, unix.MNT_DETACH)) })
	return folder
}
