package liveview

import (
	"fmt"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/internal/tracetext"
)

// note says in a few words what there is to know of a job besides its class.
func note(j coordinator.Job, c class, now time.Time) string {
	var parts []string
	switch c {
	case running:
		if j.Status == runnerapi.StateCanceling {
			parts = append(parts, "canceling")
		}
	case failed, tolerated:
		parts = append(parts, Why(j))
		if c == tolerated {
			parts = append(parts, "allowed to fail")
		}
	case waiting:
		if len(j.Needs) > 0 {
			parts = append(parts, "after "+tracetext.Clean(strings.Join(j.Needs, ", ")))
		}
	case scheduled:
		parts = append(parts, "starts in "+Span(j.ScheduledAt.Sub(now)))
	case manual, skipped, canceled, pending:
		parts = append(parts, looks[c].one)
	}
	if j.Attempt > 1 {
		parts = append(parts, fmt.Sprintf("attempt %d", j.Attempt))
	}
	return strings.Join(parts, ", ")
}

// Why says why a job failed: "exit code 2", "timed out", "runner system failure".
func Why(j coordinator.Job) string {
	switch j.FailureReason {
	case runnerapi.ReasonScriptFailure, "":
		if j.ExitCode != 0 {
			return fmt.Sprintf("exit code %d", j.ExitCode)
		}
	case runnerapi.ReasonExecutionTimeout:
		return "timed out"
	}
	return strings.ReplaceAll(string(j.FailureReason), "_", " ")
}
