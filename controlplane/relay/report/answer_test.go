package report

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestARangeThatDiffers(t *testing.T) {
	t.Run("GitLab has more", func(t *testing.T) { // the answer to an earlier PATCH was lost
		s := begin(t, 100, false)
		s.r.Complete("success")
		s.expect(0, patch(0, 100))
		s.answer(Answer{})
		s.expect(BackoffFirst, patch(0, 100))
		s.answer(Answer{Code: 416, Range: 100})
		s.expect(0, put)
	})
	t.Run("GitLab has lost the trace", func(t *testing.T) {
		s := begin(t, 100, false)
		s.expect(Gather, patch(0, 100))
		s.answer(Answer{Code: 202})
		s.write(150)
		s.expect(Interval, patch(100, 150))
		s.answer(Answer{Code: 416})
		s.expect(Interval, patch(0, 150))
		s.answer(Answer{Code: 202})
		require.EqualValues(t, 150, s.r.Sent())
	})
	t.Run("GitLab has more than there is here", func(t *testing.T) {
		s := begin(t, 100, true)
		s.expect(0, patch(0, 100))
		s.answer(Answer{Code: 416, Range: 500})
		require.EqualValues(t, 100, s.r.Sent(), "never more than there is")
		s.expect(0, touch) // nothing to patch; the sign of life is due
		s.answer(Answer{Code: 200})
		s.write(600)
		s.expect(Interval, patch(500, 600))
	})
	t.Run("GitLab contradicts itself", func(t *testing.T) {
		s := begin(t, 100, false)
		s.r.Complete("success")
		for _, seconds := range []int{0, 1, 2, 4, 8} {
			s.expect(time.Duration(seconds)*time.Second, patch(0, 100))
			s.answer(Answer{Code: 416, Range: 0})
		}
		require.Equal(t, 5, s.r.Failures())
	})
	t.Run("two offsets in turn", func(t *testing.T) {
		s := begin(t, 100, false)
		s.r.Complete("success")
		s.expect(0, patch(0, 100))
		s.answer(Answer{Code: 416, Range: 50})
		s.expect(0, patch(50, 100))
		s.answer(Answer{Code: 416, Range: 0})
		s.expect(BackoffFirst, patch(0, 100))
	})
}

func TestFailuresAreRetriedWithinBounds(t *testing.T) {
	for _, code := range []int{0, 400, 401, 408, 409, 429, 500, 502, 503, 200, 302} {
		s := begin(t, 100, false)
		s.r.Complete("success")
		for _, seconds := range []int{0, 1, 2, 4, 8} { // then a sign of life comes in between
			s.expect(time.Duration(seconds)*time.Second, patch(0, 100))
			require.Equal(t, News{}, s.answer(Answer{Code: code}))
		}
	}
}

func TestJitterTakesAwayAtMostHalf(t *testing.T) {
	for _, j := range []float64{0, 0.5, 0.999} {
		r := New(t0, 1, false, func() float64 { return j })
		r.Complete("success")
		now := t0
		for i := range 12 {
			for a := r.Next(now); a.Kind != Patch; a = r.Next(now) {
				if a.Kind == Touch {
					r.Answered(now, Answer{Code: 200})
					continue
				}
				now = a.Until
			}
			r.Answered(now, Answer{Code: 500})
			full := min(BackoffFirst<<i, BackoffMost)
			wait := r.patch.notBefore.Sub(now)
			require.LessOrEqual(t, wait, full)
			require.GreaterOrEqual(t, wait, full/2)
		}
	}
}

func TestRetryAfterIsObeyed(t *testing.T) {
	s := begin(t, 100, false)
	s.r.Complete("success")
	s.expect(0, patch(0, 100))
	s.answer(Answer{Code: 429, RetryAfter: 20 * time.Second})
	s.expect(20*time.Second, patch(0, 100))
	s.answer(Answer{Code: 202})
	s.expect(0, put)
	s.answer(Answer{Code: 429, RetryAfter: time.Hour})
	s.expect(MaxInterval, put)
}

