//go:build unix

package archive

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkCache archives and extracts a cache of 1 GB in 20,000 files, half of them text and half random, all in the page
// cache, and compares with zip and unzip on the same files. SWITCHYARD_BENCH_CACHE_MB chooses another size, -short a tenth.
func BenchmarkCache(b *testing.B) {
	megabytes := 1000
	if testing.Short() {
		megabytes = 100
	}
	if v := os.Getenv("SWITCHYARD_BENCH_CACHE_MB"); v != "" {
		var err error
		megabytes, err = strconv.Atoi(v)
		require.NoError(b, err)
	}
	zip, zipErr := exec.LookPath("zip")
	unzip, unzipErr := exec.LookPath("unzip")
	temp := b.TempDir()
	dir := filepath.Join(temp, "project")
	size := makeCache(b, dir, megabytes)
	names := all(b, dir)
	root := openRoot(b, dir)
	count := 0
	next := func(name string) string {
		count++
		syscall.Sync() // what was written before is not this run's work
		return filepath.Join(temp, fmt.Sprint(name, count))
	}
	theirs := filepath.Join(temp, "theirs.zip")
	for _, f := range []Format{Zip, TarZstd, ZipZstd} {
		ours := filepath.Join(temp, "ours."+string(f))
		b.Run("archive/"+string(f), func(b *testing.B) {
			var other time.Duration
			b.SetBytes(size)
			for b.Loop() {
				b.StopTimer()
				_, _ = os.Remove(ours), os.Remove(theirs) // not there the first time
				if zipErr == nil {
					other += run(b, next, dir, zip, "-rq", theirs, ".")
				}
				next("")
				b.StartTimer()
				out, err := os.Create(ours)
				require.NoError(b, err)
				_, err = Pack(b.Context(), out, f, Default, root, names, nil)
				require.NoError(b, err)
				require.NoError(b, out.Close())
			}
			report(b, size, other)
			info, err := os.Stat(ours)
			require.NoError(b, err)
			b.ReportMetric(float64(info.Size())*100/float64(size), "%-of-size")
		})
		b.Run("extract/"+string(f), func(b *testing.B) {
			in, err := os.Open(ours)
			require.NoError(b, err, "archive it first")
			defer func() { _ = in.Close() }()
			info, err := in.Stat()
			require.NoError(b, err)
			var other time.Duration
			b.SetBytes(size)
			for b.Loop() {
				b.StopTimer()
				if unzipErr == nil {
					other += run(b, next, dir, unzip, "-q", theirs, "-d", next("unzip"))
				}
				target := next("unpack")
				require.NoError(b, os.Mkdir(target, 0o777))
				to := openRoot(b, target)
				b.StartTimer()
				_, err := Unpack(b.Context(), in, info.Size(), to, Limits{}, nil)
				require.NoError(b, err)
			}
			report(b, size, other)
		})
	}
}

// run runs a command and says how long it took.
func run(b *testing.B, next func(string) string, dir string, args ...string) time.Duration {
	next("")
	c := exec.Command(args[0], args[1:]...)
	c.Dir = dir
	start := time.Now()
	out, err := c.CombinedOutput()
	took := time.Since(start)
	require.NoError(b, err, "%s", out)
	return took
}

func report(b *testing.B, size int64, other time.Duration) {
	if other == 0 {
		return
	}
	b.ReportMetric(float64(size)*float64(b.N)/1e6/other.Seconds(), "zip-MB/s")
	b.ReportMetric(other.Seconds()/b.Elapsed().Seconds(), "x-zip")
}

// makeCache fills dir and reads it once.
func makeCache(b *testing.B, dir string, megabytes int) (size int64) {
	r := rand.New(rand.NewPCG(1, 2))
	random := rand.NewChaCha8([32]byte{1})
	words := make([]string, 4000)
	for i := range words {
		word := make([]byte, 2+r.IntN(9))
		for j := range word {
			word[j] = "etaoinshrdlcumwfgypbvk"[min(r.IntN(22), r.IntN(22))]
		}
		words[i] = string(word)
	}
	const each = 50_000
	for i := range megabytes * 1_000_000 / each {
		in := filepath.Join(dir, fmt.Sprintf("node_modules/package-%d/lib/%d", i/100, i/20%5))
		require.NoError(b, os.MkdirAll(in, 0o777))
		n := each/2 + r.IntN(each)
		var content []byte
		if i%2 == 0 {
			content = make([]byte, n)
			_, _ = random.Read(content)
		} else {
			var text bytes.Buffer
			for text.Len() < n {
				fmt.Fprintf(&text, "%*s%s.%s(%s, %d);\n", r.IntN(4)*2, "", pick(r, words), pick(r, words), pick(r, words), r.IntN(1000))
			}
			content = text.Bytes()
		}
		require.NoError(b, os.WriteFile(filepath.Join(in, fmt.Sprintf("file-%d.js", i)), content, 0o644))
		size += int64(len(content))
	}
	require.NoError(b, fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			_, err = os.ReadFile(filepath.Join(dir, name))
		}
		return err
	}))
	return size
}

// pick prefers some words, as texts do.
func pick(r *rand.Rand, words []string) string {
	return words[min(r.IntN(len(words)), r.IntN(len(words)), r.IntN(len(words)))]
}
