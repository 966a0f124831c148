package uplink

import (
	"math/rand/v2"
	"time"
)

// Backoff spaces attempts: each falls on a random moment of a window, and the windows follow one another and double, so
// that the attempts of a whole fleet stay spread evenly however long the outage lasts. It never gives up; the zero
// value is not usable. Not safe for concurrent use.
type Backoff struct {
	First, Most time.Duration // the windows' lengths

	window time.Duration
	rest   time.Duration // of the last window, after its attempt
}

// Next returns how long to wait before the next attempt: at most rest of the last window + Most.
func (b *Backoff) Next() time.Duration {
	if b.window == 0 {
		b.window = b.First
	} else {
		b.window = min(2*b.window, b.Most)
	}
	at := rand.N(b.window)
	wait := b.rest + at
	b.rest = b.window - at
	return wait
}

// Reset begins anew, after a success.
func (b *Backoff) Reset() { b.window, b.rest = 0, 0 }

// Jitter returns d spread evenly over [d/2, 3d/2).
func Jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d/2 + rand.N(d)
}
