package durable_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/durable"
)

func TestWriteFileReplacesWholeFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	require.NoError(t, durable.WriteFile(path, []byte("a long first content"), 0o600))
	require.NoError(t, durable.WriteFile(path, []byte("second"), 0o640))

	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "second", string(got))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), info.Mode().Perm())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "no temporary file is left")
}

func TestWriteFileLeavesNothingBehindWhenItFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	require.NoError(t, os.MkdirAll(filepath.Join(path, "in the way"), 0o700))

	err := durable.WriteFile(path, []byte("x"), 0o600)
	require.ErrorContains(t, err, "write "+path)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)

	require.ErrorContains(t, durable.WriteFile(filepath.Join(dir, "missing", "key"), nil, 0o600), "write ")
}
