// Package glob matches the paths of a repository with the two kinds of patterns that GitLab's configuration has.
package glob

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Pattern is a compiled pattern.
type Pattern struct{ re *regexp.Regexp }

// Match says whether a whole path (with slashes, without a leading one) matches.
func (p Pattern) Match(path string) bool { return p.re.MatchString(path) }

// Any says whether one of the paths matches.
func (p Pattern) Any(paths []string) bool { return slices.ContainsFunc(paths, p.Match) }

// Include compiles a pattern of `include:local`: `*` stands for any characters but a slash, `**` for any characters
// (Gitlab::Git::Repository#search_files_by_regexp as the include mapper calls it).
func Include(pattern string) (Pattern, error) {
	var b strings.Builder
	for rest := strings.TrimPrefix(pattern, "/"); rest != ""; {
		switch {
		case strings.HasPrefix(rest, "**"):
			b.WriteString(".*")
			rest = rest[2:]
		case rest[0] == '*':
			b.WriteString("[^/]*")
			rest = rest[1:]
		default:
			n := strings.IndexByte(rest, '*')
			if n < 0 {
				n = len(rest)
			}
			b.WriteString(regexp.QuoteMeta(rest[:n]))
			rest = rest[n:]
		}
	}
	return compile(pattern, b.String())
}

// Fnmatch compiles a pattern of `rules:exists` and `rules:changes`, Ruby's File.fnmatch with FNM_PATHNAME,
// FNM_DOTMATCH and FNM_EXTGLOB: `*`, `?` and [...] stand for characters but a slash, `**/` for any number of folders,
// {a,b} for either; a backslash takes the next character as it is.
func Fnmatch(pattern string) (Pattern, error) {
	pattern = strings.TrimPrefix(pattern, "/")
	t := translator{in: pattern}
	t.translate()
	if len(t.braces) > 0 { // a brace that is not closed is a character
		t = translator{in: pattern, noBraces: true}
		t.translate()
	}
	return compile(pattern, t.out.String())
}

func compile(pattern, expr string) (Pattern, error) {
	re, err := regexp.Compile(`^(?s:` + expr + `)$`)
	if err != nil {
		return Pattern{}, fmt.Errorf("pattern %q: %w", pattern, err)
	}
	return Pattern{re}, nil
}

type translator struct {
	in       string
	out      strings.Builder
	braces   []bool // those that are open: whether they are at the begin of a path element
	noBraces bool
}

func (t *translator) translate() {
	element := true // at the begin of a path element
	for i := 0; i < len(t.in); {
		c := t.in[i]
		atStart := element
		element = false
		switch {
		case c == '*' && atStart && strings.HasPrefix(t.in[i:], "**/"):
			t.out.WriteString("(?:[^/]+/)*")
			for strings.HasPrefix(t.in[i:], "**/") {
				i += 3
			}
			element = true
		case c == '*':
			t.out.WriteString("[^/]*")
			for i < len(t.in) && t.in[i] == '*' {
				i++
			}
		case c == '?':
			t.out.WriteString("[^/]")
			i++
		case c == '[':
			i += t.class(t.in[i:])
		case c == '{' && !t.noBraces:
			t.braces = append(t.braces, atStart)
			t.out.WriteString("(?:")
			i++
			element = atStart
		case c == '}' && len(t.braces) > 0:
			t.braces = t.braces[:len(t.braces)-1]
			t.out.WriteString(")")
			i++
		case c == ',' && len(t.braces) > 0:
			t.out.WriteString("|")
			i++
			element = t.braces[len(t.braces)-1]
		case c == '\\' && i+1 < len(t.in):
			i += 1 + t.char(t.in[i+1:])
		default:
			i += t.char(t.in[i:])
			element = c == '/'
		}
	}
}

// char writes the first character of s as it is and returns its length.
func (t *translator) char(s string) int {
	_, n := utf8.DecodeRuneInString(s)
	t.out.WriteString(regexp.QuoteMeta(s[:n]))
	return n
}

// class translates [...], which never stands for a slash, and returns its length; without an end it is a character.
func (t *translator) class(s string) int {
	i, negated := 1, false
	if i < len(s) && (s[i] == '!' || s[i] == '^') {
		negated = true
		i++
	}
	var set strings.Builder
	for first := true; ; first = false {
		switch {
		case i >= len(s):
			t.out.WriteString(`\[`)
			return 1
		case s[i] == ']' && !first:
			if negated {
				t.out.WriteString("[^/" + set.String() + "]")
			} else {
				t.out.WriteString("[" + set.String() + "]")
			}
			return i + 1
		case s[i] == '\\' && i+1 < len(s):
			i += 1 + classChar(&set, s[i+1:])
		case s[i] == '-' && !first && i+1 < len(s) && s[i+1] != ']':
			set.WriteByte('-')
			i++
		default:
			i += classChar(&set, s[i:])
		}
	}
}

// classChar writes the first character of s for a class, quoted where it would mean something, and returns its length.
func classChar(set *strings.Builder, s string) int {
	_, n := utf8.DecodeRuneInString(s)
	if strings.IndexByte(`\]^-[&~/`, s[0]) >= 0 {
		set.WriteByte('\\')
	}
	set.WriteString(s[:n])
	return n
}