func TestWhenGitLabTakesNothingMore(t *testing.T) {
	running := func(t *testing.T) *script {
		s := begin(t, 100, false)
		s.expect(Gather, patch(0, 100))
		return s
	}
	t.Run("403", func(t *testing.T) {
		s := running(t)
		require.Equal(t, News{Gone: true}, s.answer(Answer{Code: 403}))
		s.write(200)
		s.expect(0, idle)
		s.r.Complete("failed")
		s.expect(0, done)
		require.Equal(t, Gone, s.r.Outcome())
	})
	t.Run("canceled, though it took the bytes", func(t *testing.T) {
		s := running(t)
		require.Equal(t, News{Gone: true}, s.answer(Answer{Code: 202, JobStatus: "canceled"}))
	})
	t.Run("failed, said to a sign of life", func(t *testing.T) {
		s := begin(t, 0, false)
		s.expect(TouchSoonest, touch)
		require.Equal(t, News{Gone: true}, s.answer(Answer{Code: 200, JobStatus: "failed"}))
	})
	t.Run("404 for an hour", func(t *testing.T) {
		s := running(t)
		for !s.answer(Answer{Code: 404}).Gone {
			for a := s.next(); a != patch(0, 100); a = s.next() {
				require.Equal(t, touch, a)
				s.answer(Answer{})
			}
		}
		require.InDelta(t, MissingFor, s.now.Sub(t0), float64(2*BackoffMost))
	})
	t.Run("404 for long, but not all the time", func(t *testing.T) {
		s := begin(t, 0, false)
		s.r.Complete("success")
		for i := 1; s.now.Before(t0.Add(24 * time.Hour)); i++ {
			require.Equal(t, put, s.next())
			code := 404
			if i%50 == 0 {
				code = 502
			}
			require.Equal(t, News{}, s.answer(Answer{Code: code}))
		}
	})
	t.Run("403 to the result", func(t *testing.T) {
		s := begin(t, 0, false)
		s.r.Complete("success")
		s.expect(0, put)
		require.Equal(t, News{Gone: true}, s.answer(Answer{Code: 403, JobStatus: "canceled"}))
		require.Equal(t, Gone, s.r.Outcome())
	})
	t.Run("403 because an earlier PUT has worked", func(t *testing.T) {
		for _, final := range []string{"success", "failed"} {
			s := begin(t, 0, false)
			s.r.Complete(final)
			s.expect(0, put)
			s.answer(Answer{})
			s.expect(BackoffFirst, put)
			require.Equal(t, News{}, s.answer(Answer{Code: 403, JobStatus: final}))
			require.Equal(t, Accepted, s.r.Outcome())
		}
	})
}

func TestAResultThatCameBeforeARestart(t *testing.T) {
	for status, want := range map[string]Outcome{"success": Accepted, "failed": Gone, "canceled": Gone, "": Gone} {
		s := begin(t, 100, true)
		s.expect(0, patch(0, 100))
		require.Equal(t, News{Gone: true}, s.answer(Answer{Code: 403, JobStatus: status}), "the result is not known yet")
		s.r.Complete("success")
		s.expect(0, done)
		require.Equal(t, want, s.r.Outcome(), status)
	}
	s := begin(t, 0, true)
	s.expect(0, touch)
	s.answer(Answer{Code: 403, JobStatus: "failed"})
	s.r.Complete("failed")
	s.expect(0, done)
	require.Equal(t, Gone, s.r.Outcome(), "it may have been dropped")
}

func TestAcceptedButNotDone(t *testing.T) {
	s := begin(t, 0, false)
	s.r.Complete("success")
	s.expect(0, put)
	s.answer(Answer{Code: 202, Interval: 4 * time.Second})
	s.expect(4*time.Second, put)
	s.answer(Answer{Code: 202})
	s.expect(Interval, put)
	s.answer(Answer{Code: 200, JobStatus: "success"})
	require.Equal(t, Accepted, s.r.Outcome())
}

