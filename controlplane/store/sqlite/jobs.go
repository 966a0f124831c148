package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
)

// owner names a job for sealing.
func owner(gitLabURL string, gitLabJobID int64) string {
	return " of job " + strconv.FormatInt(gitLabJobID, 10) + " at " + gitLabURL
}

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
		id, existing = 0, nil
		result, err := t.insertJob.ExecContext(context.Background(), j.Runner, j.GitLabURL, j.GitLabJobID, j.Agent, salt, token,
			string(envelope), nanos(j.ClaimedAt))
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil {
			return err
		} else if n == 0 {
			found, err := scanJob(t.row(t.jobByGitLab, j.GitLabURL, j.GitLabJobID), s.key)
			existing = &found
			return err
		}
		if id, err = result.LastInsertId(); err != nil {
			return err
		}
		return t.exec(t.insertPayload, id, payload)
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
		changed, err := t.change(t.reoffer, agent, id, epoch)
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
	err := t.row(t.jobEpochState, id).Scan(&have, &state)
	switch {
	case errors.Is(err, sql.ErrNoRows):
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
		changed, err := t.change(t.startJob, nanos(at), id, epoch)
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

// FinishJob implements store.Jobs.
func (s *Store) FinishJob(ctx context.Context, id, epoch int64, r store.Result) error {
	result, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("finish job %d: result: %w", id, err)
	}
	err = s.writer.do(ctx, func(t *tx) error {
		changed, err := t.change(t.finishJob, string(result), id, epoch)
		if err != nil {
			return err
		}
		if !changed {
			_, err := t.stateAt(id, epoch) // finished already
			return err
		}
		return t.exec(t.deletePayload, id)
	})
	if err != nil {
		return fmt.Errorf("finish job %d: %w", id, err)
	}
	return nil
}

// DeleteJob implements store.Jobs.
func (s *Store) DeleteJob(ctx context.Context, id int64) error {
	err := s.writer.do(ctx, func(t *tx) error {
		if err := t.exec(t.deletePayload, id); err != nil {
			return err
		}
		return t.exec(t.deleteJob, id)
	})
	if err != nil {
		return fmt.Errorf("delete job %d: %w", id, err)
	}
	return nil
}

// Payload implements store.Jobs.
func (s *Store) Payload(ctx context.Context, id, epoch int64) ([]byte, error) {
	payload, err := s.payload(ctx, id, epoch)
	if err != nil {
		return nil, fmt.Errorf("payload of job %d: %w", id, s.readError(err))
	}
	return payload, nil
}

func (s *Store) payload(ctx context.Context, id, epoch int64) ([]byte, error) {
	var have, gitLabJobID int64
	var gitLabURL string
	var salt, body []byte
	err := s.read.payload.QueryRowContext(ctx, id).Scan(&have, &gitLabURL, &gitLabJobID, &salt, &body)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, store.ErrNotFound
	case err != nil:
		return nil, err
	case have != epoch:
		return nil, store.ErrStale
	case body == nil:
		return nil, store.ErrNotFound
	}
	box, err := s.key.OpenBox(salt)
	if err != nil {
		return nil, err
	}
	return box.Open(body, "payload"+owner(gitLabURL, gitLabJobID))
}

// LoadJobs implements store.Jobs.
func (s *Store) LoadJobs(ctx context.Context) ([]store.Job, error) {
	jobs, err := s.loadJobs(ctx)
	if err != nil {
		return nil, fmt.Errorf("load the jobs: %w", s.readError(err))
	}
	return jobs, nil
}

func (s *Store) loadJobs(ctx context.Context) ([]store.Job, error) {
	rows, err := s.read.jobs.QueryContext(ctx)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var jobs []store.Job
	for rows.Next() {
		job, err := scanJob(rows, s.key)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, job)
	}
	return jobs, rows.Err()
}

// scanner is a row.
type scanner interface{ Scan(into ...any) error }

func scanJob(row scanner, key *sealing.Key) (store.Job, error) {
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
		return store.Job{}, fmt.Errorf("job %d: envelope: %w", j.ID, err)
	}
	if result.Valid {
		j.Result = new(store.Result)
		if err := json.Unmarshal([]byte(result.String), j.Result); err != nil {
			return store.Job{}, fmt.Errorf("job %d: result: %w", j.ID, err)
		}
		j.FinishedAt = j.Result.FinishedAt
	}
	box, err := key.OpenBox(salt)
	if err == nil {
		token, err = box.Open(token, "token"+owner(j.GitLabURL, j.GitLabJobID))
	}
	if err != nil {
		return store.Job{}, fmt.Errorf("job %d: token: %w", j.ID, err)
	}
	j.Token = string(token)
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
