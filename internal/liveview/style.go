package liveview

import (
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Style says what may be used to draw with.
type Style struct {
	Color bool
	// ASCII: no other characters for symbols and lines (the texts of others stay as they are).
	ASCII bool
}

type color string

const (
	plain  color = ""
	bold   color = "1"
	dim    color = "2"
	red    color = "31"
	green  color = "32"
	yellow color = "33"
	blue   color = "34"
	cyan   color = "36"
)

// paint colours a text.
func (s Style) paint(c color, text string) string {
	if !s.Color || c == plain || text == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// pick chooses between a character and its stand-in.
func (s Style) pick(unicode, ascii string) string {
	if s.ASCII {
		return ascii
	}
	return unicode
}

// class is what a job counts as in the eyes of the one who waits for it. The order is that of importance.
type class int

const (
	running class = iota
	failed
	pending
	tolerated // failed, and may
	canceled
	scheduled
	waiting
	manual
	skipped
	passed
	numClasses
)

func classOf(j coordinator.Job) class {
	switch j.Status {
	case runnerapi.StateRunning, runnerapi.StateCanceling:
		return running
	case runnerapi.StateFailed:
		if j.AllowFailure {
			return tolerated
		}
		return failed
	case runnerapi.StatePending, "preparing", "waiting_for_resource", "waiting_for_callback":
		return pending
	case runnerapi.StateCanceled:
		return canceled
	case "scheduled":
		return scheduled
	case "manual":
		return manual
	case "skipped":
		return skipped
	case runnerapi.StateSuccess:
		return passed
	}
	return waiting
}

// looks is how each class is shown: its symbol, its colour, what several of them are called and what became of one.
var looks = [numClasses]struct {
	symbol, ascii string
	color         color
	many, one     string
}{
	running:   {"●", "*", cyan, "running", "running"},
	failed:    {"✗", "x", red, "failed", "failed"},
	pending:   {"○", "o", yellow, "waiting for a slot", "waiting for a slot"},
	tolerated: {"!", "!", yellow, "failed, allowed to", "failed, allowed to"},
	canceled:  {"⊘", "-", yellow, "canceled", "canceled"},
	scheduled: {"◷", "@", blue, "delayed", "delayed"},
	waiting:   {"·", ".", dim, "to come", "to come"},
	manual:    {"▸", "=", blue, "manual", "manual"},
	skipped:   {"»", ">", dim, "skipped", "skipped"},
	passed:    {"✓", "+", green, "passed", "passed"},
}

func (s Style) symbol(c class) string {
	return s.paint(looks[c].color, s.pick(looks[c].symbol, looks[c].ascii))
}

// spent is how long a job has run or ran; 0 if it never did.
func spent(j coordinator.Job, now time.Time) time.Duration {
	if j.StartedAt.IsZero() {
		return 0
	}
	if !j.FinishedAt.IsZero() {
		now = j.FinishedAt
	}
	return max(0, now.Sub(j.StartedAt))
}
