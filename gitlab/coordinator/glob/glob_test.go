package glob

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestInclude(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"ci/*.yml", []string{"ci/a.yml", "ci/.yml"}, []string{"ci/x/a.yml", "a.yml", "ci/a.yaml", "ci/a.yml.bak"}},
		{"/ci/*.yml", []string{"ci/a.yml"}, []string{"/ci/a.yml"}},
		{"ci/**.yml", []string{"ci/a.yml", "ci/x/y/a.yml"}, []string{"a.yml"}},
		{"ci/**/*.yml", []string{"ci/x/a.yml", "ci/x/y/a.yml"}, []string{"ci/a.yml"}},
		{"**/a.yml", []string{"x/a.yml", "x/y/a.yml"}, []string{"a.yml"}},
		{"a+[b].yml", []string{"a+[b].yml"}, []string{"aab.yml"}},
	} {
		check(t, Include, c.pattern, c.yes, c.no)
	}
}

func TestFnmatch(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"Dockerfile", []string{"Dockerfile"}, []string{"x/Dockerfile", "Dockerfile.x"}},
		{"*.go", []string{"a.go", ".go", ".x.go"}, []string{"x/a.go"}},
		{"src/*", []string{"src/a", "src/.a"}, []string{"src/x/a", "src"}},
		{"src/**/*", []string{"src/a", "src/x/a", "src/x/y/a"}, []string{"src", "srcs/a"}},
		{"src/**", []string{"src/a"}, []string{"src/x/a"}},
		{"**/a.go", []string{"a.go", "x/a.go", "x/y/a.go"}, []string{"xa.go"}},
		{"**/**/a", []string{"a", "x/a"}, nil},
		{"x**/a", []string{"x/a", "xy/a"}, []string{"x/y/a"}},
		{"a?c", []string{"abc"}, []string{"a/c", "ac"}},
		{"[ab]/x[!c-e]", []string{"a/xb", "b/xf"}, []string{"a/xd", "c/xb", "a/x/"}},
		{"[^a]", []string{"b"}, []string{"a", "/"}},
		{"[]a]", []string{"]", "a"}, []string{"b"}},
		{"[a-]", []string{"a", "-"}, []string{"b"}},
		{`[\]]`, []string{"]"}, []string{`\`}},
		{"[a", []string{"[a"}, []string{"a"}},
		{"*.{rb,py}", []string{"a.rb", "a.py"}, []string{"a.go"}},
		{"{src,lib}/**/*.{c,h}", []string{"src/a.c", "lib/x/a.h"}, []string{"bin/a.c"}},
		{"{a,{b,c}}", []string{"a", "b", "c"}, []string{"{a"}},
		{"{a,**/b}", []string{"a", "b", "x/b"}, nil},
		{"{a", []string{"{a"}, []string{"a"}},
		{"a,b}", []string{"a,b}"}, nil},
		{`\*\{`, []string{"*{"}, []string{"x{"}},
		{`a\`, []string{`a\`}, nil},
		{"ü?[äö]", []string{"üxä", "üéö"}, []string{"üx/"}},
		{"a.b+c", []string{"a.b+c"}, []string{"aXb+c"}},
	} {
		check(t, Fnmatch, c.pattern, c.yes, c.no)
	}
}

func check(t *testing.T, compile func(string) (Pattern, error), pattern string, yes, no []string) {
	t.Helper()
	p, err := compile(pattern)
	require.NoError(t, err, pattern)
	for _, path := range yes {
		require.True(t, p.Match(path), "%q must match %q", pattern, path)
	}
	require.Equal(t, len(yes) > 0, p.Any(append(no, yes...)))
	for _, path := range no {
		require.False(t, p.Match(path), "%q must not match %q", pattern, path)
	}
}

// TestAnyPatternCompiles: no text of a user's makes a broken expression, and one without special characters means
// itself.
func TestAnyPatternCompiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`([a-c/.,*?{}!^\\-]|\[|\]|\*\*/){0,12}`).Draw(t, "pattern")
		if _, err := Fnmatch(pattern); err != nil && !reversed(pattern) {
			t.Fatal(err)
		}
		if _, err := Include(pattern); err != nil {
			t.Fatal(err)
		}
		plain := rapid.StringMatching(`[a-c]{1,3}(/[a-c]{1,3}){0,2}`).Draw(t, "plain")
		p, err := Fnmatch(plain)
		if err != nil || !p.Match(plain) || p.Match(plain+"x") {
			t.Fatalf("%q does not mean itself: %v", plain, err)
		}
	})
}

// reversed says that a pattern may have a class like [c-a], which is refused.
func reversed(pattern string) bool {
	for i := 1; i+1 < len(pattern); i++ {
		if pattern[i] == '-' {
			return true
		}
	}
	return false
}
