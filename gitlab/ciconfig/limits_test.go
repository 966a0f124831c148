package ciconfig

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Input that is made to be expensive is refused before it is.
func TestBombs(t *testing.T) {
	levels := func(n int, line func(i int) string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(line(i))
		}
		return b.String()
	}
	for name, tc := range map[string]struct{ src, want string }{
		"aliases in lists": {
			".l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n" + levels(30, func(i int) string {
				return fmt.Sprintf(".l%d: &l%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*l%d, ", i), 10), ", "))
			}) + "job: {script: *l30}\n",
			"more than 2000000 values",
		},
		"aliases in mappings": {
			".l0: &l0 {a: x, b: x}\n" + levels(60, func(i int) string {
				return fmt.Sprintf(".l%d: &l%d {a: *l%d, b: *l%d}\n", i+1, i+1, i, i)
			}) + "job: {script: x, variables: *l60}\n",
			"more than 2000000 values",
		},
		"merge keys": {
			".m: &m {" + levels(2000, func(i int) string { return fmt.Sprintf("k%d: x, ", i) }) + "z: z}\n" +
				levels(2000, func(i int) string { return fmt.Sprintf(".n%d: {<<: *m}\n", i) }),
			"more than 400000 values",
		},
		"references": {
			".r0: {s: [x, x, x, x, x, x, x, x, x, x]}\n" + levels(30, func(i int) string {
				one := fmt.Sprintf("!reference [.r%d, s], ", i)
				return fmt.Sprintf(".r%d: {s: [%s]}\n", i+1, strings.TrimSuffix(strings.Repeat(one, 10), ", "))
			}) + "job: {script: !reference [.r30, s]}\n",
			"more than 2000000 values",
		},
		"a chain of references": {
			".r0: {s: [x]}\n" + levels(5_000, func(i int) string { return fmt.Sprintf(".r%d: {s: !reference [.r%d, s]}\n", 5_000-i, 5_000-i-1) }) +
				"job: {script: !reference [.r5000, s]}\n",
			"!reference goes over too many steps",
		},
		"extends of a large job": {
			".base: {script: x, variables: {" + levels(3000, func(i int) string { return fmt.Sprintf("V%d: x, ", i) }) + "Z: z}}\n" +
				levels(3000, func(i int) string { return fmt.Sprintf("job%d: {extends: .base}\n", i) }),
			"more than 2000000 values with its aliases, references and extends",
		},
		"a large file": {"# " + strings.Repeat("x", maxFileBytes), "the limit is 2097152"},
		"extends that copy": {
			".base: {script: x, variables: {" + levels(3000, func(i int) string { return fmt.Sprintf("V%d: x, ", i) }) + "Z: z}}\n" +
				levels(800, func(i int) string { return fmt.Sprintf("job%d: {extends: .base, variables: {A: a}}\n", i) }),
			"merging the configuration copies more than 2000000 values",
		},
		"deep lists":             {".a: " + strings.Repeat("[", 120) + strings.Repeat("]", 120), "nested more than 100 levels deep"},
		"very deep lists":        {".a: " + strings.Repeat("[", 50_000) + strings.Repeat("]", 50_000), "exceeded max depth"},
		"depth through anchors":  {".a: &a " + strings.Repeat("[", 60) + "x" + strings.Repeat("]", 60) + "\n.b: " + strings.Repeat("[", 60) + "*a" + strings.Repeat("]", 60), "nested more than 100 levels deep"},
		"jobs":                   {levels(60, func(i int) string { return fmt.Sprintf("j%d: {script: x, parallel: 200}\n", i) }), "more than 10000 jobs"},
		"variables of all jobs":  {"variables: {" + levels(2000, func(i int) string { return fmt.Sprintf("V%d: x, ", i) }) + "Z: z}\n" + levels(40, func(i int) string { return fmt.Sprintf("j%d: {script: x, parallel: 200}\n", i) }), "the pipeline is too large"},
		"needs of matrices":      {"a: {stage: build, script: x, parallel: 200}\n" + levels(10, func(i int) string { return fmt.Sprintf("j%d: {script: x, parallel: 200, needs: [a]}\n", i) }), "GitLab allows 50"},
		"needs of all instances": {"a: {stage: build, script: x, parallel: 200}\nb: {stage: build, script: x, parallel: 200}\n" + levels(40, func(i int) string { return fmt.Sprintf("j%d: {script: x, parallel: 200, needs: [a, b]}\n", i) }), "the pipeline is too large"},
		"names that are misspelt": {levels(2000, func(i int) string {
			return fmt.Sprintf("job-with-a-long-name-%d: {script: x, needs: [jbo-with-a-long-name-%d]}\n", i, i)
		}), "does not exist"},
		"stages":                  {"stages: [" + strings.TrimSuffix(strings.Repeat("s, ", 20_000), ", ") + "]\njob: {stage: none, script: x}", `the stage "none" does not exist`},
		"unclosed quotes":         {strings.Repeat(".a: 'x\n  y'\n", 8_000) + "b: \"x\n", "invalid YAML"},
		"syntax error at the end": {levels(10_000, func(i int) string { return fmt.Sprintf(".a%d: x\n", i) }) + " b: x\n", "invalid YAML"},
		"a long expression":       {"job: {script: x, rules: [{if: '" + strings.Repeat("$A || ", 100_000) + "$A'}]}", "more than 99 parts"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, refuse(t, tc.src, Options{}), tc.want)
		})
	}
}

