package breaker

import "time"

const (
	// Each slowStep without a 429 makes a pace twice as fast again.
	slowStep = 10 * time.Second
	// mostSlow halvings are the slowest pace.
	mostSlow = 5
	// patience is how long further 429 count as the same: their requests were sent before the first was known.
	patience = time.Second
)

// Pace bounds how many requests a GitLab is sent in a second. Make it with NewPace.
type Pace struct {
	full float64   // requests per second
	slow int       // times halved
	said time.Time // the last 429 that counted, or the last time that it got faster

	tokens float64
	last   time.Time
}

// NewPace lets perSecond requests through in a second, as many at once after a pause of a second.
func NewPace(perSecond float64, now time.Time) *Pace {
	return &Pace{full: perSecond, tokens: perSecond, last: now}
}

// Wait takes the place of one request in the row and returns how long it has to wait for its turn; 0: none.
func (p *Pace) Wait(now time.Time) time.Duration {
	for p.slow > 0 && now.Sub(p.said) >= slowStep {
		p.slow--
		p.said = p.said.Add(slowStep)
	}
	rate := p.rate()
	if passed := now.Sub(p.last); passed > 0 {
		p.tokens = min(p.tokens+rate*passed.Seconds(), rate)
		p.last = now
	}
	p.tokens--
	if p.tokens >= 0 {
		return 0
	}
	return time.Duration(-p.tokens / rate * float64(time.Second))
}

// Back gives up the place of a request that did not wait for its turn.
func (p *Pace) Back() { p.tokens++ }

// TooMany notes that GitLab answered 429. It halves the pace, down to a 32nd, until ten seconds for each halving have passed
// without another.
func (p *Pace) TooMany(now time.Time) {
	if p.slow > 0 && now.Sub(p.said) < patience {
		return
	}
	p.said = now
	if p.slow < mostSlow {
		p.slow++
		p.tokens = min(p.tokens, p.rate())
	}
}

func (p *Pace) rate() float64 { return p.full / float64(int(1)<<p.slow) }
