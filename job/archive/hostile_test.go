//go:build unix

package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

// made is an entry of an archive that a test makes.
type made struct {
	name    string
	kind    byte // as in tar; 0 is a file
	content string
	target  string
	mode    fs.FileMode // with set-uid and the like; 0 is 0644
}

func (m made) fileMode() fs.FileMode {
	mode := m.mode
	if mode == 0 {
		mode = 0o644
	}
	switch m.kind {
	case tar.TypeDir:
		return mode | fs.ModeDir
	case tar.TypeSymlink:
		return mode | fs.ModeSymlink
	case tar.TypeFifo:
		return mode | fs.ModeNamedPipe
	case tar.TypeChar:
		return mode | fs.ModeDevice | fs.ModeCharDevice
	}
	return mode
}

func tarOf(t require.TestingT, entries ...made) []byte {
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
	require.NoError(t, err)
	w := tar.NewWriter(z)
	for _, m := range entries {
		h, err := tar.FileInfoHeader(info{m}, m.target)
		require.NoError(t, err)
		h.Name = m.name
		if m.kind == tar.TypeLink {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, m.target, 0
		}
		require.NoError(t, w.WriteHeader(h))
		if h.Size > 0 {
			_, err = io.WriteString(w, m.content)
			require.NoError(t, err)
		}
	}
	require.NoError(t, w.Close())
	require.NoError(t, z.Close())
	return b.Bytes()
}

// info is a made one for tar.FileInfoHeader.
type info struct{ made }

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return int64(len(i.content)) }
func (i info) Mode() fs.FileMode  { return i.fileMode() }
func (i info) ModTime() time.Time { return time.Unix(1700000000, 0) }
func (i info) IsDir() bool        { return i.Mode().IsDir() }
func (i info) Sys() any           { return nil }

