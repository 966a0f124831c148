package ciconfig

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCompileOrdersJobsByStageThenPlace(t *testing.T) {
	p, err := Compile(".gitlab-ci.yml", []byte(`
stages: [one, two]
variables: {A: "1"}
b: {stage: two, script: b, needs: [a]}
a: {stage: one, script: [a, b], variables: {B: 2}, tags: [y, x, x]}
c: {stage: one, script: c}
`), Options{})
	require.NoError(t, err)
	require.Equal(t, []string{"one", "two"}, p.Stages)
	require.Len(t, p.Jobs, 3)
	require.Equal(t, "a", p.Jobs[0].Name)
	require.Equal(t, "c", p.Jobs[1].Name)
	require.Equal(t, "b", p.Jobs[2].Name)
	require.Equal(t, []Need{{Job: "a", Artifacts: true}}, p.Jobs[2].Needs)
	require.Equal(t, []string{"x", "y"}, p.Jobs[0].Tags)
	require.Equal(t, []Variable{{Key: "A", Value: "1", Public: true}, {Key: "B", Value: "2", Public: true}}, p.Jobs[0].Variables)
}
