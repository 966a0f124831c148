package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// leader is the right to write. It has two halves:
//
// The lock is an advisory lock of the one session that writes. It ends with the session: when a control plane dies, the
// next has it at once, and as long as somebody has it no transaction of another is under way.
//
// The fence is a number in the table leadership, which each control plane that takes over raises and each transaction
// that writes compares with its own. A session that is open although its control plane stands still (it is stopped, its
// machine is cut off) is ended by one that waits, once the leader has written nothing for a lease; when the old one wakes
// up, it finds another fence and writes nothing ever more.
type leader struct {
	cfg    *pgx.ConnConfig
	name   string // of the session, unlike any other's
	holder string
	lease  time.Duration
	log    *slog.Logger

	conn  *pgx.Conn // nil: lost
	fence int64     // 0: not taken over yet

	fenced chan struct{} // closed when another has taken over
}

// lockClass is the first half of the advisory lock's key ("SWYD"); the second is the table's oid, so that each schema of
// a database has a lock of its own.
const lockClass = 0x53575944

func newLeader(cfg *pgx.ConnConfig, o Options) *leader {
	return &leader{
		cfg: cfg, name: "switchyard " + rand.Text()[:16], holder: o.Holder, lease: o.Lease, log: o.Logger, fenced: make(chan struct{}),
	}
}

// takeOver waits for the lead and takes it, for the first time.
func (l *leader) takeOver(ctx context.Context) error {
	repeat := &backoff{next: firstPause}
	for {
		err := l.tryTakeOver(ctx)
		if err == nil || !isOutage(err) || ctx.Err() != nil {
			return err
		}
		l.log.Warn("waiting for the lead: the connection to the database is lost, trying again", "error", err)
		if repeat.wait(ctx) != nil {
			return err
		}
	}
}

func (l *leader) tryTakeOver(ctx context.Context) error {
	if err := l.lock(ctx); err != nil {
		return err
	}
	err := l.conn.QueryRow(ctx, "UPDATE leadership SET fence = fence + 1, commit = 0, holder = $1, since = now() RETURNING fence",
		l.holder).Scan(&l.fence)
	if err != nil {
		return fmt.Errorf("take the lead: %w", err)
	}
	l.log.Info("this control plane leads", "database", place(l.cfg), "fence", l.fence)
	return nil
}

// resume makes a new session for a leader that has lost its own, and returns the number of the last transaction that was
// committed under its fence: when the lock is held, none is under way any more. ErrFenced if another has taken over.
func (l *leader) resume(ctx context.Context) (commit int64, err error) {
	if err := l.lock(ctx); err != nil {
		return 0, err
	}
	state, err := l.read(ctx)
	if err != nil {
		return 0, err
	}
	if state.fence != l.fence {
		return 0, l.yield(state)
	}
	return state.commit, nil
}

// leadership is the table's row.
type leadership struct {
	fence, commit int64
	holder        string
	since         time.Time
}

func (l *leader) read(ctx context.Context) (s leadership, err error) {
	err = l.conn.QueryRow(ctx, "SELECT fence, commit, holder, since FROM leadership").Scan(&s.fence, &s.commit, &s.holder, &s.since)
	if err != nil {
		return leadership{}, fmt.Errorf("ask who leads: %w", err)
	}
	return s, nil
}

// yield notes that another leads.
func (l *leader) yield(to leadership) error {
	select {
	case <-l.fenced:
	default:
		close(l.fenced)
		l.log.Error("another control plane has taken over", "leader", to.holder, "since", to.since)
	}
	return store.ErrFenced
}

// lock connects and waits for the advisory lock.
func (l *leader) lock(ctx context.Context) error {
	err := l.leave()
	if err == nil {
		l.conn, err = session(ctx, l.cfg, l.name, l.lease)
	}
	if err != nil {
		return err
	}
	if l.fence > 0 { // the session that was lost on this side may still be there on the other
		if _, err := l.end(ctx, "application_name = $2", l.name); err != nil {
			return err
		}
	}
	var seen leadership
	changed := time.Now()
	for {
		locked, err := l.await(ctx)
		if err != nil || locked {
			return err
		}
		state, err := l.read(ctx)
		switch {
		case err != nil:
			return err
		case l.fence > 0 && state.fence != l.fence:
			return l.yield(state)
		case state.fence != seen.fence:
			l.log.Info("another control plane leads; this one waits to take over", "leader", state.holder, "since", state.since)
			seen, changed = state, time.Now()
		case state.commit != seen.commit:
			seen, changed = state, time.Now()
		case time.Since(changed) > l.lease:
			ended, err := l.end(ctx, "true")
			if err != nil {
				return err
			}
			l.log.Warn("the leader has been silent for too long: its session was ended", "leader", state.holder,
				"silent", time.Since(changed).Round(time.Second), "sessions", ended)
			changed = time.Now()
		}
	}
}

// mostAwait bounds how long a change of who leads goes unnoticed by one that waits.
const mostAwait = time.Second

// await waits for the lock a part of the lease and says whether it has it.
func (l *leader) await(ctx context.Context) (bool, error) {
	if _, err := l.conn.Exec(ctx, "SELECT set_config('lock_timeout', $1, false)", milliseconds(min(l.lease/5, mostAwait))); err != nil {
		return false, fmt.Errorf("wait for the lead: %w", err)
	}
	_, err := l.conn.Exec(ctx, "SELECT pg_advisory_lock($1, 'leadership'::regclass::oid::int)", int32(lockClass))
	if code(err) == lockNotAvailable {
		return false, nil
	}
	if err == nil {
		_, err = l.conn.Exec(ctx, "SELECT set_config('lock_timeout', '0', false)")
	}
	if err != nil {
		return false, fmt.Errorf("wait for the lead: %w", err)
	}
	return true, nil
}

// end ends other sessions that hold the lock, of those for which a condition is true, and returns how many.
func (l *leader) end(ctx context.Context, condition string, args ...any) (ended int64, err error) {
	tag, err := l.conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)
		WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid()
		AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND classid::bigint = $1 AND objid = 'leadership'::regclass::oid AND objsubid = 2 AND `+condition,
		append([]any{int64(lockClass)}, args...)...)
	if err != nil {
		return 0, fmt.Errorf("end the session of the leader before: %w", err)
	}
	return tag.RowsAffected(), nil
}

// leave ends the session, and with it the lead, if there is one.
func (l *leader) leave() error {
	if l.conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	lost := l.conn.IsClosed()
	err := l.conn.Close(ctx)
	l.conn = nil
	if err != nil && !lost && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("end the session: %w", err)
	}
	return nil
}
