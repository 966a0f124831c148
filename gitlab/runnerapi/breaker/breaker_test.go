package breaker

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// clock drives a breaker without jitter.
type clock struct {
	*testing.T
	now time.Time
	b   *Breaker
}

func newClock(t *testing.T, s Settings) *clock {
	return &clock{T: t, now: start, b: New(s, func() float64 { return 0 })}
}

func (c *clock) after(d time.Duration) *clock {
	c.now = c.now.Add(d)
	return c
}

func (c *clock) pass() Pass {
	c.Helper()
	p, err := c.b.Ask(c.now)
	require.NoError(c, err)
	return p
}

func (c *clock) closed(since, until time.Duration) {
	c.Helper()
	_, err := c.b.Ask(c.now)
	open := new(OpenError)
	require.ErrorAs(c, err, &open)
	require.Equal(c, since, open.Since.Sub(start), "since")
	require.Equal(c, until, open.Until.Sub(start), "until")
}

func (c *clock) fail(wait time.Duration) bool {
	c.Helper()
	return c.b.Failed(c.now, c.pass(), Failure{Wait: wait})
}

func TestOpensAfterFailuresThatSpanSomeTime(t *testing.T) {
	c := newClock(t, Settings{})
	for range 100 { // one connection with a hundred requests on it broke
		require.False(t, c.fail(0))
	}
	c.after(2 * time.Second)
	require.False(t, c.fail(0))
	c.after(time.Second)
	require.True(t, c.fail(0))
	c.closed(0, 4*time.Second)

	c = newClock(t, Settings{})
	for range 4 {
		require.False(t, c.fail(0))
		c.after(time.Minute)
	}
	require.False(t, c.b.Answered(c.pass()), "it was not open")
	for range 4 {
		require.False(t, c.fail(0))
		c.after(time.Minute)
	}
	require.True(t, c.fail(0))
}

// One job at which GitLab fails each time is that job's trouble.
func TestTheTroubleOfOneIsNotThatOfAll(t *testing.T) {
	c := newClock(t, Settings{})
	fail := func(about string) bool {
		c.after(time.Second)
		return c.b.Failed(c.now, c.pass(), Failure{About: about})
	}
	for range 100 {
		require.False(t, fail("one"))
	}
	require.True(t, fail("another"))
	c.after(time.Minute)
	require.True(t, c.b.Answered(c.pass()))
	for range 100 {
		require.False(t, fail("another"), "what came before is forgotten")
	}
	require.True(t, fail(""))
}

func opened(t *testing.T) *clock {
	c := newClock(t, Settings{Failures: 1, Span: 1})
	c.fail(0)
	c.after(1)
	require.True(t, c.fail(0))
	return c
}

func TestHalfOpen(t *testing.T) {
	c := opened(t)
	c.closed(0, time.Second+1)
	c.after(time.Second)
	probe := c.pass()
	c.closed(0, 11*time.Second+1)
	for i, seconds := range []int{2, 4, 8, 16, 30, 30, 30} {
		require.False(t, c.b.Failed(c.now, probe, Failure{}), "it was open before")
		c.after(time.Duration(seconds)*time.Second - 1)
		_, err := c.b.Ask(c.now)
		require.Error(t, err, i)
		c.after(1)
		probe = c.pass()
	}
	require.True(t, c.b.Answered(probe))
	c.pass()
	c.pass()
	_, is := c.b.Open()
	require.False(t, is)
	// What came before is forgotten.
	require.False(t, c.fail(0))
	require.True(t, c.after(1).fail(0))
	since := c.now.Add(-1).Sub(start)
	c.closed(since, since+time.Second+1)
}

func TestAHeldProbeDoesNotBlock(t *testing.T) {
	c := opened(t)
	held := c.after(time.Second).pass()
	second := c.after(10 * time.Second).pass()
	c.b.Failed(c.now, held, Failure{}) // an old one: it decides nothing
	c.closed(0, 21*time.Second+1)
	c.b.Failed(c.now, second, Failure{})
	c.closed(0, 13*time.Second+1)
	require.True(t, c.b.Answered(held), "an answer is an answer, however old the request")
}

func TestADroppedProbeIsReplaced(t *testing.T) {
	c := opened(t)
	probe := c.after(time.Second).pass()
	c.b.Dropped(c.now, probe)
	second := c.pass()
	c.b.Dropped(c.now, probe) // twice, and late: no effect
	_, err := c.b.Ask(c.now)
	require.Error(t, err)
	require.True(t, c.b.Answered(second))
	c.b.Dropped(c.now, second)
	c.pass()
}

