package trace_test

import (
	"bytes"
	"hash/crc32"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/job/trace"
)

// pieces cuts data as the bytes of cuts say.
func pieces(data, cuts []byte) [][]byte {
	var list [][]byte
	for _, c := range cuts {
		n := min(int(c), len(data))
		list = append(list, data[:n])
		data = data[n:]
	}
	return append(list, data)
}

// However a trace is cut into writes, the file has its begin, the checksum is the file's, and the limit holds.
func FuzzWriter(f *testing.F) {
	f.Add([]byte("grüße\n\xff\x00"), []byte{3, 1}, uint16(8))
	f.Add([]byte("\xf0\x9f\x98\x80\xf0\x9f"), []byte{1, 1, 1}, uint16(5))
	f.Fuzz(func(t *testing.T, data, cuts []byte, limit uint16) {
		most := int(limit) + 1
		var file bytes.Buffer
		w := trace.NewWriter(&file, 0, 0, int64(most), func(int64) {})
		for _, p := range pieces(data, cuts) {
			w.Write(p)
		}
		w.Close()
		require.NoError(t, w.Err())
		require.Equal(t, crc32.ChecksumIEEE(file.Bytes()), w.CRC32())
		require.EqualValues(t, file.Len(), w.Length())
		text, cut := strings.CutSuffix(file.String(), notice(most))
		require.LessOrEqual(t, len(text), most)
		require.True(t, strings.HasPrefix(string(data), text))
		require.Equal(t, len(data) > most, cut)
		if !cut {
			require.Equal(t, string(data), text)
		} else {
			require.Less(t, most-len(text), 4, "only a character that does not fit is left out")
		}
	})
}

var stamp = regexp.MustCompile(`^2006-01-02T15:04:05\.000000Z 01O[ +]`)

// However a stream is cut into writes, each line has a stamp, and what stands behind the stamps is the stream; a line that
// goes on is joined by its mark.
func FuzzStamper(f *testing.F) {
	f.Add([]byte("one\ntwo\r50%\r100%\nthree"), []byte{2, 7})
	f.Add(bytes.Repeat([]byte("x"), 20_000), []byte{255, 255})
	f.Fuzz(func(t *testing.T, data, cuts []byte) {
		s := trace.NewStamper(trace.Script, func() time.Time { return time.Date(2006, 1, 2, 15, 4, 5, 0, time.UTC) })
		var out []byte
		for _, p := range pieces(data, cuts) {
			out = s.Append(out, p)
		}
		out = s.Flush(out)
		var joined []byte
		for line := range bytes.Lines(out) {
			head := stamp.Find(line)
			require.NotNil(t, head, "%q", line)
			if head[len(head)-1] == '+' {
				joined = bytes.TrimSuffix(joined, []byte("\n"))
			}
			joined = append(joined, line[len(head):]...)
		}
		require.Equal(t, string(bytes.TrimSuffix(data, []byte("\n"))), string(bytes.TrimSuffix(joined, []byte("\n"))))
	})
}
