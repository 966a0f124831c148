package trace_test

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/job/trace"
)

func notice(limit int) string {
	return fmt.Sprintf("\n\x1b[33;1mJob's log exceeded limit of %d bytes.\nJob execution will continue but no more output will be collected.\x1b[0;m\n", limit)
}

func TestEverythingBelowTheLimitIsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefix := rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "prefix")
		pieces := rapid.SliceOfN(rapid.SliceOfN(rapid.SampledFrom([]byte{'a', 0xc3, 0xa9, 0xf0, 0x9f, 0x98, 0x80, 0xff, 0}), 0, 6), 0, 10).Draw(t, "pieces")
		limit := rapid.IntRange(1, 40).Draw(t, "limit")

		var file bytes.Buffer
		length := int64(0)
		w := trace.NewWriter(&file, int64(len(prefix)), crc32.ChecksumIEEE(prefix), int64(limit), func(n int64) {
			require.Greater(t, n, length)
			length = n
		})
		for _, p := range pieces {
			w.Write(p)
		}
		w.Close()
		all := bytes.Join(pieces, nil)
		require.NoError(t, w.Err())
		require.EqualValues(t, file.Len(), w.Length())
		require.Equal(t, length, w.Length())
		require.Equal(t, crc32.ChecksumIEEE(append(prefix, file.Bytes()...)), w.CRC32())
		if len(all) == 0 || len(prefix)+len(all) <= limit {
			require.Equal(t, string(all), file.String())
			return
		}
		kept, ok := strings.CutSuffix(file.String(), notice(limit))
		require.True(t, ok)
		require.True(t, strings.HasPrefix(string(all), kept))
		room := max(0, limit-len(prefix))
		require.LessOrEqual(t, len(kept), room)
		require.GreaterOrEqual(t, len(kept), room-3)
	})
}

func TestTheCutSparesCharacters(t *testing.T) {
	for _, pieces := range [][]string{{"ab😀cd"}, {"ab\xf0", "\x9f\x98\x80cd"}, {"ab\xf0\x9f\x98", "\x80", "cd"}} {
		for limit, want := range map[int64]string{2: "ab", 3: "ab", 4: "ab", 5: "ab", 6: "ab😀", 7: "ab😀c"} {
			var file bytes.Buffer
			w := trace.NewWriter(&file, 0, 0, limit, func(int64) {})
			for _, p := range pieces {
				w.Write([]byte(p))
			}
			w.Close()
			require.Equal(t, want+notice(int(limit)), file.String())
		}
	}
	var file bytes.Buffer
	w := trace.NewWriter(&file, 0, 0, 3, func(int64) {})
	w.Write([]byte("ab\xf0"))
	require.Equal(t, "ab", file.String())
	w.Close()
	require.Equal(t, "ab\xf0", file.String(), "what is held is not lost")
}

type fullDisk struct {
	bytes.Buffer
	room int
}

func (d *fullDisk) Write(b []byte) (int, error) {
	n := min(len(b), d.room)
	d.room -= n
	_, _ = d.Buffer.Write(b[:n])
	if n < len(b) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

func TestAFullDisk(t *testing.T) {
	disk := &fullDisk{room: 5}
	w := trace.NewWriter(disk, 0, 0, 100, func(int64) {})
	w.Write([]byte("abc"))
	require.NoError(t, w.Err())
	w.Write([]byte("defg"))
	require.ErrorIs(t, w.Err(), syscall.ENOSPC)
	disk.room = 100
	w.Write([]byte("later"))
	require.Equal(t, "abcde", disk.String(), "no gap in the trace")
	w.Notice("[cut]")
	require.Equal(t, "abcde[cut]", disk.String())
	require.ErrorIs(t, w.Err(), syscall.ENOSPC)
	require.Equal(t, crc32.ChecksumIEEE(disk.Bytes()), w.CRC32())
}

func TestStamps(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6007_000, time.FixedZone("", 3600))
	const stamp = "2026-01-02T02:04:05.006007Z "
	s := trace.NewStamper(trace.Script, func() time.Time { return at })
	var out []byte
	step := func(in, want string) {
		t.Helper()
		out = s.Append(out[:0], []byte(in))
		require.Equal(t, want, string(out))
	}
	step("a\nb\nc", stamp+"01O a\n"+stamp+"01O b\n")
	step("d", "")
	step("e\n", stamp+"01O cde\n")
	step("10%\r", stamp+"01O 10%\r\n")
	step("20%\rx\n", stamp+"01O+20%\rx\n")
	step("\n", stamp+"01O \n")
	long := strings.Repeat("x", 9000)
	step("start", "")
	step(long, stamp+"01O start"+long+"\n")
	step("end", "")
	require.Equal(t, stamp+"01O+end\n", string(s.Flush(nil)))
	require.Empty(t, s.Flush(nil))
}

func TestTheNoticeSaysWhoseLimitItIs(t *testing.T) {
	var b bytes.Buffer
	w := trace.NewWriter(&b, 0, 0, 10, func(int64) {})
	w.LimitReason("That is the agent's.")
	w.Write([]byte("0123456789 and more"))
	w.Close()
	require.Equal(t, "0123456789\n\x1b[33;1mJob's log exceeded limit of 10 bytes.\nThat is the agent's.\n"+
		"Job execution will continue but no more output will be collected.\x1b[0;m\n", b.String())
	require.Equal(t, int64(b.Len()), w.Length())
}
