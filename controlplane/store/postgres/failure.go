package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// SQLSTATEs, from PostgreSQL's appendix "Error Codes".
const (
	diskFull             = "53100"
	tooManyConnections   = "53300"
	lockNotAvailable     = "55P03"
	cannotConnectNow     = "57P03"
	readOnlyTransaction  = "25006"
	insufficientRights   = "42501"
	uniqueViolation      = "23505"
	duplicateTable       = "42P07"
	dataCorrupted        = "XX001"
	indexCorrupted       = "XX002"
	classConnection      = "08"
	classIntervention    = "57P" // the server or the session was ended
	classIdleTransaction = "25P03"
)

// code returns an error's SQLSTATE, "" if it is not the server's.
func code(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

// isOutage says whether err is about the connection or a server that is not there, and not about what it was asked.
func isOutage(err error) bool {
	c := code(err)
	switch {
	case c == "":
		_, unusable := errors.AsType[*pgconn.ParseConfigError](err)
		return !unusable && !errors.Is(err, pgx.ErrNoRows) && !isOurs(err)
	case strings.HasPrefix(c, classConnection), strings.HasPrefix(c, classIntervention):
		return true
	}
	return c == tooManyConnections || c == classIdleTransaction
}

// isOurs says whether err came from this program and not from the way to the database.
func isOurs(err error) bool {
	return slices.ContainsFunc([]error{
		store.ErrNotFound, store.ErrExists, store.ErrStale, store.ErrFenced, store.ErrClosed,
		store.ErrTokenUnknown, store.ErrTokenUsed, store.ErrTokenExpired, store.ErrTokenRevoked, errDecode, errUnfit,
	}, func(known error) bool { return errors.Is(err, known) })
}

// errDecode marks rows that cannot be read for what is in them.
var errDecode = errors.New("the row cannot be read")

// explain adds to the server's errors what a person can do about them.
func explain(err error) error {
	switch code(err) {
	case diskFull:
		return fmt.Errorf("%w: free some space on the database's disk, a control plane that runs goes on by itself: %w", store.ErrFull, err)
	case dataCorrupted, indexCorrupted:
		return fmt.Errorf("%w: stop the control plane and restore the database from a backup: %w", store.ErrDamaged, err)
	case readOnlyTransaction:
		return fmt.Errorf("the server is read-only (a standby, or default_transaction_read_only is on): name the primary in the "+
			"database's URL, or all servers with target_session_attrs=read-write: %w", err)
	case insufficientRights:
		return fmt.Errorf("the user of the database's URL has too few rights: it must own the schema, and all control planes must use "+
			"the same user: %w", err)
	case tooManyConnections:
		return fmt.Errorf("the server takes no more connections; a control plane needs %d: %w", readers+1, err)
	}
	return err
}

// unavailable is what callers get when the database did not come back in time.
func unavailable(err error) error {
	return fmt.Errorf("the database cannot be reached: %w", explain(err))
}

// unusable tells what is wrong with a URL without repeating it: there may be a password in it, and what does not hold
// together may have it in any place.
func unusable(text string, err error) error {
	vague := errors.New("it is not of the form postgres://user:password@host:5432/database " +
		"(special characters in the password are written as %XX)")
	u, parseErr := url.Parse(text)
	if parseErr != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return vague
	}
	parse, ok := errors.AsType[*pgconn.ParseConfigError](err)
	if !ok || parse.Unwrap() == nil {
		return vague
	}
	reason := parse.Unwrap()
	for next := reason; next != nil; next = errors.Unwrap(next) {
		reason = next
	}
	if password, ok := u.User.Password(); ok && strings.Contains(reason.Error(), password) {
		return vague
	}
	return reason
}

// backoff waits between attempts, longer each time and not in step with others.
type backoff struct {
	next  time.Duration
	until time.Time // zero: without end
}

const (
	firstPause = 20 * time.Millisecond
	mostPause  = 2 * time.Second
)

func newBackoff(patience time.Duration) *backoff {
	return &backoff{next: firstPause, until: time.Now().Add(patience)}
}

var errPatience = errors.New("it has been tried for long enough")

// wait returns nil when it is time for the next attempt, or why there is none.
func (b *backoff) wait(ctx context.Context) error {
	if !b.until.IsZero() && time.Now().After(b.until) {
		return errPatience
	}
	timer := time.NewTimer(b.next/2 + rand.N(b.next/2))
	defer timer.Stop()
	b.next = min(2*b.next, mostPause)
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
