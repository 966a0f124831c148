package gitrepo

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBlobsAndLastCommits(t *testing.T) {
	dir := source(t, map[string]string{"a": "a", "sub/b c": "b", "über": "u"})
	first := git(t, dir, "rev-parse", "HEAD")
	second := add(t, dir, "second", map[string]string{"sub/b c": "changed"})
	r := open(t, Options{Source: dir})
	require.NoError(t, r.Sync(t.Context()))

	blobs, err := r.Blobs(t.Context(), second)
	require.NoError(t, err)
	require.Len(t, blobs, 3)
	for path, id := range blobs {
		require.Equal(t, git(t, dir, "rev-parse", second+":"+path), id)
	}
	for path, want := range map[string]string{"a": first, "sub/b c": second, "sub": second, "none": "", "*": second} {
		got, err := r.LastCommit(t.Context(), second, path)
		require.NoError(t, err)
		require.Equal(t, want, got, path)
	}
	_, err = r.Blobs(t.Context(), "nothing")
	require.Error(t, err)
	_, err = r.LastCommit(t.Context(), second, ":(nonsense)a")
	require.ErrorContains(t, err, "find the last commit of")
}
