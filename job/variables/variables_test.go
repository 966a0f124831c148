package variables_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/variables"
)

type v = runnerapi.Variable

func set(t *testing.T, list ...v) *variables.Set {
	t.Helper()
	s, err := variables.New([]v{{Key: variables.TempDir, Value: "/b/p.tmp"}}, list)
	require.NoError(t, err)
	return s
}

func TestExpansion(t *testing.T) {
	s := set(
		t,
		v{Key: "A", Value: "one"},
		v{Key: "B", Value: "$A ${A}x $Ax ${NONE} $$A \\$A"},
		v{Key: "C", Value: "$B"},
		v{Key: "RAW", Value: "$A ${A} $$", Raw: true},
		v{Key: "F", Value: "content $A", File: true},
		v{Key: "G", Value: "$F"},
		v{Key: "LATE", Value: "$LATER"},
		v{Key: "LATER", Value: "2"},
		v{Key: "SPECIAL", Value: "[$1$*$@$#$?$!$0]"},
		v{Key: "DEFAULT", Value: "${A:-x}"},
		v{Key: "SELF", Value: "$SELF."},
	)
	for key, want := range map[string]string{
		"A": "one", "B": "one onex   $A \\one", "C": "$A ${A}x $Ax ${NONE} $$A \\$A", "RAW": "$A ${A} $$",
		"G": "/b/p.tmp/F", "F": "/b/p.tmp/F", "LATE": "2", "SPECIAL": "[]", "DEFAULT": "", "SELF": "$SELF..",
	} {
		require.Equal(t, want, s.Get(key), key)
	}
	require.Equal(t, "content one", s.Value("F"))
	text, err := s.Expand("x $A $F")
	require.NoError(t, err)
	require.Equal(t, "x one /b/p.tmp/F", text)
}

func TestTheLaterWins(t *testing.T) {
	s, err := variables.New(
		[]v{{Key: "A", Value: "1", Masked: true}, {Key: "X", Value: "$A"}, {Key: "F", Value: "file", File: true}},
		[]v{{Key: "A", Value: "2", Masked: true}, {Key: "F", Value: "no file"}},
	)
	require.NoError(t, err)
	require.Equal(t, "2", s.Get("A"))
	require.Equal(t, "2", s.Get("X"))
	require.Equal(t, []string{"1", "2"}, s.Masked(), "what is overridden stays secret")
	require.Empty(t, s.Files())
	var got []string
	s.Winning(func(k, v string) { got = append(got, k+"="+v) })
	require.Equal(t, []string{"X=2", "A=2", "F=no file"}, got)
	s.Set("A", "3")
	s.Set("NONE", "x")
	require.Equal(t, "3", s.Get("A"))
	require.Empty(t, s.Get("NONE"))
}

func TestWhatCannotBeUsedIsNamed(t *testing.T) {
	for want, bad := range map[string]v{
		`variable ""`:                  {Value: "x"},
		`variable "A=B"`:               {Key: "A=B"},
		`variable N: the value`:        {Key: "N", Value: "a\x00b"},
		`variable "../x": the key of`:  {Key: "../x", File: true},
		`variable "a b": the key of a`: {Key: "a b", File: true},
	} {
		_, err := variables.New([]v{bad})
		require.ErrorContains(t, err, want)
	}
}

func TestExpansionIsLimited(t *testing.T) {
	_, err := variables.New([]v{
		{Key: "BIG", Value: strings.Repeat("x", 1<<20)},
		{Key: "BOMB", Value: strings.Repeat("$BIG", 100)},
	})
	require.ErrorContains(t, err, "variable BOMB: the job's variables expand to more than 64 MiB")
	list := []v{{Key: "BIG", Value: strings.Repeat("x", 1<<20)}}
	for range 70 {
		list = append(list, v{Key: "A", Value: "$BIG"})
	}
	_, err = variables.New(list)
	require.ErrorContains(t, err, "variable A: ")
}

func BenchmarkFiveMegabytes(b *testing.B) {
	var list []v
	for i := range 5000 {
		list = append(list, v{Key: "K" + strings.Repeat("x", i%50), Value: "$K" + strings.Repeat("y", 1000)})
	}
	for b.Loop() {
		if _, err := variables.New(list); err != nil {
			b.Fatal(err)
		}
	}
}
