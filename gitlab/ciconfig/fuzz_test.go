package ciconfig

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzCompile looks for input that makes Compile panic, hang, differ between two runs, or return neither a pipeline nor
// a complete error. Besides the ones here, the configurations in testdata/fuzz and testdata/errors are seeds.
func FuzzCompile(f *testing.F) {
	for _, seed := range []string{
		"job: {script: x}",
		"stages: [a, [b]]\njob: {stage: b, script: [x, [y]], needs: []}",
		"variables: {A: 1.10, B: {value: b, expand: false}}\njob: {script: x, variables: {A: $B}, tags: [$A]}",
		"default: {before_script: [a], tags: [b]}\njob: {script: x, inherit: {default: [tags], variables: false}}",
		".a: &a {script: x}\njob: {<<: *a, extends: [.a, .b]}\n.b: {variables: {A: a}}",
		".a: {script: [x]}\njob: {script: [!reference [.a, script], y]}",
		"job: {script: x, rules: [{if: '$CI_COMMIT_BRANCH =~ /^ma/i && !($A || null)', when: delayed, start_in: 1h 30m}, {when: manual}]}",
		"a: {script: x, parallel: 3}\nb: {script: x, parallel: {matrix: [{A: [a, b], B: c}]}, needs: [{job: a, optional: true}]}",
		"a: {script: x, parallel: {matrix: [{A: [a, b]}]}}\nb: {script: x, parallel: {matrix: [{A: a}]}, needs: ['a: [$[[ matrix.A ]]]']}",
		"workflow: {name: $A, auto_cancel: {on_new_commit: none}, rules: [{if: $CI_COMMIT_BRANCH, variables: {A: b$A}}]}\njob: {script: x}",
		"include: [a.yml, {local: '*.yml', rules: [{exists: [a]}]}]\njob: {script: x}",
		"job:\n  script:\n    - echo \"a: b\"\n  timeout: 1:30:00\n  allow_failure: {exit_codes: [1]}\n",
		"image: {name: a, entrypoint: [''], docker: {user: x}}\njob: {script: x, services: [{name: b, alias: c, variables: {A: a}}], hooks: {pre_get_sources_script: y}}",
		"job: {script: x, artifacts: {paths: [a/**], expire_in: 1 week, reports: {junit: a.xml, coverage_report: {coverage_format: jacoco, path: b}}}, retry: {max: 2, when: [always], exit_codes: 3}}",
		"job: {script: x, cache: [{key: {files: [a.yml], prefix: $A}, paths: [b]}, {key: '$A', policy: $P, fallback_keys: [c]}, {key: {files_commits: [b.yml]}}]}",
		"a: {script: x, stage: build, parallel: 2}\nb: {script: x, dependencies: [a], needs: [a, {job: c, artifacts: false, optional: true}]}",
		"a: *a", "a: &a [*a]", "spec: {inputs: {}}\n---\na: {script: x}", "? [a]\n: b", "a: !!binary x", "- a", "", "\xff", "%YAML 1.2\n---\na: b",
	} {
		f.Add(seed)
	}
	files, err := filepath.Glob("testdata/errors/*.yml")
	require.NoError(f, err)
	for _, name := range files {
		src, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(string(src))
	}
	f.Fuzz(func(t *testing.T, src string) {
		opt := repository(map[string]string{"a.yml": src, "b.yml": ".b: {script: y}"})
		opt.Predefined = branch("main").Predefined
		p, err := Compile(file, []byte(src), opt)
		again, errAgain := Compile(file, []byte(src), opt)
		require.Equal(t, p, again)
		require.Equal(t, err, errAgain)
		if err != nil {
			require.Nil(t, p)
			var errs Errors
			require.ErrorAs(t, err, &errs)
			require.NotEmpty(t, errs)
			for _, e := range errs {
				require.NotEmpty(t, e.Message)
				require.NotContains(t, e.Error(), "%!", "a format is wrong")
				require.Equal(t, e.Line > 0, e.Column > 0, "a place is complete or not there: %s", e)
			}
			return
		}
		require.NotEmpty(t, p.Jobs)
		seen := map[string]bool{}
		for _, j := range p.Jobs {
			require.False(t, seen[j.Name], "two jobs %q", j.Name)
			seen[j.Name] = true
			require.NotEmpty(t, j.Script)
			require.Contains(t, p.Stages, j.Stage)
			require.Equal(t, j.When == Delayed, j.StartIn > 0)
		}
		for _, j := range p.Jobs {
			for _, n := range j.Needs {
				require.True(t, seen[n.Job], "%q needs %q", j.Name, n.Job)
				require.True(t, j.NeedsDeclared)
			}
		}
	})
}
