package relay

import (
	"context"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// GitLab is what the relay needs of one GitLab; *client.Client is one. Every status is a result; an error means that no
// usable answer came. The relay retries by itself, a GitLab must not.
type GitLab interface {
	// UpdateJob is PUT /jobs/:id.
	UpdateJob(ctx context.Context, jobID int64, u runnerapi.UpdateRequest) (*client.UpdateResult, error)
	// PatchTrace is PATCH /jobs/:id/trace with body, the first byte of which has the offset start.
	PatchTrace(ctx context.Context, jobID int64, token string, start int64, body client.TraceBody, debug bool) (*client.PatchResult, error)
}

var _ GitLab = (*client.Client)(nil)
