package runnerapi

import "slices"

// KnownTo translates a reason into one that a GitLab knows whose payload lists supported (`features.failure_reasons`):
// reasons that came with later versions have coarser ones for earlier versions. An empty reason is the script's failure.
func (r FailureReason) KnownTo(supported []FailureReason) FailureReason {
	for {
		switch {
		case r == "":
			return ReasonScriptFailure
		case r == ReasonScriptFailure, r == ReasonRunnerSystem, r == ReasonExecutionTimeout, slices.Contains(supported, r):
			return r
		case r == ReasonImagePull, r == ReasonExternalDependency:
			r = ReasonRunnerSystem
		case r == ReasonConfiguration:
			r = ReasonScriptFailure
		default:
			return ReasonUnknown
		}
	}
}
