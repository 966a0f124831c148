package ciconfig

import (
	"regexp"
	"slices"
	"strings"
)

// Two forms of references, as GitLab has them: ExpandVariables knows no escape, the expansion of variables inside
// variables leaves `$$` and `%%` alone.
var (
	reference        = regexp.MustCompile(`\$([a-zA-Z_][a-zA-Z0-9_]*)|\$\{([a-zA-Z_][a-zA-Z0-9_]*)\}|%([a-zA-Z_][a-zA-Z0-9_]*)%`)
	referenceEscaped = regexp.MustCompile(`\$\$|%%|\$([a-zA-Z_][a-zA-Z0-9_]*)|\$\{([a-zA-Z_][a-zA-Z0-9_]*)\}|%([a-zA-Z_][a-zA-Z0-9_]*)%`)
)

// maxExpanded bounds the bytes of an expanded text and of the variables inside variables that one expansion makes:
// variables that double each other grow without limit.
const maxExpanded = 1 << 20

// maxExpandedDepth bounds how many variables may be inside each other in one expansion.
const maxExpandedDepth = 1000

// expand replaces the variables in a text, once. An unknown one stays as it is, or is dropped.
func expand(text string, lookup func(string) (string, bool), keepUnknown bool) string {
	return replaceReferences(reference, text, func(name, whole string) string {
		if v, ok := lookup(name); ok {
			return v
		}
		if keepUnknown {
			return whole
		}
		return ""
	})
}

func replaceReferences(re *regexp.Regexp, text string, replacement func(name, whole string) string) string {
	if !strings.ContainsAny(text, "$%") {
		return text
	}
	var b strings.Builder
	last := 0
	for _, m := range re.FindAllStringSubmatchIndex(text, -1) {
		b.WriteString(text[last:m[0]])
		last = m[1]
		whole, name := text[m[0]:m[1]], ""
		for g := 2; g < len(m); g += 2 {
			if m[g] >= 0 {
				name = text[m[g]:m[g+1]]
			}
		}
		if name == "" {
			b.WriteString(whole) // $$ or %%
		} else {
			b.WriteString(replacement(name, whole))
		}
		if b.Len() > maxExpanded {
			break
		}
	}
	if b.Len() > maxExpanded {
		return strings.ToValidUTF8(b.String()[:maxExpanded], "")
	}
	b.WriteString(text[last:])
	return b.String()
}

// expanded returns a lookup of a scope's variables with the variables inside their values replaced, innermost first.
// Raw variables stay as they are, unknown ones become empty, and so does a variable that is inside itself or too deep.
func (s *scope) expanded() func(string) (string, bool) {
	x := &expander{scope: s, values: map[string]string{}, open: map[string]bool{}}
	return x.value
}

type expander struct {
	scope  *scope
	values map[string]string
	open   map[string]bool
	bytes  int
}

func (x *expander) value(key string) (string, bool) {
	if v, ok := x.values[key]; ok {
		return v, true
	}
	v, ok := x.scope.variable(key)
	if !ok {
		return "", false
	}
	if v.Raw || !strings.ContainsAny(v.Value, "$%") {
		return v.Value, true
	}
	if x.open[key] || len(x.open) > maxExpandedDepth || x.bytes > maxExpanded {
		return "", true
	}
	x.open[key] = true
	out := replaceReferences(referenceEscaped, v.Value, func(name, _ string) string {
		inner, _ := x.value(name)
		return inner
	})
	delete(x.open, key)
	x.values[key] = out
	x.bytes += len(out)
	return out, true
}

// cycle returns variables that are inside each other, which GitLab refuses, or nil. One that is directly inside itself
// is none.
func (s *scope) cycle() []string {
	const open, done = 1, 2
	type step struct {
		key  string
		next []string // references that are not followed yet
	}
	state := map[string]int{}
	for _, start := range s.references() {
		if state[start] != 0 {
			continue
		}
		path := []step{{key: start, next: s.inside(start)}}
		state[start] = open
		for len(path) > 0 {
			top := &path[len(path)-1]
			if len(top.next) == 0 {
				state[top.key] = done
				path = path[:len(path)-1]
				continue
			}
			key := top.next[0]
			top.next = top.next[1:]
			switch {
			case key == top.key || state[key] == done:
			case state[key] == open:
				i := slices.IndexFunc(path, func(s step) bool { return s.key == key })
				var found []string
				for _, s := range path[i:] {
					found = append(found, s.key)
				}
				return found
			default:
				state[key] = open
				path = append(path, step{key: key, next: s.inside(key)})
			}
		}
	}
	return nil
}

// inside returns the variables that the values of a variable name, those of lower precedence too: GitLab counts them.
func (s *scope) inside(key string) []string {
	var names []string
	for _, l := range s.layers {
		if v := l[key]; !v.Raw {
			replaceReferences(referenceEscaped, v.Value, func(name, _ string) string {
				names = append(names, name)
				return ""
			})
		}
	}
	return names
}
