package runnerapi

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFeatureNamesAreTheJSONNames(t *testing.T) {
	f := FeaturesOf([]string{"refspecs", "two_phase_job_commit", "of_a_newer_agent"})
	require.Equal(t, Features{Refspecs: true, TwoPhaseJobCommit: true}, f)
	require.Equal(t, []string{"refspecs", "two_phase_job_commit"}, f.Names())

	var all map[string]bool
	raw, err := json.Marshal(Features{})
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(raw, &all))
	names := make([]string, 0, len(all))
	for n := range all {
		names = append(names, n)
	}
	require.Len(t, FeaturesOf(names).Names(), len(all), "every feature of the wire type is known by its name")
}

func TestFeaturesOfSeveralAgents(t *testing.T) {
	a, b := Features{Variables: true, Image: true}, Features{Variables: true, Cache: true}
	require.Equal(t, Features{Variables: true}, a.Intersection(b))
	require.Equal(t, Features{Variables: true, Image: true, Cache: true}, a.Union(b))
}
