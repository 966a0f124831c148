package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/groupcommit"
)

// attemptPatience is how long one transaction may take before its connection is taken for lost.
const attemptPatience = 30 * time.Second

// tx is the leader's connection inside a transaction.
type tx struct {
	ctx  context.Context
	conn *pgx.Conn
}

// write is a caller's function that waits for its commit. It must not change anything before it returns an error of its
// own: others' writes are in the same transaction.
type write = groupcommit.Write[*tx]

// writer makes one transaction at a time of the writes that wait.
//
// A transaction whose connection is lost is run again on a new one. Each has a number, which it leaves in the table
// leadership: if the answer to COMMIT was lost, the number tells whether it was done. So a repetition is safe whatever
// the writes are.
type writer struct {
	leader   *leader
	patience time.Duration
	log      *slog.Logger
	queue    *groupcommit.Queue[*tx]
	number   int64 // of the last transaction
	away     atomic.Pointer[error]

	life context.Context // ends when Close gives up
	end  context.CancelFunc
}

// newWriter takes over the leader.
func newWriter(l *leader, o Options) *writer {
	w := &writer{leader: l, patience: o.Patience, log: o.Logger}
	w.life, w.end = context.WithCancel(context.Background())
	w.queue = groupcommit.New(w.commit, o.Lease/5)
	return w
}

// do runs a function in a transaction, as groupcommit.Queue.Do says.
func (w *writer) do(ctx context.Context, run func(*tx) error) error {
	return explain(w.queue.Do(ctx, run))
}

// commit runs the writes and sets their errors. Where the server refuses a statement, which spoils the whole transaction,
// each write gets one of its own: on a full disk a large payload must not take a small result with it.
func (w *writer) commit(batch []*write, drops []int64) (dropped bool) {
	err := w.transaction(batch, drops)
	if err == nil {
		return true
	}
	if code(err) == "" || isOutage(err) || len(batch) == 1 && len(drops) == 0 {
		for _, item := range batch {
			item.Err = err
		}
		return false
	}
	for _, item := range batch {
		item.Err = nil
		if err := w.transaction([]*write{item}, nil); err != nil {
			item.Err = err
		}
	}
	return false
}

// transaction runs the writes in one transaction and returns when it knows how that ended, or when the database has not
// come back within the patience and nothing was committed. An error means that nothing of it was kept; a write's own
// error is in the write.
func (w *writer) transaction(batch []*write, drops []int64) error {
	w.number++
	repeat := newBackoff(w.patience)
	doubt := false // COMMIT was sent and there is no answer
	for told := false; ; {
		commit, err := w.connect()
		if err == nil && doubt && commit == w.number {
			return nil
		}
		if err == nil {
			doubt, err = w.attempt(batch, drops)
		}
		if err == nil || !isOutage(err) {
			w.away.Store(nil)
		}
		if told && (err == nil || !isOutage(err)) {
			w.log.Info("the database answers again")
		}
		if err == nil || !isOutage(err) {
			return err
		}
		if !told {
			told = true
			w.log.Warn("the connection to the database is lost, trying again", "error", err)
			away := unavailable(err)
			w.away.Store(&away)
		}
		if doubt {
			repeat.until = time.Time{} // the caller must not be told that it failed
		}
		if waited := repeat.wait(w.life); waited != nil {
			return unavailable(errors.Join(waited, err))
		}
	}
}

// connect sees to it that there is a connection. If it made one, it returns the number of the last transaction that was
// committed.
func (w *writer) connect() (commit int64, err error) {
	select {
	case <-w.leader.fenced:
		return 0, store.ErrFenced
	default:
	}
	if w.leader.conn != nil && !w.leader.conn.IsClosed() {
		return 0, nil
	}
	// An attempt may have to wait for the end of the session that was lost.
	ctx, cancel := context.WithTimeout(w.life, attemptPatience)
	defer cancel()
	return w.leader.resume(ctx)
}

// attempt runs the writes once. doubt says that they may have been committed in spite of the error.
func (w *writer) attempt(batch []*write, drops []int64) (doubt bool, err error) {
	ctx, cancel := context.WithTimeout(w.life, attemptPatience)
	defer cancel()
	t := &tx{ctx: ctx, conn: w.leader.conn}
	if err := w.begin(t, len(batch)+len(drops) == 0); err != nil {
		return false, w.rollback(t, err)
	}
	if err := t.fill(batch, drops); err != nil {
		return false, w.rollback(t, err)
	}
	tag, err := t.conn.Exec(ctx, "COMMIT")
	switch {
	case err != nil && t.conn.IsClosed():
		return true, lost(fmt.Errorf("commit: %w", err))
	case err != nil:
		return false, w.rollback(t, fmt.Errorf("commit: %w", err))
	case tag.String() != "COMMIT":
		return false, fmt.Errorf("commit: the server answered %s", tag)
	}
	return false, nil
}

// begin starts a transaction and finds out whether the fence still holds. idle is for one that only shows that the leader
// lives: that need not reach the disk.
func (w *writer) begin(t *tx, idle bool) error {
	start := &pgx.Batch{}
	start.Queue("BEGIN")
	if idle {
		start.Queue("SELECT set_config('synchronous_commit', 'off', true)")
	}
	var tag pgconn.CommandTag
	start.Queue("UPDATE leadership SET commit = $1 WHERE fence = $2", w.number, w.leader.fence).Exec(func(ct pgconn.CommandTag) error {
		tag = ct
		return nil
	})
	if err := t.conn.SendBatch(t.ctx, start).Close(); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if tag.RowsAffected() == 0 {
		state, err := w.leader.read(t.ctx)
		if err != nil {
			return err
		}
		return w.leader.yield(state)
	}
	return nil
}

// rollback ends a transaction for a reason, which it returns: as an outage if the connection is lost.
func (w *writer) rollback(t *tx, reason error) error {
	if !t.conn.IsClosed() {
		if _, err := t.conn.Exec(t.ctx, "ROLLBACK"); err == nil {
			return reason
		}
		_ = t.conn.Close(t.ctx) // whatever it says, the connection is not used any more
	}
	return lost(reason)
}

// lost makes an error one that isOutage knows, whatever the server's last word was.
func lost(err error) error {
	if isOutage(err) || isOurs(err) {
		return err
	}
	return fmt.Errorf("the connection was lost: %w", errors.New(err.Error()))
}

func (t *tx) fill(batch []*write, drops []int64) error {
	if len(drops) > 0 {
		if _, err := t.exec("DELETE FROM payloads WHERE job = ANY ($1)", drops); err != nil {
			return fmt.Errorf("delete payloads: %w", err)
		}
	}
	for _, item := range batch {
		if item.Err = item.Context.Err(); item.Err != nil { // nobody waits any more
			continue
		}
		if item.Err = item.Run(t); item.Err != nil && !isOurs(item.Err) {
			return item.Err
		}
	}
	return nil
}

// exec runs a statement and says whether it changed a row. Like all of a transaction's statements it is not bound to a
// caller's context.
func (t *tx) exec(statement string, args ...any) (changed bool, err error) {
	tag, err := t.conn.Exec(t.ctx, statement, args...)
	return tag.RowsAffected() > 0, err
}

func (t *tx) row(query string, args ...any) pgx.Row { return t.conn.QueryRow(t.ctx, query, args...) }

// close commits what is queued and ends the session. A database that does not answer is not waited for.
func (w *writer) close() error {
	force := time.AfterFunc(closePatience, w.end)
	w.queue.Close()
	force.Stop()
	w.end()
	return w.leader.leave()
}
