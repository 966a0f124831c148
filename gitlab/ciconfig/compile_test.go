package ciconfig

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// file is the name under which tests compile a configuration.
const file = ".gitlab-ci.yml"

// branch is the context of a push to a branch.
func branch(name string) Options {
	return Options{Predefined: []Variable{
		{Key: "CI_COMMIT_BRANCH", Value: name, Public: true},
		{Key: "CI_DEFAULT_BRANCH", Value: "main", Public: true},
		{Key: "CI_PIPELINE_SOURCE", Value: "push", Public: true},
	}}
}

// repository lets a configuration read files.
func repository(files map[string]string) Options {
	find := func(pattern string) ([]string, error) {
		var out []string
		for name := range maps.Keys(files) {
			if ok, err := path.Match(pattern, name); err != nil || ok {
				out = append(out, name)
			}
		}
		return out, nil
	}
	has := func(pattern string) (bool, error) {
		found, err := find(pattern)
		return len(found) > 0, err
	}
	return Options{
		Include: func(name string) ([]byte, error) {
			text, ok := files[name]
			if !ok {
				return nil, errors.New("no such file in this commit")
			}
			return []byte(text), nil
		},
		Glob:    find,
		Exists:  has,
		Changes: has,
		CacheDigest: func(list []string, commits bool) (string, error) {
			var found []string
			for _, name := range list {
				if _, ok := files[name]; ok {
					found = append(found, name)
				}
			}
			if commits && len(found) > 0 {
				found = append(found, "commits")
			}
			return strings.Join(found, "+"), nil
		},
	}
}

// compile returns the pipeline of a configuration that must be valid.
func compile(t *testing.T, src string, opt Options) *Pipeline {
	t.Helper()
	p, err := Compile(file, []byte(src), opt)
	require.NoError(t, err)
	return p
}

// refuse returns the errors of a configuration, one per line and without hints.
func refuse(t *testing.T, src string, opt Options) string {
	t.Helper()
	p, err := Compile(file, []byte(src), opt)
	require.Nil(t, p)
	var errs Errors
	require.ErrorAs(t, err, &errs)
	lines := make([]string, len(errs))
	for i, e := range errs {
		without := *e
		without.Hint = ""
		lines[i] = without.Error()
	}
	return strings.Join(lines, "\n")
}

func names(p *Pipeline) []string {
	out := make([]string, len(p.Jobs))
	for i := range p.Jobs {
		out[i] = p.Jobs[i].Name
	}
	return out
}

// one returns the job of that name.
func one(t *testing.T, p *Pipeline, name string) Job {
	t.Helper()
	i := slices.IndexFunc(p.Jobs, func(j Job) bool { return j.Name == name })
	require.GreaterOrEqual(t, i, 0, "no job %q among %q", name, names(p))
	return p.Jobs[i]
}

// values writes variables as KEY=value, raw ones as KEY:=value.
func values(variables []Variable) string {
	out := make([]string, len(variables))
	for i, v := range variables {
		sign := "="
		if v.Raw {
			sign = ":="
		}
		out[i] = v.Key + sign + v.Value
	}
	return strings.Join(out, " ")
}

func needed(j Job) []string {
	out := []string{}
	for _, n := range j.Needs {
		out = append(out, n.Job)
	}
	return out
}

func TestJobsAreInOrderOfStageThenPlace(t *testing.T) {
	p := compile(t, `
stages: [one, two, unused]
last: {stage: .post, script: x}
b: {stage: two, script: x}
a: {stage: one, script: x}
first: {stage: .pre, script: x}
c: {stage: one, script: x}
`, Options{})
	require.Equal(t, []string{"first", "a", "c", "b", "last"}, names(p))
	require.Equal(t, []string{".pre", "one", "two", ".post"}, p.Stages)
}

