package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

const (
	// queueLength bounds the writes that wait; further callers wait to be queued.
	queueLength = 256
	// batchLimit bounds the writes of one commit.
	batchLimit = 128
	// dropLimit is how many payloads may wait for the next commit; then one is made for them.
	dropLimit = 256
)

// writer owns the one connection that writes. Its goroutine takes all writes that wait into one transaction, so that
// concurrent callers share one fsync. Each write has a savepoint: the error of one is not the error of others.
type writer struct {
	db   *sql.DB
	conn *sql.Conn
	tx   *tx

	queue chan *write
	done  chan struct{} // closed when the goroutine has ended

	// mu is held for reading while a write is being queued, so that close knows when the queue is complete.
	mu     sync.RWMutex
	closed bool

	dropMu sync.Mutex
	drops  map[int64]struct{} // jobs whose payloads go with the next commit
	nudge  chan struct{}      // capacity 1: commit the drops without waiting for a write
}

// write is a caller's function. It may be run twice (see writer.commit) and must set its results anew each time; they
// are the caller's once done is closed.
type write struct {
	ctx  context.Context
	run  func(*tx) error
	err  error
	done chan struct{}
}

// newWriter takes over db if it succeeds.
func newWriter(ctx context.Context, db *sql.DB) (*writer, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	w := &writer{
		db: db, conn: conn, tx: &tx{},
		queue: make(chan *write, queueLength),
		done:  make(chan struct{}),
		drops: make(map[int64]struct{}),
		nudge: make(chan struct{}, 1),
	}
	if err := w.tx.prepare(ctx, conn); err != nil {
		return nil, errors.Join(err, w.tx.close(), conn.Close())
	}
	go w.loop()
	return w, nil
}

// do runs a function in a transaction and returns once that is on the disk, or with the function's error. If ctx ends
// first, ctx's error is returned and the function may yet be run and committed.
func (w *writer) do(ctx context.Context, run func(*tx) error) error {
	item := &write{ctx: ctx, run: run, done: make(chan struct{})}
	if err := w.enqueue(ctx, item); err != nil {
		return err
	}
	select {
	case <-item.done:
		return explain(item.err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *writer) enqueue(ctx context.Context, item *write) error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.closed {
		return store.ErrClosed
	}
	select {
	case w.queue <- item:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// drop has a job's payload deleted by the next commit.
func (w *writer) drop(job int64) {
	w.dropMu.Lock()
	w.drops[job] = struct{}{}
	many := len(w.drops) >= dropLimit
	w.dropMu.Unlock()
	if many {
		select {
		case w.nudge <- struct{}{}:
		default: // one is on its way
		}
	}
}

func (w *writer) takeDrops() map[int64]struct{} {
	w.dropMu.Lock()
	defer w.dropMu.Unlock()
	if len(w.drops) == 0 {
		return nil
	}
	drops := w.drops
	w.drops = make(map[int64]struct{})
	return drops
}

func (w *writer) returnDrops(drops map[int64]struct{}) {
	w.dropMu.Lock()
	defer w.dropMu.Unlock()
	maps.Copy(w.drops, drops)
}

func (w *writer) loop() {
	defer close(w.done)
	batch := make([]*write, 0, batchLimit)
	for {
		batch = batch[:0]
		select {
		case item, ok := <-w.queue:
			if !ok {
				w.commit(nil) // the drops
				return
			}
			batch = w.gather(append(batch, item))
		case <-w.nudge:
		}
		w.commit(batch)
		for _, item := range batch {
			close(item.done)
		}
		clear(batch)
	}
}

// gather adds what waits already.
func (w *writer) gather(batch []*write) []*write {
	for len(batch) < batchLimit {
		select {
		case item, ok := <-w.queue:
			if !ok {
				return batch
			}
			batch = append(batch, item)
		default:
			return batch
		}
	}
	return batch
}

// commit runs the writes and sets their errors. Where the disk fails the whole transaction, each write gets one of its
// own: on a full disk a large payload must not take a small result with it.
func (w *writer) commit(batch []*write) {
	drops := w.takeDrops()
	if len(batch)+len(drops) == 0 {
		return
	}
	err := w.transaction(batch, drops)
	if err == nil {
		return
	}
	w.returnDrops(drops)
	if len(batch) == 1 && len(drops) == 0 {
		batch[0].err = err
		return
	}
	for _, item := range batch {
		item.err = nil
		if err := w.transaction([]*write{item}, nil); err != nil {
			item.err = err
		}
	}
}

// transaction runs the writes in one transaction. An error means that nothing of it was kept; a write's own error is in
// the write.
func (w *writer) transaction(batch []*write, drops map[int64]struct{}) error {
	if err := w.tx.exec(w.tx.begin); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	err := w.fill(batch, drops)
	if err == nil {
		if err = w.tx.exec(w.tx.commit); err == nil {
			return nil
		}
		err = fmt.Errorf("commit: %w", err)
	}
	// SQLite may have rolled back by itself; then this fails and does no harm.
	_ = w.tx.exec(w.tx.rollback)
	return err
}

func (w *writer) fill(batch []*write, drops map[int64]struct{}) error {
	for job := range drops {
		if err := w.tx.exec(w.tx.deletePayload, job); err != nil {
			return fmt.Errorf("delete a payload: %w", err)
		}
	}
	for _, item := range batch {
		if err := item.ctx.Err(); err != nil { // nobody waits any more
			item.err = err
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
	item.err = item.run(w.tx)
	if isEnvironment(item.err) {
		return item.err
	}
	if item.err != nil {
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
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		<-w.done
		return nil
	}
	w.closed = true
	close(w.queue)
	w.mu.Unlock()
	<-w.done
	return errors.Join(w.tx.close(), w.conn.Close(), w.db.Close())
}
