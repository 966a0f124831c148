package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/allocation/simulation"
)

// The help teaches with a scenario that can be played.
func TestTheExampleOfSimulatesHelpCanBePlayed(t *testing.T) {
	_, example, found := strings.Cut(simulateCmd{}.Help(), "A scenario:\n")
	require.True(t, found)
	example, _, found = strings.Cut(example, "Lengths vary")
	require.True(t, found)
	s, warnings, err := simulation.Read("example", []byte(example))
	require.NoError(t, err)
	require.Empty(t, warnings)
	r, err := simulation.Play(s)
	require.NoError(t, err)
	require.Equal(t, "fair", r.Mode)
	require.Len(t, r.Projects, 9)
	for _, p := range r.Projects {
		require.Positive(t, p.Jobs, p.Path)
	}
}