func TestStages(t *testing.T) {
	for name, tc := range map[string]struct{ src, want string }{
		"default": {"a: {stage: deploy, script: x}\nb: {stage: build, script: x}\nc: {script: x}", "build test deploy"},
		"nested":  {"stages: [[a, [b]], c]\nx: {stage: b, script: x}\ny: {stage: c, script: x}\nz: {stage: a, script: x}", "a b c"},
		"edges stay at the edges": {
			"stages: [.post, a, .pre]\nx: {stage: .post, script: x}\ny: {stage: a, script: x}\nz: {stage: .pre, script: x}", ".pre a .post",
		},
		"twice": {"stages: [a, b, a]\nx: {stage: b, script: x}\ny: {stage: a, script: x}", "a b"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, strings.Join(compile(t, tc.src, Options{}).Stages, " "))
		})
	}
}

func TestScripts(t *testing.T) {
	p := compile(t, `
.shared: &shared [one, two]
job:
  before_script: "single"
  script:
    - *shared
    - [three, [four, [five]]]
    - |
      six
      seven
    - !reference [.shared]
  after_script: []
`, Options{})
	j := p.Jobs[0]
	require.Equal(t, []string{"single"}, j.BeforeScript)
	require.Equal(t, []string{"one", "two", "three", "four", "five", "six\nseven\n", "one", "two"}, j.Script)
	require.Empty(t, j.AfterScript)
}

func TestScriptTextIsLeftAlone(t *testing.T) {
	p := compile(t, "variables: {A: b}\njob:\n  script: ['echo $A ${A} %A% $$A']\n", Options{})
	require.Equal(t, []string{"echo $A ${A} %A% $$A"}, p.Jobs[0].Script)
}

func TestHiddenJobsAreNoJobs(t *testing.T) {
	p := compile(t, ".a: {script: x, nonsense: true}\n.b: [1, 2]\n.c: text\njob: {script: x}\n", Options{})
	require.Equal(t, []string{"job"}, names(p))
}

func TestWhen(t *testing.T) {
	p := compile(t, `
plain: {script: x}
failure: {script: x, when: on_failure}
always: {script: x, when: always}
manual: {script: x, when: manual}
blocking: {script: x, when: manual, allow_failure: false}
delayed: {script: x, when: delayed, start_in: 1 hour 30 min}
nothing: {script: x, when: , tags: , needs: , timeout: , before_script: , allow_failure: , image: , rules: }
`, Options{})
	require.Equal(t, OnSuccess, one(t, p, "plain").When)
	require.Equal(t, OnFailure, one(t, p, "failure").When)
	require.Equal(t, Always, one(t, p, "always").When)
	require.Equal(t, Manual, one(t, p, "manual").When)
	require.True(t, one(t, p, "manual").AllowFailure)
	require.False(t, one(t, p, "blocking").AllowFailure)
	require.Equal(t, Delayed, one(t, p, "delayed").When)
	require.Equal(t, "1h30m0s", one(t, p, "delayed").StartIn.String())
	nothing := one(t, p, "nothing")
	require.Equal(t, OnSuccess, nothing.When)
	require.False(t, nothing.NeedsDeclared)
	require.False(t, nothing.AllowFailure)
}

func TestAllowFailure(t *testing.T) {
	p := compile(t, `
may: {script: x, allow_failure: true}
must: {script: x, allow_failure: false}
one: {script: x, allow_failure: {exit_codes: 3}}
two: {script: x, allow_failure: {exit_codes: [137, 255]}}
manual: {script: x, when: manual, allow_failure: {exit_codes: 3}}
`, Options{})
	require.True(t, one(t, p, "may").AllowFailure)
	require.False(t, one(t, p, "must").AllowFailure)
	require.False(t, one(t, p, "one").AllowFailure)
	require.Equal(t, []int{3}, one(t, p, "one").AllowFailureExitCodes)
	require.Equal(t, []int{137, 255}, one(t, p, "two").AllowFailureExitCodes)
	require.False(t, one(t, p, "manual").AllowFailure)
}

