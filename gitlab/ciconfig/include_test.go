package ciconfig

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestIncludeMergesBelowTheIncludingFile(t *testing.T) {
	p := compile(t, `
include:
  - local: /ci/a.yml
  - ci/b.yml
own: {script: own}
job: {tags: [own], variables: {B: own}}
`, repository(map[string]string{
		"ci/a.yml":    "include: ci/deep.yml\nstages: [build, test, a]\njob: {script: a, tags: [a], variables: {A: a}}\nfrom a: {stage: a, extends: .deep}\n",
		"ci/b.yml":    "job: {script: b, variables: {B: b}}\n",
		"ci/deep.yml": ".deep: {script: deep}\n",
	}))
	require.Equal(t, []string{"job", "own", "from a"}, names(p))
	j := one(t, p, "job")
	require.Equal(t, []string{"b"}, j.Script)
	require.Equal(t, []string{"own"}, j.Tags)
	require.Equal(t, "A=a B=own", values(j.Variables))
	require.Equal(t, []string{"deep"}, one(t, p, "from a").Script)
}

func TestIncludeForms(t *testing.T) {
	files := map[string]string{"a.yml": "a: {script: x}", "b.YAML": "b: {script: x}"}
	for name, tc := range map[string]struct {
		src  string
		want []string
	}{
		"text":           {"include: a.yml", []string{"a"}},
		"leading slash":  {"include: /a.yml", []string{"a"}},
		"mapping":        {"include: {local: a.yml}", []string{"a"}},
		"list":           {"include: [a.yml, {local: b.YAML}]", []string{"a", "b"}},
		"twice":          {"include: [a.yml, a.yml]", []string{"a"}},
		"nothing":        {"include:\njob: {script: x}", []string{"job"}},
		"empty list":     {"include: []\njob: {script: x}", []string{"job"}},
		"variable":       {"include: $NAME.yml", []string{"a"}},
		"rule matches":   {"include: [{local: a.yml, rules: [{if: '$NAME == \"a\"'}]}]", []string{"a"}},
		"rule is always": {"include: [{local: a.yml, rules: [{if: $NAME, when: always}]}]", []string{"a"}},
		"rule is never":  {"include: [{local: a.yml, rules: [{if: $NAME, when: never}, {when: always}]}]\njob: {script: x}", []string{"job"}},
		"no rule":        {"include: [{local: none.yml, rules: [{if: $YAML_VARIABLE}]}]\nvariables: {YAML_VARIABLE: 1}\njob: {script: x}", []string{"job"}},
		"exists":         {"include: [{local: a.yml, rules: [{exists: [b.YAML]}]}]", []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			opt := repository(files)
			opt.Predefined = []Variable{{Key: "NAME", Value: "a"}}
			require.Equal(t, tc.want, names(compile(t, tc.src, opt)))
		})
	}
}

func TestIncludeWildcards(t *testing.T) {
	opt := repository(map[string]string{
		"ci/b.yml": "b: {script: x}\njob: {script: b}", "ci/a.yml": "a: {script: x}\njob: {script: a}", "ci/c.txt": "", "d.yml": "d: {script: x}",
	})
	p := compile(t, "include: /ci/*.yml\n", opt)
	require.Equal(t, []string{"a", "job", "b"}, names(p))
	require.Equal(t, []string{"b"}, one(t, p, "job").Script, "files are merged in order of their names")
	compile(t, "include: none/**.yml\njob: {script: x}\n", opt)
	require.Equal(t, `.gitlab-ci.yml:1:10: include: "ci/c.txt" does not end in .yml or .yaml`, refuse(t, "include: ci/*\n", opt))
}

