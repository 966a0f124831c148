// Package breaker decides when a GitLab that does not answer is left alone, and how fast one that asks for mercy is asked.
//
// A [Breaker] is closed while GitLab answers. It opens after several failures in a row that span some time: nothing is sent
// then, callers are told at once. When its time is over it is half open: one request goes through, and its end decides. A
// [Pace] bounds requests per second and gets slower with each 429. Both are pure: they are told the time and do no I/O; the
// caller serialises the calls.
package breaker

import (
	"fmt"
	"time"
)

// Settings of a Breaker; each field that is 0 takes its default.
type Settings struct {
	// Failures in a row, from the first to the last at least Span apart, open it, unless all are about one and the same
	// subject. Defaults: 5 and 3 s. The span keeps one broken connection with many requests on it from looking like a GitLab
	// that is down.
	Failures int
	Span     time.Duration
	// First is how long it is open at first; that doubles up to Most. Defaults: 1 s and 30 s.
	First, Most time.Duration
	// Probe is how long the one request of a half-open breaker is waited for before another one goes through: it may be one
	// that GitLab holds. Default: 10 s.
	Probe time.Duration
}

func (s *Settings) complete() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if s.Failures == 0 {
		s.Failures = 5
	}
	set(&s.Span, 3*time.Second)
	set(&s.First, time.Second)
	set(&s.Most, 30*time.Second)
	set(&s.Probe, 10*time.Second)
}

// Breaker is one GitLab's. Make it with New.
type Breaker struct {
	s    Settings
	dice func() float64 // in [0, 1)

	failures int       // in a row
	since    time.Time // the first of them
	asked    time.Time // GitLab wants to be left alone until then
	about    string    // the subject of all of them so far
	general  bool      // they are about more than one subject, or about GitLab itself

	opened int // times in a row; 0: closed
	until  time.Time
	turn   uint64 // grows with each opening and each probe
}

// New makes a closed breaker. dice gives numbers in [0, 1) for the jitter.
func New(s Settings, dice func() float64) *Breaker {
	s.complete()
	return &Breaker{s: s, dice: dice}
}

// Pass is the permission for one request; it is handed back by exactly one of Answered, Failed and Dropped.
type Pass struct {
	turn  uint64
	probe bool
}

// OpenError says that a request was not sent because the breaker is open.
type OpenError struct {
	Since time.Time // when GitLab began to fail
	Until time.Time // when the next request may be sent
}

func (e *OpenError) Error() string {
	return fmt.Sprintf("not sent: GitLab has failed since %s and is left alone until %s",
		e.Since.UTC().Format(time.RFC3339), e.Until.UTC().Format(time.RFC3339))
}

// Ask says whether a request may be sent now. The error is an *OpenError.
func (b *Breaker) Ask(now time.Time) (Pass, error) {
	if b.opened == 0 {
		return Pass{turn: b.turn}, nil
	}
	if now.Before(b.until) {
		return Pass{}, &OpenError{Since: b.since, Until: b.until}
	}
	b.turn++
	b.until = now.Add(b.s.Probe) // until it is known how this one ends
	return Pass{turn: b.turn, probe: true}, nil
}

// Answered notes that GitLab answered as one that works, whatever it said. It returns true if that closed the breaker. Also the
// answer to a request that was sent before it opened does: GitLab works now.
func (b *Breaker) Answered(Pass) (recovered bool) {
	recovered = b.opened > 0
	b.failures, b.opened, b.general = 0, 0, false
	b.since, b.asked = time.Time{}, time.Time{}
	return recovered
}

// Failure is an answer of trouble, or that there was none.
type Failure struct {
	Wait time.Duration // how long GitLab wants to be left alone; 0 if it did not say
	// About is whose request it was, if it may be the trouble of one job or one runner only; empty: it is GitLab's.
	About string
}

// Failed notes that a request failed. It returns true if that opened the breaker that was closed.
func (b *Breaker) Failed(now time.Time, p Pass, f Failure) (opened bool) {
	if at := now.Add(f.Wait); f.Wait > 0 && at.After(b.asked) {
		b.asked = at
	}
	if b.opened > 0 {
		// The other requests that fail meanwhile were sent earlier and are no news, except for how long GitLab wants.
		if p.probe && p.turn == b.turn {
			b.open(now)
		} else if now.Before(b.until) && b.asked.After(b.until) {
			b.until = b.asked
		}
		return false
	}
	b.failures++
	if b.failures == 1 {
		b.since, b.about = now, f.About
	}
	b.general = b.general || f.About == "" || f.About != b.about
	if b.failures < b.s.Failures || now.Sub(b.since) < b.s.Span || !b.general {
		return false
	}
	b.open(now)
	return true
}

// Dropped notes that the request ended without telling anything about GitLab, for example because the caller gave it up.
func (b *Breaker) Dropped(now time.Time, p Pass) {
	if b.opened > 0 && p.probe && p.turn == b.turn {
		b.until = now
	}
}

// Open returns since when GitLab has failed and until when nothing is sent, and false if the breaker is closed.
func (b *Breaker) Open() (OpenError, bool) {
	return OpenError{Since: b.since, Until: b.until}, b.opened > 0
}

func (b *Breaker) open(now time.Time) {
	wait := b.s.First
	for range b.opened {
		if wait *= 2; wait >= b.s.Most {
			wait = b.s.Most
			break
		}
	}
	b.opened++
	b.turn++
	b.until = now.Add(wait - time.Duration(b.dice()*float64(wait)/2))
	if b.asked.After(b.until) {
		b.until = b.asked
	}
}
