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
		type point struct {
			length int64
			crc    uint32
		}
		written := make(chan point, 10)
		c := trace.NewCheckpoints(func(length int64, crc uint32) error {
			written <- point{length, crc}
			return nil
		})
		c.Grown(10, 1)
		pass(900 * time.Millisecond)
		c.Grown(20, 2)
		require.Empty(t, written)
		pass(100 * time.Millisecond)
		require.Equal(t, point{20, 2}, <-written, "a second after the first byte that is not covered")
		pass(time.Hour)
		require.Empty(t, written, "nothing is new")
		c.Grown(20+256<<10, 3)
		c.Grown(21+256<<10, 4)
		require.Equal(t, point{20 + 256<<10, 3}, <-written)
		require.Empty(t, written)
		pass(time.Second)
		require.Equal(t, point{21 + 256<<10, 4}, <-written)
		c.Grown(22+256<<10, 5)
		c.Close()
		pass(time.Hour)
		c.Grown(1<<30, 6)
		require.Empty(t, written)
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
