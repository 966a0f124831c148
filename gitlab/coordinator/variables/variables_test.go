package variables

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// vars reads "KEY=value"; a leading ! makes it raw, a leading @ a file.
func vars(list ...string) []runnerapi.Variable {
	var out []runnerapi.Variable
	for _, s := range list {
		var v runnerapi.Variable
		if rest, ok := strings.CutPrefix(s, "!"); ok {
			v.Raw, s = true, rest
		}
		if rest, ok := strings.CutPrefix(s, "@"); ok {
			v.File, s = true, rest
		}
		v.Key, v.Value, _ = strings.Cut(s, "=")
		out = append(out, v)
	}
	return out
}

func texts(list []runnerapi.Variable) []string {
	var out []string
	for _, v := range list {
		out = append(out, v.Key+"="+v.Value)
	}
	return out
}

func TestExpand(t *testing.T) {
	for _, c := range []struct {
		name     string
		in, want []string
	}{
		{"three forms", []string{"A=x", "B=$A ${A} %A%"}, []string{"A=x", "B=x x x"}},
		{"what is used comes first", []string{"B=<$A>", "A=x"}, []string{"A=x", "B=<x>"}},
		{"over several", []string{"C=$B", "B=$A", "A=x"}, []string{"A=x", "B=x", "C=x"}},
		{"unknown ones stay", []string{"A=$NO ${NO} %NO%"}, []string{"A=$NO ${NO} %NO%"}},
		{"doubled signs are text and no begin", []string{"A=x", "B=$$A %%A% $${A}"}, []string{"A=x", "B=$$A %%A% $${A}"}},
		{"odd signs", []string{"A=x", "B=$ $1 ${} ${A $A} % %A $", "C=100%"}, []string{"A=x", "B=$ $1 ${} ${A x} % %A $", "C=100%"}},
		{"names end where they must", []string{"A=x", "B=$A_$A-${A}b", "A_=y"}, []string{"A=x", "A_=y", "B=yx-xb"}},
		{"values are not read again", []string{"!A=$B", "B=x", "C=$A"}, []string{"A=$B", "B=x", "C=$A"}},
		{"a raw value stays and is not put in", []string{"A=x", "!B=$A", "C=[$B]"}, []string{"A=x", "B=$A", "C=[$B]"}},
		{"a file is not put in", []string{"@A=text", "B=$A"}, []string{"A=text", "B=$A"}},
		{"a file's text is expanded", []string{"A=x", "@F=is $A"}, []string{"A=x", "F=is x"}},
		{"the last of a key is used", []string{"A=1", "A=2", "B=$A"}, []string{"A=1", "A=2", "B=2"}},
		{"a key may refer to its own earlier value", []string{"P=/bin", "P=$P:/opt"}, []string{"P=/bin", "P=/bin:/opt"}},
		{"itself alone stays", []string{"P=$P:/opt"}, []string{"P=$P:/opt"}},
		{"a circle leaves everything alone", []string{"A=$B", "B=$A", "C=x", "D=$C"}, []string{"A=$B", "B=$A", "C=x", "D=$C"}},
		{"nothing", nil, nil},
	} {
		in := vars(c.in...)
		before := slices.Clone(in)
		require.Equal(t, c.want, texts(Expand(in)), c.name)
		require.Equal(t, before, in, "%s: the input is not touched", c.name)
	}
}

func TestExpandKeepsTheFlags(t *testing.T) {
	in := []runnerapi.Variable{{Key: "A", Value: "x", Public: true}, {Key: "B", Value: "$A", Masked: true, File: true}}
	require.Equal(t, []runnerapi.Variable{{Key: "A", Value: "x", Public: true}, {Key: "B", Value: "x", Masked: true, File: true}}, Expand(in))
}

// TestExpandAnything: whatever the values are, nothing is lost, and without signs nothing changes.
func TestExpandAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in []runnerapi.Variable
		for range rapid.IntRange(0, 8).Draw(t, "n") {
			in = append(in, runnerapi.Variable{
				Key:   rapid.SampledFrom([]string{"A", "B", "C", "D"}).Draw(t, "key"),
				Value: rapid.StringMatching(`([$%{}ABCDx ]|\$[ABCD]|%[ABCD]%){0,6}`).Draw(t, "value"),
				Raw:   rapid.Bool().Draw(t, "raw"),
			})
		}
		out := Expand(in)
		if len(out) != len(in) {
			t.Fatalf("%d variables became %d", len(in), len(out))
		}
		for _, v := range in {
			pieces := ""
			scan(v.Value, func(text, _ string) { pieces += text })
			if pieces != v.Value {
				t.Fatalf("the pieces of %q are %q", v.Value, pieces)
			}
			if v.Raw || !strings.ContainsAny(v.Value, "$%") {
				if !slices.Contains(out, v) {
					t.Fatalf("%v is gone", v)
				}
			}
		}
	})
}

func TestSlug(t *testing.T) {
	for in, want := range map[string]string{
		"main":                              "main",
		"Feature/ABC_1.0":                   "feature-abc-1-0",
		"--a--":                             "a",
		"":                                  "",
		"///":                               "",
		"ä":                                 "",
		"xäy":                               "x-y",
		strings.Repeat("a", 80):             strings.Repeat("a", 63),
		strings.Repeat("a-", 40):            strings.TrimSuffix(strings.Repeat("a-", 32)[:63], "-"),
		strings.Repeat("ä", 62) + "b" + "c": "b",
	} {
		require.Equal(t, want, Slug(in), in)
	}
}

func BenchmarkExpand(b *testing.B) {
	var in []runnerapi.Variable
	for i := range 80 {
		in = append(in, runnerapi.Variable{Key: "KEY_" + string(rune('A'+i%26)) + string(rune('A'+i/26)), Value: "some value of usual length"})
	}
	in = append(in, vars("X=$KEY_AA/$KEY_BB", "Y=${X}/z")...)
	b.ReportAllocs()
	for range b.N {
		Expand(in)
	}
}
