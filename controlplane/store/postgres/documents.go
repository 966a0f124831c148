package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// Document implements store.Documents.
func (s *Store) Document(ctx context.Context, name string) (store.Document, error) {
	d, err := read(ctx, s, func(db *pgxpool.Pool) (store.Document, error) {
		d := store.Document{Name: name}
		var changed int64
		err := db.QueryRow(ctx, "SELECT version, body, changed_at, changed_by FROM documents WHERE name = $1", name).
			Scan(&d.Version, &d.Body, &changed, &d.ChangedBy)
		d.ChangedAt = moment(changed)
		return found(d, err)
	})
	if err != nil {
		return store.Document{}, fmt.Errorf("document %q: %w", name, err)
	}
	return d, nil
}

// PutDocument implements store.Documents.
func (s *Store) PutDocument(ctx context.Context, d store.Document, previous int64, audit *store.AuditEntry) (store.Document, error) {
	d.Version, d.Body, d.ChangedAt = previous+1, append([]byte{}, d.Body...), moment(nanos(d.ChangedAt))
	err := d.Check()
	if err == nil {
		err = s.writer.do(ctx, func(t *tx) error { return t.putDocument(d, audit) })
	}
	if err != nil {
		return store.Document{}, fmt.Errorf("put document %q: %w", d.Name, err)
	}
	return d, nil
}

func (t *tx) putDocument(d store.Document, audit *store.AuditEntry) error {
	statement, args := "UPDATE documents SET version = $1::bigint, body = $2, changed_at = $3, changed_by = $4 WHERE name = $5 AND version = $1 - 1",
		[]any{d.Version, d.Body, nanos(d.ChangedAt), d.ChangedBy, d.Name}
	if d.Version == 1 {
		statement = "INSERT INTO documents (version, body, changed_at, changed_by, name) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING"
	}
	changed, err := t.exec(statement, args...)
	switch {
	case err != nil:
		return err
	case !changed:
		return store.ErrStale
	case audit != nil:
		return t.appendAudit(*audit)
	}
	return nil
}

// AppendAudit implements store.Audit.
func (s *Store) AppendAudit(ctx context.Context, e store.AuditEntry) error {
	if err := s.writer.do(ctx, func(t *tx) error { return t.appendAudit(e) }); err != nil {
		return fmt.Errorf("append to the audit log: %w", err)
	}
	return nil
}

func (t *tx) appendAudit(e store.AuditEntry) error {
	e = e.Bounded()
	var id int64
	err := t.row("INSERT INTO audit (at, actor, action, subject, detail) VALUES ($1, $2, $3, $4, $5) RETURNING id",
		nanos(e.At), e.Actor, e.Action, e.Subject, e.Detail).Scan(&id)
	if err != nil {
		return err
	}
	_, err = t.exec("DELETE FROM audit WHERE id <= $1", id-store.MaxAudit)
	return err
}

// Audit implements store.Audit.
func (s *Store) Audit(ctx context.Context, before int64, limit int) ([]store.AuditEntry, error) {
	entries, err := read(ctx, s, func(db *pgxpool.Pool) ([]store.AuditEntry, error) {
		return all(ctx, db, scanAudit, "SELECT id, at, actor, action, subject, detail FROM audit WHERE $1::bigint = 0 OR id < $1 ORDER BY id DESC LIMIT $2",
			before, max(limit, 0))
	})
	if err != nil {
		return nil, fmt.Errorf("read the audit log: %w", err)
	}
	return entries, nil
}

func scanAudit(row pgx.CollectableRow) (e store.AuditEntry, err error) {
	var at int64
	err = row.Scan(&e.ID, &at, &e.Actor, &e.Action, &e.Subject, &e.Detail)
	e.At = moment(at)
	return e, err
}
