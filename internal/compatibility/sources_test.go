package compatibility

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// source is a file of Go that is no test.
type source struct {
	path string
	set  *token.FileSet
	tree *ast.File
}

// sources parses the files below folders of the project. What only tests link is left out.
func sources(t *testing.T, folders ...string) (list []source) {
	t.Helper()
	for _, folder := range folders {
		require.NoError(t, filepath.WalkDir(filepath.Join(root, folder), func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && (d.Name() == "conformance" || d.Name() == "testdata" || d.Name() == "internal"):
				return filepath.SkipDir
			case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
				return nil
			}
			set := token.NewFileSet()
			tree, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			list = append(list, source{path, set, tree})
			return nil
		}))
	}
	require.NotEmpty(t, list)
	return list
}

func (s source) position(n ast.Node) string { return s.set.Position(n.Pos()).String() }

// strings calls f with each string in the file.
func (s source) strings(f func(text string, at *ast.BasicLit)) {
	ast.Inspect(s.tree, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			if text, err := strconv.Unquote(l.Value); err == nil {
				f(text, l)
			}
		}
		return true
	})
}

// messages are the file's texts, each as what stays the same of it: between two parts there is something that is known only
// when the program runs.
func (s source) messages() (list [][]string) {
	ast.Inspect(s.tree, func(n ast.Node) bool {
		e, ok := n.(ast.Expr)
		if !ok {
			return true
		}
		parts, isText := pattern(e)
		if !isText {
			return true
		}
		list = append(list, parts)
		_, sum := n.(*ast.BinaryExpr)
		return !sum // what it is the sum of is no message by itself
	})
	return list
}

var verb = regexp.MustCompile(`%[-+# 0]*(\d+|\*)?(\.\d+)?[a-zA-Z]`)

// pattern returns the parts of a string, or of a sum that has one.
func pattern(e ast.Expr) (parts []string, isText bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		if e.Kind != token.STRING || err != nil {
			return nil, false
		}
		for _, part := range verb.Split(text, -1) {
			parts = append(parts, strings.ReplaceAll(part, "%%", "%"))
		}
		return parts, true
	case *ast.ParenExpr:
		return pattern(e.X)
	case *ast.BinaryExpr:
		if e.Op != token.ADD {
			return nil, false
		}
		x, isX := pattern(e.X)
		y, isY := pattern(e.Y)
		switch {
		case !isX && !isY:
			return nil, false
		case !isX:
			x = []string{"", ""}
		case !isY:
			y = []string{"", ""}
		}
		last := len(x) - 1
		sum := append(append([]string{}, x[:last]...), x[last]+y[0])
		return append(sum, y[1:]...), true
	}
	return nil, false
}

// begins says whether a message that is made by the pattern may begin with text. The pattern's own words must be the most of
// it: anything could stand for a pattern without any.
func begins(pattern []string, text string) bool {
	own := 0
	for _, part := range pattern {
		own += len(part)
	}
	return 2*min(own, len(text)) >= min(len(text), 24) && matches(pattern, text)
}

func matches(pattern []string, text string) bool {
	first, rest := pattern[0], pattern[1:]
	if len(text) <= len(first) {
		return strings.HasPrefix(first, text)
	}
	after, ok := strings.CutPrefix(text, first)
	if !ok || len(rest) == 0 {
		return false
	}
	for i := range len(after) + 1 {
		// The quotation must not end within what is not known.
		if (after[i:] != "" || rest[0] == "") && matches(rest, after[i:]) {
			return true
		}
	}
	return false
}

func TestBegins(t *testing.T) {
	for text, want := range map[string]bool{
		"the job uses run, which":            true,
		"the job uses run, which is refused": true,
		"the job uses ":                      true,
		"the job uses run":                   false,
		"a job uses run":                     false,
		"the job uses run, which is taken":   false,
	} {
		require.Equal(t, want, begins([]string{"the job uses ", ", which is refused: ", ""}, text), text)
	}
	require.True(t, begins([]string{"nothing is left out"}, "nothing is left"))
	require.False(t, begins([]string{"nothing is left"}, "nothing is left out"))
	require.False(t, begins([]string{"", " ", ""}, "any sentence that somebody could have written"))
}

func TestPatterns(t *testing.T) {
	expr, err := parser.ParseExpr(`"a %q and 100%%" + x + (" b" + " c %5.2f")`)
	require.NoError(t, err)
	parts, ok := pattern(expr)
	require.True(t, ok)
	require.Equal(t, []string{"a ", " and 100%", " b c ", ""}, parts)
	expr, err = parser.ParseExpr(`a + b`)
	require.NoError(t, err)
	_, ok = pattern(expr)
	require.False(t, ok)
}
