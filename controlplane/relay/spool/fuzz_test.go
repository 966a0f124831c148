package spool

import (
	"bytes"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzRecords: of any bytes only whole records are believed, and each of them is found.
func FuzzRecords(f *testing.F) {
	whole := checkpoint{job: 7, epoch: 2, length: 300, crc: 0xcafe, acked: 200, boot: boot{1}}.append(nil)
	f.Add([]byte{}, 0)
	f.Add(whole, 0)
	f.Add(append(bytes.Clone(whole), whole[:40]...), 64)
	f.Add(append(make([]byte, recordSize), whole...), 70)
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		list, broken := parseCheckpoints(b)
		require.Equal(t, (len(b)+recordSize-1)/recordSize, len(list)+broken)
		for _, c := range list {
			require.True(t, bytes.Contains(b, c.append(nil)))
		}
		// A record that is put among them is found, and costs only the one that it stands upon.
		at = max(0, min(at, len(b))) / recordSize * recordSize
		b = append(b[:at:at], append(bytes.Clone(whole), b[min(at+recordSize, len(b)):]...)...)
		more, _ := parseCheckpoints(b)
		require.GreaterOrEqual(t, len(more), len(list))
		require.Contains(t, more, checkpoint{job: 7, epoch: 2, length: 300, crc: 0xcafe, acked: 200, boot: boot{1}})
	})
}

// FuzzTake: whatever is on the disk, what is taken is a beginning of the file, of proven content if the kernel is another
// one; taking it again takes the same.
func FuzzTake(f *testing.F) {
	f.Add([]byte("hello world"), 5, 8, false, []byte{})
	f.Add([]byte("hello world"), 11, 3, true, []byte("torn"))
	f.Add([]byte{}, 0, 0, true, []byte{})
	f.Add(make([]byte, 1000), 400, 900, false, make([]byte, 100))
	f.Fuzz(func(t *testing.T, data []byte, first, second int, reboot bool, junk []byte) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, key1.name()), data, 0o600))
		var log []byte
		var proven int64
		for _, n := range []int{first, second} {
			c := checkpoint{job: 1, epoch: 1, length: int64(max(n, 0)), boot: boot{1}}
			if n >= 0 && n <= len(data) {
				c.crc = crc32.ChecksumIEEE(data[:n])
				proven = max(proven, c.length)
			} else {
				c.crc = 1
			}
			log = c.append(log)
			log = append(log, junk...)
			log = append(log, make([]byte, (recordSize-len(log)%recordSize)%recordSize)...)
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, logName), log, 0o600))
		kernel := boot{1}
		if reboot {
			kernel = boot{2}
		}
		var length int64
		for again := range 2 {
			s, _, err := Open(dir, 0, 0)
			require.NoError(t, err)
			s.log.boot = kernel
			got, loss, err := s.Take(1)
			require.NoError(t, err)
			require.GreaterOrEqual(t, got.Length(), proven)
			require.Equal(t, crc32.ChecksumIEEE(data[:got.Length()]), got.CRC())
			require.Equal(t, got.Length(), s.Bytes())
			if reboot {
				require.Equal(t, proven, got.Length())
			}
			if again == 1 {
				require.Equal(t, length, got.Length())
				require.Zero(t, loss)
			}
			length = got.Length()
			require.NoError(t, got.Close())
			require.NoError(t, s.Close())
		}
	})
}
