// Package sqlite keeps the control plane's state in one SQLite file: for a control plane that runs on one machine.
//
// Writes go through one connection and one goroutine, which gathers those of concurrent callers into one commit (see
// writer); reads have connections of their own and see every write that has returned. Job tokens and payloads are
// sealed (package sealing).
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
)

var _ store.Store = (*Store)(nil)

// readers is how many reads may run at once.
const readers = 4

// Store implements store.Store.
type Store struct {
	path   string
	key    *sealing.Key
	reader *sql.DB
	read   readStatements
	writer *writer
	closed atomic.Bool
}

// Open opens the store in the file path or makes it (mode 0600; its folder, if it is missing, 0700), and brings its
// schema up to date. Tokens and payloads are sealed with key, which must be the one that the store was made with.
// The caller makes sure that no other process uses the file.
//
// ctx bounds the opening alone.
func Open(ctx context.Context, path string, key *sealing.Key) (*Store, error) {
	s := &Store{path: path, key: key}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the store %s: %w", path, explain(err)), s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	if err := makeFile(s.path); err != nil {
		return err
	}
	write, err := connect(s.path, 1, nil)
	if err != nil {
		return err
	}
	if err := s.prepareSchema(ctx, write); err != nil {
		return errors.Join(err, write.Close())
	}
	s.writer, err = newWriter(ctx, write)
	if err != nil {
		return errors.Join(err, write.Close())
	}
	s.reader, err = connect(s.path, readers, map[string]string{"_query_only": "1"})
	if err != nil {
		return err
	}
	return s.read.prepare(ctx, s.reader)
}

// makeFile sets the modes before SQLite would choose them; its -wal and -shm files get the file's mode.
func makeFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make the folder: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func (s *Store) prepareSchema(ctx context.Context, db *sql.DB) error {
	if err := checkFile(ctx, db); err != nil {
		return err
	}
	if err := migrate(ctx, db); err != nil {
		return err
	}
	if err := checkKey(ctx, db, s.key); err != nil {
		return err
	}
	return raiseJobIDs(ctx, db, time.Now())
}

// idEpoch is the zero of job ids.
var idEpoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// raiseJobIDs makes ids go on from the milliseconds since idEpoch, or from the last id if that is larger. AUTOINCREMENT
// alone would give ids again after the store was restored from a backup, to agents that may still hold jobs with them.
func raiseJobIDs(ctx context.Context, db *sql.DB, now time.Time) error {
	_, err := db.ExecContext(ctx, "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'jobs'", now.Sub(idEpoch).Milliseconds())
	if err != nil {
		return fmt.Errorf("raise the job ids: %w", err)
	}
	return nil
}

// checkKey tells a wrong master key at the start, not at the first job that cannot be read.
func checkKey(ctx context.Context, db *sql.DB, key *sealing.Key) error {
	const what = "master key check"
	var salt, sealed []byte
	err := db.QueryRowContext(ctx, "SELECT salt, sealed FROM master_key_check").Scan(&salt, &sealed)
	if errors.Is(err, sql.ErrNoRows) {
		box, salt := key.NewBox()
		_, err = db.ExecContext(ctx, "INSERT INTO master_key_check (id, salt, sealed) VALUES (1, ?, ?)", salt, box.Seal(nil, what))
		return err
	}
	if err != nil {
		return err
	}
	box, err := key.OpenBox(salt)
	if err == nil {
		_, err = box.Open(sealed, what)
	}
	if err != nil {
		return fmt.Errorf("it was written with another master key; put the master.key back that belongs to it "+
			"(if it is lost, move the store away to begin a new one: jobs that are under way are lost and agents must enrol again): %w", err)
	}
	return nil
}

// Fenced implements store.Store. Nobody takes a file over: its folder is locked.
func (s *Store) Fenced() <-chan struct{} { return nil }

// Away implements store.Store. A file is never away.
func (s *Store) Away() error { return nil }

// Close implements store.Store.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	var errs []error
	if s.reader != nil { // first, so that the writer's connection is the last and tidies up
		errs = append(errs, s.read.close(), s.reader.Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close the store %s: %w", s.path, explain(err))
	}
	return nil
}

// readError is explain for the error of a read, which Close may have interrupted.
func (s *Store) readError(err error) error {
	if s.closed.Load() {
		return store.ErrClosed
	}
	return explain(err)
}
