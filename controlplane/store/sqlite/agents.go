package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// AddJoinToken implements store.Agents.
func (s *Store) AddJoinToken(ctx context.Context, token store.JoinToken) error {
	err := s.writer.do(ctx, func(t *tx) error {
		if err := t.exec(t.forgetTokens, nanos(token.CreatedAt.Add(-store.JoinTokenMemory))); err != nil {
			return err
		}
		added, err := t.change(t.insertToken, token.ID, token.SecretDigest, token.Uses, nanos(token.CreatedAt), nanos(token.ExpiresAt), token.Revoked)
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
	err := t.row(t.tokenByDigest, secretDigest).Scan(&token.ID, &token.Uses, &expires, &token.Revoked)
	if errors.Is(err, sql.ErrNoRows) {
		return store.Agent{}, store.ErrTokenUnknown
	}
	if err != nil {
		return store.Agent{}, err
	}
	token.ExpiresAt = moment(expires)

	earlier, err := scanAgent(t.row(t.agentByKey, token.ID, a.KeyDigest))
	if !errors.Is(err, sql.ErrNoRows) {
		return earlier, err
	}
	if err := token.Check(now); err != nil {
		return store.Agent{}, err
	}
	if err := t.exec(t.useToken, token.ID); err != nil {
		return store.Agent{}, err
	}
	a.TokenID, a.Removed, a.EnrolledAt = token.ID, false, moment(nanos(a.EnrolledAt))
	if a.Name, err = t.freeName(a.Name); err != nil {
		return store.Agent{}, err
	}
	return a, t.exec(t.insertAgent, a.ID, a.Name, nanos(a.EnrolledAt), a.KeyDigest, a.TokenID)
}

func (t *tx) freeName(wanted string) (string, error) {
	for n := 1; ; n++ {
		name := store.AgentName(wanted, n)
		var taken bool
		if err := t.row(t.nameTaken, name).Scan(&taken); err != nil || !taken {
			return name, err
		}
	}
}

// Agent implements store.Agents.
func (s *Store) Agent(ctx context.Context, id string) (store.Agent, error) {
	agent, err := scanAgent(s.read.agent.QueryRowContext(ctx, id))
	if errors.Is(err, sql.ErrNoRows) {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.Agent{}, fmt.Errorf("agent %s: %w", id, s.readError(err))
	}
	return agent, nil
}

// Agents implements store.Agents.
func (s *Store) Agents(ctx context.Context) ([]store.Agent, error) {
	agents, err := s.loadAgents(ctx)
	if err != nil {
		return nil, fmt.Errorf("load the agents: %w", s.readError(err))
	}
	return agents, nil
}

func (s *Store) loadAgents(ctx context.Context) ([]store.Agent, error) {
	rows, err := s.read.agents.QueryContext(ctx)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var agents []store.Agent
	for rows.Next() {
		agent, err := scanAgent(rows)
		if err != nil {
			return nil, err
		}
		agents = append(agents, agent)
	}
	return agents, rows.Err()
}

// RemoveAgent implements store.Agents.
func (s *Store) RemoveAgent(ctx context.Context, id string) error {
	err := s.writer.do(ctx, func(t *tx) error {
		found, err := t.change(t.removeAgent, id)
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

func scanAgent(row scanner) (store.Agent, error) {
	var a store.Agent
	var enrolled int64
	if err := row.Scan(&a.ID, &a.Name, &enrolled, &a.KeyDigest, &a.TokenID, &a.Removed); err != nil {
		return store.Agent{}, err
	}
	a.EnrolledAt = moment(enrolled)
	return a, nil
}
