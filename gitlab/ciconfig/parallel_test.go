package ciconfig

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParallelNumber(t *testing.T) {
	p := compile(t, "test: {script: x, parallel: 3}\none: {script: x, parallel: 1}\n", Options{})
	require.Equal(t, []string{"test 1/3", "test 2/3", "test 3/3", "one 1/1"}, names(p))
	j := p.Jobs[1]
	require.Equal(t, "test", j.Group)
	require.Equal(t, 2, j.NodeIndex)
	require.Equal(t, 3, j.NodeTotal)
	require.Empty(t, j.Variables)
}

func TestParallelMatrix(t *testing.T) {
	p := compile(t, `
deploy:
  script: x
  variables: {STACK: none, REGION: eu}
  parallel:
    matrix:
      - PROVIDER: aws
        STACK: [monitoring, app1]
      - PROVIDER: [gcp, vultr]
        STACK: [data, 7]
      - PROVIDER: $CI_COMMIT_BRANCH
`, branch("main"))
	require.Equal(t, []string{
		"deploy: [aws, monitoring]", "deploy: [aws, app1]",
		"deploy: [gcp, data]", "deploy: [gcp, 7]", "deploy: [vultr, data]", "deploy: [vultr, 7]",
		"deploy: [$CI_COMMIT_BRANCH]",
	}, names(p))
	for i, j := range p.Jobs {
		require.Equal(t, "deploy", j.Group)
		require.Equal(t, i+1, j.NodeIndex)
		require.Equal(t, 7, j.NodeTotal)
	}
	require.Equal(t, "STACK=7 REGION=eu PROVIDER=vultr", values(p.Jobs[5].Variables))
	require.Equal(t, "STACK=none REGION=eu PROVIDER=$CI_COMMIT_BRANCH", values(p.Jobs[6].Variables))
}

func TestMatrixChoosesTags(t *testing.T) {
	p := compile(t, "job: {script: x, tags: [\"${OS}-small\"], parallel: {matrix: [{OS: [linux, mac]}]}}\n", Options{})
	require.Equal(t, []string{"linux-small"}, p.Jobs[0].Tags)
	require.Equal(t, []string{"mac-small"}, p.Jobs[1].Tags)
}

func TestMatrixNamesThatAreEqual(t *testing.T) {
	p := compile(t, "job: {script: x, parallel: {matrix: [{OS: [a, b]}, {OS2: [b]}]}}\n", Options{})
	require.Equal(t, []string{"job: [a]", "job: [b]"}, names(p))
	require.Equal(t, "OS2=b", values(p.Jobs[1].Variables), "the later one replaces the earlier one")
	require.Equal(t, 3, p.Jobs[1].NodeIndex)
	require.Len(t, p.Warnings, 1)
}

func TestParallelLimits(t *testing.T) {
	require.Len(t, compile(t, "job: {script: x, parallel: 200}\n", Options{}).Jobs, 200)
	require.Contains(t, refuse(t, "job: {script: x, parallel: 201}\n", Options{}), "201 is not between 1 and 200")
	list := func(n int) string { return "[" + strings.TrimSuffix(strings.Repeat("a, ", n), ", ") + "]" }
	const src = "job: {script: x, parallel: {matrix: [{A: %s, B: %s}]}}\n"
	require.Contains(t, refuse(t, fmt.Sprintf(src, list(67), list(3)), Options{}), "the matrix makes more than 200 jobs")
	require.Contains(t, refuse(t, fmt.Sprintf(src, list(30000), list(30000)), Options{}), "the matrix makes more than 200 jobs")
	compile(t, fmt.Sprintf(src, list(50), list(4)), Options{})
}

func TestNamesAreAtMost255Characters(t *testing.T) {
	long := strings.Repeat("ü", 255)
	compile(t, long+": {script: x}\n", Options{})
	require.Contains(t, refuse(t, long+"x: {script: x}\n", Options{}), "longer than 255 characters")
	require.Contains(t, refuse(t, "job: {script: x, parallel: {matrix: [{A: "+long+"}]}}\n", Options{}), "longer than 255 characters")
}
