// Package variables holds GitLab's rules for CI/CD variables that do not depend on a pipeline: expansion in dependency
// order (Gitlab::Ci::Variables::Collection#sort_and_expand_all) and slugs (Gitlab::Utils.slugify).
package variables

import (
	"strings"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Expand returns the variables in an order in which each one comes after those that it refers to, with references
// replaced by values, as GitLab sends them to a runner (keep_undefined: true, expand_file_refs: false, expand_raw_refs:
// false): references to nothing, to a file variable and to a raw one stay as they are, and the value of a raw variable is
// not touched. If references go in a circle, all variables are returned unchanged in their order. vars is not modified.
func Expand(vars []runnerapi.Variable) []runnerapi.Variable {
	byKey := make(map[string][]int, len(vars))
	refs := make([][]string, len(vars))
	for i, v := range vars {
		byKey[v.Key] = append(byKey[v.Key], i)
		if !v.Raw {
			refs[i] = references(v.Value)
		}
	}
	order, ok := sorted(len(vars), func(i int) []string { return refs[i] }, byKey)
	if !ok {
		return vars
	}
	out := make([]runnerapi.Variable, 0, len(vars))
	last := make(map[string]int, len(vars)) // position in out
	for _, i := range order {
		v := vars[i]
		if len(refs[i]) > 0 {
			v.Value = replace(v.Value, func(key string) (string, bool) {
				at, ok := last[key]
				if !ok || out[at].File || out[at].Raw {
					return "", false
				}
				return out[at].Value, true
			})
		}
		last[v.Key] = len(out)
		out = append(out, v)
	}
	return out
}

// sorted orders n variables so that each comes after those that it refers to; false means that they go in a circle. A
// variable may refer to its own key: to the earlier ones of that key.
func sorted(n int, refs func(int) []string, byKey map[string][]int) (order []int, ok bool) {
	const (
		unseen = iota
		open
		done
	)
	state := make([]uint8, n)
	order = make([]int, 0, n)
	var visit func(i int) bool
	visit = func(i int) bool {
		state[i] = open
		for _, key := range refs(i) {
			for _, d := range byKey[key] {
				if d == i || state[d] == done {
					continue
				}
				if state[d] == open || !visit(d) {
					return false
				}
			}
		}
		state[i] = done
		order = append(order, i)
		return true
	}
	for i := range n {
		if state[i] == unseen && !visit(i) {
			return nil, false
		}
	}
	return order, true
}

// references returns the keys that a value refers to.
func references(value string) []string {
	if !strings.ContainsAny(value, "$%") {
		return nil
	}
	var keys []string
	scan(value, func(_, key string) {
		if key != "" {
			keys = append(keys, key)
		}
	})
	return keys
}

// replace replaces the references for which get has a value.
func replace(value string, get func(key string) (string, bool)) string {
	var b strings.Builder
	scan(value, func(text, key string) {
		if key != "" {
			if v, ok := get(key); ok {
				b.WriteString(v)
				return
			}
		}
		b.WriteString(text)
	})
	return b.String()
}

// scan cuts a value into pieces: text as it stands, with the key if it is a reference ($KEY, ${KEY}, %KEY%). `$$` and
// `%%` are no references and begin none.
func scan(value string, piece func(text, key string)) {
	plain := 0
	flush := func(end int) {
		if end > plain {
			piece(value[plain:end], "")
		}
	}
	for i := 0; i < len(value); {
		c := value[i]
		if c != '$' && c != '%' {
			i++
			continue
		}
		end, key := reference(value, i)
		switch {
		case end == i:
			i++
		case key == "":
			i = end
		default:
			flush(i)
			piece(value[i:end], key)
			i, plain = end, end
		}
	}
	flush(len(value))
}

// reference looks at the `$` or `%` at i. end is i if there is nothing special; key is empty for `$$`, `%%` and `${}`.
func reference(value string, i int) (end int, key string) {
	rest := value[i+1:]
	if rest == "" {
		return i, ""
	}
	if rest[0] == value[i] {
		return i + 2, ""
	}
	if value[i] == '%' {
		n := keyLen(rest)
		if n > 0 && n < len(rest) && rest[n] == '%' {
			return i + n + 2, rest[:n]
		}
		return i, ""
	}
	if rest[0] == '{' {
		n := keyLen(rest[1:])
		if n+1 < len(rest) && rest[n+1] == '}' {
			return i + n + 3, rest[1 : n+1]
		}
		return i, ""
	}
	n := keyLen(rest)
	return i + n + min(n, 1), rest[:n]
}

// keyLen is the length of the key that s begins with.
func keyLen(s string) int {
	for i := range len(s) {
		c := s[i]
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return i
		}
	}
	return len(s)
}

// Slug makes a string fit for host names: lower case, everything but a-z and 0-9 replaced by "-", at most 63
// characters, no "-" at either end.
func Slug(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range strings.ToLower(s) {
		if n++; n > 63 {
			break
		}
		if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
			b.WriteRune(r)
		} else {
			b.WriteByte('-')
		}
	}
	return strings.Trim(b.String(), "-")
}