func TestTheResultOfACanceledJobIsAccepted(t *testing.T) {
	s := begin(t, 0, false)
	s.r.Complete("failed")
	s.expect(0, put)
	s.answer(Answer{Code: 200, JobStatus: "canceled"}) // GitLab's word after the PUT
	require.Equal(t, Accepted, s.r.Outcome())
}

func TestATraceThatGitLabRejectsIsSentAgainAndThenWithoutAChecksum(t *testing.T) {
	s := begin(t, 100, false)
	s.r.Complete("success")
	for i := range resendsAfter412 {
		require.Equal(t, patch(0, 100), s.next(), "round %d", i)
		s.answer(Answer{Code: 202})
		require.Equal(t, put, s.next())
		require.True(t, s.answer(Answer{Code: 412}).Rejected)
	}
	require.Equal(t, patch(0, 100), s.next())
	s.answer(Answer{Code: 202})
	require.Equal(t, put, s.next())
	s.answer(Answer{Code: 412})
	require.Equal(t, Action{Kind: Put}, s.next())
	s.answer(Answer{Code: 200})
	require.Equal(t, Accepted, s.r.Outcome())
}

func TestAResultIsRetriedWhileThereIsHope(t *testing.T) {
	t.Run("GitLab is away for a week", func(t *testing.T) {
		s := begin(t, 0, false)
		s.r.Complete("success")
		for s.now.Before(t0.Add(7 * 24 * time.Hour)) {
			require.Equal(t, put, s.next())
			s.answer(Answer{Code: 503})
		}
		require.Equal(t, put, s.next())
		s.answer(Answer{Code: 200})
		require.Equal(t, Accepted, s.r.Outcome())
	})
	t.Run("GitLab says no", func(t *testing.T) {
		s := begin(t, 0, false)
		s.r.Complete("success")
		for a := s.next(); a != done; a = s.next() {
			require.Equal(t, put, a)
			s.answer(Answer{Code: 400})
		}
		require.Equal(t, Refused, s.r.Outcome())
		require.InDelta(t, RefusedFor, s.now.Sub(t0), float64(BackoffMost))
	})
	t.Run("a no that is not the last word", func(t *testing.T) {
		s := begin(t, 0, false)
		s.r.Complete("success")
		for i := 0; s.now.Before(t0.Add(3 * RefusedFor)); i++ {
			require.Equal(t, put, s.next())
			code := 409
			if i%60 == 59 {
				code = 500
			}
			s.answer(Answer{Code: code})
		}
		require.Equal(t, Open, s.r.Outcome())
	})
}

func TestWhileTheRestOfTheTraceIsRefused(t *testing.T) {
	// answerAll answers touches and the PUT with one code, PATCHes with another, and counts the touches.
	answerAll := func(s *script, until time.Time, patch, other int) (touches int, put bool) {
		for s.now.Before(until) {
			switch a := s.next(); a.Kind {
			case Patch:
				s.answer(Answer{Code: patch})
			case Touch:
				touches++
				s.answer(Answer{Code: other})
			case Put:
				return touches, true
			}
		}
		return touches, false
	}
	t.Run("the job is kept alive and the result sent in the end", func(t *testing.T) {
		s := begin(t, 100, false)
		s.r.Complete("success")
		touches, result := answerAll(s, t0.Add(2*FlushFor), 500, 200)
		require.True(t, result)
		require.InDelta(t, FlushFor, s.now.Sub(t0), float64(3*time.Minute))
		require.Greater(t, touches, 30)
		require.True(t, s.r.skip)
	})
	t.Run("the hour begins anew after progress and after silence", func(t *testing.T) {
		s := begin(t, 2*PatchSize, false)
		s.r.Complete("success")
		most := FlushFor - 3*time.Minute
		_, result := answerAll(s, s.now.Add(most), 500, 200)
		require.False(t, result)
		for a := s.next(); ; a = s.next() {
			if a.Kind == Patch {
				s.answer(Answer{Code: 202})
				break
			}
			s.answer(Answer{Code: 200})
		}
		_, result = answerAll(s, s.now.Add(most), 500, 200)
		require.False(t, result, "one piece was taken")
		_, result = answerAll(s, s.now.Add(5*time.Minute), 500, 500)
		require.False(t, result)
		_, result = answerAll(s, s.now.Add(most), 500, 200)
		require.False(t, result, "GitLab was away")
		_, result = answerAll(s, s.now.Add(10*time.Minute), 500, 200)
		require.True(t, result)
	})
	t.Run("not while GitLab answers nothing", func(t *testing.T) {
		s := begin(t, 100, false)
		s.r.Complete("success")
		_, result := answerAll(s, t0.Add(5*FlushFor), 0, 0)
		require.False(t, result)
		// It is back: the trace goes first.
		_, result = answerAll(s, s.now.Add(10*time.Minute), 502, 200)
		require.False(t, result)
		a := s.next()
		for ; a.Kind == Touch; a = s.next() {
			s.answer(Answer{Code: 200})
		}
		require.Equal(t, patch(0, 100), a)
		s.answer(Answer{Code: 202})
		require.Equal(t, put, s.next())
	})
}

