package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/switchyard-ci/switchyard/controlplane/store/groupcommit"
)

// write is a caller's function that waits for its commit.
type write = groupcommit.Write[*tx]

// writer owns the one connection that writes. Its queue takes all writes that wait into one transaction, so that
// concurrent callers share one fsync. Each write has a savepoint: the error of one is not the error of others.
type writer struct {
	db      *sql.DB
	conn    *sql.Conn
	tx      *tx
	queue   *groupcommit.Queue[*tx]
	commits atomic.Int64 // since the opening
}

// newWriter takes over db if it succeeds.
func newWriter(ctx context.Context, db *sql.DB) (*writer, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	w := &writer{db: db, conn: conn, tx: &tx{}}
	if err := w.tx.prepare(ctx, conn); err != nil {
		return nil, errors.Join(err, w.tx.close(), conn.Close())
	}
	w.queue = groupcommit.New(w.commit, 0)
	return w, nil
}

// do runs a function in a transaction, as groupcommit.Queue.Do says.
func (w *writer) do(ctx context.Context, run func(*tx) error) error {
	return explain(w.queue.Do(ctx, run))
}

// commit runs the writes and sets their errors. Where the disk fails the whole transaction, each write gets one of its
// own: on a full disk a large payload must not take a small result with it.
func (w *writer) commit(batch []*write, drops []int64) (dropped bool) {
	if len(batch)+len(drops) == 0 {
		return true
	}
	err := w.transaction(batch, drops)
	if err == nil {
		return true
	}
	if len(batch) == 1 && len(drops) == 0 {
		batch[0].Err = err
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

// transaction runs the writes in one transaction. An error means that nothing of it was kept; a write's own error is in
// the write.
func (w *writer) transaction(batch []*write, drops []int64) error {
	if err := w.tx.exec(w.tx.begin); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	err := w.fill(batch, drops)
	if err == nil {
		if err = w.tx.exec(w.tx.commit); err == nil {
			w.commits.Add(1)
			return nil
		}
		err = fmt.Errorf("commit: %w", err)
	}
	// SQLite may have rolled back by itself; then this fails and does no harm.
	_ = w.tx.exec(w.tx.rollback)
	return err
}

func (w *writer) fill(batch []*write, drops []int64) error {
	for _, job := range drops {
		if err := w.tx.exec(w.tx.deletePayload, job); err != nil {
			return fmt.Errorf("delete a payload: %w", err)
		}
	}
	for _, item := range batch {
		if err := item.Context.Err(); err != nil { // nobody waits any more
			item.Err = err
			continue
		}
		if err := w.one(item); err != nil {
			return err
		}
	}
	return nil
}

// one runs a write in its savepoint. The error returned is the transaction's.
func (w *writer) one(item *write) error {
	if err := w.tx.exec(w.tx.savepoint); err != nil {
		return fmt.Errorf("set a savepoint: %w", err)
	}
	item.Err = item.Run(w.tx)
	if isEnvironment(item.Err) {
		return item.Err
	}
	if item.Err != nil {
		if err := w.tx.exec(w.tx.rollbackTo); err != nil {
			return fmt.Errorf("roll back to the savepoint: %w", err)
		}
	}
	if err := w.tx.exec(w.tx.release); err != nil {
		return fmt.Errorf("release the savepoint: %w", err)
	}
	return nil
}

// close commits what is queued and releases the connection. Writes that come later get store.ErrClosed.
func (w *writer) close() error {
	w.queue.Close()
	return errors.Join(w.tx.close(), w.conn.Close(), w.db.Close())
}
