package job

import (
	"errors"
	"fmt"
	"slices"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/git"
)

// failure is why a job failed, for GitLab and for people. Any other error is a failure of the runner's.
type failure struct {
	reason   runnerapi.FailureReason // empty means that the script failed
	exitCode int
	message  string
	atOnce   bool // nothing but the cleanup comes after it
}

func (f *failure) Error() string { return f.message }

func exited(code int) *failure {
	return &failure{exitCode: code, message: fmt.Sprintf("exit code %d", code)}
}

// asFailure finds out what err means for the job.
func asFailure(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if g, ok := errors.AsType[*git.ExitError](err); ok {
		return exited(g.Code)
	}
	return &failure{reason: runnerapi.ReasonRunnerSystem, message: err.Error()}
}

// line is the last line of a failed job's trace, without its colours.
func (f *failure) line() string {
	if f.reason == runnerapi.ReasonRunnerSystem {
		return "Job failed (system failure): " + f.message
	}
	return "Job failed: " + f.message
}

// reasonFor translates a reason into one that this GitLab knows: some are the finer ones of later versions.
func reasonFor(reason runnerapi.FailureReason, supported []runnerapi.FailureReason) runnerapi.FailureReason {
	if reason == "" {
		return runnerapi.ReasonScriptFailure
	}
	for {
		switch {
		case reason == runnerapi.ReasonScriptFailure, reason == runnerapi.ReasonRunnerSystem,
			reason == runnerapi.ReasonExecutionTimeout, slices.Contains(supported, reason):
			return reason
		case reason == runnerapi.ReasonImagePull, reason == runnerapi.ReasonExternalDependency:
			reason = runnerapi.ReasonRunnerSystem
		case reason == runnerapi.ReasonConfiguration:
			reason = runnerapi.ReasonScriptFailure
		default:
			return runnerapi.ReasonUnknown
		}
	}
}
