package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"strconv"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
)

//go:embed migrations/*.sql
var migrations embed.FS

// busyTimeout, in milliseconds, is how long a connection waits for another process (a backup) to let go of the file.
const busyTimeout = 5000

// walLimit is the size in bytes to which the write-ahead log is cut once a large payload has passed through it.
const walLimit = 64 << 20

// connect opens a pool of at most n connections, which stay open. The file must exist.
func connect(path string, n int, extra map[string]string) (*sql.DB, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	params := url.Values{
		"mode":          {"rw"},
		"_busy_timeout": {strconv.Itoa(busyTimeout)},
		"_journal_mode": {"WAL"},
		"_synchronous":  {"FULL"},
		"_dqs":          {"0"},
		"_error_rc":     {"1"},
		"_pragma":       {"journal_size_limit(" + strconv.Itoa(walLimit) + ")", "temp_store(MEMORY)"},
	}
	for name, value := range extra {
		params.Set(name, value)
	}
	location := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: params.Encode()}
	connector, err := sqlite.NewConnector(location.String())
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db, nil
}

// checkFile reads through the whole file, so that damage is told at the start and not by the job that meets it. The
// store holds no more than the jobs that are under way.
func checkFile(ctx context.Context, db *sql.DB) error {
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return damaged(errors.New(verdict))
	}
	return nil
}

// migrate brings the schema up to date and refuses one from the future.
func migrate(ctx context.Context, db *sql.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	have, known, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if have > known {
		return fmt.Errorf("it was written by a newer Switchyard (schema %d; this one knows up to %d): run that version again, "+
			"or restore the backup made before the upgrade", have, known)
	}
	if have == known {
		return nil
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("bring the schema from version %d to %d: %w", have, known, err)
	}
	return nil
}
