package polling

import "time"

// bucket is a token bucket that is told the time. A rate of 0 is no limit.
type bucket struct {
	rate   float64 // tokens per second
	burst  float64
	tokens float64
	last   time.Time
}

// newBucket lets at most perMinute requests pass in any minute: half of them at once, the others spread over it.
// Negative: no limit.
func newBucket(perMinute int, now time.Time) bucket {
	if perMinute < 0 {
		return bucket{}
	}
	half := max(float64(perMinute)/2, 1)
	return bucket{rate: half / 60, burst: half, tokens: half, last: now}
}

func (b *bucket) refill(now time.Time) {
	if passed := now.Sub(b.last); passed > 0 {
		b.tokens = min(b.tokens+b.rate*passed.Seconds(), b.burst)
		b.last = now
	}
}

// readyAt returns when the next token is there; not after now if there is one.
func (b *bucket) readyAt(now time.Time) time.Time {
	if b.rate == 0 {
		return now
	}
	b.refill(now)
	if b.tokens >= 1 {
		return now
	}
	return now.Add(time.Duration((1-b.tokens)/b.rate*float64(time.Second)) + time.Millisecond)
}

// take uses up a token, also one that is not there: the next is the later for it.
func (b *bucket) take(now time.Time) {
	if b.rate != 0 {
		b.refill(now)
		b.tokens--
	}
}
