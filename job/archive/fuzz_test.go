//go:build unix

package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzUnpack: whatever an archive says, nothing outside the folder is touched, no special bits are set, limits hold.
func FuzzUnpack(f *testing.F) {
	entries := []made{
		{name: "d/", kind: tar.TypeDir, mode: 0o755},
		{name: "d/f", content: strings.Repeat("text ", 100), mode: 0o755},
		{name: "link", kind: tar.TypeSymlink, target: "../vault"},
		{name: "g", content: noise(300)},
	}
	f.Add(zipOf(f, entries...))
	f.Add(tarOf(f, entries...))
	f.Add(tarOf(f, append(entries, made{name: "h", kind: tar.TypeLink, target: "g"})...))
	f.Add(zipOf(f, made{name: "link", kind: tar.TypeSymlink, target: "../vault"}, made{name: "link/jewelry", content: "x"}))
	f.Add(tarOf(f, made{name: "../treasure", content: "x"}))
	from := f.TempDir()
	makeTree(f, from, map[string]node{"a": {0o644, strings.Repeat("text ", 300), 0}, "b": {0o4755, "x", 0}})
	for _, format := range []Format{Zip, ZipZstd, TarZstd} {
		f.Add(pack(f, format, Default, from, []string{"a", "b"}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := newPrison(t)
		limits := Limits{Entries: 100, Bytes: 1 << 20}
		packed, _ := p.unpack(t, b, limits) // any error is fine
		require.LessOrEqual(t, packed.Bytes, limits.Bytes)
		for name, n := range readTree(t, p.inside) {
			require.Zero(t, n.mode&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky|fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket), name)
		}
	})
}

// FuzzSelect: whatever the patterns, only what is in the folder is selected, sorted, once, and Pack can pack it.
func FuzzSelect(f *testing.F) {
	for _, seed := range [][2]string{
		{"**", ""}, {"a/*.txt", "**/b"}, {"../x", "/etc/*"}, {"{a,b}/**", `\[`}, {"link/*\nlink", ""}, {"*/../..", ""}, {"a/[^a]//.", "a"},
	} {
		f.Add(seed[0], seed[1])
	}
	outside := f.TempDir()
	touch(f, outside, "secret/x", "in/a/b.txt", "in/a/c", "in/b", "in/link -> a", "in/out -> ../secret", "in/a/up -> ../..")
	dir := filepath.Join(outside, "in")
	there := readTree(f, dir)
	f.Fuzz(func(t *testing.T, paths, excludes string) {
		if len(paths)+len(excludes) > 300 {
			return
		}
		s, err := Select(t.Context(), dir, Wanted{Paths: strings.Split(paths, "\n"), Exclude: strings.Split(excludes, "\n")})
		require.NoError(t, err)
		require.True(t, slices.IsSorted(s.Names))
		for i, name := range s.Names {
			require.True(t, i == 0 || s.Names[i-1] != name)
			if below, ok := strings.CutPrefix(name, "link/"); ok {
				name = "a/" + below
			}
			require.Contains(t, there, name)
		}
		root, err := os.OpenRoot(dir)
		require.NoError(t, err)
		defer func() { _ = root.Close() }()
		var b bytes.Buffer
		_, err = Pack(context.Background(), &b, Zip, Default, root, s.Names, func(line string) { t.Error(line) })
		require.NoError(t, err)
		_, err = newPrison(t).unpack(t, b.Bytes(), Limits{})
		require.NoError(t, err)
	})
}
