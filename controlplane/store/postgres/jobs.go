package postgres

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
)

// owner names a job for sealing.
func owner(gitLabURL string, gitLabJobID int64) string {
	return " of job " + strconv.FormatInt(gitLabJobID, 10) + " at " + gitLabURL
}

// jobColumns are what scanJob reads.
const jobColumns = "id, epoch, state, runner, gitlab_url, gitlab_job_id, agent, salt, token, envelope, result, claimed_at, started_at"

const insertJob = `WITH job AS (
		INSERT INTO jobs (epoch, state, runner, gitlab_url, gitlab_job_id, agent, salt, token, envelope, claimed_at)
		VALUES (1, 'claimed', $1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (gitlab_url, gitlab_job_id) DO NOTHING RETURNING id
	), payload AS (
		INSERT INTO payloads (job, body) SELECT id, $9 FROM job
	)
	SELECT id FROM job`

// InsertJob implements store.Jobs.
func (s *Store) InsertJob(ctx context.Context, j store.NewJob) (store.Job, error) {
	envelope, err := json.Marshal(j.Envelope)
	if err != nil {
		return store.Job{}, fmt.Errorf("insert job: envelope: %w", err)
	}
	box, salt := s.key.NewBox()
	of := owner(j.GitLabURL, j.GitLabJobID)
	token, payload := box.Seal([]byte(j.Token), "token"+of), box.Seal(j.Payload, "payload"+of)

	var id int64
	var existing *store.Job
	err = s.writer.do(ctx, func(t *tx) error {
		existing = nil
		err := t.row(insertJob, j.Runner, j.GitLabURL, j.GitLabJobID, j.Agent, salt, token, string(envelope), nanos(j.ClaimedAt), payload).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			var found store.Job
			found, err = scanJob(t.row("SELECT "+jobColumns+" FROM jobs WHERE gitlab_url = $1 AND gitlab_job_id = $2", j.GitLabURL, j.GitLabJobID), s.key)
			existing = &found
		}
		return err
	})
	if err != nil {
		return store.Job{}, fmt.Errorf("insert job %d of %s: %w", j.GitLabJobID, j.GitLabURL, err)
	}
	if existing != nil {
		return *existing, fmt.Errorf("insert job %d of %s: %w", j.GitLabJobID, j.GitLabURL, store.ErrExists)
	}
	return store.Job{
		ID: id, Epoch: 1, State: store.JobClaimed,
		Runner: j.Runner, GitLabURL: j.GitLabURL, GitLabJobID: j.GitLabJobID, Token: j.Token, Envelope: j.Envelope,
		Agent: j.Agent, ClaimedAt: moment(nanos(j.ClaimedAt)),
	}, nil
}

