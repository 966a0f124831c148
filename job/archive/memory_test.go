//go:build unix

package archive

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// most returns the most memory that do needed at any time, beyond what was there before: all that the runtime has from the
// system and has not given back.
func most(t *testing.T, do func()) (peak uint64) {
	t.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	var before uint64
	done, looked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(looked)
		samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
		metrics.Read(samples)
		before = samples[0].Value.Uint64() - samples[1].Value.Uint64()
		ticker := time.NewTicker(2 * time.Millisecond)
		defer ticker.Stop()
		for {
			metrics.Read(samples)
			peak = max(peak, samples[0].Value.Uint64()-samples[1].Value.Uint64())
			select {
			case <-done:
				return
			case <-ticker.C:
			}
		}
	}()
	do()
	close(done)
	<-looked
	return peak - min(before, peak)
}

// A file of gigabytes goes through less than 50 MiB, in all formats, with as many workers as there are on a large machine.
// SWITCHYARD_LARGE_FILE_MB chooses how large it is.
func TestMemoryStaysBounded(t *testing.T) {
	megabytes := 120
	if testing.Short() {
		megabytes = 100
	}
	if v := os.Getenv("SWITCHYARD_LARGE_FILE_MB"); v != "" {
		var err error
		megabytes, err = strconv.Atoi(v)
		require.NoError(t, err)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(64))
	dir := tempDir(t)
	large, err := os.Create(filepath.Join(dir, "large"))
	require.NoError(t, err)
	require.NoError(t, large.Truncate(int64(megabytes)<<20))
	random := []byte(noise(1 << 20))
	text := bytes.Repeat([]byte("0123456789 some text, and more of it\n"), 1<<20/37)
	for i := range int64(megabytes / 4) { // a quarter is random, a quarter text, the rest holes
		_, err = large.WriteAt(random, i*4<<20)
		require.NoError(t, err)
		_, err = large.WriteAt(text, i*4<<20+1<<20)
		require.NoError(t, err)
	}
	require.NoError(t, large.Close())
	for i := range 300 {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "small"+strconv.Itoa(i)), random[:200_000], 0o600))
	}
	names := all(t, dir)
	root := openRoot(t, dir)
	const bound = 50 << 20 // and the program itself
	for _, f := range []Format{Zip, ZipZstd, TarZstd, Gzip} {
		for _, level := range []Level{Fast, Default} {
			packed, err := os.Create(filepath.Join(tempDir(t), "packed"))
			require.NoError(t, err)
			start := time.Now()
			peak := most(t, func() {
				_, err = Pack(t.Context(), packed, f, level, root, names, nil)
			})
			require.NoError(t, err)
			require.Less(t, peak, uint64(bound), "pack %s %s", f, level)
			t.Logf("pack %s %s: %d MiB, %v", f, level, peak>>20, time.Since(start))
			if f == Gzip || level == Fast {
				require.NoError(t, packed.Close())
				continue
			}
			size, err := packed.Seek(0, io.SeekEnd)
			require.NoError(t, err)
			to := tempDir(t)
			target := openRoot(t, to)
			start = time.Now()
			peak = most(t, func() {
				_, err = Unpack(t.Context(), packed, size, target, Limits{}, nil)
			})
			require.NoError(t, err)
			require.Less(t, peak, uint64(bound), "unpack %s", f)
			t.Logf("unpack %s: %d MiB, %v", f, peak>>20, time.Since(start))
			require.NoError(t, packed.Close())
			require.NoError(t, os.RemoveAll(to))
		}
	}
}
