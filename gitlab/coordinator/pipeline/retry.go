package pipeline

import (
	"slices"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
)

// How often a failure is retried whatever the job says, and if it says nothing (Gitlab::Ci::Build::AutoRetry; the second
// also has what a runner that never confirms a job leads to).
var (
	neverRetried = []string{
		"ci_quota_exceeded", "no_matching_runner", "missing_dependency_failure", "forward_deployment_failure",
		"environment_creation_failure",
	}
	defaultRetries = map[string]int{"scheduler_failure": 2, "runner_provisioning_timeout": 2}
)

// maxRetries is how often a job that failed so is retried.
func maxRetries(r *ciconfig.Retry, reason string, exitCode int) int {
	switch {
	case slices.Contains(neverRetried, reason):
		return 0
	case r != nil && r.Applies(reason, exitCode):
		return r.Max
	default:
		return defaultRetries[reason]
	}
}

// Dropped is what became of a job that was dropped.
type Dropped struct {
	Changes []Change
	// Failed: the attempt has failed; otherwise it was being canceled, and is now.
	Failed bool
	// AllowFailure: the attempt that failed may fail. [Pipeline.AllowFailure] is that of a new attempt already.
	AllowFailure bool
	// Retried: there is a new attempt; the second change begins it.
	Retried bool
}

// Drop fails a job with GitLab's name of a reason, or cancels it if it is being canceled. An exit code of
// `allow_failure:exit_codes` lets it fail. If `retry` or GitLab's own rules say so, and neither they nor a person have
// retried the job too often already, it is retried as by Retry.
func (p *Pipeline) Drop(job int, reason string, exitCode int) (Dropped, error) {
	c, err := p.Fire(job, EventDrop, Guards{})
	if err != nil {
		return Dropped{}, err
	}
	n := &p.jobs[job]
	d := Dropped{Changes: []Change{c}, Failed: c.To == Failed}
	if !d.Failed {
		return d, nil
	}
	if slices.Contains(n.AllowFailureExitCodes, exitCode) {
		p.SetAllowFailure(job, true)
	}
	d.AllowFailure = n.allowFailure
	if n.retries >= maxRetries(n.Retry, reason, exitCode) {
		return d, nil
	}
	changes, err := p.Retry(job)
	if err != nil {
		return Dropped{}, err
	}
	d.Changes, d.Retried = append(d.Changes, changes...), true
	return d, nil
}

// Retries is how many attempts of a job there were before the present one.
func (p *Pipeline) Retries(job int) int { return p.jobs[job].retries }