// Reoffer implements store.Jobs.
func (s *Store) Reoffer(ctx context.Context, id, epoch int64, agent string) (int64, error) {
	err := s.writer.do(ctx, func(t *tx) error {
		changed, err := t.exec("UPDATE jobs SET epoch = epoch + 1, agent = $1 WHERE id = $2 AND epoch = $3 AND state = 'claimed'", agent, id, epoch)
		if err != nil || changed {
			return err
		}
		_, err = t.stateAt(id, epoch)
		if err == nil {
			err = store.ErrStale // started or finished
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("reoffer job %d: %w", id, err)
	}
	return epoch + 1, nil
}

// stateAt returns a job's state. ErrNotFound, or ErrStale if the epoch is another.
func (t *tx) stateAt(id, epoch int64) (store.JobState, error) {
	var have int64
	var state store.JobState
	err := t.row("SELECT epoch, state FROM jobs WHERE id = $1", id).Scan(&have, &state)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", store.ErrNotFound
	case err != nil:
		return "", err
	case have != epoch:
		return "", store.ErrStale
	}
	return state, nil
}

// StartJob implements store.Jobs.
func (s *Store) StartJob(ctx context.Context, id, epoch int64, at time.Time) error {
	err := s.writer.do(ctx, func(t *tx) error {
		changed, err := t.exec("UPDATE jobs SET state = 'started', started_at = $1 WHERE id = $2 AND epoch = $3 AND state = 'claimed'",
			nanos(at), id, epoch)
		if err != nil || changed {
			return err
		}
		state, err := t.stateAt(id, epoch)
		if err == nil && state != store.JobStarted {
			err = store.ErrStale
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("start job %d: %w", id, err)
	}
	return nil
}

// DropPayload implements store.Jobs.
func (s *Store) DropPayload(id int64) { s.writer.queue.Drop(id) }

const finishJob = `WITH job AS (
		UPDATE jobs SET state = 'finished', result = $1 WHERE id = $2 AND epoch = $3 AND state <> 'finished' RETURNING id
	), payload AS (
		DELETE FROM payloads WHERE job IN (SELECT id FROM job)
	)
	SELECT id FROM job`

// FinishJob implements store.Jobs.
func (s *Store) FinishJob(ctx context.Context, id, epoch int64, r store.Result) error {
	result, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("finish job %d: result: %w", id, err)
	}
	err = s.writer.do(ctx, func(t *tx) error {
		changed, err := t.exec(finishJob, string(result), id, epoch)
		if err == nil && !changed {
			_, err = t.stateAt(id, epoch) // finished already
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("finish job %d: %w", id, err)
	}
	return nil
}

const deleteJob = `WITH payload AS (DELETE FROM payloads WHERE job = $1) DELETE FROM jobs WHERE id = $1`

// DeleteJob implements store.Jobs.
func (s *Store) DeleteJob(ctx context.Context, id int64) error {
	err := s.writer.do(ctx, func(t *tx) error {
		_, err := t.exec(deleteJob, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("delete job %d: %w", id, err)
	}
	return nil
}

// Payload implements store.Jobs.
func (s *Store) Payload(ctx context.Context, id, epoch int64) ([]byte, error) {
	payload, err := read(ctx, s, func(db *pgxpool.Pool) ([]byte, error) { return s.payload(ctx, db, id, epoch) })
	if err != nil {
		return nil, fmt.Errorf("payload of job %d: %w", id, err)
	}
	return payload, nil
}

func (s *Store) payload(ctx context.Context, db *pgxpool.Pool, id, epoch int64) ([]byte, error) {
	var have, gitLabJobID int64
	var gitLabURL string
	var salt, body []byte
	err := db.QueryRow(ctx, "SELECT epoch, gitlab_url, gitlab_job_id, salt, body FROM jobs LEFT JOIN payloads ON job = id WHERE id = $1", id).
		Scan(&have, &gitLabURL, &gitLabJobID, &salt, &body)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, store.ErrNotFound
	case err != nil:
		return nil, err
	case have != epoch:
		return nil, store.ErrStale
	case body == nil:
		return nil, store.ErrNotFound
	}
	return unseal(s.key, salt, body, "payload"+owner(gitLabURL, gitLabJobID))
}

// unseal opens a sealed value. Its error is about the row.
func unseal(key *sealing.Key, salt, sealed []byte, what string) ([]byte, error) {
	box, err := key.OpenBox(salt)
	if err == nil {
		sealed, err = box.Open(sealed, what)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDecode, err)
	}
	return sealed, nil
}

// LoadJobs implements store.Jobs.
func (s *Store) LoadJobs(ctx context.Context) ([]store.Job, error) {
	jobs, err := read(ctx, s, func(db *pgxpool.Pool) ([]store.Job, error) {
		return all(ctx, db, func(row pgx.CollectableRow) (store.Job, error) { return scanJob(row, s.key) },
			"SELECT "+jobColumns+" FROM jobs ORDER BY id")
	})
	if err != nil {
		return nil, fmt.Errorf("load the jobs: %w", err)
	}
	return jobs, nil
}

// all returns the rows of a query; nil if there are none.
func all[T any](ctx context.Context, db *pgxpool.Pool, scan pgx.RowToFunc[T], query string, args ...any) ([]T, error) {
	rows, err := db.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return pgx.AppendRows([]T(nil), rows, scan)
}

func scanJob(row pgx.Row, key *sealing.Key) (store.Job, error) {
	var j store.Job
	var salt, token []byte
	var envelope string
	var result sql.NullString
	var claimed, started int64
	err := row.Scan(&j.ID, &j.Epoch, &j.State, &j.Runner, &j.GitLabURL, &j.GitLabJobID, &j.Agent, &salt, &token, &envelope, &result,
		&claimed, &started)
	if err != nil {
		return store.Job{}, err
	}
	j.ClaimedAt, j.StartedAt = moment(claimed), moment(started)
	if err := json.Unmarshal([]byte(envelope), &j.Envelope); err != nil {
		return store.Job{}, fmt.Errorf("job %d: envelope: %w: %w", j.ID, errDecode, err)
	}
	if result.Valid {
		j.Result = new(store.Result)
		if err := json.Unmarshal([]byte(result.String), j.Result); err != nil {
			return store.Job{}, fmt.Errorf("job %d: result: %w: %w", j.ID, errDecode, err)
		}
		j.FinishedAt = j.Result.FinishedAt
	}
	opened, err := unseal(key, salt, token, "token"+owner(j.GitLabURL, j.GitLabJobID))
	if err != nil {
		return store.Job{}, fmt.Errorf("job %d: token: %w", j.ID, err)
	}
	j.Token = string(opened)
	return j, nil
}

// nanos is the form of times in the tables.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func moment(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanos).UTC()
}