func TestIncludeErrors(t *testing.T) {
	files := map[string]string{
		"self.yml": "include: self.yml", "ping.yml": "include: pong.yml", "pong.yml": "a: {script: x}\ninclude:\n  - ping.yml",
		"empty.yml": " \n\n", "comment.yml": "# nothing\n", "list.yml": "[a]", "bad.yml": "a:\n  script: [x\n", "typo.yml": "b:\n  script: x\n  wen: manual\n",
		"back.yml": "include: .gitlab-ci.yml\n",
	}
	for src, want := range map[string]string{
		"include: none.yml":    `.gitlab-ci.yml:1:10: include: read "none.yml": no such file in this commit`,
		"include: self.yml":    `self.yml:1:10: include: "self.yml" includes itself: .gitlab-ci.yml -> self.yml -> self.yml`,
		"include: ping.yml":    `pong.yml:3:5: include:0: "ping.yml" includes itself: .gitlab-ci.yml -> ping.yml -> pong.yml -> ping.yml`,
		"include: back.yml":    `back.yml:1:10: include: ".gitlab-ci.yml" includes itself: .gitlab-ci.yml -> back.yml -> .gitlab-ci.yml`,
		"include: empty.yml":   `.gitlab-ci.yml:1:10: include: "empty.yml" is empty`,
		"include: comment.yml": `comment.yml:1:1: the configuration is empty`,
		"include: list.yml":    `list.yml:1:1: the configuration is a list, not a mapping of keywords and jobs`,
		"include: bad.yml":     "bad.yml:2:3: invalid YAML: did not find expected ',' or ']'",
		"include: typo.yml":    "typo.yml:3:3: jobs:b:wen: the keyword `wen` is not known here",
		"include: ../a.yml":    `.gitlab-ci.yml:1:10: include: "../a.yml" is not a path of the repository`,
		"include: a/../b.yml":  `.gitlab-ci.yml:1:10: include: "a/../b.yml" is not a path of the repository`,
		"include: ./a.yml":     `.gitlab-ci.yml:1:10: include: "./a.yml" is not a path of the repository`,
		"include: a.txt":       `.gitlab-ci.yml:1:10: include: "a.txt" does not end in .yml or .yaml`,
		"include: ''":          `.gitlab-ci.yml:1:10: include: "" is not a path of the repository`,
		"include: $NONE":       `.gitlab-ci.yml:1:10: include: "" is not a path of the repository`,
		"include: 7":           ".gitlab-ci.yml:1:10: include: an entry of `include` is a path or a mapping with `local`, this is an integer",
		"include: {}":          `.gitlab-ci.yml:1:10: include: the entry names no file`,
		"include: {local: 7}":  `.gitlab-ci.yml:1:18: include:local: this must be a string, it is an integer`,
		"include: {local: a.yml, rules: [{if: '='}]}":           ".gitlab-ci.yml:1:38: include:rules:0:if: invalid expression: `=` is not part of an expression",
		"include: {local: a.yml, rules: [{when: manual}]}":      `.gitlab-ci.yml:1:40: include:rules:0:when: "manual" is not a value of this keyword`,
		"include: {local: a.yml, rules: [{variables: {A: b}}]}": ".gitlab-ci.yml:1:34: include:rules:0:variables: the keyword `variables` is not known here",
		"include: https://example.com/a.yml":                    ".gitlab-ci.yml:1:10: include: the keyword `include:remote` is not supported yet",
		"include: [{project: a/b, file: c.yml}]":                ".gitlab-ci.yml:1:12: include:0:project: the keyword `project` is not supported yet\n.gitlab-ci.yml:1:26: include:0:file: the keyword `file` is not supported yet",
		"include: [{remote: 'https://a/b.yml'}]":                ".gitlab-ci.yml:1:12: include:0:remote: the keyword `remote` is not supported yet",
		"include: [{template: a.yml}]":                          ".gitlab-ci.yml:1:12: include:0:template: the keyword `template` is not supported yet",
		"include: [{component: a/b@1}]":                         ".gitlab-ci.yml:1:12: include:0:component: the keyword `component` is not supported yet",
		"include: [{local: a.yml, inputs: {}}]":                 ".gitlab-ci.yml:1:26: include:0:inputs: the keyword `inputs` is not supported yet",
		"include: [{locl: a.yml}]":                              ".gitlab-ci.yml:1:12: include:0:locl: the keyword `locl` is not known here",
	} {
		t.Run(src, func(t *testing.T) {
			require.Equal(t, want, refuse(t, src, repository(files)))
		})
	}
}

func TestIncludeWithoutARepository(t *testing.T) {
	for src, want := range map[string]string{
		"include: a.yml":                          `.gitlab-ci.yml:1:10: include: "a.yml" cannot be included here: the repository's files are not known`,
		"include: '*.yml'":                        ".gitlab-ci.yml:1:10: include: wildcards cannot be used here: the repository's files are not known",
		"a: {script: x, rules: [{exists: [b]}]}":  ".gitlab-ci.yml:1:33: jobs:a:rules:0:exists: `rules:exists` cannot be evaluated here: the repository's files are not known",
		"a: {script: x, rules: [{changes: [b]}]}": ".gitlab-ci.yml:1:34: jobs:a:rules:0:changes: `rules:changes` cannot be evaluated here: the repository's files are not known",
	} {
		require.Equal(t, want, refuse(t, src, Options{}))
	}
}

func TestIncludeCallbackErrors(t *testing.T) {
	broken := errors.New("disk on fire")
	opt := Options{Include: func(string) ([]byte, error) { return nil, broken }, Glob: func(string) ([]string, error) { return nil, broken }}
	_, err := Compile(file, []byte("include: a.yml"), opt)
	require.ErrorIs(t, err, broken)
	_, err = Compile(file, []byte("include: '*.yml'"), opt)
	require.ErrorIs(t, err, broken)
	require.EqualError(t, err, `.gitlab-ci.yml:1:10: include: find "*.yml": disk on fire`)
}

func TestAtMost150Includes(t *testing.T) {
	config := func(n int) string {
		return "job: {script: x}\ninclude: [" + strings.Join(slices.Repeat([]string{"a.yml"}, n), ", ") + "]"
	}
	opt := repository(map[string]string{"a.yml": ".a: 1"})
	compile(t, config(150), opt)
	require.Equal(t, fmt.Sprintf(".gitlab-ci.yml:2:%d: include:150: the configuration includes more than 150 files", 11+150*7), refuse(t, config(151), opt))

	nested := Options{Include: func(name string) ([]byte, error) { return []byte("include: [x" + name + ", y" + name + "]\n"), nil }}
	require.Contains(t, refuse(t, "include: a.yml", nested), "the configuration includes more than 150 files")
}
