package relay

import (
	"context"
	"io"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// GitLab is what the relay needs of a client of the Runner API, bound to one instance. An error means that there was no
// answer, or none that can be read; whatever GitLab answered is no error. The relay retries by itself: the client must
// not.
type GitLab interface {
	// UpdateJob is PUT /jobs/:id.
	UpdateJob(ctx context.Context, jobID int64, token string, req runnerapi.UpdateRequest) (UpdateResult, error)
	// PatchTrace is PATCH /jobs/:id/trace with the bytes [offset, offset+length) of the trace, which body yields.
	PatchTrace(ctx context.Context, jobID int64, token string, offset, length int64, body io.ReadCloser, debug bool) (PatchResult, error)
}

// UpdateResult is the answer to a PUT.
type UpdateResult struct {
	Code       int
	JobStatus  string
	Interval   time.Duration // 0: no header
	RetryAfter time.Duration // 0: no header
}

// PatchResult is the answer to a PATCH.
type PatchResult struct {
	Code       int
	JobStatus  string
	Interval   time.Duration
	RetryAfter time.Duration
	// Range is the number after '-' in the Range header; 0 if there is none.
	Range int64
}
