package trace_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/job/trace"
)

func TestCheckpointsComeWithBytesAndWithTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lengths []int64
		var sums []uint32
		c := trace.NewCheckpoints(func(length int64, crc uint32) error {
			lengths, sums = append(lengths, length), append(sums, crc)
			return nil
		})
		c.Grown(10, 1)
		pass(900 * time.Millisecond)
		c.Grown(20, 2)
		require.Empty(t, lengths)
		pass(100 * time.Millisecond)
		require.Equal(t, []int64{20}, lengths, "a second after the first byte that is not covered")
		pass(time.Hour)
		require.Equal(t, []int64{20}, lengths, "nothing is new")
		c.Grown(20+256<<10, 3)
		c.Grown(21+256<<10, 4)
		require.Equal(t, []int64{20, 20 + 256<<10}, lengths)
		pass(time.Second)
		require.Equal(t, []uint32{2, 3, 4}, sums)
		c.Grown(22+256<<10, 5)
		c.Close()
		pass(time.Hour)
		c.Grown(1<<30, 6)
		require.Len(t, lengths, 3)
	})
}

// pass lets virtual time pass, and all be done that it brings.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestCheckpointsEndWithTheFirstError(t *testing.T) {
	calls := 0
	c := trace.NewCheckpoints(func(int64, uint32) error {
		calls++
		return errors.New("no space left on device")
	})
	defer c.Close()
	for length := int64(1 << 20); length < 10<<20; length += 1 << 20 {
		c.Grown(length, 0)
	}
	require.Equal(t, 1, calls)
}

// BenchmarkCheckpoints is what they cost for each piece of 32 KiB that a job says, beside its checksum.
func BenchmarkCheckpoints(b *testing.B) {
	for _, with := range []bool{false, true} {
		name := "without"
		if with {
			name = "with"
		}
		b.Run(name, func(b *testing.B) {
			c := trace.NewCheckpoints(func(int64, uint32) error { return nil })
			defer c.Close()
			var w *trace.Writer
			w = trace.NewWriter(discard{}, 0, 0, 1<<60, func(length int64) {
				if with {
					c.Grown(length, w.CRC32())
				}
			})
			piece := make([]byte, 32<<10)
			b.SetBytes(int64(len(piece)))
			for b.Loop() {
				w.Write(piece)
			}
		})
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
