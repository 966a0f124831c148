package ciconfig

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestExtendsMergesDeeply(t *testing.T) {
	p := compile(t, `
.base:
  script: [base]
  tags: [a, b]
  variables: {A: base, B: base}
  rules: [{if: $NO}]
.more:
  extends: .base
  variables: {B: more, C: {value: more, expand: false}}
  rules:
.other: {after_script: [other], variables: {C: {value: other}}, tags: [c]}
one: {extends: .more}
both:
  extends: [.more, .other]
  script: [own]
  variables: {A: own}
from a job: {extends: one, stage: build}
`, Options{})
	j := one(t, p, "one")
	require.Equal(t, "A=base B=more C:=more", values(j.Variables))
	require.Equal(t, []string{"base"}, j.Script)
	j = one(t, p, "both")
	require.Equal(t, "A=own B=more C:=other", values(j.Variables), "mappings are merged, at any depth")
	require.Equal(t, []string{"c"}, j.Tags, "lists are replaced")
	require.Equal(t, []string{"own"}, j.Script)
	require.Equal(t, []string{"other"}, j.AfterScript)
	require.Equal(t, "build", one(t, p, "from a job").Stage)
}

func TestExtendsGoesOverElevenLevels(t *testing.T) {
	chain := func(n int) string {
		var b strings.Builder
		b.WriteString(".j0: {script: x}\n")
		for i := 1; i < n; i++ {
			fmt.Fprintf(&b, ".j%d: {extends: .j%d}\n", i, i-1)
		}
		fmt.Fprintf(&b, "job: {extends: .j%d}\n", n-1)
		return b.String()
	}
	backwards := func(n int) string {
		lines := strings.Split(strings.TrimSpace(chain(n)), "\n")
		var b strings.Builder
		for _, line := range slices.Backward(lines) {
			b.WriteString(line + "\n")
		}
		return b.String()
	}
	compile(t, chain(11), Options{})
	compile(t, backwards(11), Options{})
	const want = "`extends` goes over more than 11 levels"
	require.Contains(t, refuse(t, chain(12), Options{}), want)
	require.Contains(t, refuse(t, backwards(12), Options{}), want)
	require.Contains(t, refuse(t, backwards(5000), Options{}), want)
}

func TestAnchorsAndMergeKeys(t *testing.T) {
	p := compile(t, `
.defaults: &defaults
  variables: &vars {A: 1, B: 2}
  tags: [a]
.second: &second {tags: [b], script: second}
job:
  <<: *defaults
  script: x
  variables:
    <<: *vars
    B: 3
several:
  <<: [*second, *defaults]
  <<: {stage: build}
after:
  script: x
  tags: [mine]
  <<: *second
`, Options{})
	j := one(t, p, "job")
	require.Equal(t, "A=1 B=3", values(j.Variables))
	require.Equal(t, []string{"a"}, j.Tags)
	j = one(t, p, "several")
	require.Equal(t, []string{"b"}, j.Tags, "the first of a list wins")
	require.Equal(t, "A=1 B=2", values(j.Variables))
	require.Equal(t, "build", j.Stage)
	require.Equal(t, []string{"b"}, one(t, p, "after").Tags, "as in Psych, a merge key replaces what stands before it")
}

func TestReferences(t *testing.T) {
	p := compile(t, `
.setup:
  script: [one, !reference [.more, script]]
  variables: {A: a, N: {value: n}}
.more: {script: [two]}
job:
  script: [!reference [.setup, script], three]
  variables: !reference [.setup, variables]
  rules:
    - !reference [.rules, rules]
single:
  script: !reference [.more, script]
  variables: {A: !reference [.setup, variables, A]}
extended:
  extends: job
  script: !reference [single, script]
.rules: {rules: [{if: '$A == "a"', when: always}]}
`, Options{})
	j := one(t, p, "job")
	require.Equal(t, []string{"one", "two", "three"}, j.Script)
	require.Equal(t, "A=a N=n", values(j.Variables))
	require.Equal(t, Always, j.When)
	require.Equal(t, []string{"two"}, one(t, p, "single").Script)
	require.Equal(t, "A=a", values(one(t, p, "single").Variables))
	require.Equal(t, []string{"two"}, one(t, p, "extended").Script)
}

func TestDefaults(t *testing.T) {
	p := compile(t, `
default:
  before_script: [prepare]
  after_script: [clean]
  tags: [linux]
  interruptible: true
variables: {A: a, B: b}
all: {script: x}
own: {script: x, before_script: [], tags: [mac], interruptible: false}
nothing: {script: x, inherit: {default: false, variables: false}}
some: {script: x, inherit: {default: [tags, interruptible], variables: [B, NONE]}, variables: {C: c}}
unset by a child: {extends: own, tags: }
`, Options{})
	j := one(t, p, "all")
	require.Equal(t, []string{"prepare"}, j.BeforeScript)
	require.Equal(t, []string{"clean"}, j.AfterScript)
	require.Equal(t, []string{"linux"}, j.Tags)
	require.True(t, j.Interruptible)
	j = one(t, p, "own")
	require.Empty(t, j.BeforeScript)
	require.Equal(t, []string{"clean"}, j.AfterScript)
	require.Equal(t, []string{"mac"}, j.Tags)
	require.False(t, j.Interruptible)
	j = one(t, p, "nothing")
	require.Empty(t, j.BeforeScript)
	require.Empty(t, j.Tags)
	require.Empty(t, j.Variables)
	require.False(t, j.Interruptible)
	j = one(t, p, "some")
	require.Empty(t, j.BeforeScript)
	require.Equal(t, []string{"linux"}, j.Tags)
	require.Equal(t, "B=b C=c", values(j.Variables))
	require.Equal(t, []string{"linux"}, one(t, p, "unset by a child").Tags)
}

func TestTopLevelScriptsAreDefaults(t *testing.T) {
	p := compile(t, "before_script: [prepare]\nafter_script: clean\na: {script: x}\nb: {script: x, inherit: {default: [after_script]}}\n", Options{})
	require.Equal(t, []string{"prepare"}, one(t, p, "a").BeforeScript)
	require.Equal(t, []string{"clean"}, one(t, p, "a").AfterScript)
	require.Empty(t, one(t, p, "b").BeforeScript)
}

func TestDefaultTimeoutHasNoEffect(t *testing.T) {
	p := compile(t, "default: {timeout: 1h}\na: {script: x}\n", Options{})
	require.Zero(t, p.Jobs[0].Timeout)
	require.Equal(t, []string{"default:timeout has no effect in GitLab, and has none here: set it in the jobs"}, p.Warnings)
}
