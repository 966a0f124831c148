package ciconfig

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRulesTakeTheFirstThatMatches(t *testing.T) {
	src := `
job:
  script: x
  rules:
    - if: $CI_COMMIT_BRANCH == "old"
      when: never
    - if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH
      when: always
      variables: {ENV: production}
    - if: $CI_COMMIT_BRANCH =~ /^feature/
      when: delayed
      start_in: 5 minutes
    - if: $CI_COMMIT_BRANCH
      when: manual
other: {script: x}
`
	for branchName, want := range map[string]*Job{
		"old":       nil,
		"main":      {When: Always, Variables: []Variable{{Key: "ENV", Value: "production", Public: true}}},
		"feature-1": {When: Delayed, StartIn: 5 * 60e9},
		"x":         {When: Manual},
	} {
		t.Run(branchName, func(t *testing.T) {
			p := compile(t, src, branch(branchName))
			if want == nil {
				require.Equal(t, []string{"other"}, names(p))
				return
			}
			j := one(t, p, "job")
			require.Equal(t, want.When, j.When)
			require.Equal(t, want.StartIn, j.StartIn)
			require.Equal(t, want.Variables, j.Variables)
			require.False(t, j.AllowFailure, "rules:when:manual blocks")
		})
	}
	tag := Options{Predefined: []Variable{{Key: "CI_DEFAULT_BRANCH", Value: "main"}, {Key: "CI_COMMIT_TAG", Value: "v1"}}}
	require.Equal(t, []string{"other"}, names(compile(t, src, tag)), "no rule matches")
}

func TestRulesOverTheJobsOwnKeywords(t *testing.T) {
	p := compile(t, `
inherits when: {script: x, when: on_failure, rules: [{if: '"1"'}]}
manual by job: {script: x, when: manual, rules: [{if: '"1"'}]}
manual and a rule that is not: {script: x, when: manual, rules: [{when: on_success}]}
rule allows: {script: x, allow_failure: false, rules: [{if: '"1"', allow_failure: true}]}
rule forbids: {script: x, allow_failure: {exit_codes: 3}, rules: [{if: '"1"', allow_failure: false}]}
job allows: {script: x, allow_failure: {exit_codes: 3}, rules: [{if: '"1"'}]}
interruptible: {script: x, interruptible: true, rules: [{if: '"1"', interruptible: false}]}
`, Options{})
	require.Equal(t, OnFailure, one(t, p, "inherits when").When)
	require.Equal(t, Manual, one(t, p, "manual by job").When)
	require.True(t, one(t, p, "manual by job").AllowFailure)
	require.Equal(t, OnSuccess, one(t, p, "manual and a rule that is not").When)
	require.True(t, one(t, p, "manual and a rule that is not").AllowFailure, "GitLab derives it from the job's `when`")
	require.True(t, one(t, p, "rule allows").AllowFailure)
	require.False(t, one(t, p, "rule forbids").AllowFailure)
	require.Nil(t, one(t, p, "rule forbids").AllowFailureExitCodes)
	require.Equal(t, []int{3}, one(t, p, "job allows").AllowFailureExitCodes)
	require.False(t, one(t, p, "interruptible").Interruptible)
}

func TestRulesSeeVariablesInGitLabsOrder(t *testing.T) {
	src := `
variables: {V: top, W: top}
workflow:
  rules:
    - if: $V == "top" || $V == "project" || $V == "pipeline"
      variables: {W: workflow}
predefined is below: {script: x, variables: {P: mine}, rules: [{if: '$P == "mine"'}]}
top: {script: x, rules: [{if: '$V == "top"'}]}
workflow wins: {script: x, rules: [{if: '$W == "workflow"'}]}
job wins: {script: x, variables: {V: job}, rules: [{if: '$V == "job"'}]}
project wins: {script: x, variables: {V: job}, rules: [{if: '$V == "project"'}]}
pipeline wins: {script: x, variables: {V: job}, rules: [{if: '$V == "pipeline"'}]}
as they are written: {script: x, variables: {X: $V}, rules: [{if: '$X == "$V"'}]}
cell: {script: x, variables: {V: job}, parallel: {matrix: [{V: [a, b]}]}, rules: [{if: '$V == "b"'}]}
always: {script: x}
`
	predefined := []Variable{{Key: "P", Value: "predefined"}}
	project := []Variable{{Key: "V", Value: "project"}}
	pipeline := []Variable{{Key: "V", Value: "pipeline"}}
	for name, tc := range map[string]struct {
		opt  Options
		want []string
	}{
		"predefined": {
			Options{Predefined: predefined},
			[]string{"predefined is below", "top", "workflow wins", "job wins", "as they are written", "cell: [b]", "always"},
		},
		"project": {
			Options{Predefined: predefined, Project: project},
			[]string{"predefined is below", "workflow wins", "project wins", "as they are written", "always"},
		},
		"pipeline": {
			Options{Predefined: predefined, Project: project, Pipeline: pipeline},
			[]string{"predefined is below", "workflow wins", "pipeline wins", "as they are written", "always"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, names(compile(t, src, tc.opt)))
		})
	}
}

