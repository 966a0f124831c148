//go:build unix

package archive

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zip"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/testbed"
)

// command runs a program of the system.
func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return string(out)
}

// portable is what unzip has no opinion of its own about.
func portable() map[string]node {
	nodes := sample()
	delete(nodes, `a/b/x\y`) // unzip makes a folder of it
	delete(nodes, "a/b/größe")
	return nodes
}

func packFile(t *testing.T, f Format, level Level, dir string) string {
	t.Helper()
	file := filepath.Join(tempDir(t), "archive")
	require.NoError(t, os.WriteFile(file, pack(t, f, level, dir, all(t, dir)), 0o600))
	return file
}

func TestUnzipReadsOurZips(t *testing.T) {
	testbed.Need(t, testbed.Unzip)
	from := tempDir(t)
	makeTree(t, from, portable())
	for _, level := range []Level{Fastest, Default, Slowest} {
		file := packFile(t, Zip, level, from)
		require.Contains(t, command(t, from, "unzip", "-t", file), "No errors detected")
		to := tempDir(t)
		command(t, to, "unzip", "-q", file)
		require.Equal(t, portable(), readTree(t, to))
	}
}

func TestTarReadsOurTars(t *testing.T) {
	testbed.Need(t, testbed.Zstd)
	from := tempDir(t)
	makeTree(t, from, sample())
	for _, level := range []Level{Fastest, Default, Slowest} {
		file := packFile(t, TarZstd, level, from)
		command(t, from, "zstd", "-q", "-t", file)
		to := tempDir(t)
		command(t, to, "tar", "--zstd", "-xpf", file)
		require.Equal(t, sample(), readTree(t, to))
	}
}

func TestWeReadWhatOthersPack(t *testing.T) {
	testbed.Need(t, testbed.Zip, testbed.Zstd)
	from := tempDir(t)
	makeTree(t, from, sample())
	to := filepath.Join(tempDir(t), "archive.zip")
	for name, args := range map[string][]string{
		"zip":        {"zip", "-qry", to, "."},
		"zip stored": {"zip", "-qry0", to, "."},
		"tar":        {"tar", "--zstd", "-cf", to, "."},
		"tar pax":    {"tar", "--zstd", "--format=pax", "-cf", to, "."},
		"tar ustar":  {"tar", "--zstd", "--format=ustar", "-cf", to, "."},
		"tar long":   {"tar", "-I", "zstd -q -19 --long=27", "-cf", to, "."},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.RemoveAll(to))
			command(t, from, args[0], args[1:]...)
			b, err := os.ReadFile(to)
			require.NoError(t, err)
			p := newPrison(t)
			require.NoError(t, os.Chtimes(p.inside, time.Time{}, time.Unix(1500000000, 0)))
			_, err = p.unpack(t, b, Limits{})
			require.NoError(t, err)
			require.Equal(t, sample(), readTree(t, p.inside))
		})
	}
}

// A sparse file of GNU tar is as large as it says.
func TestSparseFiles(t *testing.T) {
	testbed.Need(t, testbed.Zstd)
	from := tempDir(t)
	f, err := os.Create(filepath.Join(from, "sparse"))
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("the end"), 10<<20)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	to := filepath.Join(tempDir(t), "archive")
	command(t, from, "tar", "--zstd", "-Scf", to, "sparse")
	b, err := os.ReadFile(to)
	require.NoError(t, err)
	p := newPrison(t)
	packed, err := p.unpack(t, b, Limits{})
	require.NoError(t, err)
	require.Equal(t, int64(10<<20+7), packed.Bytes)
	require.Equal(t, "the end", strings.Trim(readTree(t, p.inside)["sparse"].content, "\x00"))
	_, err = newPrison(t).unpack(t, b, Limits{Bytes: 10 << 20})
	require.ErrorIs(t, err, ErrHostile)
}

// A zip with more than 4 GiB in it, stored and compressed: the file before and the one after are right, for others too.
func TestZip64(t *testing.T) {
	testbed.Need(t, testbed.Unzip)
	const blocks = 8193
	for _, store := range []bool{true, false} {
		dir := tempDir(t)
		makeTree(t, dir, map[string]node{"a": {0o644, "before", 0}, "large": {0o644, "", 0}, "z": {0o644, "after", 0}})
		out, err := os.Create(filepath.Join(dir, "out.zip"))
		require.NoError(t, err)
		w := &sparse{f: out}
		s := &zipSink{compressor: compressor{buffers: &buffers{}, level: 1}, w: zip.NewWriter(w), method: zip.Deflate, store: store}
		zeros := make([]byte, blockSize)
		var last *piece
		for _, name := range []string{"a", "large", "z"} {
			info, err := os.Lstat(filepath.Join(dir, name))
			require.NoError(t, err)
			content, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			p := &piece{entry: &entry{name: name, info: info}, first: true, last: true, plain: content}
			if name != "large" {
				require.NoError(t, s.compress(p))
				require.NoError(t, s.put(p))
				continue
			}
			p.plain, p.last = zeros, false
			require.NoError(t, s.compress(p))
			for range blocks - 1 {
				require.NoError(t, s.put(p))
				p.first = false
			}
			last = &piece{entry: p.entry, last: true, plain: zeros}
			require.NoError(t, s.compress(last))
			require.NoError(t, s.put(last))
		}
		require.NoError(t, s.w.Close())
		require.NoError(t, out.Truncate(w.at))
		z, err := zip.NewReader(out, w.at)
		require.NoError(t, err)
		require.Len(t, z.File, 3)
		require.Equal(t, uint64(blocks*blockSize), z.File[1].UncompressedSize64)
		if store {
			require.Equal(t, uint64(blocks*blockSize), z.File[1].CompressedSize64)
		}
		for i, content := range map[int]string{0: "before", 2: "after"} {
			r, err := z.File[i].Open()
			require.NoError(t, err)
			b, err := io.ReadAll(r)
			require.NoError(t, err)
			require.Equal(t, content, string(b))
		}
		_, err = zipSpans(z, w.at)
		require.NoError(t, err)
		require.Equal(t, "after", command(t, dir, "unzip", "-p", "out.zip", "z"))
		require.Contains(t, command(t, dir, "unzip", "-l", "out.zip"), strconv.Itoa(blocks*blockSize))
		require.NoError(t, out.Close())
	}
}

// sparse writes a file with holes where there are zeros.
type sparse struct {
	f  *os.File
	at int64
}

var hole [blockSize]byte

func (s *sparse) Write(p []byte) (int, error) {
	if len(p) > len(hole) || !bytes.Equal(p, hole[:len(p)]) {
		if _, err := s.f.WriteAt(p, s.at); err != nil {
			return 0, err
		}
	}
	s.at += int64(len(p))
	return len(p), nil
}
