//go:build unix

package job

import (
	"context"
	"fmt"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/git"
)

// getSources is the stage get_sources, as often as GET_SOURCES_ATTEMPTS allows and within the runner's get_sources_timeout.
func (j *Job) getSources(ctx context.Context) error {
	if d := j.Spec.Settings.GetSourcesTimeout; d > 0 && d < j.timeout {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, d, &failure{
			reason: runnerapi.ReasonExecutionTimeout, atOnce: true,
			message: fmt.Sprintf("getting the sources took longer than %v (the runner's get_sources_timeout)", d),
		})
		defer cancel()
	}
	err := j.attempt(ctx, j.settings.attempts, func() error {
		return j.section(ctx, "clear_worktree", "Deleting all tracked and untracked files due to source fetch failure", j.sources.ClearWorktree)
	}, func() error {
		return j.section(ctx, "get_sources", "Getting source from Git repository", j.getSourcesOnce)
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func (j *Job) getSourcesOnce(ctx context.Context) error {
	if err := j.writeFileVariables(); err != nil {
		return err
	}
	if err := j.hook(ctx, hookBefore, j.Spec.Settings.PreGetSourcesScript, j.Spec.BuildsDir); err != nil {
		return err
	}
	if err := j.sources.Get(ctx); err != nil {
		return err
	}
	return j.hook(ctx, hookAfter, j.Spec.Settings.PostGetSourcesScript, j.projectDir)
}

// hook runs the runner's own script at this point, then the job's.
func (j *Job) hook(ctx context.Context, name, own, dir string) error {
	if s := j.sources.Strategy; s == git.None || s == git.Empty {
		return nil
	}
	var list []string
	if own != "" {
		list = append(list, own)
	}
	for _, h := range j.payload.Hooks {
		if h.Name == name {
			list = append(list, h.Script...)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return j.runScript(ctx, commands{list: list, dir: dir, section: name, here: true})
}
