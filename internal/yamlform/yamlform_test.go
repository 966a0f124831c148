package yamlform

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// form reads what a file of every kind of value may look like.
func form(text string) (values map[string]any, warnings []Problem, err error) {
	r, root, err := Parse("f.yaml", []byte(text))
	if err != nil {
		return nil, nil, err
	}
	values = map[string]any{}
	r.Mapping(root, "", Fields{
		"text":   func(n *yaml.Node, at string) { values[at], _ = r.Text(n, at) },
		"number": func(n *yaml.Node, at string) { values[at], _ = r.Number(n, at, 1, 9, "a digit") },
		"time":   func(n *yaml.Node, at string) { values[at] = r.Duration(n, at, time.Second, time.Hour) },
		"on":     func(n *yaml.Node, at string) { values[at] = r.Boolean(n, at) },
		"word":   func(n *yaml.Node, at string) { values[at] = r.Choice(n, at, "one", "two") },
		"list": func(n *yaml.Node, at string) {
			r.List(n, at, 2, func(item *yaml.Node, at string) { values[at], _ = r.Text(item, at) })
		},
		"old": func(n *yaml.Node, at string) { r.Warn(n, at, "is not needed any more", "") },
	})
	return values, r.Warnings(), r.Err()
}

func TestValues(t *testing.T) {
	values, warnings, err := form("text: &a x\nnumber: 3\ntime: 90s\n\"on\": true\nword: two\nlist: [*a, 5]\nold: 1\n")
	require.NoError(t, err)
	require.Equal(t, map[string]any{
		"text": "x", "number": int64(3), "time": 90 * time.Second, "on": true, "word": "two", "list[0]": "x", "list[1]": "5",
	}, values)
	require.Len(t, warnings, 1)
	require.Equal(t, "f.yaml:7:6: old: is not needed any more", warnings[0].String())
}

func TestProblems(t *testing.T) {
	_, _, err := form("text: ''\nnumber: 10\ntime: 5\n\"on\": yes please\nword: three\nlist: [1, 2, 3]\ntext: again\n? [k]\n: v\n<<: {}\ntxt: x\nold:\n")
	require.EqualError(t, err, strings.Join([]string{
		"f.yaml:1:7: text: is empty; give it a value or remove the line",
		"f.yaml:2:9: number: 10 is more than 9; a digit",
		"f.yaml:3:7: time: must be a time with its unit, not the number 5; write it like 500ms, 10s, 25m or 1h30m",
		`f.yaml:4:7: on: must be true or false, not the text "yes please"`,
		`f.yaml:5:7: word: "three" is unknown; available: one, two`,
		"f.yaml:6:7: list: has 3 entries, more than 2",
		"f.yaml:7:1: text: is set twice, first in line 1; remove one of them",
		"f.yaml:8:3: has a key that is a list instead of a name",
		"f.yaml:10:1: <<: merging is not supported; write the keys out, or use an alias for a whole value",
		`f.yaml:11:1: txt: unknown key; did you mean "text"?`,
		"f.yaml:12:5: old: has no value; give it one or remove the line",
	}, "\n"))
}

func TestWhatIsNoForm(t *testing.T) {
	_, _, err := form("# nothing\n")
	require.ErrorIs(t, err, ErrEmpty)
	_, _, err = form("a: [")
	require.ErrorContains(t, err, "f.yaml:1: ")
	require.ErrorContains(t, err, "; the file must be YAML")
	_, _, err = form("{}\n---\n{}\n")
	require.ErrorContains(t, err, "a second document begins here")
	_, _, err = form("- 1\n")
	require.ErrorContains(t, err, "must be a mapping of keys to values, not a list; known keys: list, number, old, on, text, time, word")
	_, _, err = form(strings.Repeat("nothing: 1\n", 2*MaxProblems))
	require.Len(t, err, MaxProblems)
}

func TestSyntaxErrorsHaveTheirLine(t *testing.T) {
	long := strings.Repeat("key: value\n", 200)
	for text, line := range map[string]int{
		"a: b: c":                           1,
		"\ta: b":                            1,
		"a: [":                              1,
		"a: b\n\nc:\n  - {d: e: f}\ng: h\n": 4,
		"a: b\nc:\n - d: e\n  f: g\nh: i\n": 4,
		"a: b\nc:\n  - \"d\ne: f\ng: h\n":   3,
		"a:\n  - [b,\n     c]\n  - [d,\n  e: f\n": 4,
		"a: b\n# why\nc: d\n e: f\n":              4,
		"a: b\nc: *d\n":                           2,
		"a: b\nc: \x01\n":                         2,
		long + "a: b: c\n" + long:                 201,
		long + "a: \"b\n" + long:                  201,
	} {
		_, _, err := form(text)
		require.ErrorContains(t, err, fmt.Sprintf("f.yaml:%d: ", line), "%.60q", text)
		require.NotContains(t, err.Error(), "line ")
	}
}