func TestRetryAfterIsObeyed(t *testing.T) {
	c := newClock(t, Settings{})
	for range 4 {
		require.False(t, c.fail(time.Minute))
		c.after(time.Second)
	}
	require.True(t, c.fail(0))
	c.closed(0, 63*time.Second)
	// Requests that were on their way are told to stay away longer.
	c.b.Failed(c.now, Pass{}, Failure{Wait: 2 * time.Minute})
	c.closed(0, 124*time.Second)
	probe := c.after(2 * time.Minute).pass()
	c.b.Failed(c.now, probe, Failure{Wait: 3 * time.Minute})
	c.closed(0, 304*time.Second)
}

func TestJitter(t *testing.T) {
	b := New(Settings{Failures: 1, Span: 1, First: 10 * time.Second}, func() float64 { return 0.5 })
	b.Failed(start, Pass{}, Failure{})
	b.Failed(start.Add(1), Pass{}, Failure{})
	open, is := b.Open()
	require.True(t, is)
	require.Equal(t, start.Add(7500*time.Millisecond+1), open.Until)
	require.EqualError(t, &open, "not sent: GitLab has failed since 2026-01-02T03:04:05Z and is left alone until 2026-01-02T03:04:12Z")
}

// Whatever happens: while it is open at most one request passes per Probe, waits are bounded, an answer opens the way for
// all, and a breaker that nobody asks anything of lets a request through in the end.
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Settings{Failures: rapid.IntRange(1, 4).Draw(t, "failures")}
		b := New(s, func() float64 { return rapid.Float64Range(0, 0.999).Draw(t, "dice") })
		s = b.s
		now := start
		var out []Pass
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 15000).Draw(t, "ms")) * time.Millisecond)
			_, wasOpen := b.Open()
			take := func() Pass {
				i := rapid.IntRange(0, len(out)-1).Draw(t, "which")
				p := out[i]
				out = append(out[:i], out[i+1:]...)
				return p
			}
			switch op := rapid.IntRange(0, 4).Draw(t, "op"); {
			case op <= 1:
				p, err := b.Ask(now)
				if err == nil {
					out = append(out, p)
				}
				require.True(t, wasOpen || err == nil, "closed lets everything through")
				if wasOpen && err == nil {
					_, again := b.Ask(now)
					require.Error(t, again, "one at a time")
				}
			case len(out) == 0:
			case op == 2:
				require.Equal(t, wasOpen, b.Answered(take()))
				_, is := b.Open()
				require.False(t, is)
			case op == 3:
				wait := time.Duration(rapid.IntRange(0, 300).Draw(t, "retry after")) * time.Second
				b.Failed(now, take(), Failure{Wait: wait, About: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "about")})
			default:
				b.Dropped(now, take())
			}
			if open, is := b.Open(); is {
				require.LessOrEqual(t, open.Until.Sub(now), max(s.Most, s.Probe, 300*time.Second))
				require.False(t, open.Since.After(now))
			}
		}
		if open, is := b.Open(); is {
			_, err := b.Ask(open.Until)
			require.NoError(t, err)
		}
	})
}

func TestPace(t *testing.T) {
	p := NewPace(10, start)
	now := start
	for range 10 {
		require.Zero(t, p.Wait(now))
	}
	require.Equal(t, 100*time.Millisecond, p.Wait(now))
	require.Equal(t, 200*time.Millisecond, p.Wait(now), "behind the first")
	p.Back()
	require.Equal(t, 200*time.Millisecond, p.Wait(now))
	now = now.Add(time.Hour)
	for range 10 {
		require.Zero(t, p.Wait(now), "no more than a second's worth is saved up")
	}
	require.Equal(t, 100*time.Millisecond, p.Wait(now))
}

func TestTooManyRequestsSlowDown(t *testing.T) {
	p := NewPace(32, start)
	now := start.Add(time.Minute)
	for range 20 {
		p.TooMany(now) // all of one moment
	}
	rate := func() int {
		n := 0
		for now = now.Add(time.Second); p.Wait(now) == 0; n++ {
		}
		p.Back()
		return n
	}
	require.Equal(t, 16, rate())
	for range 10 {
		p.TooMany(now)
		now = now.Add(2 * time.Second)
	}
	require.Equal(t, 1, rate(), "it never stops")
	now = now.Add(slowStep)
	require.Equal(t, 2, rate())
	now = now.Add(5 * slowStep)
	require.Equal(t, 32, rate())
}
