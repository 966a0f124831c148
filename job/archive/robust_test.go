//go:build unix

package archive

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zip"
	"github.com/stretchr/testify/require"
)

var packFormats = []Format{Zip, ZipZstd, TarZstd}

// GitLab reads the members of a report one after another, with their names.
func TestGzipHasAMemberForEachFile(t *testing.T) {
	dir := tempDir(t)
	files := map[string]node{
		"a/junit.xml": {0o644, strings.Repeat("<testcase/>", 100_000), 1700000001}, // several blocks
		"größe.xml":   {0o644, noise(1000), 1700000002},
		"empty":       {0o644, "", 1700000003},
	}
	makeTree(t, dir, files)
	names := []string{"a/junit.xml", "empty", "größe.xml"}
	for _, level := range []Level{Fastest, Default, Slowest} {
		r := bufio.NewReader(bytes.NewReader(pack(t, Gzip, level, dir, names)))
		for _, name := range names {
			z, err := gzip.NewReader(r)
			require.NoError(t, err)
			z.Multistream(false)
			content, err := io.ReadAll(z)
			require.NoError(t, err)
			require.Equal(t, files[name].content, string(content))
			require.Equal(t, files[name].modified, z.ModTime.Unix())
			if name != "größe.xml" { // Go reads names as Latin-1
				require.Equal(t, filepath.Base(name), z.Name)
				require.Equal(t, name, z.Comment)
			}
		}
		_, err := r.ReadByte()
		require.ErrorIs(t, err, io.EOF)
	}
	_, err := Pack(t.Context(), io.Discard, Gzip, Default, openRoot(t, dir), []string{"a", "a/junit.xml"}, nil)
	require.ErrorContains(t, err, `pack gzip: the "a" is not a regular file`)
}

func TestRawIsOneFile(t *testing.T) {
	dir := tempDir(t)
	makeTree(t, dir, map[string]node{"a/x": {0o644, "content", 0}, "b": {0o644, "", 0}})
	require.Equal(t, "content", string(pack(t, Raw, Default, dir, []string{"a/x"})))
	require.Empty(t, pack(t, Raw, Default, dir, nil))
	root := openRoot(t, dir)
	packed, err := Pack(t.Context(), io.Discard, Raw, Default, root, []string{"a/x"}, nil)
	require.NoError(t, err)
	require.Equal(t, Packed{Files: 1, Bytes: 7}, packed)
	_, err = Pack(t.Context(), io.Discard, Raw, Default, root, []string{"a/x", "b"}, nil)
	require.ErrorContains(t, err, `only one file can be sent as raw, here are 2 ("a/x", "b", ...)`)
	_, err = Pack(t.Context(), io.Discard, Raw, Default, root, []string{"a"}, nil)
	require.ErrorContains(t, err, `"a" is not a regular file`)
}

func TestUnknownFormatsAndLevels(t *testing.T) {
	dir := tempDir(t)
	makeTree(t, dir, map[string]node{"a": {0o644, "x", 0}})
	root := openRoot(t, dir)
	_, err := Pack(t.Context(), io.Discard, "rar", Default, root, nil, nil)
	require.ErrorContains(t, err, `archive format "rar" is not known; there are zip, zipzstd, tarzstd, gzip and raw`)
	var lines []string
	_, err = Pack(t.Context(), io.Discard, Zip, "best", root, []string{"a"}, func(line string) { lines = append(lines, line) })
	require.NoError(t, err)
	require.Equal(t, []string{`compression level "best" is invalid, falling back to default`}, lines)
	for _, b := range []string{"", "PK", "plain text", "\x1f\x8b\x08\x00gzip", "PK\x03\x04 and nothing", "\x28\xb5\x2f\xfd"} {
		_, err := Unpack(t.Context(), strings.NewReader(b), int64(len(b)), root, Limits{}, nil)
		require.ErrorIs(t, err, ErrCorrupt, "%q", b)
	}
}

func TestEmptyArchives(t *testing.T) {
	for _, f := range packFormats {
		p := newPrison(t)
		packed, err := p.unpack(t, pack(t, f, Default, p.inside, nil), Limits{})
		require.NoError(t, err)
		require.Zero(t, packed)
		require.Empty(t, readTree(t, p.inside))
	}
}

