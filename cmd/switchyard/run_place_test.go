package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestProjectRoot(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	own, deep := filepath.Join(top, "own"), filepath.Join(top, "a", "b")
	require.NoError(t, os.MkdirAll(own, 0o700))
	require.NoError(t, os.MkdirAll(deep, 0o700))
	require.NoError(t, os.MkdirAll(filepath.Join(top, ".git"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(own, ".gitlab-ci.yml"), nil, 0o600))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(own, link))
	for dir, want := range map[string]string{top: top, own: own, deep: top, link: own, filepath.Join(top, "none"): top} {
		require.Equal(t, want, projectRoot(dir), dir)
	}
	require.Equal(t, "/", projectRoot("/"))
	require.Regexp(t, `^a-b-[0-9a-f]{8}$`, cacheName("/x/a b"))
	require.NotEqual(t, cacheName("/x/p"), cacheName("/y/p"))
	require.Regexp(t, `^project-[0-9a-f]{8}$`, cacheName("/"))
}

func TestFolderNames(t *testing.T) {
	used := map[string]bool{}
	for _, tc := range [][2]string{
		{"test: [linux, amd64]", "test-linux-amd64"},
		{"test linux/amd64", "test-linux-amd64-2"},
		{"../..", "job"},
		{".git", "git"},
		{"bauen über", "bauen-über"},
		{"a", "a"},
		{"a.reports", "a.reports-2"},
		{"...", "job-2"},
	} {
		require.Equal(t, tc[1], folderName(tc[0], used), tc[0])
	}
}
