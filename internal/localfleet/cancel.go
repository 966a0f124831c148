package localfleet

import (
	"errors"
	"fmt"

	"github.com/switchyard-ci/switchyard/controlplane/relay"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Cancel cancels a pipeline. Jobs that run are told at once, not when they next have something to report, and still run
// their after_script; with kill they are canceled without it, and their processes are killed.
func (f *Fleet) Cancel(pipeline int64, kill bool) error {
	p, err := f.gitlab.CancelPipeline(pipeline)
	if err != nil {
		return err
	}
	status := map[int64]string{} // what the control plane would hear of the jobs that run
	var errs []error
	for _, j := range p.Jobs {
		if j.Status != runnerapi.StateRunning && j.Status != runnerapi.StateCanceling {
			continue
		}
		status[j.ID] = relay.StatusCanceling
		if !kill {
			continue
		}
		status[j.ID] = relay.StatusGone
		if _, err := f.gitlab.Cancel(j.ID, true); err != nil {
			errs = append(errs, fmt.Errorf("cancel %s: %w", j.Name, err))
		}
	}
	d := f.plane.Dispatcher()
	for _, j := range d.Jobs() {
		if s := status[j.GitLabJobID]; s != "" {
			d.JobStatus(j.Job, s)
		}
	}
	return errors.Join(errs...)
}