// What is not there any more, or was never a file, is left out with a warning.
func TestWhatCannotBePackedIsLeftOut(t *testing.T) {
	for _, f := range packFormats {
		dir := tempDir(t)
		makeTree(t, dir, map[string]node{"a": {0o644, "x", 0}, "z/b": {0o644, "x", 0}})
		require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
		var b bytes.Buffer
		var lines []string
		packed, err := Pack(t.Context(), &b, f, Default, openRoot(t, dir), []string{"a", "gone", "none/x", "none/y", "a/x", "pipe", "z/b"},
			func(line string) { lines = append(lines, line) })
		require.NoError(t, err)
		require.Equal(t, Packed{Files: 2, Bytes: 2}, packed)
		require.Equal(t, []string{
			"gone: left out, it is not there any more", "none/x: left out, it is not there any more",
			"none/y: left out, it is not there any more", "a/x: left out, it is not there any more",
			"pipe: left out, it is no file, folder or link (p---------)",
		}, lines)
		p := newPrison(t)
		_, err = p.unpack(t, b.Bytes(), Limits{})
		require.NoError(t, err)
		require.Len(t, readTree(t, p.inside), 3)
	}
	_, err := Pack(t.Context(), io.Discard, Zip, Default, openRoot(t, tempDir(t)), []string{"../x"}, nil)
	require.ErrorContains(t, err, `"../x"`)
}

// changing is a writer that changes the files while they are packed.
type changing struct {
	bytes.Buffer
	after int
	do    func()
}

func (c *changing) Write(p []byte) (int, error) {
	if c.Len() >= c.after && c.do != nil {
		c.do()
		c.do = nil
	}
	return c.Buffer.Write(p)
}

// Files change while they are packed: the archive is whole all the same.
func TestFilesThatChange(t *testing.T) {
	const size = 24*blockSize + 1000 // more than is on its way at a time
	before := noise(size)
	for _, f := range packFormats {
		for name, change := range map[string]func(string) error{
			"grows":    func(path string) error { return appendTo(path, noise(blockSize)) },
			"shrinks":  func(path string) error { return os.Truncate(path, 1000) },
			"vanishes": os.Remove,
		} {
			t.Run(string(f)+" "+name, func(t *testing.T) {
				dir := tempDir(t)
				makeTree(t, dir, map[string]node{"a": {0o644, before, 0}, "b": {0o644, "last", 0}})
				w := &changing{after: 100_000, do: func() {
					require.NoError(t, change(filepath.Join(dir, "a")))
					require.NoError(t, change(filepath.Join(dir, "b")))
				}}
				_, err := Pack(t.Context(), w, f, Fast, openRoot(t, dir), []string{"a", "b"}, nil)
				require.NoError(t, err)
				p := newPrison(t)
				_, err = p.unpack(t, w.Bytes(), Limits{})
				require.NoError(t, err)
				got := readTree(t, p.inside)["a"].content
				require.LessOrEqual(t, len(got), size)
				require.Equal(t, before[:1000], got[:1000])
				if name != "shrinks" {
					require.Len(t, got, size)
				}
			})
		}
	}
}

func appendTo(path, s string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(s)
	}
	return errors.Join(err, f.Close())
}

// failing is a writer or a reader that ends.
type failing struct {
	r     io.ReaderAt
	after atomic.Int64
	fail  func() error
}