func TestRulesSeeTheJobsOwnPredefinedVariables(t *testing.T) {
	p := compile(t, `
stages: [the stage]
Unit Tests: {stage: the stage, script: x, rules: [{if: '$CI_JOB_NAME == "Unit Tests" && $CI_JOB_NAME_SLUG == "unit-tests" && $CI_JOB_STAGE == "the stage" && $CI_NODE_TOTAL == "1" && $CI_NODE_INDEX == null && $CI_JOB_MANUAL == null'}]}
n: {stage: the stage, script: x, parallel: 3, rules: [{if: '$CI_NODE_INDEX == "2" && $CI_NODE_TOTAL == "3" && $CI_JOB_GROUP_NAME == "n"'}]}
m: {stage: the stage, script: x, when: manual, rules: [{if: '$CI_JOB_MANUAL == "true"'}]}
`, Options{})
	require.Equal(t, []string{"Unit Tests", "n 2/3", "m"}, names(p))
}

func TestGroupNames(t *testing.T) {
	for name, want := range map[string]string{
		"test 1/3": "test", "test: [a, b]": "test", "test 1 3": "test", "test 1:3": "test", "test": "test",
		"test 1/2 2/3: [x]": "test", "v1.2/3": "v1.2/3",
	} {
		require.Equal(t, want, groupName(name), name)
	}
	require.Equal(t, "unit-tests--linux", slug("Unit Tests (Linux)"))
	require.Len(t, slug("x"+string(make([]byte, 100))+"y"), 1)
}

func TestRulesNeeds(t *testing.T) {
	src := `
stages: [one, two]
a: {stage: one, script: x}
b: {stage: one, script: x}
c:
  stage: two
  script: x
  needs: [a]
  rules:
    - if: $CI_COMMIT_BRANCH == "replace"
      needs: [{job: b, artifacts: false}]
    - if: $CI_COMMIT_BRANCH == "none"
      needs: []
    - when: on_success
`
	j := one(t, compile(t, src, branch("replace")), "c")
	require.Equal(t, []Need{{Job: "b"}}, j.Needs)
	j = one(t, compile(t, src, branch("none")), "c")
	require.Empty(t, j.Needs)
	require.True(t, j.NeedsDeclared)
	require.Equal(t, []string{"a"}, needed(one(t, compile(t, src, branch("x")), "c")))
}

func TestRulesChangesAndExists(t *testing.T) {
	src := `
variables: {DIR: docs, NESTED: $DIR}
changes: {script: x, rules: [{changes: [docs/*.md]}]}
no change: {script: x, rules: [{changes: [src/*]}]}
paths: {script: x, rules: [{changes: {paths: [src/*, docs/*]}}]}
expanded: {script: x, rules: [{changes: [$NESTED/*]}]}
exists: {script: x, rules: [{exists: [Makefile, "*.mod"]}]}
text: {script: x, rules: [{exists: Makefile}]}
exists paths: {script: x, rules: [{exists: {paths: ["$DIR/a.md"]}}]}
not nested: {script: x, rules: [{exists: ["$NESTED/a.md"]}]}
and: {script: x, rules: [{exists: [Makefile], if: $NONE}]}
unknown stays: {script: x, rules: [{exists: ["$price"]}]}
`
	p := compile(t, src, repository(map[string]string{"docs/a.md": "", "Makefile": "", "$price": ""}))
	require.Equal(t, []string{"changes", "paths", "expanded", "exists", "text", "exists paths", "unknown stays"}, names(p))
}

func TestRulesCallbackErrors(t *testing.T) {
	broken := errors.New("the repository is gone")
	opt := Options{Exists: func(string) (bool, error) { return false, broken }}
	_, err := Compile(file, []byte("a:\n  script: x\n  rules:\n    - exists: [b]\n"), opt)
	require.ErrorIs(t, err, broken)
	require.EqualError(t, err, `.gitlab-ci.yml:4:7: jobs:a:rules:0:exists: evaluate "b": the repository is gone`)
}

func TestRulesWarnAboutTwoPipelines(t *testing.T) {
	const src = "a: {script: x, rules: [{if: $A}, {when: always}]}\n"
	require.Len(t, compile(t, src, Options{}).Warnings, 1)
	require.Empty(t, compile(t, src+"workflow: {rules: [{when: always}]}\n", Options{}).Warnings)
	require.Empty(t, compile(t, "a: {script: x, rules: [{if: '\"1\"'}, {when: never}]}\n", Options{}).Warnings)
}

func TestNestedRules(t *testing.T) {
	p := compile(t, `
.common: {rules: [{if: '$CI_COMMIT_BRANCH == "never"', when: never}]}
job:
  script: x
  rules:
    - !reference [.common, rules]
    - [[{if: $CI_COMMIT_BRANCH, when: always}]]
`, branch("x"))
	require.Equal(t, Always, p.Jobs[0].When)
}
