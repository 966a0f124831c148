//go:build unix

package cache

import (
	"path"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestSanitize(t *testing.T) {
	for raw, want := range map[string]string{
		"default-protected": "default-protected", "a/b": "a/b", "a//b/": "a/b", "../../etc": "etc", "a/../../b": "b", "/abs": "abs",
		"%2e%2E/%2fx": "x", "a%2fb%2Fc": "a/b/c", `a\b\..\c`: "a/c", "key  ": "key", "a/ ": "a", "a/ /\t": "a", " a": " a", ".": "", "..": "", "/": "",
		"%2E%2e%2F": "", " ": "", "": "", "a/b \u00a0": "a/b", "...": "...", "a.b": "a.b", "%25": "%25", ". ": "", ".. ": "", "a/.. ": "a", "a/.. /b": "a/.. /b",
	} {
		require.Equal(t, want, sanitize(raw), "%q", raw)
	}
}

func TestSanitizedKeysStayBelow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.StringOf(rapid.SampledFrom([]rune("ab./\\%2eEfF \t\u00a0-"))).Draw(t, "key")
		key := sanitize(raw)
		if key == "" {
			return
		}
		require.True(t, filepath.IsLocal(key), "%q of %q", key, raw)
		require.Equal(t, path.Clean(key), key)
		require.Equal(t, key, sanitize(key))
	})
}
