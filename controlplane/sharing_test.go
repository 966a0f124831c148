package controlplane

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/policy"
	"github.com/switchyard-ci/switchyard/controlplane/registry"
)

func TestAPolicyThatDoesNotFitTheRunners(t *testing.T) {
	runner := func(name, url, token string) Runner {
		return Runner{Runner: registry.Runner{Name: name, URL: url, Token: token}}
	}
	s := &Server{cfg: Config{Runners: []Runner{
		runner("instance", "https://gitlab.example.com", "glrt-t1_a"),
		runner("group", "https://gitlab.example.com", "glrt-t2_a"),
		runner("project", "https://gitlab.example.com", "glrt-t3_a"),
		runner("alone", "https://elsewhere.example.com", "glrt-t2_a"),
	}}}
	const loose = "p: runners: it is not said of which group or project runners group, project are: so for their claims weight, guaranteed and " +
		"soft_quota of nodes do not count, and each has the part of a group; say it, like runners: [{name: group, group: path/of/it}]"
	for text, want := range map[string][]string{
		"nodes: [{path: a, weight: 2}]":                {loose},
		"nodes: [{path: a, guaranteed: 2}]":            {loose},
		"nodes: [{path: a, hard_quota: 2}]":            nil,
		"{share: fifo, nodes: [{path: a, weight: 2}]}": nil,
		"nodes: [{gitlab: https://x, paused: true}]":   {"p: nodes[0].gitlab: no runner is of the GitLab https://x; write it like the runners' url in switchyard.yaml"},
		"runners: [{name: other}]":                     {`p: runners[0].name: there is no runner "other"; the names are those in switchyard.yaml`},
		"nodes: [{gitlab: https://elsewhere.example.com/, weight: 2}]\nrunners: [{name: group, group: a}, {name: project, project: b/c}]": nil,
	} {
		p, _, err := policy.Parse("p", []byte(text))
		require.NoError(t, err)
		var got []string
		for _, w := range s.strangers("p", p) {
			got = append(got, w.String())
		}
		require.Equal(t, want, got, text)
	}
}