func (f *failing) Write(p []byte) (int, error) {
	if f.after.Add(-int64(len(p))) < 0 {
		if err := f.fail(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if f.after.Add(-int64(len(p))) < 0 {
		return 0, f.fail()
	}
	return f.r.ReadAt(p, off)
}

// An upload that breaks or a job that is cancelled ends packing and unpacking, with the reason, and nothing is left running
// (goleak) or open.
func TestPackAndUnpackEnd(t *testing.T) {
	dir := tempDir(t)
	nodes := map[string]node{"large": {0o644, noise(20 * blockSize), 0}}
	for i := range 300 {
		nodes[fmt.Sprintf("d%d/f%d", i%7, i)] = node{0o644, noise(20_000), 0}
	}
	makeTree(t, dir, nodes)
	names := all(t, dir)
	root := openRoot(t, dir)
	before := openFiles(t)
	for _, f := range append(packFormats, Gzip, Raw) {
		chosen := names
		if f == Gzip || f == Raw {
			chosen = []string{"large"}
		}
		why := errors.New("the reason")
		for _, after := range []int64{0, 200_000, 3_000_000} {
			w := &failing{fail: func() error { return why }}
			w.after.Store(after)
			_, err := Pack(t.Context(), w, f, Default, root, chosen, nil)
			require.ErrorIs(t, err, why)

			ctx, cancel := context.WithCancelCause(t.Context())
			w = &failing{fail: func() error { cancel(why); return nil }}
			w.after.Store(after)
			_, err = Pack(ctx, w, f, Default, root, chosen, nil)
			require.ErrorIs(t, err, why)
		}
	}
	for _, f := range packFormats {
		b := pack(t, f, Default, dir, names)
		why := errors.New("the reason")
		for _, after := range []int64{0, 200_000, 3_000_000} {
			r := &failing{r: bytes.NewReader(b), fail: func() error { return why }}
			r.after.Store(after)
			to := openRoot(t, tempDir(t))
			_, err := Unpack(t.Context(), r, int64(len(b)), to, Limits{}, nil)
			require.ErrorIs(t, err, why)
			require.NotErrorIs(t, err, ErrCorrupt)
			require.NotErrorIs(t, err, ErrHostile)

			ctx, cancel := context.WithCancelCause(t.Context())
			r = &failing{r: bytes.NewReader(b), fail: func() error { cancel(why); return io.ErrClosedPipe }}
			r.after.Store(after)
			_, err = Unpack(ctx, r, int64(len(b)), to, Limits{}, nil)
			require.ErrorIs(t, err, why)
			require.NoError(t, to.Close())
		}
	}
	require.Equal(t, before, openFiles(t))
}

// openFiles counts this process's open files below the temporary folder, so that other tests' do not matter.
func openFiles(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc")
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(target, os.TempDir()) {
			n++
		}
	}
	return n
}

// More entries than 16 bits count.
func TestManyEntries(t *testing.T) {
	dir := tempDir(t)
	makeTree(t, dir, map[string]node{"a": {0o755 | os.ModeDir, "", 0}, "b": {0o644, "x", 0}})
	names := append(make([]string, 0, 70_000), "b")
	for range 69_999 {
		names = append(names, "a")
	}
	for _, f := range packFormats {
		b := pack(t, f, Default, dir, names)
		if f == Zip {
			z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
			require.NoError(t, err)
			require.Len(t, z.File, 70_000)
		}
		p := newPrison(t)
		_, err := p.unpack(t, b, Limits{})
		require.NoError(t, err)
		_, err = p.unpack(t, b, Limits{Entries: 69_999})
		require.ErrorIs(t, err, ErrHostile)
	}
}

// Zips of other programs say nothing of modes, or say it in their own way.
func TestModesOfOtherPrograms(t *testing.T) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, h := range []*zip.FileHeader{
		{Name: "plain"},
		{Name: "plain dir/"},
		{Name: "dos", CreatorVersion: 0, ExternalAttrs: 0x20},
		{Name: "dos dir/", ExternalAttrs: 0x10},
		{Name: "unix", CreatorVersion: 3 << 8, ExternalAttrs: 0o100751 << 16},
		{Name: "none", CreatorVersion: 3 << 8},
	} {
		_, err := w.CreateHeader(h)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	p := newPrison(t)
	_, err := p.unpack(t, b.Bytes(), Limits{})
	require.NoError(t, err)
	modes := map[string]string{}
	for name, n := range readTree(t, p.inside) {
		modes[name] = n.mode.String()
	}
	require.Equal(t, map[string]string{
		"plain": "-rw-r--r--", "plain dir": "drwxr-xr-x", "dos": "-rw-r--r--", "dos dir": "drwxr-xr-x",
		"unix": "-rwxr-x--x", "none": "-rw-r--r--",
	}, modes)
}

// As root, files belong to whom they belonged to.
func TestOwnersAreKept(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	for _, f := range packFormats {
		dir := tempDir(t)
		makeTree(t, dir, map[string]node{"d/f": {0o640, "x", 0}, "l": {os.ModeSymlink, "/etc", 0}, "d": {os.ModeDir | 0o750, "", 0}})
		for i, name := range []string{"d", "d/f", "l"} {
			require.NoError(t, os.Lchown(filepath.Join(dir, name), 3000+i, 70_000+i))
		}
		p := newPrison(t)
		_, err := p.unpack(t, pack(t, f, Default, dir, []string{"d", "d/f", "l"}), Limits{})
		require.NoError(t, err)
		for i, name := range []string{"d", "d/f", "l"} {
			info, err := os.Lstat(filepath.Join(p.inside, name))
			require.NoError(t, err)
			stat, ok := info.Sys().(*syscall.Stat_t)
			require.True(t, ok)
			require.Equal(t, []uint32{uint32(3000 + i), uint32(70_000 + i)}, []uint32{stat.Uid, stat.Gid}, "%s %s", f, name)
		}
	}
}
