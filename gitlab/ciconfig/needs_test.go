package ciconfig

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNeeds(t *testing.T) {
	p := compile(t, `
stages: [one, two]
a: {stage: one, script: x}
b: {stage: one, script: x, needs: []}
gone: {stage: one, script: x, rules: [{if: $NO}]}
c:
  stage: two
  script: x
  needs:
    - a
    - {job: b, artifacts: false}
    - {job: gone, optional: true}
    - {job: never written, optional: true}
d: {stage: two, script: x, needs: {job: c}}
e: {stage: two, script: x, needs: [[a, [b]]]}
f: {stage: two, script: x}
`, Options{})
	require.Equal(t, []Need{{Job: "a", Artifacts: true}, {Job: "b"}}, one(t, p, "c").Needs)
	require.True(t, one(t, p, "b").NeedsDeclared)
	require.Empty(t, one(t, p, "b").Needs)
	require.False(t, one(t, p, "f").NeedsDeclared)
	require.Equal(t, []string{"c"}, needed(one(t, p, "d")))
	require.Equal(t, []string{"a", "b"}, needed(one(t, p, "e")))
}

func TestOnlyOptionalNeedsThatAreAbsentLeaveADeclaredList(t *testing.T) {
	p := compile(t, "a: {script: x, rules: [{if: $NO}]}\nb: {script: x, needs: [{job: a, optional: true}]}\n", Options{})
	require.True(t, p.Jobs[0].NeedsDeclared)
	require.Empty(t, p.Jobs[0].Needs)
}

func TestNeedsOfParallelJobs(t *testing.T) {
	p := compile(t, `
stages: [one, two]
n: {stage: one, script: x, parallel: 2}
m: {stage: one, script: x, parallel: {matrix: [{OS: [linux, mac], ARCH: [arm, amd]}]}}
all: {stage: two, script: x, needs: [n, m]}
some: {stage: two, script: x, needs: [{job: m, parallel: {matrix: [{OS: linux, ARCH: [arm, amd]}, {OS: mac, ARCH: arm}]}}]}
single: {stage: two, script: x, needs: ["n 2/2", "m: [mac, amd]"]}
same: {stage: two, script: x, parallel: {matrix: [{OS: [linux, mac]}]}, needs: [{job: m, artifacts: false, parallel: {matrix: [{OS: "$[[ matrix.OS ]]", ARCH: arm}]}}]}
named: {stage: two, script: x, variables: {A: arm}, parallel: {matrix: [{OS: [mac]}]}, needs: ["m: [$[[matrix.OS]], $[[ matrix.A ]]]"]}
`, Options{})
	require.Equal(t, []string{"n 1/2", "n 2/2", "m: [linux, arm]", "m: [linux, amd]", "m: [mac, arm]", "m: [mac, amd]"}, needed(one(t, p, "all")))
	require.Equal(t, []string{"m: [linux, arm]", "m: [linux, amd]", "m: [mac, arm]"}, needed(one(t, p, "some")))
	require.Equal(t, []string{"n 2/2", "m: [mac, amd]"}, needed(one(t, p, "single")))
	require.Equal(t, []Need{{Job: "m: [linux, arm]"}}, one(t, p, "same: [linux]").Needs)
	require.Equal(t, []Need{{Job: "m: [mac, arm]"}}, one(t, p, "same: [mac]").Needs)
	require.Equal(t, []string{"m: [mac, arm]"}, needed(one(t, p, "named: [mac]")))
}

func TestNeedsInACircleThroughRules(t *testing.T) {
	const src = `
a: {script: x, rules: [{if: $CIRCLE, needs: [b]}, {when: on_success}]}
b: {script: x, needs: [a]}
`
	compile(t, src, Options{})
	got := refuse(t, src, Options{Pipeline: []Variable{{Key: "CIRCLE", Value: "1"}}})
	require.Equal(t, ".gitlab-ci.yml:2:1: jobs:a:needs: jobs need each other in a circle: a -> b -> a", got)
}

func TestAtMostFiftyNeeds(t *testing.T) {
	config := func(n int) string {
		var b, list strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "a%d: {stage: build, script: x}\n", i)
			fmt.Fprintf(&list, "a%d, ", i)
		}
		return b.String() + "last: {script: x, needs: [" + strings.TrimSuffix(list.String(), ", ") + "]}\n"
	}
	require.Len(t, one(t, compile(t, config(50), Options{}), "last").Needs, 50)
	require.Contains(t, refuse(t, config(51), Options{}), "the job needs 51 others, GitLab allows 50")

	const parallel = "a: {stage: build, script: x, parallel: %d}\nlast: {script: x, needs: [a]}\n"
	require.Len(t, one(t, compile(t, fmt.Sprintf(parallel, 50), Options{}), "last").Needs, 50)
	require.Contains(t, refuse(t, fmt.Sprintf(parallel, 51), Options{}), "the job needs 51 others, GitLab allows 50")
}
