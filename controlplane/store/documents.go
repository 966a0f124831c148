package store

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// MaxDocument is the longest Body of a Document, in bytes.
const MaxDocument = 16 << 20

// Document is a whole thing that is written and read as one, for example the policy of fair usage. What it means is its
// writer's business.
type Document struct {
	Name      string
	Version   int64  // 1 for the first; grows by one with every change
	Body      []byte // never nil when the store returns it
	ChangedAt time.Time
	ChangedBy string
}

// Documents keeps documents by name. All methods may be called concurrently.
type Documents interface {
	// Document returns the newest version. ErrNotFound.
	Document(ctx context.Context, name string) (Document, error)
	// PutDocument stores d as the version after previous (0: there must be none yet) and returns it with its Version.
	// ErrStale, and nothing is written, if previous is not the stored version. audit, if not nil, is appended in the same
	// commit. A Body of more than MaxDocument bytes is refused.
	PutDocument(ctx context.Context, d Document, previous int64, audit *AuditEntry) (Document, error)
}

// Check says why a document cannot be stored.
func (d Document) Check() error {
	if len(d.Body) > MaxDocument {
		return fmt.Errorf("it has %d bytes; the store takes up to %d", len(d.Body), MaxDocument)
	}
	return nil
}

// Bounds of the audit log.
const (
	// MaxAudit is how many entries are kept at most: appending drops the oldest.
	MaxAudit = 100_000
	// maxAuditWord and maxAuditDetail bound an entry's texts, in bytes.
	maxAuditWord   = 1 << 10
	maxAuditDetail = 16 << 10
)

// AuditEntry is one change that somebody made.
type AuditEntry struct {
	ID                     int64 // given by the store; grows
	At                     time.Time
	Actor, Action, Subject string
	Detail                 string
}

// Audit keeps the log of changes. All methods may be called concurrently.
type Audit interface {
	// AppendAudit adds an entry; its ID is ignored. Texts that are too long are cut (Bounded).
	AppendAudit(ctx context.Context, e AuditEntry) error
	// Audit returns up to limit entries with smaller IDs than before (0: the newest), newest first.
	Audit(ctx context.Context, before int64, limit int) ([]AuditEntry, error)
}

// Bounded returns the entry as it is stored: texts within their bounds, without what is no text.
func (e AuditEntry) Bounded() AuditEntry {
	e.Actor, e.Action, e.Subject = bounded(e.Actor, maxAuditWord), bounded(e.Action, maxAuditWord), bounded(e.Subject, maxAuditWord)
	e.Detail = bounded(e.Detail, maxAuditDetail)
	return e
}

func bounded(text string, most int) string {
	const cut = "…"
	text = strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most-len(cut)], "") + cut
	}
	return text
}
