package report

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var t0 = time.Unix(1_800_000_000, 0)

// script drives one report through time: it makes the requests that are due and answers them.
type script struct {
	t   *testing.T
	r   *Report
	now time.Time
}

func begin(t *testing.T, length int64, resumed bool) *script {
	return &script{t: t, r: New(t0, length, resumed, func() float64 { return 0 }), now: t0}
}

func (s *script) write(length int64) { s.r.Written(s.now, length) }

// expect lets time pass until something is due, checks how long that took and what it is.
func (s *script) expect(after time.Duration, want Action) {
	s.t.Helper()
	begin := s.now
	a := s.r.Next(s.now)
	for a.Kind == Wait {
		require.True(s.t, a.Until.After(s.now), "a wait must end later")
		s.now = a.Until
		a = s.r.Next(s.now)
	}
	require.Equal(s.t, want, a)
	require.Equal(s.t, after, s.now.Sub(begin), "time until %v", want.Kind)
}

func (s *script) answer(a Answer) News {
	s.t.Helper()
	return s.r.Answered(s.now, a)
}

func patch(from, to int64) Action { return Action{Kind: Patch, From: from, To: to} }

var (
	touch = Action{Kind: Touch}
	put   = Action{Kind: Put, Checksum: true}
	done  = Action{Kind: Done}
	idle  = Action{}
)

func TestATrivialJobNeedsOnePatchAndOnePut(t *testing.T) {
	s := begin(t, 0, false)
	s.write(100)
	s.now = s.now.Add(30 * time.Millisecond)
	s.write(900)
	s.r.Complete("success")
	s.expect(0, patch(0, 900))
	require.Equal(t, idle, s.r.Next(s.now), "one request at a time")
	s.answer(Answer{Code: 202, Interval: time.Minute})
	s.expect(0, put)
	require.Equal(t, Open, s.r.Outcome())
	s.answer(Answer{Code: 200})
	s.expect(0, done)
	require.Equal(t, Accepted, s.r.Outcome())
}

func TestAnEmptyTraceIsNeverPatched(t *testing.T) {
	s := begin(t, 0, false)
	s.r.Complete("failed")
	s.expect(0, put)
}

func TestTheIntervalIsObeyed(t *testing.T) {
	s := begin(t, 0, false)
	s.write(10)
	s.expect(Gather, patch(0, 10))
	s.answer(Answer{Code: 202})
	s.write(20)
	s.expect(Interval, patch(10, 20))
	s.answer(Answer{Code: 202, Interval: time.Minute})
	s.write(30)
	s.expect(time.Minute, patch(20, 30))
	s.answer(Answer{Code: 202, Interval: time.Hour})
	s.write(40)
	require.Equal(t, s.now.Add(TouchLatest), s.r.Next(s.now).Until, "a sign of life comes before the longest interval ends")
	s.expect(TouchLatest, touch)
	s.answer(Answer{Code: 200})
	s.expect(TouchLatest, touch)
	s.answer(Answer{Code: 200})
	s.expect(MaxInterval-2*TouchLatest, patch(30, 40))
}

func TestFirstBytesAfterASilenceWaitForMore(t *testing.T) {
	s := begin(t, 10, false)
	s.expect(Gather, patch(0, 10))
	s.answer(Answer{Code: 202})
	s.now = s.now.Add(20 * time.Second)
	s.write(11)
	s.expect(Gather, patch(10, 11))
}

func TestPaceIsFasterThanGitLabAsks(t *testing.T) {
	s := begin(t, 0, false)
	s.r.Pace(50 * time.Millisecond)
	s.write(10)
	s.expect(50*time.Millisecond, patch(0, 10))
	s.answer(Answer{Code: 202, Interval: time.Minute})
	s.write(20)
	s.expect(50*time.Millisecond, patch(10, 20))
	s.r.Pace(time.Hour)
	s.answer(Answer{Code: 202})
	s.write(30)
	s.expect(time.Minute, patch(20, 30))
}

func TestAFullPieceAndTheEndComeSooner(t *testing.T) {
	s := begin(t, 10, false)
	s.expect(Gather, patch(0, 10))
	s.answer(Answer{Code: 202, Interval: time.Minute})
	s.write(10 + PatchSize - 1)
	s.expect(time.Minute, patch(10, 10+PatchSize-1))
	s.answer(Answer{Code: 202})
	at := s.r.Sent()
	s.write(at + 2*PatchSize + 5)
	s.expect(0, patch(at, at+PatchSize))
	s.answer(Answer{Code: 202})
	s.expect(0, patch(at+PatchSize, at+2*PatchSize))
	s.answer(Answer{Code: 202})
	require.Equal(t, Wait, s.r.Next(s.now).Kind)
	s.r.Complete("success")
	s.expect(0, patch(at+2*PatchSize, at+2*PatchSize+5))
}

func TestACancelIsSaidOnceAndMakesTheRestComeSoon(t *testing.T) {
	s := begin(t, 10, false)
	s.expect(Gather, patch(0, 10))
	require.Equal(t, News{Canceling: true}, s.answer(Answer{Code: 202, Interval: time.Minute, JobStatus: "canceling"}))
	s.write(20)
	s.expect(Interval, patch(10, 20))
	require.Equal(t, News{}, s.answer(Answer{Code: 202, Interval: time.Minute, JobStatus: "canceling"}))
}

func TestASilentJobIsKeptAlive(t *testing.T) {
	for name, c := range map[string]struct{ interval, touch time.Duration }{
		"no header":        {0, TouchSoonest},
		"watched":          {3 * time.Second, TouchSoonest},
		"60 s":             {time.Minute, time.Minute},
		"a long interval":  {10 * time.Minute, TouchLatest},
		"over the maximum": {time.Hour, TouchLatest},
	} {
		t.Run(name, func(t *testing.T) {
			s := begin(t, 5, false)
			s.expect(Gather, patch(0, 5))
			s.answer(Answer{Code: 202, Interval: c.interval})
			for range 3 {
				s.expect(c.touch, touch)
				s.answer(Answer{Code: 200})
			}
		})
	}
}

func TestAJobWithoutATraceIsKeptAlive(t *testing.T) {
	s := begin(t, 0, false)
	s.expect(TouchSoonest, touch)
}

func TestAResumedReportAsksWithFewBytesAndSoon(t *testing.T) {
	s := begin(t, 3*PatchSize, true)
	s.expect(0, patch(0, ProbeSize))
	s.answer(Answer{Code: 416, Range: 2 * PatchSize})
	s.expect(0, patch(2*PatchSize, 3*PatchSize))

	s = begin(t, 0, true)
	s.expect(0, touch)

	s = begin(t, 100, true)
	s.expect(0, patch(0, 100))
}

func TestResumedReportsAreSpread(t *testing.T) {
	late := New(t0, PatchSize, true, func() float64 { return 0.9 })
	at, ok := late.Due(t0)
	require.True(t, ok)
	require.Equal(t, 9*resumeSpread/10, at.Sub(t0))
}

// next lets time pass until something is to be done.
func (s *script) next() Action {
	s.t.Helper()
	for {
		a := s.r.Next(s.now)
		if a.Kind != Wait {
			return a
		}
		s.now = a.Until
	}
}

func TestBytesThatAreTakenBackAreNotSentBeforeTheyAreThere(t *testing.T) {
	s := begin(t, 100, false)
	s.expect(Gather, patch(0, 100))
	s.answer(Answer{Code: 202})
	s.write(0)
	require.EqualValues(t, 0, s.r.Sent())
	s.write(100)
	s.write(120)
	s.expect(Interval, patch(100, 120))
}
