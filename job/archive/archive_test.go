//go:build unix

package archive

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tempDir returns a new folder that goes away with the test, whatever modes the folders in it have.
func tempDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				err = os.Chmod(path, 0o700)
			}
			return err
		})
	})
	return dir
}

// openRoot returns a new folder, opened.
func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	require.NoError(t, err)
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// node is what a test says or sees of a file.
type node struct {
	mode     fs.FileMode
	content  string // or a link's target
	modified int64  // seconds; of files and folders
}

// tree makes nodes below dir.
func makeTree(t require.TestingT, dir string, nodes map[string]node) {
	for name, n := range nodes {
		full := filepath.Join(dir, name)
		switch {
		case n.mode.IsDir():
			require.NoError(t, os.MkdirAll(full, 0o777))
		case n.mode&fs.ModeSymlink != 0:
			require.NoError(t, os.MkdirAll(filepath.Dir(full), 0o777))
			require.NoError(t, os.Symlink(n.content, full))
		default:
			require.NoError(t, os.MkdirAll(filepath.Dir(full), 0o777))
			require.NoError(t, os.WriteFile(full, []byte(n.content), 0o600))
			require.NoError(t, os.Chmod(full, n.mode))
			require.NoError(t, os.Chtimes(full, time.Time{}, time.Unix(n.modified, 0)))
		}
	}
	for name, n := range nodes { // when all is in them; modes of tests let folders be entered
		if n.mode.IsDir() {
			full := filepath.Join(dir, name)
			require.NoError(t, os.Chmod(full, n.mode.Perm()))
		}
	}
	for name, n := range nodes {
		if n.mode.IsDir() {
			require.NoError(t, os.Chtimes(filepath.Join(dir, name), time.Time{}, time.Unix(n.modified, 0)))
		}
	}
}

// readTree is what is below dir.
func readTree(t require.TestingT, dir string) map[string]node {
	nodes := map[string]node{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		n := node{mode: info.Mode(), modified: info.ModTime().Unix()}
		switch {
		case n.mode&fs.ModeSymlink != 0:
			n.mode, n.modified = fs.ModeSymlink, 0
			n.content, err = os.Readlink(path)
		case n.mode.IsRegular():
			var b []byte
			b, err = os.ReadFile(path)
			n.content = string(b)
		}
		name, _ := filepath.Rel(dir, path)
		nodes[name] = n
		return err
	}))
	return nodes
}

func sample() map[string]node {
	text := bytes.Repeat([]byte("all work and no play makes a dull job\n"), 40000)
	return map[string]node{
		"a":               {fs.ModeDir | 0o755, "", 1700000000},
		"a/empty":         {0o644, "", 1700000001},
		"a/run.sh":        {0o755, "#!/bin/sh\n", 1700000002},
		"a/secret":        {0o600, "x", 1700000003},
		"a/nothing in it": {fs.ModeDir | 0o750, "", 1700000004},
		"a/b":             {fs.ModeDir | 0o555, "", 1700000005},
		"a/b/large.txt":   {0o644, string(text), 1700000006},
		"a/b/random":      {0o400, noise(3*blockSize + 17), 1700000007},
		"a/b/größe":       {0o644, "ü", 1700000008},
		"a/b/x\\y":        {0o644, "a backslash", 1700000008},
		"link":            {fs.ModeSymlink, "a/b/large.txt", 0},
		"out":             {fs.ModeSymlink, "/etc/passwd", 0},
		"gone":            {fs.ModeSymlink, "nowhere", 0},
		"exact":           {0o644, string(text[:blockSize]), 1700000009},
		"one more":        {0o644, string(text[:blockSize+1]), 1700000009},
	}
}

func noise(n int) string {
	b := make([]byte, n)
	x := uint64(88172645463325252)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x >> 32)
	}
	return string(b)
}

func pack(t require.TestingT, f Format, level Level, dir string, names []string) []byte {
	root, err := os.OpenRoot(dir)
	require.NoError(t, err)
	defer func() { _ = root.Close() }()
	var b bytes.Buffer
	_, err = Pack(context.Background(), &b, f, level, root, names, func(line string) { require.Fail(t, line) })
	require.NoError(t, err)
	return b.Bytes()
}

func all(t require.TestingT, dir string) []string {
	s, err := Select(context.Background(), dir, Wanted{Paths: []string{"**"}})
	require.NoError(t, err)
	return s.Names
}

func TestUnpackedIsWhatWasPacked(t *testing.T) {
	from := tempDir(t)
	makeTree(t, from, sample())
	names := all(t, from)
	for _, f := range []Format{Zip, ZipZstd, TarZstd} {
		for _, level := range []Level{Fastest, Fast, Default, Slow, Slowest} {
			t.Run(string(f)+" "+string(level), func(t *testing.T) {
				b := pack(t, f, level, from, names)
				require.Equal(t, b, pack(t, f, level, from, names), "the same files make the same archive")
				to := tempDir(t)
				for range 2 { // the second time over what is there
					packed, err := Unpack(t.Context(), bytes.NewReader(b), int64(len(b)), openRoot(t, to), Limits{}, func(line string) { t.Error(line) })
					require.NoError(t, err)
					require.Equal(t, sample(), readTree(t, to))
					require.Equal(t, 9, packed.Files)
				}
			})
		}
	}
}

// The look at what is worth compressing misses nothing that gains a tenth.
func TestWhatCompressesIsCompressed(t *testing.T) {
	random := noise(400_000)
	sevenBits := []byte(random)
	for i := range sevenBits {
		sevenBits[i] &= 0x7f
	}
	dir := tempDir(t)
	for name, c := range map[string]struct {
		content string
		most    float64 // of its size
	}{
		"base64":              {base64.StdEncoding.EncodeToString([]byte(random)), 0.77},
		"hex":                 {hex.EncodeToString([]byte(random)), 0.6},
		"seven bits":          {string(sevenBits), 0.9},
		"repeated":            {strings.Repeat(random[:20_000], 20), 0.1},
		"small":               {strings.Repeat("ab", 400), 0.1},
		"random":              {random, 1.001},
		"a little text in it": {random[:100_000] + strings.Repeat("text ", 40_000) + random[100_000:], 0.7},
	} {
		t.Run(name, func(t *testing.T) {
			makeTree(t, dir, map[string]node{name: {0o644, c.content, 0}})
			for _, f := range []Format{Zip, ZipZstd, TarZstd, Gzip} {
				b := pack(t, f, Default, dir, []string{name})
				require.Less(t, float64(len(b)-200), c.most*float64(len(c.content)), f)
			}
		})
	}
}
