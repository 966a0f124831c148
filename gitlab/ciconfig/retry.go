package ciconfig

import (
	"slices"
	"strconv"
)

// Retry is `retry`: a job that failed for one of the reasons in When or with one of ExitCodes runs again, Max times at
// most. With neither, or with "always" in When, every failure counts.
type Retry struct {
	Max       int // 0 to 2
	When      []string
	ExitCodes []int
}

const maxRetries = 2

// failureReasons are GitLab's names, those that only jobs on the server have included (Enums::Ci::CommitStatus).
func failureReasons() []string {
	return []string{
		"always",
		"api_failure", "archived_failure", "bridge_pipeline_is_child_pipeline", "builds_disabled", "ci_quota_exceeded",
		"data_integrity_failure", "deployment_rejected", "downstream_bridge_project_not_found",
		"downstream_pipeline_creation_failed", "duo_workflow_not_allowed", "environment_creation_failure",
		"failed_outdated_deployment_job", "forward_deployment_failure", "image_pull_failure",
		"insufficient_bridge_permissions", "insufficient_upstream_permissions", "invalid_bridge_trigger",
		"ip_restriction_failure", "job_canceled", "job_execution_server_timeout", "job_execution_timeout", "job_router_failure",
		"job_token_expired", "missing_dependency_failure", "no_matching_runner", "pipeline_loop_detected", "project_deleted",
		"protected_environment_failure", "reached_downstream_pipeline_trigger_rate_limit",
		"reached_max_descendant_pipelines_depth", "reached_max_pipeline_hierarchy_size", "runner_configuration_error",
		"runner_external_dependency_failure", "runner_interrupted", "runner_provisioning_timeout", "runner_system_failure",
		"runner_unsupported", "scheduler_failure", "script_failure", "secrets_provider_not_found", "stale_schedule",
		"stuck_or_timeout_failure", "trace_size_exceeded", "unknown_failure", "unmet_prerequisites",
		"upstream_bridge_project_not_found", "user_blocked",
	}
}

// retry reads `retry`. It returns nil for one that changes nothing.
func (c *compiler) retry(n *node, path string) *Retry {
	if n.kind == kindInt {
		limit, ok := c.integer(n, path, 0, maxRetries)
		if !ok {
			return nil
		}
		return &Retry{Max: limit}
	}
	if n.kind != kindMap {
		c.fail(n, path, "write retry: 2", "this must be a whole number or a mapping with `max`, it is %s", n.kind)
		return nil
	}
	c.check(n, path, keywords{"max": true, "when": true, "exit_codes": true})
	r := &Retry{}
	if v := n.present("when"); v != nil {
		r.When = c.retryWhen(v, join(path, "when"))
	}
	if v := n.present("exit_codes"); v != nil {
		r.ExitCodes = c.exitCodes(v, join(path, "exit_codes"))
	}
	limit := n.present("max")
	if limit == nil {
		c.warn(path + ": without `max` it has no effect in GitLab, and has none here")
		return nil
	}
	r.Max, _ = c.integer(limit, join(path, "max"), 0, maxRetries)
	return r
}

func (c *compiler) retryWhen(n *node, path string) []string {
	if n.kind == kindString {
		c.checkReason(n, path)
		return []string{n.text}
	}
	list, ok := c.texts(n, path)
	for i, it := range n.items {
		if ok {
			c.checkReason(it, join(path, strconv.Itoa(i)))
		}
	}
	return list
}

func (c *compiler) checkReason(n *node, path string) {
	known := failureReasons()
	if slices.Contains(known, n.text) {
		return
	}
	hint := "for example script_failure, runner_system_failure, job_execution_timeout or always"
	if near := c.near(n.text, known); near != "" {
		hint = "did you mean " + strconv.Quote(near) + "?"
	}
	c.fail(n, path, hint, "%q is not a reason for a failure", n.text)
}

// exitCodes reads one exit code or a list of them.
func (c *compiler) exitCodes(n *node, path string) []int {
	list := []*node{n}
	if n.kind == kindList {
		list = n.items
	}
	codes := []int{}
	for i, it := range list {
		here := path
		if n.kind == kindList {
			here = join(here, strconv.Itoa(i))
		}
		if code, ok := c.integer(it, here, -1<<31, 1<<31-1); ok {
			codes = append(codes, code)
		}
	}
	return codes
}

// Applies says whether a failure with this reason and exit code is one that Retry is for; 0 is no exit code.
func (r *Retry) Applies(reason string, exitCode int) bool {
	if exitCode != 0 && slices.Contains(r.ExitCodes, exitCode) {
		return true
	}
	if r.When == nil {
		return r.ExitCodes == nil
	}
	return slices.Contains(r.When, reason) || slices.Contains(r.When, "always")
}