func TestTagsAreExpandedSortedAndUnique(t *testing.T) {
	opt := Options{
		Predefined: []Variable{{Key: "CI_COMMIT_BRANCH", Value: "main"}},
		Pipeline:   []Variable{{Key: "SIZE", Value: "big"}},
	}
	p := compile(t, `
variables: {OS: linux, NESTED: $OS}
job:
  script: x
  tags: [z, "${OS}-runner", "$SIZE", $CI_COMMIT_BRANCH, $UNKNOWN, $NESTED, z, "%OS%", $CI_JOB_STAGE]
`, opt)
	require.Equal(t, []string{"$OS", "$UNKNOWN", "big", "linux", "linux-runner", "main", "test", "z"}, p.Jobs[0].Tags)
}

func TestTimeoutAndInterruptible(t *testing.T) {
	p := compile(t, "a: {script: x, timeout: 1h 30m, interruptible: true}\nb: {script: x, timeout: '3600'}\nc: {script: x}\n", Options{})
	require.Equal(t, "1h30m0s", one(t, p, "a").Timeout.String())
	require.True(t, one(t, p, "a").Interruptible)
	require.Equal(t, "1h0m0s", one(t, p, "b").Timeout.String())
	require.Zero(t, one(t, p, "c").Timeout)
}

func TestNoJobs(t *testing.T) {
	for name, src := range map[string]string{
		"rules leave out all":   "a: {script: x, rules: [{if: $NO}]}\nb: {script: x, rules: [{when: never}]}",
		"only in .pre":          "a: {script: x, stage: .pre}",
		"only .pre is left":     "a: {script: x, stage: .pre}\nb: {script: x, rules: [{if: $NO}]}",
		"only in .pre and post": "a: {script: x, stage: .pre}\nb: {script: x, stage: .post}",
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Compile(file, []byte(src), Options{})
			require.Nil(t, p)
			require.ErrorIs(t, err, ErrNoJobs)
			require.NotErrorIs(t, err, ErrWorkflow)
		})
	}
	_, err := Compile(file, []byte("a: {script: 1}"), Options{})
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrNoJobs)
}

func TestCompileIsDeterministicAndKeepsItsInput(t *testing.T) {
	src := []byte(strings.Join([]string{
		"variables: {A: 1, B: $A}", "default: {tags: [$B, x]}", ".t: {script: x, needs: []}",
		"m: {extends: .t, parallel: {matrix: [{X: [1, 2], Y: [3, 4]}]}}",
		"n: {extends: .t, rules: [{if: $A, variables: {B: 2}}, {when: manual}], needs: [m]}",
	}, "\n"))
	before := string(src)
	first := compile(t, string(src), branch("main"))
	for range 20 {
		again, err := Compile(file, src, branch("main"))
		require.NoError(t, err)
		require.Equal(t, first, again)
	}
	require.Equal(t, before, string(src))
}

func TestErrorTexts(t *testing.T) {
	_, err := Compile("ci/x.yml", []byte("a:\n  script: x\n  wen: manual\n  needs: [b]\n"), Options{})
	require.EqualError(t, err, "ci/x.yml:3:3: jobs:a:wen: the keyword `wen` is not known here (did you mean `when`?)")

	var errs Errors
	require.ErrorAs(t, err, &errs)
	var single *Error
	require.ErrorAs(t, err, &single)
	require.Equal(t, errs[0], single)
	require.Equal(t, "jobs:a:wen", single.Path)
	require.Equal(t, 3, single.Line)
	require.Equal(t, 3, single.Column)
}

func TestAtMostFiftyErrors(t *testing.T) {
	var b strings.Builder
	for i := range 200 {
		fmt.Fprintf(&b, "job%d: {script: x, nonsense: 1}\n", i)
	}
	_, err := Compile(file, []byte(b.String()), Options{})
	var errs Errors
	require.ErrorAs(t, err, &errs)
	require.Len(t, errs, maxErrors)
}
