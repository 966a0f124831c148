// Package postgres keeps the control plane's state in a PostgreSQL database (12 or newer): for control planes that
// outgrow one machine, or that another is to take over from at once.
//
// One control plane at a time leads (see leader): it has a session of its own, in which one goroutine gathers the writes
// of concurrent callers into one transaction each (see writer); reads have a pool of connections. A connection that is
// lost is made anew, and what was under way is repeated: what was committed although the answer was lost is recognised
// and not done twice. Job tokens and payloads are sealed (package sealing).
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
)

var _ store.Store = (*Store)(nil)

const (
	// readers is how many reads may run at once.
	readers = 4
	// closePatience is how long Close waits for a database that does not answer.
	closePatience = 5 * time.Second
)

// Defaults of Options.
const (
	DefaultLease    = 15 * time.Second
	DefaultPatience = 30 * time.Second
)

// Options are what a store needs to know besides its database and key.
type Options struct {
	// Holder names this control plane to others that wait for it: host and process.
	Holder string
	// Lease is how long a leader may be silent until another takes over from it, although its session is still open: it is
	// stopped, or its machine is gone. 0: DefaultLease.
	Lease time.Duration
	// Patience is how long a call repeats what it needs a connection for. 0: DefaultPatience.
	Patience time.Duration
	Logger   *slog.Logger
}

// Store implements store.Store.
type Store struct {
	key      *sealing.Key
	patience time.Duration
	reader   *pgxpool.Pool
	writer   *writer
	closed   atomic.Bool
}

// Open connects to the database at url (postgres://…), waits until no other control plane leads, takes the lead and
// brings the schema up to date. Tokens and payloads are sealed with key, which must be the one that the store was made
// with. Its errors do not show the password.
//
// ctx bounds the opening alone: while another control plane leads that takes for ever.
func Open(ctx context.Context, url string, key *sealing.Key, o Options) (*Store, error) {
	if o.Lease == 0 {
		o.Lease = DefaultLease
	}
	if o.Patience == 0 {
		o.Patience = DefaultPatience
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("open the store: the database's URL cannot be used: %w", unusable(url, err))
	}
	s := &Store{key: key, patience: o.Patience}
	if err := s.open(ctx, cfg, o); err != nil {
		return nil, errors.Join(fmt.Errorf("open the store %s: %w", place(cfg.ConnConfig), explain(err)), s.Close())
	}
	return s, nil
}

// place is where a database is, without who asks and how.
func place(cfg *pgx.ConnConfig) string {
	return fmt.Sprintf("%s:%d/%s", cfg.Host, cfg.Port, cfg.Database)
}

func (s *Store) open(ctx context.Context, cfg *pgxpool.Config, o Options) error {
	cfg.ConnConfig.ConnectTimeout = connectPatience
	if err := awaitServer(ctx, cfg.ConnConfig, o); err != nil {
		return err
	}
	if err := migrate(ctx, cfg.ConnConfig, firstSchema); err != nil {
		return err
	}
	l := newLeader(cfg.ConnConfig, o)
	if err := l.takeOver(ctx); err != nil {
		return errors.Join(err, l.leave())
	}
	if err := s.prepareSchema(ctx, cfg.ConnConfig, l.conn); err != nil {
		return errors.Join(err, l.leave())
	}
	s.writer = newWriter(l, o)
	var err error
	cfg.MaxConns = readers
	if s.reader, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return fmt.Errorf("make the pool for reading: %w", err)
	}
	return nil
}

// prepareSchema is done by the leader alone: a schema never changes under a control plane that works with it.
func (s *Store) prepareSchema(ctx context.Context, cfg *pgx.ConnConfig, conn *pgx.Conn) error {
	if err := migrate(ctx, cfg, latestSchema); err != nil {
		return err
	}
	if err := checkKey(ctx, conn, s.key); err != nil {
		return err
	}
	return raiseJobIDs(ctx, conn, time.Now())
}

// idEpoch is the zero of job ids.
var idEpoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// raiseJobIDs makes ids go on from the milliseconds since idEpoch, or from the last id if that is larger: a sequence alone
// would give ids again after the database was restored from a backup, to agents that may still hold jobs with them.
func raiseJobIDs(ctx context.Context, conn *pgx.Conn, now time.Time) error {
	_, err := conn.Exec(ctx, `SELECT setval(sequence, greatest(nextval(sequence), $1))
		FROM (SELECT pg_get_serial_sequence('jobs', 'id')::regclass AS sequence) AS jobs`, now.Sub(idEpoch).Milliseconds())
	if err != nil {
		return fmt.Errorf("raise the job ids: %w", err)
	}
	return nil
}

// checkKey tells a wrong master key at the start, not at the first job that cannot be read.
func checkKey(ctx context.Context, conn *pgx.Conn, key *sealing.Key) error {
	const what = "master key check"
	var salt, sealed []byte
	err := conn.QueryRow(ctx, "SELECT salt, sealed FROM master_key_check").Scan(&salt, &sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		box, salt := key.NewBox()
		_, err = conn.Exec(ctx, "INSERT INTO master_key_check (salt, sealed) VALUES ($1, $2)", salt, box.Seal(nil, what))
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
		return fmt.Errorf("it was written with another master key; put the master.key that belongs to it into the data folder, for "+
			"a second control plane a copy of the first one's (if it is lost, use an empty database: jobs that are under way are lost "+
			"and agents must enrol again): %w", err)
	}
	return nil
}

// Fenced implements store.Store.
func (s *Store) Fenced() <-chan struct{} { return s.writer.leader.fenced }

// Away implements store.Store. It knows of an outage soon also if nobody writes, because the leader's row is.
func (s *Store) Away() error {
	if err := s.writer.away.Load(); err != nil {
		return *err
	}
	return nil
}

// Close implements store.Store. It gives up the lead.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	var err error
	if s.writer != nil {
		err = s.writer.close()
	}
	if s.reader != nil {
		s.reader.Close()
	}
	if err != nil {
		return fmt.Errorf("close the store: %w", explain(err))
	}
	return nil
}

// read runs a query on the pool until it has an answer: reading twice does no harm.
func read[T any](ctx context.Context, s *Store, query func(*pgxpool.Pool) (T, error)) (T, error) {
	repeat := newBackoff(s.patience)
	for {
		v, err := query(s.reader)
		if err == nil {
			return v, nil
		}
		var none T
		switch {
		case s.closed.Load():
			return none, store.ErrClosed
		case ctx.Err() != nil:
			return none, ctx.Err()
		case !isOutage(err):
			return none, explain(err)
		}
		if waited := repeat.wait(ctx); waited != nil {
			return none, unavailable(errors.Join(waited, err))
		}
	}
}
