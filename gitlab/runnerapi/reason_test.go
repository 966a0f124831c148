package runnerapi_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func TestReasonsAreTranslatedForOlderGitLabs(t *testing.T) {
	for reason, want := range map[runnerapi.FailureReason]runnerapi.FailureReason{
		"":                                     runnerapi.ReasonScriptFailure,
		runnerapi.ReasonScriptFailure:          runnerapi.ReasonScriptFailure,
		runnerapi.ReasonRunnerSystem:           runnerapi.ReasonRunnerSystem,
		runnerapi.ReasonExecutionTimeout:       runnerapi.ReasonExecutionTimeout,
		runnerapi.ReasonImagePull:              runnerapi.ReasonRunnerSystem,
		runnerapi.ReasonExternalDependency:     runnerapi.ReasonRunnerSystem,
		runnerapi.ReasonConfiguration:          runnerapi.ReasonScriptFailure,
		runnerapi.ReasonCanceled:               runnerapi.ReasonUnknown,
		runnerapi.FailureReason("of_tomorrow"): runnerapi.ReasonUnknown,
	} {
		require.Equal(t, want, reason.KnownTo(nil), "%q", reason)
		if reason != "" {
			require.Equal(t, reason, reason.KnownTo([]runnerapi.FailureReason{"x", reason}))
		}
	}
}
