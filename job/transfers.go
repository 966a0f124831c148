//go:build unix

package job

import (
	"context"
	"errors"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func (j *Job) hasDependencies() bool {
	for _, d := range j.payload.Dependencies {
		if d.ArtifactsFile.Filename != "" {
			return true
		}
	}
	return false
}

func (j *Job) keepsCache(succeeded bool) bool {
	for _, c := range j.payload.Cache {
		if wanted(c.When, succeeded) {
			return true
		}
	}
	return false
}

func (j *Job) keepsArtifacts(succeeded bool) bool {
	for _, a := range j.payload.Artifacts {
		if wanted(a.When, succeeded) {
			return true
		}
	}
	return false
}

// wanted says whether something with this `when` is kept of a job that ended so.
func wanted(when string, succeeded bool) bool {
	switch when {
	case "always":
		return true
	case "on_failure":
		return !succeeded
	default:
		return succeeded
	}
}

var _ = runnerapi.Job{}

func (j *Job) restoreCache(context.Context) error          { return errors.New("not yet") }
func (j *Job) downloadArtifacts(context.Context) error     { return errors.New("not yet") }
func (j *Job) archiveCache(context.Context, bool) error    { return errors.New("not yet") }
func (j *Job) uploadArtifacts(context.Context, bool) error { return errors.New("not yet") }
