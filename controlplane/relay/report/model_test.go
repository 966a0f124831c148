package report

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// gitlab is GitLab's side of one job, with all that may go wrong on the way.
type gitlab struct {
	trace    []byte
	status   string
	results  int
	busy     int // how many PUTs are answered by 202 before the result is taken
	interval time.Duration
}

func (g *gitlab) patch(from int64, data []byte) Answer {
	if g.status != "running" && g.status != "canceling" {
		return Answer{Code: 403, JobStatus: g.status}
	}
	a := Answer{JobStatus: g.status, Interval: g.interval}
	if from != int64(len(g.trace)) {
		a.Code, a.Range = 416, int64(len(g.trace))
		return a
	}
	g.trace = append(g.trace, data...)
	a.Code, a.Range = 202, int64(len(g.trace))
	return a
}

func (g *gitlab) put(state string) Answer {
	switch {
	case g.status != "running" && g.status != "canceling":
		return Answer{Code: 403, JobStatus: g.status}
	case state == "running":
		return Answer{Code: 200, JobStatus: g.status}
	case g.busy > 0:
		g.busy--
		return Answer{Code: 202, JobStatus: g.status, Interval: time.Second}
	}
	g.results++
	g.status = state
	return Answer{Code: 200, JobStatus: state}
}

// Whatever is lost, refused or repeated on the way: GitLab's trace is a prefix of the job's at any time and all of it at
// the end, the result comes once and last, pieces are not empty and not too long, and none comes before its time.
func TestGitLabGetsEveryByteOnceAndThenTheResult(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := &gitlab{status: "running", busy: rapid.IntRange(0, 2).Draw(t, "busy")}
		jitter := func() float64 { return float64(rapid.IntRange(0, 99).Draw(t, "jitter")) / 100 }
		now := t0
		var whole []byte
		write := func(n int) {
			for range n {
				whole = append(whole, byte(len(whole)*7+len(whole)>>8))
			}
		}
		if rapid.Bool().Draw(t, "resumed") {
			write(rapid.IntRange(0, 3000).Draw(t, "there"))
			g.trace = bytes.Clone(whole[:rapid.IntRange(0, len(whole)).Draw(t, "in GitLab")])
		}
		r := New(now, int64(len(whole)), len(whole) > 0, jitter)
		r.patchSize = 1000

		finished := false
		trouble := rapid.IntRange(0, 60).Draw(t, "trouble")
		var patched, nextPiece time.Time
		send := func(a Action) Answer {
			var fault string
			if trouble > 0 {
				trouble--
				fault = rapid.SampledFrom([]string{
					"", "", "", "no answer", "lost request", "500", "429", "409", "413", "404 once", "trace lost", "412", "interval", "garbage",
				}).Draw(t, "fault")
			}
			switch fault {
			case "lost request":
				return Answer{}
			case "500":
				return Answer{Code: 500}
			case "429":
				return Answer{Code: 429, RetryAfter: time.Duration(rapid.IntRange(0, 90).Draw(t, "retry after")) * time.Second}
			case "409":
				return Answer{Code: 409}
			case "413":
				if a.Kind == Patch {
					return Answer{Code: 413}
				}
			case "404 once":
				if r.patch.missing == 0 && r.put.missing == 0 {
					return Answer{Code: 404}
				}
			case "trace lost":
				if a.Kind == Patch { // otherwise nobody finds out
					g.trace = g.trace[:0]
				}
			case "412":
				if a.Kind == Put && g.results == 0 && r.rejections < resendsAfter412 {
					g.trace = g.trace[:0]
					return Answer{Code: 412}
				}
			case "interval":
				g.interval = time.Duration(rapid.IntRange(1, 90).Draw(t, "interval")) * time.Second
			case "garbage":
				if a.Kind == Patch {
					return Answer{Code: 416, Range: rapid.Int64Range(0, int64(len(whole)-1)).Draw(t, "range")}
				}
			}
			var answer Answer
			switch a.Kind {
			case Patch:
				answer = g.patch(a.From, whole[a.From:a.To])
			case Touch:
				answer = g.put("running")
			case Put:
				answer = g.put("success")
			}
			if fault == "no answer" {
				return Answer{}
			}
			return answer
		}

		for steps := 0; ; steps++ {
			require.Less(t, steps, 20_000, "it must end")
			if !finished && rapid.IntRange(0, 3).Draw(t, "write") == 0 {
				write(rapid.SampledFrom([]int{1, 10, 300, 2500}).Draw(t, "bytes"))
				r.Written(now, int64(len(whole)))
			}
			if !finished && (len(whole) > 30_000 || rapid.IntRange(0, 40).Draw(t, "finish") == 0) {
				finished = true
				r.Complete("success")
			}
			a := r.Next(now)
			switch a.Kind {
			case Done:
				require.Equal(t, Accepted, r.Outcome())
				require.Equal(t, 1, g.results, "results")
				require.True(t, bytes.Equal(whole, g.trace))
				return
			case Idle:
				t.Fatalf("a job that runs always has a next time")
			case Wait:
				require.True(t, a.Until.After(now))
				// Not always as far as that: bytes may come before.
				if !finished && rapid.Bool().Draw(t, "early") {
					now = now.Add(a.Until.Sub(now) / 2)
				} else {
					now = a.Until
				}
				continue
			case Patch:
				require.Less(t, a.From, a.To, "no empty piece")
				require.GreaterOrEqual(t, a.From, int64(0))
				require.LessOrEqual(t, a.To, int64(len(whole)))
				require.LessOrEqual(t, a.To-a.From, int64(1000))
				if !finished && a.To-a.From < r.patchSize && !patched.IsZero() {
					require.False(t, now.Before(nextPiece), "a piece came %v too soon", nextPiece.Sub(now))
				}
			}
			answer := send(a)
			now = now.Add(time.Duration(rapid.IntRange(0, 500).Draw(t, "took")) * time.Millisecond)
			require.False(t, r.Answered(now, answer).Gone)
			if a.Kind == Patch {
				patched = now
				if !r.probe {
					nextPiece = now.Add(r.interval)
				}
			}
			require.True(t, bytes.HasPrefix(whole, g.trace), "GitLab's trace is not a prefix of the job's")
		}
	})
}
