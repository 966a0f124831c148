package agent

import (
	"context"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// Sign is what jobs call.
func (a *Agent) Sign(ctx context.Context, ref ledger.Ref, r folder.CacheRequest) folder.CacheAnswer {
	return a.sign(ctx, ref, r)
}

// Features is what GitLab is told.
func Features(executor runnerapi.Features) runnerapi.Features { return features(executor) }

// SetSpool limits the traces. It is for before Run.
func (a *Agent) SetSpool(s Spool) { a.config.Spool = s }

// SetRoom replaces the look at the disk. It is for before Run.
func (a *Agent) SetRoom(room func() error) { a.room = room }
