//go:build unix

package archive

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// pattern is one of `paths:`.
type pattern struct {
	given string
	match string   // clean, below the project folder
	self  string   // of `x/**`: x, which is meant if it is a folder
	inner string   // of `x/**`: what matches all in it
	parts []string // match, divided
	deep  int      // the first of parts that may be any number of names: `**`, or braces with slashes
	found int
}

func newPattern(given, match string) *pattern {
	p := &pattern{given: given, match: match, self: match, inner: match}
	for strings.HasSuffix(p.self, "/**") {
		p.self = strings.TrimSuffix(p.self, "/**")
		p.inner = p.self + "/**/*"
	}
	if match == "." {
		return p
	}
	p.deep = -1
	start, nested := 0, 0
	slashed := false // a slash within braces or brackets
	end := func(i int) {
		part := match[start:i]
		if p.deep < 0 && (slashed || strings.Contains(part, "**")) {
			p.deep = len(p.parts)
		}
		p.parts = append(p.parts, part)
		start, slashed = i+1, false
	}
	for i := 0; i < len(match); i++ {
		switch match[i] {
		case '\\':
			i++
		case '{', '[':
			nested++
		case '}', ']':
			nested = max(nested-1, 0)
		case '/':
			if nested > 0 {
				slashed = true
			} else {
				end(i)
			}
		}
	}
	slashed = slashed || nested > 0 // never closed: what was taken for one part may be several
	end(len(match))
	if p.deep < 0 {
		p.deep = len(p.parts)
	}
	return p
}

// alive tells whether name at depth (0: directly in the project folder), in a folder where p was alive, or what is below it,
// can be meant.
func (p *pattern) alive(name string, depth int) bool {
	if depth >= p.deep {
		return p.deep < len(p.parts)
	}
	matched, err := doublestar.Match(p.parts[depth], name)
	return err == nil && matched
}

// goesOn tells whether something below a name at depth, where p is alive, can match.
func (p *pattern) goesOn(depth int) bool { return p.deep < len(p.parts) || depth+1 < len(p.parts) }

// literal returns the only name at depth that p can mean, if it is so.
func (p *pattern) literal(depth int) (string, bool) {
	if depth >= p.deep || strings.ContainsAny(p.parts[depth], meta+`\`) {
		return "", false
	}
	return p.parts[depth], true
}

// matchesRoot tells whether the project folder itself is meant.
func (p *pattern) matchesRoot() bool {
	for _, part := range p.parts {
		if part != "**" {
			return false
		}
	}
	return true
}

func (p *pattern) matches(name string, folder bool) bool {
	matched, err := doublestar.Match(p.inner, name)
	if !matched && folder && p.self != p.inner {
		matched, err = doublestar.Match(p.self, name)
	}
	return err == nil && matched
}

// within returns pattern as a clean one below dir. Both the words and what counts as outside are gitlab-runner's.
func within(dir, pattern string) (string, error) {
	outside := fmt.Errorf("artifact path is not a subpath of project directory: %s", pattern)
	if filepath.Clean(pattern) == dir {
		return ".", nil
	}
	base, rest := pattern, ""
	if below, ok := strings.CutPrefix(pattern, dir+"/"); ok {
		base = below // what dir is called is no pattern
	}
	glob := strings.ContainsAny(base, meta)
	if glob {
		base, rest = doublestar.SplitPattern(base)
	}
	if !filepath.IsAbs(base) {
		base = filepath.Join(dir, base)
	}
	rel, err := filepath.Rel(dir, base)
	if err != nil || leadsOut(rel) {
		return "", outside
	}
	if glob { // SplitPattern has taken the backslashes away
		rel = escape(rel)
	}
	rel = filepath.Join(rel, rest)
	if leadsOut(rel) {
		return "", outside
	}
	return rel, nil
}

// meta are the characters that make a pattern of a path.
const meta = "*?[{"

// escape makes a pattern that means s.
func escape(s string) string {
	if !strings.ContainsAny(s, meta+`]}\`) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(meta+`]}\`, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func leadsOut(rel string) bool { return rel == ".." || strings.HasPrefix(rel, "../") }
