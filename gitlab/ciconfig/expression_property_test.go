package ciconfig

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// tree is an expression as it should be understood.
type tree struct {
	op          tokenKind
	left, right *tree // operands; right alone for !
	leaf        string
	value       value
}

func trees(values map[string]string) *rapid.Generator[*tree] {
	leaves := []*tree{
		{leaf: "null"},
		{leaf: "true", value: value{kind: valueBool, truth: true}},
		{leaf: "false", value: value{kind: valueBool}},
		{leaf: `"a"`, value: value{kind: valueString, text: "a"}},
		{leaf: `''`, value: value{kind: valueString}},
		{leaf: "$NONE"},
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		leaves = append(leaves, &tree{leaf: "$" + key, value: value{kind: valueString, text: values[key]}})
	}
	leaf := rapid.SampledFrom(leaves)
	ops := rapid.SampledFrom([]tokenKind{tokenEquals, tokenNotEquals, tokenMatches, tokenNotMatches, tokenAnd, tokenOr, tokenNot})
	var grow func(depth int) *rapid.Generator[*tree]
	grow = func(depth int) *rapid.Generator[*tree] {
		return rapid.Custom(func(t *rapid.T) *tree {
			if depth == 0 || rapid.IntRange(0, 3).Draw(t, "stop") == 0 {
				return leaf.Draw(t, "leaf")
			}
			n := &tree{op: ops.Draw(t, "op"), right: grow(depth-1).Draw(t, "right")}
			if n.op != tokenNot {
				n.left = grow(depth-1).Draw(t, "left")
			}
			return n
		})
	}
	return grow(4)
}

func (n *tree) evaluate() value {
	switch {
	case n.leaf != "":
		return n.value
	case n.op == tokenNot:
		v := n.right.evaluate()
		return value{kind: valueBool, truth: v.kind != valueBool && (v.kind != valueString || blank(v.text)) || v.kind == valueBool && !v.truth}
	}
	return operate(n.op, n.left.evaluate(), n.right.evaluate())
}

// write writes a tree with parentheses only where precedence needs them; operators of equal precedence group to the
// left.
func (n *tree) write() string {
	if n.leaf != "" {
		return n.leaf
	}
	inside := func(child *tree, tighter bool) string {
		if child.leaf != "" || child.op.precedence() < n.op.precedence() || !tighter && child.op.precedence() == n.op.precedence() {
			return child.write()
		}
		return "(" + child.write() + ")"
	}
	if n.op == tokenNot {
		return "!" + inside(n.right, false)
	}
	sign := map[tokenKind]string{
		tokenEquals: "==", tokenNotEquals: "!=", tokenMatches: "=~", tokenNotMatches: "!~", tokenAnd: "&&", tokenOr: "||",
	}[n.op]
	return fmt.Sprintf("%s %s %s", inside(n.left, false), sign, inside(n.right, true))
}

func TestExpressionsKeepPrecedence(t *testing.T) {
	values := map[string]string{"A": "a", "LIKE": "/^a|b/", "EMPTY": ""}
	lookup := lookupIn(values)
	rapid.Check(t, func(t *rapid.T) {
		want := trees(values).Draw(t, "tree")
		text := want.write()
		e, _, err := parseExpression(text)
		require.NoError(t, err, text)
		require.Equal(t, want.evaluate(), e.evaluate(lookup), text)
	})
}
