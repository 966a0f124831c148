package relay

import (
	"bytes"
	"context"
	"hash/crc32"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// FuzzReceive: whatever offsets and lengths an agent's frames have (gaps, overlaps, far beyond the window), and wherever
// the relay is restarted, what is spooled is the beginning of the agent's trace, never gets shorter, never longer than it
// may be, and the agent is told so.
func FuzzReceive(f *testing.F) {
	f.Add([]byte{0, 10, 10, 10, 20, 200, 0, 255, 0, 1})
	f.Add([]byte{0, 10, 30, 10, 5, 40, 255, 255, 0, 9, 1, 1})
	f.Add([]byte{128, 1, 0, 0, 0, 255, 127, 255, 254, 254, 90, 3})
	whole := pattern(TraceAllowance + 100_000)
	f.Fuzz(func(t *testing.T, script []byte) {
		b := newBench(t)
		b.gitlab.fault = func(context.Context, call) *answer { return &answer{err: errNoAnswer} }
		target := b.target(1)
		target.OutputLimit = 20_000
		capacity := target.OutputLimit + TraceAllowance
		open := func() Progress {
			p, err := b.r.Open(1, 1, target)
			require.NoError(t, err)
			return p
		}
		length := open().Written
		over := false
		for ; len(script) >= 2; script = script[2:] {
			if script[0] == 255 && script[1] == 255 {
				b.restart()
				require.Equal(t, length, open().Written)
				over = false
				continue
			}
			// Offsets are around the end, lengths up to 25 KiB.
			offset := length + (int64(script[0])-128)*37
			data := whole[max(offset, 0):]
			data = data[:min(int64(len(data)), int64(script[1])*100)]
			p := b.r.Append(1, 1, offset, data)
			want := length
			switch end := offset + int64(len(data)); {
			case over:
				require.Equal(t, Stop, p.Verdict)
			case offset < 0, offset > length:
				require.Contains(t, []Verdict{Resend, Continue}, p.Verdict)
				require.Equal(t, Resend, b.r.Progress(1, 1).Verdict, "a gap")
			case end > capacity:
				want, over = capacity, true
				require.Equal(t, Stop, p.Verdict)
			default:
				want = max(length, end)
				require.Equal(t, Continue, p.Verdict)
			}
			require.Equal(t, want, p.Written)
			length = want
			require.LessOrEqual(t, p.Received, p.Written)
			require.GreaterOrEqual(t, p.Limit, p.Written)
			require.LessOrEqual(t, p.Limit, capacity)
			if j := b.r.jobs[1]; j.file != nil {
				got := make([]byte, length)
				_, err := j.file.ReadAt(got, 0)
				require.NoError(t, err)
				require.True(t, bytes.Equal(whole[:length], got))
				require.Equal(t, crc32.ChecksumIEEE(got), j.sum)
			}
		}
		require.NoError(t, b.r.Finish(1, 1, store.Result{State: "success", TraceLength: length, TraceCRC32: crc32.ChecksumIEEE(whole[:length])}))
		require.True(t, b.r.jobs[1].completed)
	})
}
