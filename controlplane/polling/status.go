package polling

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// State is what a poller does, for people.
type State string

// The states of a poller.
const (
	StateStarting State = "starting" // GitLab has not confirmed the token yet
	StateDirty    State = "dirty"    // there may be jobs: claims, as slots allow
	StateClean    State = "clean"    // there is no job; a change is waited for
	StatePaused   State = "paused"
	StateError    State = "error" // see LastError
	StateStopping State = "stopping"
)

// Counters count from the start of Run.
type Counters struct {
	Claims    uint64 // sent
	Jobs      uint64 // that claims brought
	Empty     uint64 // claims answered by 204
	Conflicts uint64 // claims and watches answered by 409
	Watches   uint64 // sent
	WatchJobs uint64 // that watches brought, each without a slot
	Verifies  uint64 // sent
	Throttled uint64 // answers 429
	Errors    uint64 // all other answers of trouble, and requests without one
}

// Status is what a poller knows of itself.
type Status struct {
	Runner string
	State  State
	// LastContact is when GitLab last answered a request in a way that was expected; 429 is, 403 is not.
	LastContact time.Time
	LastJob     time.Time
	LastEmpty   time.Time // when GitLab last said that it has none
	// LastError is the last thing that went wrong, at LastErrorAt, with the way out; it stays when all is well again.
	LastError   string
	LastErrorAt time.Time
	// ErrorSince is when the present trouble began; zero if there is none. RetryAt is when requests go on.
	ErrorSince time.Time
	RetryAt    time.Time
	Refused    bool // the trouble is that GitLab does not know the token

	InFlight       int       // claims
	ClaimingSince  time.Time // when the oldest of them was sent; zero if there is none
	Unsaved        int       // jobs that are being persisted
	Watching       bool      // a watch is held
	WaitingForSlot bool
	// Hold is how long GitLab holds a watch; 0 if that is not known. HoldsNot: it was measured that it does not.
	Hold     time.Duration
	HoldsNot bool

	Counters Counters
}

// problem is a trouble that lasts.
type problem struct {
	key   string
	since time.Time
}

// answered keeps count and notices when trouble begins, changes and ends.
func (l *loop) answered(now time.Time, a answer, err error) {
	switch a.kind {
	case job, none:
		l.lastContact = now
		l.working(now)
	case conflict:
		l.counters.Conflicts++
		l.lastContact = now
		l.working(now)
	case abandoned:
	case throttled:
		l.counters.Throttled++
		l.lastContact = now
		l.failed(now, a, err)
	default:
		l.counters.Errors++
		l.failed(now, a, err)
	}
}

// failed remembers an error and logs it if it is another than the last one.
func (l *loop) failed(now time.Time, a answer, err error) {
	err = explain(a, err, l.o.Runner)
	level := slog.LevelWarn
	if a.kind == refused {
		level = slog.LevelError
	}
	l.trouble(now, keyOf(err), level, "asking GitLab for jobs fails", err)
}

// notSaved: a job could not be persisted.
func (l *loop) notSaved(now time.Time, err error) {
	l.trouble(now, "save", slog.LevelError, "a job cannot be kept, no more are asked for until it is", err)
}

// savedAgain: a job was persisted.
func (l *loop) savedAgain(now time.Time) {
	if l.m.failing == 0 && l.problem != nil && l.problem.key == "save" {
		l.over(now)
	}
}

// working: GitLab answered as it should.
func (l *loop) working(now time.Time) {
	if l.problem != nil && l.problem.key != "save" && !l.m.troubled {
		l.over(now)
	}
}

func (l *loop) trouble(now time.Time, key string, level slog.Level, message string, err error) {
	l.lastError, l.lastErrorAt = err.Error(), now
	if l.problem == nil {
		l.problem = &problem{since: now}
	}
	if l.problem.key == key {
		return
	}
	l.problem.key = key
	l.poller.logger.LogAttrs(l.work, level, message, slog.Any("error", err))
}

func (l *loop) over(now time.Time) {
	l.poller.logger.LogAttrs(l.work, slog.LevelInfo, "asking GitLab for jobs works again",
		slog.Duration("after", now.Sub(l.problem.since).Round(time.Millisecond)))
	l.problem = nil
}

// keyOf tells kinds of trouble apart: texts carry ports and times and differ each time.
func keyOf(err error) string {
	if status := new(client.StatusError); errors.As(err, &status) {
		return fmt.Sprintf("status %d %t", status.Code, status.HTML)
	}
	return "transport"
}

func (l *loop) publish(now time.Time) {
	m := l.m
	s := Status{
		Runner:         l.o.Runner,
		LastContact:    l.lastContact,
		LastJob:        l.lastJob,
		LastEmpty:      l.lastEmpty,
		LastError:      l.lastError,
		LastErrorAt:    l.lastErrorAt,
		InFlight:       m.inFlight,
		Unsaved:        m.unsaved,
		Watching:       m.watching,
		WaitingForSlot: m.reserving,
		Hold:           m.hold.known,
		HoldsNot:       m.hold.holdsNot,
		Counters:       l.counters,
	}
	if len(l.claiming) > 0 {
		s.ClaimingSince = l.claiming[0]
	}
	if l.problem != nil {
		s.ErrorSince, s.Refused = l.problem.since, m.forbidden
		if m.retryAt.After(now) {
			s.RetryAt = m.retryAt
		}
	}
	switch {
	case m.stopping:
		s.State = StateStopping
	case l.problem != nil:
		s.State = StateError
	case m.paused:
		s.State = StatePaused
	case !m.verified:
		s.State = StateStarting
	case m.dirty:
		s.State = StateDirty
	default:
		s.State = StateClean
	}
	l.poller.mu.Lock()
	l.poller.status = s
	l.poller.mu.Unlock()
}
