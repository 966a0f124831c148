package sqlite

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/groupcommit"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
)

func openStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "store.db"), sealing.NewKey([32]byte{1}))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// hold keeps the writer busy until release is called: what is queued meanwhile comes into one transaction.
func (w *writer) hold(t *testing.T) (release func()) {
	t.Helper()
	busy, free := make(chan struct{}), make(chan struct{})
	holder, err := w.queue.Add(t.Context(), func(*tx) error {
		close(busy)
		<-free
		return nil
	})
	require.NoError(t, err)
	<-busy
	return func() {
		close(free)
		require.NoError(t, holder.Wait(t.Context()))
	}
}

// together has functions run in one transaction, with a payload to drop, and returns their errors.
func (w *writer) together(t *testing.T, drop int64, run ...func(*tx) error) []error {
	t.Helper()
	release := w.hold(t)
	w.queue.Drop(drop)
	items := make([]*write, len(run))
	for i, run := range run {
		var err error
		items[i], err = w.queue.Add(t.Context(), run)
		require.NoError(t, err)
	}
	release()
	errs := make([]error, len(run))
	for i, item := range items {
		errs[i] = item.Wait(t.Context())
	}
	return errs
}

// addRunner is a write of one row that shows which writes were kept.
func addRunner(name string, err error) func(*tx) error {
	return func(t *tx) error {
		var id string
		return errors.Join(t.row(t.addRunner, name, name).Scan(&id), err)
	}
}

func (s *Store) runnerNames(t *testing.T) (names []string) {
	t.Helper()
	rows, err := s.reader.QueryContext(t.Context(), "SELECT name FROM runners ORDER BY name")
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var name string
		require.NoError(t, rows.Scan(&name))
		names = append(names, name)
	}
	require.NoError(t, rows.Err())
	return names
}

func TestTheErrorOfOneWriteIsNotThatOfOthers(t *testing.T) {
	s := openStore(t)
	errs := s.writer.together(t, 7,
		addRunner("a", nil),
		addRunner("b", store.ErrStale),
		func(t *tx) error { return t.exec(t.insertPayload, 1, nil) }, // NOT NULL
		addRunner("c", nil),
	)
	require.NoError(t, errs[0])
	require.ErrorIs(t, errs[1], store.ErrStale)
	require.ErrorContains(t, errs[2], "NOT NULL")
	require.NoError(t, errs[3])
	require.Equal(t, []string{"a", "c"}, s.runnerNames(t))
}

func TestOneCommitForAll(t *testing.T) {
	s := openStore(t)
	before := s.frames(t)
	errs := s.writer.together(t, 7, addRunner("a", nil), addRunner("b", nil), addRunner("c", nil), addRunner("d", nil))
	require.NoError(t, errors.Join(errs...))
	together := s.frames(t) - before

	for _, name := range []string{"e", "f", "g", "h"} {
		require.NoError(t, s.writer.do(t.Context(), addRunner(name, nil)))
	}
	require.Greater(t, s.frames(t)-before-together, 2*together, "pages written to the log by four commits")
}

// frames is how many pages the write-ahead log has.
func (s *Store) frames(t *testing.T) (n int) {
	t.Helper()
	var busy, moved int
	require.NoError(t, s.reader.QueryRowContext(t.Context(), "PRAGMA wal_checkpoint(NOOP)").Scan(&busy, &n, &moved))
	return n
}

func TestAWriteThatFailsTheDiskDoesNotTakeOthersWithIt(t *testing.T) {
	s := openStore(t)
	var pages int
	require.NoError(t, s.reader.QueryRowContext(t.Context(), "PRAGMA page_count").Scan(&pages))
	limit := func(t *tx) error {
		stmt, err := s.writer.conn.PrepareContext(context.Background(), "PRAGMA max_page_count = 100")
		if err != nil {
			return err
		}
		defer stmt.Close()
		return t.exec(stmt)
	}
	require.NoError(t, s.writer.do(t.Context(), limit))
	require.Less(t, pages, 100)

	large := func(t *tx) error { return t.exec(t.insertPayload, 1, bytes.Repeat([]byte("x"), 1<<20)) }
	errs := s.writer.together(t, 7, addRunner("a", nil), large, addRunner("b", store.ErrStale), large, addRunner("c", nil))
	require.NoError(t, errs[0])
	require.ErrorIs(t, explain(errs[1]), store.ErrFull)
	require.ErrorIs(t, errs[2], store.ErrStale)
	require.ErrorIs(t, explain(errs[3]), store.ErrFull)
	require.NoError(t, errs[4])
	require.Equal(t, []string{"a", "c"}, s.runnerNames(t))
	require.Equal(t, []int64{7}, s.writer.queue.Drops(), "kept for the next commit")
}

func TestAWriteThatNobodyWaitsForIsLeftOut(t *testing.T) {
	s := openStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	release := s.writer.hold(t)
	left, err := s.writer.queue.Add(ctx, addRunner("a", nil))
	require.NoError(t, err)
	cancel()
	release()
	require.ErrorIs(t, left.Wait(t.Context()), context.Canceled)
	require.Empty(t, s.runnerNames(t))
}

// Many payloads to drop do not wait for a write.
func TestDropsMakeACommitOfTheirOwn(t *testing.T) {
	s := openStore(t)
	require.NoError(t, s.writer.do(t.Context(), func(t *tx) error {
		for job := range int64(groupcommit.DropLimit) {
			if err := t.exec(t.insertPayload, job, []byte("x")); err != nil {
				return err
			}
		}
		return nil
	}))
	for job := range int64(groupcommit.DropLimit) {
		s.DropPayload(job)
	}
	require.Eventually(t, func() bool {
		var n int
		require.NoError(t, s.reader.QueryRowContext(t.Context(), "SELECT count(*) FROM payloads").Scan(&n))
		return n == 0
	}, 10*time.Second, time.Millisecond)
}
