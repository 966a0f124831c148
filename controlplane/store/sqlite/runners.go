package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// SystemID implements store.Runners.
func (s *Store) SystemID(ctx context.Context, runner string) (string, error) {
	var id string
	err := s.read.systemID.QueryRowContext(ctx, runner).Scan(&id)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		err = s.writer.do(ctx, func(t *tx) error {
			return t.row(t.addRunner, runner, store.NewSystemID()).Scan(&id)
		})
	case err != nil:
		err = s.readError(err)
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
	t, err := s.runnerToken(ctx, runner)
	if err != nil {
		return store.RunnerToken{}, fmt.Errorf("token of runner %q: %w", runner, s.readError(err))
	}
	return t, nil
}

func (s *Store) runnerToken(ctx context.Context, runner string) (store.RunnerToken, error) {
	var t store.RunnerToken
	var salt, sealed []byte
	var obtained, expires int64
	err := s.read.runnerToken.QueryRowContext(ctx, runner).Scan(&salt, &sealed, &t.Configured, &obtained, &expires)
	if errors.Is(err, sql.ErrNoRows) {
		return store.RunnerToken{}, store.ErrNotFound
	}
	if err != nil {
		return store.RunnerToken{}, err
	}
	box, err := s.key.OpenBox(salt)
	if err == nil {
		sealed, err = box.Open(sealed, ofRunner(runner))
	}
	t.Token, t.ObtainedAt, t.ExpiresAt = string(sealed), moment(obtained), moment(expires)
	return t, err
}

// SaveRunnerToken implements store.Runners.
func (s *Store) SaveRunnerToken(ctx context.Context, runner string, token store.RunnerToken) error {
	box, salt := s.key.NewBox()
	sealed := box.Seal([]byte(token.Token), ofRunner(runner))
	err := s.writer.do(ctx, func(t *tx) error {
		return t.exec(t.saveRunnerToken, runner, salt, sealed, token.Configured, nanos(token.ObtainedAt), nanos(token.ExpiresAt))
	})
	if err != nil {
		return fmt.Errorf("save the token of runner %q: %w", runner, err)
	}
	return nil
}

// DeleteRunnerToken implements store.Runners.
func (s *Store) DeleteRunnerToken(ctx context.Context, runner string) error {
	err := s.writer.do(ctx, func(t *tx) error { return t.exec(t.deleteRunnerToken, runner) })
	if err != nil {
		return fmt.Errorf("delete the token of runner %q: %w", runner, err)
	}
	return nil
}
