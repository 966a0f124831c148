package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrations embed.FS

// connectPatience is how long one attempt to connect may take.
const connectPatience = 5 * time.Second

// firstSchema has the table leadership; latestSchema stands for all migrations.
const (
	firstSchema  = 1
	latestSchema = 0
)

// awaitServer returns when the server can be worked with, or why it cannot. One that is not up is awaited for a while.
func awaitServer(ctx context.Context, cfg *pgx.ConnConfig, o Options) error {
	repeat := newBackoff(o.Patience)
	for told := false; ; told = true {
		err := checkServer(ctx, cfg, o.Logger)
		if err == nil || !isOutage(err) || ctx.Err() != nil {
			return err
		}
		if !told {
			o.Logger.Warn("the database does not answer, trying again", "database", place(cfg), "for", o.Patience, "error", err)
		}
		if repeat.wait(ctx) != nil {
			return unavailable(err)
		}
	}
}

func checkServer(ctx context.Context, cfg *pgx.ConnConfig, log *slog.Logger) error {
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	settings := map[string]*string{}
	for _, name := range []string{"server_encoding", "fsync", "synchronous_commit", "full_page_writes", "transaction_read_only"} {
		settings[name] = new(string)
		if err := conn.QueryRow(ctx, "SHOW "+name).Scan(settings[name]); err != nil {
			return fmt.Errorf("read the server's setting %s: %w", name, err)
		}
	}
	if encoding := *settings["server_encoding"]; encoding != "UTF8" {
		return fmt.Errorf("%w: the database's encoding is %s; make it anew with ENCODING 'UTF8'", errUnfit, encoding)
	}
	if *settings["transaction_read_only"] == "on" {
		return fmt.Errorf("%w: the server is read-only (a standby, or default_transaction_read_only is on): name the primary in the "+
			"database's URL, or all servers with target_session_attrs=read-write", errUnfit)
	}
	if *settings["synchronous_commit"] == "off" {
		log.Warn("the server has synchronous_commit off: the control plane switches it on for its own sessions", "database", place(cfg))
	}
	for _, name := range []string{"fsync", "full_page_writes"} {
		if *settings[name] == "off" {
			log.Error("the server does not write safely: after a crash of its machine jobs may be lost or the database be damaged",
				"database", place(cfg), "setting", name+"=off")
		}
	}
	return nil
}

// errUnfit marks a server that answers and cannot be used.
var errUnfit = errors.New("the database cannot be used")

// session makes a connection for the leader.
func session(ctx context.Context, cfg *pgx.ConnConfig, name string, lease time.Duration) (*pgx.Conn, error) {
	cfg = cfg.Copy()
	cfg.RuntimeParams["application_name"] = name
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	// Local and remote are left as they are: both outlive a crash of the server.
	_, err = conn.Exec(ctx, "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'")
	if err == nil {
		// A leader that stops in the middle of a transaction does not keep the next one waiting.
		_, err = conn.Exec(ctx, "SELECT set_config('idle_in_transaction_session_timeout', $1, false)", milliseconds(lease))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up the session: %w", err), conn.Close(context.WithoutCancel(ctx)))
	}
	return conn, nil
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%dms", d.Milliseconds())
}

// migrate brings the schema at least to the version to and refuses one from the future. Two that do so at once wait for
// one another.
func migrate(ctx context.Context, cfg *pgx.ConnConfig, to int64) error {
	repeat := newBackoff(connectPatience)
	for {
		err := migrateOnce(ctx, cfg, to)
		// Goose makes its own table before it takes its lock: of two that do, one is refused.
		if c := code(err); c != uniqueViolation && c != duplicateTable {
			return err
		}
		if repeat.wait(ctx) != nil {
			return err
		}
	}
}

func migrateOnce(ctx context.Context, cfg *pgx.ConnConfig, to int64) (err error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300))
	if err != nil {
		return fmt.Errorf("lock the schema: %w", err)
	}
	db := stdlib.OpenDB(*cfg)
	defer func() { err = errors.Join(err, db.Close()) }()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithDisableGlobalRegistry(true), goose.WithSessionLocker(locker))
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	have, known, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if to == latestSchema {
		to = known
	}
	switch {
	case have > known:
		return fmt.Errorf("it was written by a newer Switchyard (schema %d; this one knows up to %d): run that version again, "+
			"or restore the backup made before the upgrade", have, known)
	case have >= to:
		return nil
	}
	if _, err := provider.UpTo(ctx, to); err != nil {
		return fmt.Errorf("bring the schema from version %d to %d: %w", have, to, err)
	}
	return nil
}
