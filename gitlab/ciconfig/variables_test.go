package ciconfig

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVariablesOfAJob(t *testing.T) {
	p := compile(t, `
variables:
  TOP: top
  OVER: top
  RAW: {value: $A, expand: false}
  DESCRIBED: {value: b, description: what for, options: [a, b]}
  EMPTY: {description: asked for when a pipeline starts}
workflow:
  rules:
    - variables: {FLOW: flow, OVER: flow}
      if: $TOP
plain: {script: x}
own:
  script: x
  variables: {OVER: job, OWN: {value: "1", expand: false}, LAST: {value: 2}}
rule:
  script: x
  variables: {A: a, B: b}
  rules:
    - if: $A
      variables: {B: rule, C: rule}
matrix:
  script: x
  variables: {OS: none, B: b}
  parallel: {matrix: [{OS: linux}]}
`, Options{})
	const top = "TOP=top OVER=flow RAW:=$A DESCRIBED=b EMPTY= FLOW=flow"
	require.Equal(t, top, values(p.Variables))
	require.Equal(t, top, values(one(t, p, "plain").Variables))
	require.Equal(t, "TOP=top OVER=job RAW:=$A DESCRIBED=b EMPTY= FLOW=flow OWN:=1 LAST=2", values(one(t, p, "own").Variables))
	require.Equal(t, top+" A=a B=rule C=rule", values(one(t, p, "rule").Variables))
	require.Equal(t, top+" OS=linux B=b", values(one(t, p, "matrix: [linux]").Variables))
	for _, v := range p.Variables {
		require.True(t, v.Public)
	}
}

// What an unquoted value becomes in Ruby.
func TestScalars(t *testing.T) {
	for text, want := range map[string]string{
		"text": "text", "'1.10'": "1.10", `"yes"`: "yes", "!!str 0755": "0755", "|-\n    1.10": "1.10", "~x": "~x", "yesterday": "yesterday",
		"1": "1", "-12": "-12", "+3": "3", "1_000": "1000", "1,000": "1000", "0755": "493", "0o17": "15", "0x1F": "31", "0b101": "5", "08": "08", "0": "0",
		"123456789012345678901234567890": "123456789012345678901234567890",
		"1.10":                           "1.1", "1.0": "1.0", "10.": "10.0", "-.5": "-0.5", "1.5e+3": "1500.0", "1e3": "1e3", "1.0e-05": "1.0e-05", "1.5e+20": "1.5e+20",
		"1234567890123456.0": "1234567890123456.0", "12345678901234567.0": "1.2345678901234568e+16", "0.0001": "0.0001",
		".inf": "Infinity", "-.INF": "-Infinity", ".NaN": "NaN", "1.2.3": "1.2.3", ".": ".",
		"yes": "true", "On": "true", "TRUE": "true", "no": "false", "off": "false", "False": "false", "y": "y",
		"12:30": "45000", "1:02:03": "3723", "12:60": "12:60", "v1:2": "v1:2",
		":latest": "latest", "2024-01": "2024-01",
	} {
		t.Run(text, func(t *testing.T) {
			p := compile(t, "variables:\n  V: "+text+"\njob: {script: x}\n", Options{})
			require.Equal(t, want, p.Variables[0].Value)
		})
	}
}

func TestChangedScalarsAreWarnedAbout(t *testing.T) {
	p := compile(t, "variables: {A: 1.10, B: 0755, C: 12, D: 'yes', E: yes}\njob: {script: x, variables: {F: 1_0}}\n", Options{})
	require.Equal(t, []string{
		"variables:A: YAML reads 1.10 as 1.1; quote it if you mean the text",
		"variables:B: YAML reads 0755 as 493; quote it if you mean the text",
		"variables:E: YAML reads yes as true; quote it if you mean the text",
		"jobs:job:variables:F: YAML reads 1_0 as 10; quote it if you mean the text",
	}, p.Warnings)
}

func TestExpand(t *testing.T) {
	lookup := lookupIn(map[string]string{"A": "a", "B_2": "$A"})
	for text, want := range map[string]string{
		"":                 "",
		"plain":            "plain",
		"$A":               "a",
		"${A}b":            "ab",
		"%A%":              "a",
		"$A$A-$B_2":        "aa-$A",
		"$AB":              "",
		"$":                "$",
		"$$A":              "$a",
		"${A":              "${A",
		"$1 50% %":         "$1 50% %",
		"x$NONE-${NONE}y":  "x-y",
		"%A %A%":           "%A a",
		"$é":               "$é",
		"${A}${B_2}$(A) {": "a$A$(A) {",
	} {
		require.Equal(t, want, expand(text, lookup, false), text)
	}
	require.Equal(t, "x$NONE-${NONE}%NONE%", expand("x$NONE-${NONE}%NONE%", lookup, true))
}

func TestExpandedVariables(t *testing.T) {
	s := &scope{layers: []layer{newLayer([]Variable{
		{Key: "A", Value: "a"},
		{Key: "B", Value: "$A-$A"},
		{Key: "C", Value: "${B}!$NONE"},
		{Key: "RAW", Value: "$A", Raw: true},
		{Key: "D", Value: "$RAW $$A %%A%%"},
		{Key: "SELF", Value: "x$SELF"},
	}), newLayer([]Variable{{Key: "A", Value: "upper"}})}}
	lookup := s.expanded()
	for key, want := range map[string]string{"C": "upper-upper!", "RAW": "$A", "D": "$A $$A %%A%%", "SELF": "x"} {
		got, ok := lookup(key)
		require.True(t, ok)
		require.Equal(t, want, got, key)
	}
	_, ok := lookup("NONE")
	require.False(t, ok)
	require.Nil(t, s.cycle())
}

func TestExpansionIsBounded(t *testing.T) {
	variables := []Variable{{Key: "V0", Value: "xxxxxxxxxxxxxxxx"}}
	key := "V0"
	for range 40 {
		next := key + "0"
		variables = append(variables, Variable{Key: next, Value: "$" + key + "$" + key})
		key = next
	}
	got, ok := (&scope{layers: []layer{newLayer(variables)}}).expanded()(key)
	require.True(t, ok)
	require.LessOrEqual(t, len(got), maxExpanded)
}

func TestVariablesInsideEachOther(t *testing.T) {
	const src = "job:\n  script: x\n  variables: {A: $B, B: x$C, C: $A, D: $D}\n"
	require.Equal(t, ".gitlab-ci.yml:1:1: jobs:job: variables contain each other: A -> B -> C -> A", refuse(t, src, Options{}))
	raw := strings.Replace(src, "$A,", "{value: $A, expand: false},", 1)
	compile(t, raw, Options{})
	refuse(t, src, Options{Pipeline: []Variable{{Key: "C", Value: "fixed"}}})
}
