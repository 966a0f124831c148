package polling

import "time"

const (
	// minHold is the least time that a GitLab must hold a watch for watching to be worth it.
	minHold = time.Second
	// holdMargin is how far from the learned hold time an answer still counts as "at" it. A change in that span is found by
	// the next watch, so it is kept small.
	holdMargin = 250 * time.Millisecond
	// shortSamples in a row say that a GitLab does not hold requests; one alone may be a restart of its front end.
	shortSamples = 3
	// holdCheck is how often a GitLab that does not hold requests is asked whether it does by now.
	holdCheck  = 10 * time.Minute
	slowAnswer = 5 * time.Second
	// A watch that lasts longer than this (or than the learned time and a quarter, and 10 s) is given up.
	maxWatch = 5 * time.Minute
)

// holdTime is what the poller has measured about how long GitLab holds a watch. The zero value knows nothing.
type holdTime struct {
	known    time.Duration // 0: not known
	short    int           // samples shorter than minHold, in a row
	holdsNot bool
	checkAt  time.Time // if holdsNot: when to ask again
}

// sample takes a watch that ended after held although nothing had changed.
func (h *holdTime) sample(now time.Time, held time.Duration) {
	if held >= minHold {
		*h = holdTime{known: held}
		return
	}
	h.known = 0
	h.short++
	if h.short >= shortSamples {
		h.holdsNot, h.checkAt = true, now.Add(holdCheck)
	}
}

// answeredByRails corrects the time of a watch to which Rails itself said that nothing had changed: nobody held it, Rails
// was slow, unless that lasted longer than any healthy answer.
func answeredByRails(held time.Duration) time.Duration {
	if held < slowAnswer {
		return 0
	}
	return held
}

// timedOut says whether a bare 204 after held is what this GitLab does when nothing changes.
func (h *holdTime) timedOut(held time.Duration) bool {
	return h.known > 0 && (held-h.known).Abs() <= holdMargin
}

// limit is how long a watch may last.
func (h *holdTime) limit() time.Duration {
	if h.known == 0 {
		return maxWatch
	}
	return h.known + max(h.known/4, 10*time.Second)
}
