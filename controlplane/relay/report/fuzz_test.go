package report

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// FuzzRange: whatever GitLab answers, with whatever Range, the pieces follow one another: each begins where the last one
// that was taken ended, or where GitLab said, or at 0 after a 412; so none is sent twice after its 202, and none is left
// out. What is not there is not sent, nothing is sent to a job that is gone, and the state machine neither ends nor runs
// wild by itself.
func FuzzRange(f *testing.F) {
	f.Add([]byte{10, 0, 0, 202, 20, 0, 1, 16, 30, 0, 0, 202, 0, 0, 4, 200}, false)
	f.Add([]byte{200, 1, 1, 16, 0, 0, 3, 12, 9, 9, 9, 9, 8, 8, 8, 8}, true)
	f.Add([]byte{255, 255, 1, 255, 255, 255, 0, 0, 1, 0, 2, 0}, true)
	codes := []int{202, 416, 0, 200, 412, 500, 404, 400, 409, 413, 429, 202, 416, 416, 202, 200}
	f.Fuzz(func(t *testing.T, script []byte, resumed bool) {
		now := t0
		var length int64
		if resumed {
			length = 1000
		}
		r := New(now, length, resumed, func() float64 { return 0.5 })
		r.patchSize = 4096
		at := int64(0) // where the next piece begins
		completed := false
		for len(script) >= 4 {
			grow, code, far, said := script[0], script[1], script[2], script[3]
			script = script[4:]
			if !completed {
				length += int64(grow) * 37
				r.Written(now, length)
				if grow == 255 && far == 255 {
					completed = true
					r.Complete("success")
				}
			}
			var a Action
			for range 3 {
				if a = r.Next(now); a.Kind != Wait {
					break
				}
				require.True(t, a.Until.After(now))
				now = a.Until
			}
			require.NotEqual(t, Wait, a.Kind, "a wait leads to something")
			if a.Kind == Done || a.Kind == Idle {
				require.True(t, r.Outcome() != Open || r.Gone())
				return
			}
			answer := Answer{Code: codes[int(code)%len(codes)], Range: int64(binary.LittleEndian.Uint16([]byte{said, far})), RetryAfter: time.Duration(far%3) * time.Second}
			if a.Kind == Patch {
				require.Equal(t, at, a.From)
				require.Less(t, a.From, a.To)
				require.LessOrEqual(t, a.To, length)
				require.LessOrEqual(t, a.To-a.From, int64(4096))
				switch answer.Code {
				case 202:
					at = a.To
				case 416:
					at = answer.Range
				}
			}
			if a.Kind == Put {
				require.True(t, completed)
				require.True(t, at >= length || r.skip, "the result comes last")
				if answer.Code == 412 && r.rejections < resendsAfter412 {
					at = 0
				}
			}
			news := r.Answered(now, answer)
			require.LessOrEqual(t, r.Sent(), length)
			require.Equal(t, min(at, length), r.Sent())
			require.Equal(t, news.Gone, r.Gone())
			if r.Gone() {
				return
			}
		}
	})
}
