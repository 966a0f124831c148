package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

const agentColumns = "id, name, enrolled_at, key_digest, token_id, removed"

// AddJoinToken implements store.Agents.
func (s *Store) AddJoinToken(ctx context.Context, token store.JoinToken) error {
	err := s.writer.do(ctx, func(t *tx) error {
		// Tokens that are long gone are forgotten whatever becomes of the new one.
		if _, err := t.exec("DELETE FROM join_tokens WHERE expires_at < $1", nanos(token.CreatedAt.Add(-store.JoinTokenMemory))); err != nil {
			return err
		}
		added, err := t.exec("INSERT INTO join_tokens (id, secret_digest, uses, created_at, expires_at, revoked) "+
			"VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
			token.ID, token.SecretDigest, token.Uses, nanos(token.CreatedAt), nanos(token.ExpiresAt), token.Revoked)
		if err == nil && !added {
			err = store.ErrExists
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("add join token %s: %w", token.ID, err)
	}
	return nil
}

// EnrollAgent implements store.Agents.
func (s *Store) EnrollAgent(ctx context.Context, secretDigest []byte, a store.Agent, now time.Time) (store.Agent, error) {
	var enrolled store.Agent
	err := s.writer.do(ctx, func(t *tx) error {
		var err error
		enrolled, err = t.enroll(secretDigest, a, now)
		return err
	})
	if err != nil {
		return store.Agent{}, fmt.Errorf("enrol agent %q: %w", a.Name, err)
	}
	return enrolled, nil
}

func (t *tx) enroll(secretDigest []byte, a store.Agent, now time.Time) (store.Agent, error) {
	var token store.JoinToken
	var expires int64
	err := t.row("SELECT id, uses, expires_at, revoked FROM join_tokens WHERE secret_digest = $1", secretDigest).
		Scan(&token.ID, &token.Uses, &expires, &token.Revoked)
	if errors.Is(err, pgx.ErrNoRows) {
		return store.Agent{}, store.ErrTokenUnknown
	}
	if err != nil {
		return store.Agent{}, err
	}
	token.ExpiresAt = moment(expires)

	earlier, err := scanAgent(t.row("SELECT "+agentColumns+" FROM agents WHERE token_id = $1 AND key_digest = $2", token.ID, a.KeyDigest))
	if !errors.Is(err, pgx.ErrNoRows) {
		return earlier, err
	}
	if err := token.Check(now); err != nil {
		return store.Agent{}, err
	}
	if _, err := t.exec("UPDATE join_tokens SET uses = uses - 1 WHERE id = $1", token.ID); err != nil {
		return store.Agent{}, err
	}
	a.TokenID, a.Removed, a.EnrolledAt = token.ID, false, moment(nanos(a.EnrolledAt))
	if a.Name, err = t.freeName(a.Name); err != nil {
		return store.Agent{}, err
	}
	_, err = t.exec("INSERT INTO agents ("+agentColumns+") VALUES ($1, $2, $3, $4, $5, false)",
		a.ID, a.Name, nanos(a.EnrolledAt), a.KeyDigest, a.TokenID)
	return a, err
}

func (t *tx) freeName(wanted string) (string, error) {
	for n := 1; ; n++ {
		name := store.AgentName(wanted, n)
		var taken bool
		err := t.row("SELECT EXISTS (SELECT 1 FROM agents WHERE name = $1 AND NOT removed)", name).Scan(&taken)
		if err != nil || !taken {
			return name, err
		}
	}
}

// Agent implements store.Agents.
func (s *Store) Agent(ctx context.Context, id string) (store.Agent, error) {
	agent, err := read(ctx, s, func(db *pgxpool.Pool) (store.Agent, error) {
		return found(scanAgent(db.QueryRow(ctx, "SELECT "+agentColumns+" FROM agents WHERE id = $1", id)))
	})
	if err != nil {
		return store.Agent{}, fmt.Errorf("agent %s: %w", id, err)
	}
	return agent, nil
}

// found says store.ErrNotFound where there is no row.
func found[T any](v T, err error) (T, error) {
	if errors.Is(err, pgx.ErrNoRows) {
		err = store.ErrNotFound
	}
	return v, err
}

// Agents implements store.Agents.
func (s *Store) Agents(ctx context.Context) ([]store.Agent, error) {
	agents, err := read(ctx, s, func(db *pgxpool.Pool) ([]store.Agent, error) {
		return all(ctx, db, func(row pgx.CollectableRow) (store.Agent, error) { return scanAgent(row) },
			"SELECT "+agentColumns+" FROM agents ORDER BY name, enrolled_at, id")
	})
	if err != nil {
		return nil, fmt.Errorf("load the agents: %w", err)
	}
	return agents, nil
}

// RemoveAgent implements store.Agents.
func (s *Store) RemoveAgent(ctx context.Context, id string) error {
	err := s.writer.do(ctx, func(t *tx) error {
		found, err := t.exec("UPDATE agents SET removed = true WHERE id = $1", id)
		if err == nil && !found {
			err = store.ErrNotFound
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove agent %s: %w", id, err)
	}
	return nil
}

func scanAgent(row pgx.Row) (store.Agent, error) {
	var a store.Agent
	var enrolled int64
	if err := row.Scan(&a.ID, &a.Name, &enrolled, &a.KeyDigest, &a.TokenID, &a.Removed); err != nil {
		return store.Agent{}, err
	}
	a.EnrolledAt = moment(enrolled)
	return a, nil
}