func TestPiecesThatAreTooLargeGetSmaller(t *testing.T) {
	s := begin(t, 2*PatchSize, false)
	s.r.Complete("success")
	size := int64(PatchSize)
	for ; size > minPatchSize; size /= 2 {
		s.expect(0, patch(0, size))
		s.answer(Answer{Code: 413})
	}
	s.expect(0, patch(0, size))
	s.answer(Answer{Code: 413})
	s.expect(BackoffFirst, patch(0, size))
	s.answer(Answer{Code: 202})
	s.expect(0, patch(size, 2*size))
}

func TestWhenGitLabIsBackNothingWaits(t *testing.T) {
	for _, code := range []int{0, 404, 500, 502, 503} {
		s := begin(t, 100, false)
		s.r.Complete("success")
		for range 10 {
			for a := s.next(); a.Kind != Patch; a = s.next() {
				s.answer(Answer{Code: code})
			}
			s.answer(Answer{Code: code})
		}
		require.True(t, s.r.Down())
		require.Equal(t, Wait, s.r.Next(s.now).Kind)
		s.r.Wake(s.now)
		s.expect(0, patch(0, 100))
		require.False(t, s.r.Down(), "it is under way")
		s.answer(Answer{Code: 202})
	}
	for name, a := range map[string]Answer{
		"asked to wait": {Code: 503, RetryAfter: time.Minute}, "too many": {Code: 429}, "refused": {Code: 400},
	} {
		s := begin(t, 0, false)
		s.r.Complete("success")
		s.expect(0, put)
		s.answer(a)
		require.False(t, s.r.Down(), name)
		s.r.Wake(s.now)
		require.Equal(t, Wait, s.r.Next(s.now).Kind, name)
	}
}

func TestAViewerComesAndGoes(t *testing.T) {
	s := begin(t, 10, false)
	s.expect(Gather, patch(0, 10))
	s.answer(Answer{Code: 202, Interval: time.Minute})
	s.write(20)
	s.expect(time.Minute, patch(10, 20))
	s.answer(Answer{Code: 202, Interval: 3 * time.Second})
	s.write(30)
	s.expect(3*time.Second, patch(20, 30))
	s.answer(Answer{Code: 202, Interval: time.Minute})
	s.write(40)
	s.now = s.now.Add(5 * time.Second)
	require.Equal(t, Wait, s.r.Next(s.now).Kind)
	// A sign of life that says so is obeyed, too.
	s.now = s.now.Add(55 * time.Second)
	s.expect(0, patch(30, 40))
	s.answer(Answer{Code: 202, Interval: time.Minute})
	s.expect(time.Minute, touch)
	s.answer(Answer{Code: 200, Interval: 3 * time.Second})
	s.write(50)
	s.expect(Gather, patch(40, 50))
}
