package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// preparer is a connection or a pool.
type preparer interface {
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// query is a statement and its text.
type query struct {
	stmt **sql.Stmt
	text string
}

func prepare(ctx context.Context, on preparer, queries []query) error {
	for _, q := range queries {
		stmt, err := on.PrepareContext(ctx, q.text) //nolint:sqlclosecheck // closed by closeAll
		if err != nil {
			return fmt.Errorf("prepare %q: %w", q.text, err)
		}
		*q.stmt = stmt
	}
	return nil
}

func closeAll(queries []query) error {
	var errs []error
	for _, q := range queries {
		if *q.stmt != nil {
			errs = append(errs, (*q.stmt).Close())
		}
	}
	return errors.Join(errs...)
}

// jobColumns are what scanJob reads.
const jobColumns = "id, epoch, state, runner, gitlab_url, gitlab_job_id, agent, salt, token, envelope, result, claimed_at, started_at"

const agentColumns = "id, name, enrolled_at, key_digest, token_id, removed"

// readStatements run on the readers' pool.
type readStatements struct {
	jobs, payload, agent, agents, systemID *sql.Stmt
	runnerToken, document, audit           *sql.Stmt
}

func (r *readStatements) queries() []query {
	return []query{
		{&r.jobs, "SELECT " + jobColumns + " FROM jobs ORDER BY id"},
		{&r.payload, "SELECT epoch, gitlab_url, gitlab_job_id, salt, body FROM jobs LEFT JOIN payloads ON job = id WHERE id = ?"},
		{&r.agent, "SELECT " + agentColumns + " FROM agents WHERE id = ?"},
		{&r.agents, "SELECT " + agentColumns + " FROM agents ORDER BY name, enrolled_at, id"},
		{&r.systemID, "SELECT system_id FROM runners WHERE name = ?"},
		{&r.runnerToken, "SELECT salt, token, configured, obtained_at, expires_at FROM runner_tokens WHERE runner = ?"},
		{&r.document, "SELECT version, body, changed_at, changed_by FROM documents WHERE name = ?"},
		{&r.audit, "SELECT id, at, actor, action, subject, detail FROM audit WHERE ?1 = 0 OR id < ?1 ORDER BY id DESC LIMIT ?2"},
	}
}

func (r *readStatements) prepare(ctx context.Context, db *sql.DB) error {
	return prepare(ctx, db, r.queries())
}

func (r *readStatements) close() error { return closeAll(r.queries()) }

// tx is the writer's connection inside a transaction.
type tx struct {
	begin, commit, rollback, savepoint, rollbackTo, release *sql.Stmt

	insertJob, insertPayload, jobByGitLab, jobEpochState       *sql.Stmt
	reoffer, startJob, finishJob, deleteJob, deletePayload     *sql.Stmt
	insertToken, forgetTokens, tokenByDigest, useToken         *sql.Stmt
	insertAgent, agentByKey, nameTaken, removeAgent, addRunner *sql.Stmt
	saveRunnerToken, deleteRunnerToken                         *sql.Stmt
	insertDocument, updateDocument, insertAudit, trimAudit     *sql.Stmt
}

func (t *tx) queries() []query {
	return []query{
		{&t.begin, "BEGIN IMMEDIATE"},
		{&t.commit, "COMMIT"},
		{&t.rollback, "ROLLBACK"},
		{&t.savepoint, "SAVEPOINT one"},
		{&t.rollbackTo, "ROLLBACK TO one"},
		{&t.release, "RELEASE one"},

		{&t.insertJob, "INSERT INTO jobs (epoch, state, runner, gitlab_url, gitlab_job_id, agent, salt, token, envelope, claimed_at) " +
			"VALUES (1, 'claimed', ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (gitlab_url, gitlab_job_id) DO NOTHING"},
		{&t.insertPayload, "INSERT INTO payloads (job, body) VALUES (?, ?)"},
		{&t.jobByGitLab, "SELECT " + jobColumns + " FROM jobs WHERE gitlab_url = ? AND gitlab_job_id = ?"},
		{&t.jobEpochState, "SELECT epoch, state FROM jobs WHERE id = ?"},
		{&t.reoffer, "UPDATE jobs SET epoch = epoch + 1, agent = ? WHERE id = ? AND epoch = ? AND state = 'claimed'"},
		{&t.startJob, "UPDATE jobs SET state = 'started', started_at = ? WHERE id = ? AND epoch = ? AND state = 'claimed'"},
		{&t.finishJob, "UPDATE jobs SET state = 'finished', result = ? WHERE id = ? AND epoch = ? AND state <> 'finished'"},
		{&t.deleteJob, "DELETE FROM jobs WHERE id = ?"},
		{&t.deletePayload, "DELETE FROM payloads WHERE job = ?"},

		{&t.insertToken, "INSERT INTO join_tokens (id, secret_digest, uses, created_at, expires_at, revoked) VALUES (?, ?, ?, ?, ?, ?) " +
			"ON CONFLICT DO NOTHING"},
		{&t.forgetTokens, "DELETE FROM join_tokens WHERE expires_at < ?"},
		{&t.tokenByDigest, "SELECT id, uses, expires_at, revoked FROM join_tokens WHERE secret_digest = ?"},
		{&t.useToken, "UPDATE join_tokens SET uses = uses - 1 WHERE id = ?"},
		{&t.insertAgent, "INSERT INTO agents (" + agentColumns + ") VALUES (?, ?, ?, ?, ?, 0)"},
		{&t.agentByKey, "SELECT " + agentColumns + " FROM agents WHERE token_id = ? AND key_digest = ?"},
		{&t.nameTaken, "SELECT EXISTS (SELECT 1 FROM agents WHERE name = ? AND removed = 0)"},
		{&t.removeAgent, "UPDATE agents SET removed = 1 WHERE id = ?"},
		{&t.addRunner, "INSERT INTO runners (name, system_id) VALUES (?, ?) ON CONFLICT DO UPDATE SET name = name RETURNING system_id"},
		{&t.saveRunnerToken, "INSERT OR REPLACE INTO runner_tokens (runner, salt, token, configured, obtained_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)"},
		{&t.deleteRunnerToken, "DELETE FROM runner_tokens WHERE runner = ?"},

		{&t.insertDocument, "INSERT INTO documents (version, body, changed_at, changed_by, name) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"},
		{&t.updateDocument, "UPDATE documents SET version = ?, body = ?, changed_at = ?, changed_by = ? WHERE name = ? AND version = ?"},
		{&t.insertAudit, "INSERT INTO audit (at, actor, action, subject, detail) VALUES (?, ?, ?, ?, ?)"},
		{&t.trimAudit, "DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?"},
	}
}

func (t *tx) prepare(ctx context.Context, conn *sql.Conn) error {
	return prepare(ctx, conn, t.queries())
}

func (t *tx) close() error { return closeAll(t.queries()) }

// exec runs a statement. Like all of a transaction's statements it is not bound to a caller's context: others' writes
// are in the same transaction.
func (t *tx) exec(stmt *sql.Stmt, args ...any) error {
	_, err := stmt.ExecContext(context.Background(), args...)
	return err
}

// change runs a statement and says whether it changed a row.
func (t *tx) change(stmt *sql.Stmt, args ...any) (bool, error) {
	result, err := stmt.ExecContext(context.Background(), args...)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n > 0, err
}

func (t *tx) row(stmt *sql.Stmt, args ...any) *sql.Row {
	return stmt.QueryRowContext(context.Background(), args...)
}
