package trace

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newLog(t testing.TB, spill int) *Log { return New(filepath.Join(t.TempDir(), "log"), spill) }

func content(t require.TestingT, l *Log) string {
	b, err := io.ReadAll(io.NewSectionReader(l, 0, l.Size()))
	require.NoError(t, err)
	return string(b)
}

func TestAppendAtTheEndOnly(t *testing.T) {
	l := newLog(t, 8)
	size, err := l.Append(0, []byte("hello "))
	require.NoError(t, err)
	require.EqualValues(t, 6, size)
	for _, offset := range []int64{0, 5, 7, -1} {
		size, err = l.Append(offset, []byte("x"))
		var wrong *OffsetError
		require.ErrorAs(t, err, &wrong)
		require.EqualValues(t, 6, wrong.Size)
		require.EqualValues(t, 6, size)
	}
	size, err = l.Append(6, nil)
	require.NoError(t, err, "nothing at the end is fine")
	require.EqualValues(t, 6, size)
	require.NoFileExists(t, l.path)

	size, err = l.Append(6, []byte("world\n"))
	require.NoError(t, err)
	require.EqualValues(t, 12, size)
	require.FileExists(t, l.path, "more than 8 bytes do not stay in memory")
	require.Equal(t, "hello world\n", content(t, l))
	size, crc := l.Sum()
	require.EqualValues(t, 12, size)
	require.Equal(t, crc32.ChecksumIEEE([]byte("hello world\n")), crc)
}

func TestReadAt(t *testing.T) {
	for _, spill := range []int{0, 100} {
		l := newLog(t, spill)
		_, err := l.Append(0, []byte("0123456789"))
		require.NoError(t, err)
		p := make([]byte, 4)
		n, err := l.ReadAt(p, 3)
		require.NoError(t, err)
		require.Equal(t, "3456", string(p[:n]))
		n, err = l.ReadAt(p, 8)
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, "89", string(p[:n]))
		_, err = l.ReadAt(p, 10)
		require.ErrorIs(t, err, io.EOF)
		_, err = l.ReadAt(p, -1)
		require.ErrorContains(t, err, "negative offset")
	}
}

func TestWait(t *testing.T) {
	l := newLog(t, 100)
	type answer struct {
		size int64
		done bool
		err  error
	}
	answers := make(chan answer)
	wait := func(ctx context.Context, offset int64) {
		size, done, err := l.Wait(ctx, offset)
		answers <- answer{size, done, err}
	}
	go wait(t.Context(), 0)
	_, err := l.Append(0, []byte("abc"))
	require.NoError(t, err)
	require.Equal(t, answer{3, false, nil}, <-answers)

	go wait(t.Context(), 3)
	l.Finish()
	l.Finish()
	require.Equal(t, answer{3, true, nil}, <-answers)

	l = newLog(t, 100)
	ctx, cancel := context.WithCancel(t.Context())
	go wait(ctx, 0)
	cancel()
	require.Equal(t, answer{0, false, context.Canceled}, <-answers)
}

// TestOneWriterAtATime holds a write up with a pipe that nobody reads yet.
func TestOneWriterAtATime(t *testing.T) {
	l := newLog(t, 0)
	require.NoError(t, syscall.Mkfifo(l.path, 0o600))
	done := make(chan error)
	go func() {
		_, err := l.Append(0, []byte("first"))
		done <- err
	}()
	for !l.Busy() {
		runtime.Gosched()
	}
	_, err := l.Append(0, []byte("second"))
	require.ErrorIs(t, err, ErrBusy)
	lost := make(chan error)
	go func() { lost <- l.Lose() }() // waits for the writer

	pipe, err := os.Open(l.path)
	require.NoError(t, err)
	require.ErrorContains(t, <-done, "write trace", "a pipe has no offsets")
	require.NoError(t, pipe.Close())
	require.NoError(t, <-lost)
	require.False(t, l.Busy())
	require.Zero(t, l.Size(), "a failed write leaves nothing")
}

func TestAFailedWriteChangesNothing(t *testing.T) {
	l := New(filepath.Join(t.TempDir(), "missing", "log"), 4)
	_, err := l.Append(0, []byte("abc"))
	require.NoError(t, err)
	_, err = l.Append(3, []byte("defg"))
	require.ErrorContains(t, err, "write trace")
	require.Equal(t, "abc", content(t, l))
	size, crc := l.Sum()
	require.EqualValues(t, 3, size)
	require.Equal(t, crc32.ChecksumIEEE([]byte("abc")), crc)
}

func TestLoseAndDiscard(t *testing.T) {
	for _, spill := range []int{0, 100} {
		l := newLog(t, spill)
		_, err := l.Append(0, []byte("abc"))
		require.NoError(t, err)
		require.NoError(t, l.Lose())
		require.NoFileExists(t, l.path)
		require.Zero(t, l.Size())
		_, err = l.Append(3, []byte("d"))
		require.Error(t, err)
		_, err = l.Append(0, []byte("again"))
		require.NoError(t, err)
		require.Equal(t, "again", content(t, l))
		require.NoError(t, l.Discard())
		require.NoFileExists(t, l.path)
		_, err = l.Append(0, []byte("late"))
		require.ErrorIs(t, err, ErrClosed)
		_, done, err := l.Wait(t.Context(), 0)
		require.NoError(t, err)
		require.True(t, done)
	}
}

// TestAnyPieces: whatever the pieces and the limit of memory, the content is their sum.
func TestAnyPieces(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		l := New(filepath.Join(dir, fmt.Sprint(n)), rapid.IntRange(0, 40).Draw(t, "memory"))
		var want strings.Builder
		for range rapid.IntRange(0, 12).Draw(t, "pieces") {
			piece := rapid.StringN(0, 20, 40).Draw(t, "piece")
			offset := int64(want.Len() + rapid.SampledFrom([]int{0, 0, 0, 1, -1}).Draw(t, "shift"))
			size, err := l.Append(offset, []byte(piece))
			if offset == int64(want.Len()) {
				require.NoError(t, err)
				want.WriteString(piece)
			} else {
				require.Error(t, err)
			}
			require.EqualValues(t, want.Len(), size)
		}
		require.Equal(t, want.String(), content(t, l))
		_, crc := l.Sum()
		require.Equal(t, crc32.ChecksumIEEE([]byte(want.String())), crc)
	})
}

func BenchmarkAppend(b *testing.B) {
	piece := make([]byte, 1<<20)
	l := newLog(b, 256<<10)
	b.SetBytes(int64(len(piece)))
	for i := range b.N {
		if i%100 == 0 {
			require.NoError(b, l.Lose())
		}
		if _, err := l.Append(int64(i%100)<<20, piece); err != nil {
			b.Fatal(err)
		}
	}
}
