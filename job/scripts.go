//go:build unix

package job

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

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

	j.tellPolicy()
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

// tellPolicy says that a policy made the job, and what it does to the project's variables.
func (j *Job) tellPolicy() {
	p := j.payload.PolicyOptions
	if p == nil || !p.ExecutionPolicyJob {
		return
	}
	j.out.info(fmt.Sprintf("Job triggered by policy %q.", p.Name))
	if p.VariablesOverrideAllowed == nil {
		return
	}
	which := "may override the policy's variables"
	if !*p.VariablesOverrideAllowed {
		which = "may not override the policy's variables"
	}
	if len(p.VariablesOverrideException) > 0 {
		which += ", except " + strings.Join(p.VariablesOverrideException, ", ")
	}
	j.out.info("Variables of the project " + which + ".")
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
		return j.runScript(ctx, commands{list: list, dir: j.projectDir, section: "script_step", step: true})
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
