//go:build unix

package job

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/git"
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
	if err := unsupported(&j.payload, j.settings); err != nil {
		return err
	}
	if j.settings.clonePath != "" {
		return &failure{
			reason:  runnerapi.ReasonConfiguration,
			message: "setting GIT_CLONE_PATH is not supported by this runner yet: remove the variable",
		}
	}
	if err := j.sources.Check(); err != nil {
		return &failure{reason: runnerapi.ReasonConfiguration, message: err.Error()}
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

func (j *Job) runStages() error {
	whole, cancel := context.WithTimeoutCause(j.ctx, j.timeout, &failure{
		reason: runnerapi.ReasonExecutionTimeout, message: fmt.Sprintf("execution took longer than %v seconds", j.timeout),
	})
	defer cancel()
	err := j.section(whole, "prepare_script", "Preparing environment", j.prepare)
	if err != nil {
		if cause := context.Cause(whole); cause != nil {
			return cause
		}
		if f, ok := errors.AsType[*failure](err); ok {
			return f
		}
		return fmt.Errorf("prepare environment: %w", err)
	}
	err = j.getSources(whole)
	if err == nil {
		err = j.runScripts(whole)
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

// getSources is the stage get_sources, as often as GET_SOURCES_ATTEMPTS allows.
func (j *Job) getSources(ctx context.Context) error {
	var err error
	for attempt := range j.settings.attempts {
		if attempt == 1 {
			err = j.section(ctx, "clear_worktree", "Deleting all tracked and untracked files due to source fetch failure", j.sources.ClearWorktree)
			if err != nil {
				continue
			}
		}
		err = j.section(ctx, "get_sources", "Getting source from Git repository", j.getSourcesOnce)
		if err == nil || ctx.Err() != nil || attempt == j.settings.attempts-1 {
			return err
		}
		if j.settings.backOff {
			wait := retryDelay(attempt)
			j.out.info(fmt.Sprintf("Retrying in %v", wait.Round(time.Millisecond)))
			j.out.flush()
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return context.Cause(ctx)
			}
		}
	}
	return err
}

// retryDelay grows from 5 s by half each time up to 5 min, and is shortened by up to half at random.
func retryDelay(attempt int) time.Duration {
	d := 5 * time.Second
	for range attempt {
		d = min(d*3/2, 5*time.Minute)
	}
	return d - time.Duration(rand.Int64N(int64(d/2))) // #nosec G404 -- no secret depends on it
}

func (j *Job) getSourcesOnce(ctx context.Context) error {
	if err := j.writeFileVariables(); err != nil {
		return err
	}
	if err := j.hook(ctx, hookBefore, j.Spec.BuildsDir); err != nil {
		return err
	}
	if err := j.sources.Get(ctx); err != nil {
		return err
	}
	return j.hook(ctx, hookAfter, j.projectDir)
}

func (j *Job) hook(ctx context.Context, name, dir string) error {
	if j.settings.strategy == git.None || j.settings.strategy == git.Empty {
		return nil
	}
	for _, h := range j.payload.Hooks {
		if h.Name == name && len(h.Script) > 0 {
			return j.runScript(ctx, commands{list: h.Script, dir: dir, section: name, here: true})
		}
	}
	return nil
}

// runScripts runs the steps, until one fails, and then after_script.
func (j *Job) runScripts(whole context.Context) error {
	ctx, stop := context.WithCancelCause(whole)
	defer stop(errEnded)
	j.mu.Lock()
	j.phase, j.stopScript = scripting, stop
	j.mu.Unlock()
	if d := j.settings.scriptTimeout; d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, d, &failure{
			reason: runnerapi.ReasonExecutionTimeout, message: fmt.Sprintf("the script took longer than %v (RUNNER_SCRIPT_TIMEOUT)", d),
		})
		defer cancel()
	}

	var err error
	for _, step := range j.payload.Steps {
		if step.Name == afterScript {
			continue
		}
		if err = j.step(ctx, step); err != nil {
			break
		}
	}
	j.mu.Lock()
	j.phase = ending
	j.mu.Unlock()
	if whole.Err() != nil {
		return context.Cause(whole)
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
		if errors.Is(cause, errCanceled) {
			j.out.warn("script canceled externally (UI, API)")
		}
	}
	return j.runAfterScript(whole, err)
}

const afterScript = "after_script"

func (j *Job) step(ctx context.Context, step runnerapi.Step) error {
	list := step.Script
	if step.Name == "release" { // GitLab writes this step itself and leaves the expansion to the runner
		list = make([]string, len(step.Script))
		for i, line := range step.Script {
			expanded, err := j.vars.Expand(line)
			if err != nil {
				return &failure{reason: runnerapi.ReasonConfiguration, message: err.Error()}
			}
			list[i] = expanded
		}
	}
	name := "step_" + stageName(step.Name)
	return j.section(ctx, name, fmt.Sprintf("Executing %q stage of the job script", name), func(ctx context.Context) error {
		return j.runScript(ctx, commands{list: list, dir: j.projectDir, section: "script_step"})
	})
}

// stageName makes a step's name fit for markers and control lines.
func stageName(step string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '-' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(step))
}

// runAfterScript runs after_script, whatever became of the script, and returns how both together ended.
func (j *Job) runAfterScript(whole context.Context, scriptErr error) error {
	var list []string
	for _, step := range j.payload.Steps {
		if step.Name == afterScript {
			list = step.Script
			break
		}
	}
	if len(list) == 0 {
		return scriptErr
	}
	j.vars.Set("CI_JOB_STATUS", statusFor(scriptErr))
	d := j.settings.afterTimeout
	ctx, cancel := context.WithTimeoutCause(whole, d, &failure{
		reason: runnerapi.ReasonExecutionTimeout, message: fmt.Sprintf("after_script took longer than %v (RUNNER_AFTER_SCRIPT_TIMEOUT)", d),
	})
	defer cancel()
	err := j.section(ctx, afterScript, "Running after_script", func(ctx context.Context) error {
		return j.runScript(ctx, commands{list: list, dir: j.projectDir, section: "after_script_step", notice: "Running after script..."})
	})
	if cause := context.Cause(ctx); cause != nil && whole.Err() == nil {
		err = cause
	}
	switch {
	case err == nil || whole.Err() != nil:
		return scriptErr
	case j.settings.ignoreAfter:
		j.out.warn("after_script failed, but job will continue unaffected: " + err.Error())
		return scriptErr
	case scriptErr == nil:
		return err
	}
	return scriptErr
}

// statusFor is the job's status as after_script is told it.
func statusFor(err error) string {
	if err == nil {
		return "success"
	}
	switch asFailure(err).reason {
	case runnerapi.ReasonCanceled:
		return "canceled"
	case runnerapi.ReasonExecutionTimeout:
		return "timedout"
	}
	return "failed"
}