func zipOf(t require.TestingT, entries ...made) []byte {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, m := range entries {
		h := &zip.FileHeader{Name: m.name, Method: zip.Store, Modified: time.Unix(1700000000, 0)}
		h.SetMode(m.fileMode())
		content := m.content
		if m.kind == tar.TypeSymlink {
			content = m.target
		}
		f, err := w.CreateHeader(h)
		require.NoError(t, err)
		if content != "" {
			_, err = io.WriteString(f, content)
			require.NoError(t, err)
		}
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// prison is a folder to unpack into, in a folder that must not change.
type prison struct {
	outside, inside string
	warnings        []string
}

func newPrison(t testing.TB) *prison {
	t.Helper()
	p := &prison{outside: tempDir(t)}
	p.inside = filepath.Join(p.outside, "inside")
	require.NoError(t, os.Mkdir(p.inside, 0o755))
	makeTree(t, p.outside, map[string]node{
		"treasure":      {0o600, "gold", 1600000000},
		"vault":         {fs.ModeDir | 0o700, "", 1600000000},
		"vault/jewelry": {0o600, "rubies", 1600000000},
	})
	require.NoError(t, os.Chtimes(filepath.Join(p.outside, "vault"), time.Time{}, time.Unix(1600000000, 0)))
	return p
}

// unpack unpacks b and checks that nothing outside is touched.
func (p *prison) unpack(t testing.TB, b []byte, limits Limits) (Packed, error) {
	t.Helper()
	root := openRoot(t, p.inside)
	packed, err := Unpack(context.Background(), bytes.NewReader(b), int64(len(b)), root, limits, func(line string) { p.warnings = append(p.warnings, line) })
	outside := readTree(t, p.outside)
	for name := range outside {
		if name == "inside" || strings.HasPrefix(name, "inside/") {
			delete(outside, name)
		}
	}
	require.Equal(t, map[string]node{
		"treasure":      {0o600, "gold", 1600000000},
		"vault":         {fs.ModeDir | 0o700, "", 1600000000},
		"vault/jewelry": {0o600, "rubies", 1600000000},
	}, outside)
	return packed, err
}

func TestHostileArchivesAreRefused(t *testing.T) {
	link := func(name, target string) made { return made{name: name, kind: tar.TypeSymlink, target: target} }
	file := func(name string) made { return made{name: name, content: "evil"} }
	dir := func(name string) made { return made{name: name, kind: tar.TypeDir, mode: 0o777} }
	many := make([]made, 12)
	for i := range many {
		many[i] = file(fmt.Sprint("f", i))
	}
	tests := []struct {
		name    string
		entries []made
		says    string
		only    Format // "" is both
	}{
		{"an absolute name", []made{file("/treasure")}, `"/treasure" is an absolute path`, ""},
		{"a name that leaves", []made{file("../treasure")}, `"../treasure" leads out of the folder`, ""},
		{"a name that leaves later", []made{file("a/../../treasure")}, "leads out of the folder", ""},
		{"a name that leaves and comes back", []made{file("../inside/x")}, "leads out of the folder", ""},
		{"a folder that leaves", []made{dir("../vault/")}, "leads out of the folder", ""},
		{"a Windows name that leaves", []made{file(`..\treasure`)}, "leads out of the folder", ""},
		{"an absolute Windows name", []made{file(`\treasure`)}, "is an absolute path", ""},
		{"a NUL", []made{file("x\x00y")}, "has a NUL in its name", Zip},
		{"no name", []made{file("")}, "is no name", Zip},
		{"a file as the folder itself", []made{file("a/..")}, "leads out", ""},
		{"a link as the folder itself", []made{link(".", "/etc")}, "is the folder itself", ""},
		{"a long name", []made{file(strings.Repeat("x/", 2500) + "y")}, "is too long", ""},
		{"many folders", []made{file(strings.Repeat("x/", 300) + "y")}, "is in too many folders", ""},
		{"a file below a link out", []made{link("a", "../vault"), file("a/jewelry")}, `is below "a", which the archive has as a link`, ""},
		{"a file below a link within", []made{dir("b/"), link("a", "b"), file("a/x")}, `is below "a"`, ""},
		{"a folder below a link out", []made{link("a", "../vault"), dir("a/b/")}, `is below "a"`, ""},
		{"a folder on a link out", []made{link("a", "../vault"), dir("a/")}, "is in the archive twice, as a link and as a folder", ""},
		{"a link on a folder with a file", []made{file("a/jewelry"), link("a", "../vault")}, "twice, as a folder and as a link", ""},
		{"a file on a link out", []made{link("a", "../treasure"), file("a")}, "twice, as a link and as a file", ""},
		{"a file twice", []made{file("a"), file("a")}, "twice, as a file and as a file", ""},
		{"a file twice, written otherwise", []made{file("a/b"), file("./a//b")}, "twice, as a file and as a file", ""},
		{"a link twice", []made{link("a", "x"), link("a", "y")}, "twice", ""},
		{"below a file", []made{file("a"), file("a/b")}, `is below "a", which the archive has as a file`, ""},
		{"a link to nothing", []made{link("a", "")}, "is a link with an impossible target", ""},
		{"a link with a NUL", []made{link("a", "x\x00y")}, "is a link with an impossible target", Zip},
		{"a link with a long target", []made{link("a", strings.Repeat("x", 5000))}, "is a link with an impossible target", ""},
		{"a pipe", []made{{name: "a", kind: tar.TypeFifo}}, "is a device or a pipe", ""},
		{"a device", []made{{name: "a", kind: tar.TypeChar}}, "is a device or a pipe", ""},
		{"a hard link out", []made{{name: "a", kind: tar.TypeLink, target: "../treasure"}}, "leads out of the folder", TarZstd},
		{"a hard link to what is there", []made{{name: "a", kind: tar.TypeLink, target: "here"}}, "is no file of the archive", TarZstd},
		{"a hard link to a link", []made{link("b", "../treasure"), {name: "a", kind: tar.TypeLink, target: "b"}}, "is no file of the archive", TarZstd},
		{"a hard link below a link", []made{link("b", "../vault"), {name: "a", kind: tar.TypeLink, target: "b/jewelry"}}, "is no file of the archive", TarZstd},
		{"too many", many, `"f10" is one more than 10 entries`, ""},
		{"too large", []made{{name: "a", content: noise(600)}, {name: "b", content: noise(600)}}, `"b" makes it more than 1000 bytes`, ""},
	}
	for _, tt := range tests {
		for _, f := range []Format{Zip, TarZstd} {
			if tt.only != "" && tt.only != f {
				continue
			}
			t.Run(tt.name+" "+string(f), func(t *testing.T) {
				p := newPrison(t)
				makeTree(t, p.inside, map[string]node{"here": {0o644, "mine", 1700000000}})
				b := tarOf
				if f == Zip {
					b = zipOf
				}
				_, err := p.unpack(t, b(t, tt.entries...), Limits{Entries: 10, Bytes: 1000})
				require.ErrorIs(t, err, ErrHostile)
				require.ErrorContains(t, err, tt.says)
				require.Equal(t, "mine", readTree(t, p.inside)["here"].content)
			})
		}
	}
}

// What an earlier job left in the project is no way out either.
func TestNothingIsWrittenThroughLinksThatAreThere(t *testing.T) {
	for _, f := range []Format{Zip, TarZstd} {
		t.Run(string(f), func(t *testing.T) {
			p := newPrison(t)
			makeTree(t, p.inside, map[string]node{
				"file":       {fs.ModeSymlink, "../treasure", 0},
				"folder":     {fs.ModeSymlink, "../vault", 0},
				"empty":      {fs.ModeSymlink, "../vault", 0},
				"within":     {fs.ModeSymlink, "real", 0},
				"real/x":     {0o644, "kept", 1700000000},
				"wasfile":    {0o644, "", 0},
				"wasfull/of": {0o644, "", 0},
			})
			archiveOf := tarOf
			if f == Zip {
				archiveOf = zipOf
			}
			b := archiveOf(t,
				made{name: "file", content: "new"},
				made{name: "folder/jewelry", content: "new"},
				made{name: "empty/", kind: tar.TypeDir, mode: 0o711},
				made{name: "within/x", content: "new"},
				made{name: "wasfile/x", content: "new"},
				made{name: "wasfull", content: "new"},
			)
			_, err := p.unpack(t, b, Limits{})
			require.NoError(t, err)
			require.ElementsMatch(t, []string{
				"folder: replaced by a folder", "empty: replaced by a folder", "within: replaced by a folder",
				"wasfile: replaced by a folder", "wasfull: was a folder, replaced",
			}, p.warnings)
			got := readTree(t, p.inside)
			for name, content := range map[string]string{
				"file": "new", "folder/jewelry": "new", "within/x": "new", "real/x": "kept", "wasfile/x": "new", "wasfull": "new",
			} {
				require.True(t, got[name].mode.IsRegular(), name)
				require.Equal(t, content, got[name].content, name)
			}
			require.Equal(t, node{fs.ModeDir | 0o711, "", 1700000000}, got["empty"])
		})
	}
}

func TestLinksMayLeadAnywhere(t *testing.T) {
	for _, f := range []Format{Zip, TarZstd} {
		p := newPrison(t)
		archiveOf := tarOf
		if f == Zip {
			archiveOf = zipOf
		}
		makeTree(t, p.inside, map[string]node{"dir/full": {0o644, "", 0}, "old": {fs.ModeSymlink, "../vault", 0}})
		_, err := p.unpack(t, archiveOf(t,
			made{name: "abs", kind: tar.TypeSymlink, target: "/etc/passwd"},
			made{name: "up", kind: tar.TypeSymlink, target: "../treasure"},
			made{name: "old", kind: tar.TypeSymlink, target: "elsewhere"},
			made{name: "dir", kind: tar.TypeSymlink, target: "../vault"},
		), Limits{})
		require.NoError(t, err)
		require.Equal(t, map[string]node{
			"abs": {fs.ModeSymlink, "/etc/passwd", 0}, "up": {fs.ModeSymlink, "../treasure", 0},
			"old": {fs.ModeSymlink, "elsewhere", 0}, "dir": {fs.ModeSymlink, "../vault", 0},
		}, readTree(t, p.inside))
		link, err := os.Lstat(filepath.Join(p.inside, "abs"))
		require.NoError(t, err)
		require.Equal(t, int64(1700000000), link.ModTime().Unix(), "a link's own time")
	}
}

func TestDangerousModeBitsAreStripped(t *testing.T) {
	for _, f := range []Format{Zip, TarZstd} {
		p := newPrison(t)
		archiveOf := tarOf
		if f == Zip {
			archiveOf = zipOf
		}
		_, err := p.unpack(t, archiveOf(t,
			made{name: "d/", kind: tar.TypeDir, mode: 0o777 | fs.ModeSticky | fs.ModeSetgid},
			made{name: "d/f", content: "x", mode: 0o755 | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky},
		), Limits{})
		require.NoError(t, err)
		got := readTree(t, p.inside)
		require.Equal(t, fs.ModeDir|0o777, got["d"].mode)
		require.Equal(t, fs.FileMode(0o755), got["d/f"].mode)
	}
}

func TestHardLinksWithinTheArchive(t *testing.T) {
	p := newPrison(t)
	makeTree(t, p.inside, map[string]node{"d/b": {fs.ModeSymlink, "../../treasure", 0}})
	_, err := p.unpack(t, tarOf(t, made{name: "a", content: "x"}, made{name: "d/b", kind: tar.TypeLink, target: "./a"}), Limits{})
	require.NoError(t, err)
	a, err := os.Stat(filepath.Join(p.inside, "a"))
	require.NoError(t, err)
	b, err := os.Lstat(filepath.Join(p.inside, "d/b"))
	require.NoError(t, err)
	require.True(t, os.SameFile(a, b))
}

// A folder that is there and closed, as those of Go's module cache, is opened and closed again.
func TestReadOnlyFoldersThatAreThere(t *testing.T) {
	p := newPrison(t)
	makeTree(t, p.inside, map[string]node{"mod/x": {0o644, "old", 0}, "mod": {fs.ModeDir | 0o500, "", 0}})
	_, err := p.unpack(t, tarOf(t, made{name: "mod/x", content: "new"}), Limits{})
	require.NoError(t, err)
	got := readTree(t, p.inside)
	require.Equal(t, "new", got["mod/x"].content)
	require.Equal(t, fs.ModeDir|0o500, got["mod"].mode)
}
