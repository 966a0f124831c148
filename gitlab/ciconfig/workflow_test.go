package ciconfig

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWorkflowRules(t *testing.T) {
	const src = `
variables: {KIND: none}
workflow:
  name: "$KIND of $CI_COMMIT_BRANCH for ${WHO}$NONE"
  auto_cancel: {on_new_commit: conservative, on_job_failure: all}
  rules:
    - if: $CI_COMMIT_BRANCH == "off"
      when: never
    - if: $CI_COMMIT_BRANCH == "main"
      variables: {KIND: release, WHO: "every$ONE", ONE: one}
      auto_cancel: {on_new_commit: none}
    - if: $CI_COMMIT_BRANCH
      when: always
job: {script: x, rules: [{if: '$KIND == "release"', when: manual}, {if: $KIND}]}
`
	p := compile(t, src, branch("main"))
	require.Equal(t, "release of main for everyone", p.Name)
	require.Equal(t, "KIND=release WHO=every$ONE ONE=one", values(p.Variables))
	require.Equal(t, AutoCancel{OnNewCommit: "none", OnJobFailure: "all"}, p.AutoCancel)
	require.Equal(t, Manual, p.Jobs[0].When)

	p = compile(t, src, branch("x"))
	require.Equal(t, "none of x for", p.Name)
	require.Equal(t, AutoCancel{OnNewCommit: "conservative", OnJobFailure: "all"}, p.AutoCancel)

	_, err := Compile(file, []byte(src), branch("off"))
	require.ErrorIs(t, err, ErrWorkflow)
	require.NotErrorIs(t, err, ErrNoJobs)
	require.EqualError(t, err, ".gitlab-ci.yml:7:7: workflow:rules:0: they create no pipeline here: the rule that matches says `when: never`")

	_, err = Compile(file, []byte(src), Options{})
	require.ErrorIs(t, err, ErrWorkflow)
	require.EqualError(t, err, ".gitlab-ci.yml:7:5: workflow:rules: they create no pipeline here: no rule matches")
}

func TestWorkflowName(t *testing.T) {
	require.Empty(t, compile(t, "job: {script: x}\n", Options{}).Name)
	require.Empty(t, compile(t, "workflow: {name: '$NONE '}\njob: {script: x}\n", Options{}).Name)
	require.Equal(t, "a b", compile(t, "workflow: {name: ' a b '}\njob: {script: x}\n", Options{}).Name)
	long := Options{Pipeline: []Variable{{Key: "LONG", Value: strings.Repeat("x", 256)}}}
	require.Contains(t, refuse(t, "workflow: {name: $LONG}\njob: {script: x}\n", long), "longer than 255 characters")
}
