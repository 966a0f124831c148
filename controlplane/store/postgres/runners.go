package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// SystemID implements store.Runners.
func (s *Store) SystemID(ctx context.Context, runner string) (string, error) {
	id, err := read(ctx, s, func(db *pgxpool.Pool) (string, error) {
		var id string
		return found(id, db.QueryRow(ctx, "SELECT system_id FROM runners WHERE name = $1", runner).Scan(&id))
	})
	if errors.Is(err, store.ErrNotFound) {
		fresh := store.NewSystemID()
		err = s.writer.do(ctx, func(t *tx) error {
			return t.row("INSERT INTO runners (name, system_id) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET name = excluded.name "+
				"RETURNING system_id", runner, fresh).Scan(&id)
		})
	}
	if err != nil {
		return "", fmt.Errorf("system id of runner %q: %w", runner, err)
	}
	return id, nil
}

// ofRunner binds a sealed token to its runner.
func ofRunner(runner string) string { return "token of runner " + runner }

// RunnerToken implements store.Runners.
func (s *Store) RunnerToken(ctx context.Context, runner string) (store.RunnerToken, error) {
	t, err := read(ctx, s, func(db *pgxpool.Pool) (store.RunnerToken, error) { return s.runnerToken(ctx, db, runner) })
	if err != nil {
		return store.RunnerToken{}, fmt.Errorf("token of runner %q: %w", runner, err)
	}
	return t, nil
}

func (s *Store) runnerToken(ctx context.Context, db *pgxpool.Pool, runner string) (store.RunnerToken, error) {
	var t store.RunnerToken
	var salt, sealed []byte
	var obtained, expires int64
	err := db.QueryRow(ctx, "SELECT salt, token, configured, obtained_at, expires_at FROM runner_tokens WHERE runner = $1", runner).
		Scan(&salt, &sealed, &t.Configured, &obtained, &expires)
	if err != nil {
		return found(store.RunnerToken{}, err)
	}
	token, err := unseal(s.key, salt, sealed, ofRunner(runner))
	t.Token, t.ObtainedAt, t.ExpiresAt = string(token), moment(obtained), moment(expires)
	return t, err
}

const saveRunnerToken = `INSERT INTO runner_tokens (runner, salt, token, configured, obtained_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
	ON CONFLICT (runner) DO UPDATE SET salt = excluded.salt, token = excluded.token, configured = excluded.configured,
		obtained_at = excluded.obtained_at, expires_at = excluded.expires_at`

// SaveRunnerToken implements store.Runners.
func (s *Store) SaveRunnerToken(ctx context.Context, runner string, token store.RunnerToken) error {
	box, salt := s.key.NewBox()
	sealed := box.Seal([]byte(token.Token), ofRunner(runner))
	err := s.writer.do(ctx, func(t *tx) error {
		_, err := t.exec(saveRunnerToken, runner, salt, sealed, token.Configured, nanos(token.ObtainedAt), nanos(token.ExpiresAt))
		return err
	})
	if err != nil {
		return fmt.Errorf("save the token of runner %q: %w", runner, err)
	}
	return nil
}

// DeleteRunnerToken implements store.Runners.
func (s *Store) DeleteRunnerToken(ctx context.Context, runner string) error {
	err := s.writer.do(ctx, func(t *tx) error {
		_, err := t.exec("DELETE FROM runner_tokens WHERE runner = $1", runner)
		return err
	})
	if err != nil {
		return fmt.Errorf("delete the token of runner %q: %w", runner, err)
	}
	return nil
}