// The values of all files count together.
func TestManyValues(t *testing.T) {
	c := &compiler{report: &report{}, nodes: maxNodes - 5}
	require.NotNil(t, c.load("a.yml", []byte("a: b\n")))
	require.Nil(t, c.load("b.yml", []byte("a: b\nc: d\n")))
	require.EqualError(t, c.report.err(), "b.yml:1:4: the configuration has more than 400000 values with its merge keys written out (split the pipeline)")
}

// Variables that are inside each other thousands of times are no circle.
func TestAChainOfVariables(t *testing.T) {
	var b strings.Builder
	b.WriteString("workflow: {name: $V10000}\njob: {script: x, rules: [{changes: [$V10000]}]}\nvariables:\n  V0: end\n")
	for i := range 10_000 {
		fmt.Fprintf(&b, "  V%d: $V%d\n", i+1, i)
	}
	asked := ""
	p := compile(t, b.String(), Options{Changes: func(pattern string) (bool, error) {
		asked = pattern
		return true, nil
	}})
	require.Empty(t, p.Name, "too deep to expand")
	require.Empty(t, asked)
}

// A large but honest configuration is compiled.
func TestLargeConfiguration(t *testing.T) {
	var b strings.Builder
	b.WriteString("stages: [build, test]\ndefault: {tags: [linux], before_script: [prepare]}\nvariables: {A: a, B: $A}\n")
	for i := range 1000 {
		fmt.Fprintf(&b, "build%d:\n  stage: build\n  script: [one, two, three]\n  variables: {N: \"%d\"}\n  rules: [{if: $A, variables: {C: c}}]\n", i, i)
		fmt.Fprintf(&b, "test%d:\n  script: [one]\n  parallel: {matrix: [{OS: [linux, mac]}]}\n  needs: [build%d]\n", i, i)
	}
	p := compile(t, b.String(), branch("main"))
	require.Len(t, p.Jobs, 3000)
}

func BenchmarkCompile(b *testing.B) {
	src := []byte(`
stages: [build, test, deploy]
default: {tags: [linux], before_script: [prepare]}
variables: {A: a, B: $A}
.base: {script: [one, two], rules: [{if: '$CI_COMMIT_BRANCH == "main"'}, {when: manual}]}
build: {extends: .base, stage: build}
test: {extends: .base, parallel: {matrix: [{OS: [linux, mac], ARCH: [arm, amd]}]}, needs: [build]}
deploy: {extends: .base, stage: deploy, needs: [test], rules: [{if: $CI_COMMIT_BRANCH =~ /^main$/}]}
`)
	opt := branch("main")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(file, src, opt); err != nil {
			b.Fatal(err)
		}
	}
}
