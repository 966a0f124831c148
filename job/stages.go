//go:build unix

package job

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/artifacts"
	"github.com/switchyard-ci/switchyard/job/cache"
)

// execute runs the stages and returns why the job failed, or nil. err is what came of reading the payload.
func (j *Job) execute(warnings []string, err error) *failure {
	if err == nil && j.settings.timestamps {
		j.out.stamp(time.Now)
	}
	for _, w := range warnings {
		j.out.warn(w)
	}
	if err == nil {
		err = j.runnable()
	}
	if err == nil {
		err = j.runStages()
	}
	if cause := context.Cause(j.ctx); cause != nil {
		err = cause
	}
	j.removeLeftovers()
	if err == nil {
		j.out.info("Job succeeded")
		return nil
	}
	f := asFailure(err)
	j.out.fail(f.line())
	return f
}

// runnable returns why the job must not begin.
func (j *Job) runnable() error {
	if err := unsupported(&j.payload); err != nil {
		return err
	}
	if err := j.sources.Check(); err != nil {
		return &failure{reason: runnerapi.ReasonConfiguration, message: err.Error()}
	}
	if !containers(j.Spec.Executor) {
		if i := j.payload.Image; i != nil && i.Name != "" {
			j.out.warn(fmt.Sprintf("The job asks for the image %s; the %s executor has no images and runs it on %s itself.", i.Name, j.Spec.Executor, j.here()))
		}
		if n := len(j.payload.Services); n > 0 {
			j.out.warn(fmt.Sprintf("The job asks for services (%d); the %s executor has none and does not start them.", n, j.Spec.Executor))
		}
	}
	return nil
}

// removeLeftovers stops what the job's processes left behind, and removes what the cleanup stage would have if it did not
// come to it: secrets must not stay on the disk.
func (j *Job) removeLeftovers() {
	select {
	case <-j.Group.Empty():
	default:
		end := make(chan struct{})
		gone := false
		go func() {
			defer close(end)
			gone = j.Group.StopAll(min(j.Spec.KillGrace, leftoverGrace), patience)
		}()
		if err := j.out.copyUntil(end); err != nil {
			j.Log.Error("what the job's daemons said last is lost", "error", err)
		}
		if !gone {
			j.Log.Error("some of the job's processes outlived SIGKILL")
			j.out.warn("Some of the job's processes could not be killed.")
		}
	}
	if err := j.removeTemporary(); err != nil {
		j.Log.Error("the job's temporary files were not all removed", "error", err)
	}
}

// runStages runs the stages in gitlab-runner's order (executeScript in its common/build.go). What fails before the script
// skips the script and after_script; cache and artifacts of failed jobs are kept all the same.
func (j *Job) runStages() error {
	whole, cancel := context.WithTimeoutCause(j.ctx, j.timeout, &failure{
		reason: runnerapi.ReasonExecutionTimeout, message: fmt.Sprintf("execution took longer than %v seconds", j.timeout),
	})
	defer cancel()
	if err := j.section(whole, "prepare_script", "Preparing environment", j.prepare); err != nil {
		if cause := context.Cause(whole); cause != nil {
			return cause
		}
		if f, ok := errors.AsType[*failure](err); ok {
			return f
		}
		return fmt.Errorf("prepare environment: %w", err)
	}
	err := j.bringFiles(whole)
	if f, ok := errors.AsType[*failure](err); ok && f.atOnce {
		return err
	}
	if err == nil {
		err = j.runScripts(whole)
	}
	keepErr := j.keepFiles(whole, err == nil)
	if err == nil {
		err = keepErr
	}
	if whole.Err() == nil {
		if cleanErr := j.section(whole, "cleanup_file_variables", "Cleaning up project directory and file based variables", j.cleanUp); cleanErr != nil {
			j.Log.Warn("the cleanup stage failed", "error", cleanErr)
		}
	}
	if cause := context.Cause(whole); cause != nil {
		return cause
	}
	return err
}

// bringFiles are the stages before the script.
func (j *Job) bringFiles(ctx context.Context) error {
	if err := j.getSources(ctx); err != nil {
		return err
	}
	err := j.attempt(ctx, j.settings.cacheAttempts, nil, func() error {
		return j.optional(ctx, cache.Restores(j.payload.Cache), "restore_cache", "Restoring cache", j.restoreCache)
	})
	if err != nil {
		return err
	}
	return j.attempt(ctx, j.settings.artifactAttempts, nil, func() error {
		return j.optional(ctx, artifacts.Downloads(j.payload.Dependencies), "download_artifacts", "Downloading artifacts", j.downloadArtifacts)
	})
}

// keepFiles are the stages after the script. Both are tried; a cache's error counts before an artifact's.
func (j *Job) keepFiles(ctx context.Context, succeeded bool) error {
	keep, keepText := "archive_cache", "Saving cache for successful job"
	upload, uploadText := "upload_artifacts_on_success", "Uploading artifacts for successful job"
	if !succeeded {
		keep, keepText = "archive_cache_on_failure", "Saving cache for failed job"
		upload, uploadText = "upload_artifacts_on_failure", "Uploading artifacts for failed job"
	}
	cacheErr := j.optional(ctx, cache.Archives(j.payload.Cache, succeeded), keep, keepText, func(ctx context.Context) error {
		return j.archiveCache(ctx, succeeded)
	})
	uploadErr := j.optional(ctx, artifacts.Uploads(j.payload.Artifacts, succeeded), upload, uploadText, func(ctx context.Context) error {
		return j.uploadArtifacts(ctx, succeeded)
	})
	if cacheErr != nil {
		return cacheErr
	}
	return uploadErr
}

// optional runs a stage that may have nothing to do: then it does not show, unless the job asks for that.
func (j *Job) optional(ctx context.Context, needed bool, name, description string, run func(context.Context) error) error {
	if !needed {
		if j.settings.skipEmpty {
			return nil
		}
		run = func(context.Context) error { return nil }
	}
	return j.section(ctx, name, description, run)
}

// section runs one stage between its markers.
func (j *Job) section(ctx context.Context, name, description string, run func(context.Context) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	j.Stage(name)
	header := erase + cyan + description + reset + reset + "\n"
	if j.payload.Features.TraceSections {
		header = marker("start", name) + header
	}
	j.out.say(header)
	err := run(ctx)
	if j.payload.Features.TraceSections {
		j.out.say(marker("end", name))
	}
	if f, ok := errors.AsType[*failure](context.Cause(ctx)); ok && f.reason == runnerapi.ReasonExecutionTimeout {
		j.out.warn(name + " could not run to completion because the timeout was exceeded. For more control over job and script timeouts see: " +
			"https://docs.gitlab.com/ci/runners/configure_runners/#set-script-and-after_script-timeouts")
	}
	return err
}

func marker(which, name string) string {
	return "section_" + which + ":" + strconv.FormatInt(time.Now().Unix(), 10) + ":" + name + "\r" + erase
}
