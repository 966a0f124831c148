package sqlite

import (
	"errors"
	"fmt"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// code returns SQLite's primary result code, 0 if err is not SQLite's.
func code(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code() & 0xff
	}
	return 0
}

// isEnvironment says whether err is about the disk or the machine and not about the statement: then SQLite may have
// rolled the whole transaction back.
func isEnvironment(err error) bool {
	switch code(err) {
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB,
		sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL:
		return true
	}
	return false
}

// explain adds to SQLite's errors what a person can do about them.
func explain(err error) error {
	switch code(err) {
	case sqlite3.SQLITE_FULL:
		return fmt.Errorf("%w: free some space on its disk, a control plane that runs goes on by itself: %w", store.ErrFull, err)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return damaged(err)
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return fmt.Errorf("the file or its folder cannot be written: see to their owner and mode and to the mount: %w", err)
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL:
		return fmt.Errorf("another process holds the file: end it: %w", err)
	}
	return err
}

func damaged(err error) error {
	return fmt.Errorf("%w: stop the control plane, move the file and its -wal and -shm away and restore a backup "+
		"(without one a new store is made and the agents must enrol again): %w", store.ErrDamaged, err)
}
