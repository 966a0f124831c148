package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// Document implements store.Documents.
func (s *Store) Document(ctx context.Context, name string) (store.Document, error) {
	d := store.Document{Name: name}
	var changed int64
	err := s.read.document.QueryRowContext(ctx, name).Scan(&d.Version, &d.Body, &changed, &d.ChangedBy)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		err = store.ErrNotFound
	case err != nil:
		err = s.readError(err)
	}
	if err != nil {
		return store.Document{}, fmt.Errorf("document %q: %w", name, err)
	}
	d.Body, d.ChangedAt = append([]byte{}, d.Body...), moment(changed)
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
	stmt, args := t.updateDocument, []any{d.Version, d.Body, nanos(d.ChangedAt), d.ChangedBy, d.Name, d.Version - 1}
	if d.Version == 1 {
		stmt, args = t.insertDocument, []any{d.Version, d.Body, nanos(d.ChangedAt), d.ChangedBy, d.Name}
	}
	changed, err := t.change(stmt, args...)
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
	if err := t.exec(t.insertAudit, nanos(e.At), e.Actor, e.Action, e.Subject, e.Detail); err != nil {
		return err
	}
	return t.exec(t.trimAudit, store.MaxAudit)
}

// Audit implements store.Audit.
func (s *Store) Audit(ctx context.Context, before int64, limit int) ([]store.AuditEntry, error) {
	entries, err := s.loadAudit(ctx, before, limit)
	if err != nil {
		return nil, fmt.Errorf("read the audit log: %w", s.readError(err))
	}
	return entries, nil
}

func (s *Store) loadAudit(ctx context.Context, before int64, limit int) ([]store.AuditEntry, error) {
	rows, err := s.read.audit.QueryContext(ctx, before, max(limit, 0))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var entries []store.AuditEntry
	for rows.Next() {
		var e store.AuditEntry
		var at int64
		if err := rows.Scan(&e.ID, &at, &e.Actor, &e.Action, &e.Subject, &e.Detail); err != nil {
			return nil, err
		}
		e.At = moment(at)
		entries = append(entries, e)
	}
	return entries, rows.Err()
}
