package ciconfig

import (
	"fmt"
	"slices"
	"strings"
)

// keywords maps each keyword of a place to whether it is supported; the others are GitLab's, and refused.
type keywords map[string]bool

// Functions, not variables: the package has no global state.

func globalKeywords() keywords {
	return keywords{
		"after_script": true, "before_script": true, "default": true, "include": true, "stages": true, "variables": true, "workflow": true,
		"cache": true, "image": true, "services": true,
	}
}

func defaultKeywords() keywords {
	return keywords{
		"after_script": true, "artifacts": true, "before_script": true, "cache": true, "hooks": true, "image": true,
		"interruptible": true, "retry": true, "services": true, "tags": true, "timeout": true,
		"id_tokens": false, "identity": false,
	}
}

func jobKeywords() keywords {
	return keywords{
		"after_script": true, "allow_failure": true, "artifacts": true, "before_script": true, "cache": true, "dependencies": true,
		"extends": true, "hooks": true, "image": true, "inherit": true, "interruptible": true, "needs": true, "parallel": true,
		"retry": true, "rules": true, "script": true, "services": true, "stage": true, "start_in": true, "tags": true,
		"timeout": true, "variables": true, "when": true,
		"coverage": false, "dast_configuration": false, "environment": false, "except": false, "id_tokens": false, "identity": false,
		"inputs": false, "manual_confirmation": false, "only": false, "pages": false, "publish": false, "release": false,
		"resource_group": false, "run": false, "secrets": false, "trigger": false,
	}
}

func imageKeywords() keywords {
	return keywords{
		"name": true, "entrypoint": true, "pull_policy": true, "docker": true, "kubernetes": true,
		"ports": false, // GitLab knows them in web terminals only
	}
}

func serviceKeywords() keywords {
	known := imageKeywords()
	known["alias"], known["command"], known["variables"] = true, true, true
	return known
}

func artifactKeywords() keywords {
	return keywords{
		"access": true, "exclude": true, "expire_in": true, "expose_as": true, "name": true, "paths": true, "public": true,
		"reports": true, "untracked": true, "when": true,
	}
}

func cacheKeywords() keywords {
	return keywords{
		"fallback_keys": true, "key": true, "paths": true, "policy": true, "unprotect": true, "untracked": true, "when": true,
	}
}

// notSupported is the message for a keyword of GitLab's that is not in yet.
func notSupported(keyword string) string {
	return fmt.Sprintf("the keyword `%s` is not supported yet", keyword)
}

// unsupportedHint is the way out of a keyword that is not supported.
func unsupportedHint(keyword string) string {
	if keyword == "only" || keyword == "except" {
		return "write it with `rules`, which can do all that `only` and `except` do"
	}
	return ""
}

// check reports the keys of a mapping that are not among the keywords, and those that are not supported.
func (c *compiler) check(n *node, path string, known keywords) {
	for _, f := range n.fields {
		supported, ok := known[f.key]
		switch {
		case supported:
		case ok && f.value.kind == kindNull: // as good as not there
		case ok:
			c.report.at(f.at, join(path, f.key), notSupported(f.key), unsupportedHint(f.key))
		default:
			c.unknown(f, path, known)
		}
	}
}

func (c *compiler) unknown(f field, path string, known keywords) {
	names := known.sorted()
	hint := "known here: " + known.list()
	if near := c.near(f.key, names); near != "" {
		hint = fmt.Sprintf("did you mean `%s`?", near)
	}
	c.report.at(f.at, join(path, f.key), fmt.Sprintf("the keyword `%s` is not known here", f.key), hint)
}

func (k keywords) sorted() []string {
	names := make([]string, 0, len(k))
	for name := range k {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// list names the keywords that are supported.
func (k keywords) list() string {
	return strings.Join(slices.DeleteFunc(k.sorted(), func(name string) bool { return !k[name] }), ", ")
}

// join appends to a path.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + ":" + key
}

// What a hint may cost.
const (
	maxHintWord       = 64
	maxHintCandidates = 1000
)

// nearest returns the candidate that a word is most likely a slip of, or "".
func nearest(word string, candidates []string) string {
	if len(word) > maxHintWord {
		return ""
	}
	best, bestDistance := "", 1+max(1, len(word)/3)
	for i, candidate := range candidates {
		if i == maxHintCandidates {
			break
		}
		if shorter := len(word) - len(candidate); shorter >= bestDistance || -shorter >= 2*bestDistance {
			continue
		}
		if d := distance(strings.ToLower(word), strings.ToLower(candidate)); d < bestDistance {
			best, bestDistance = candidate, d
		}
	}
	return best
}

// distance is the number of letters to insert, remove, replace or swap with their neighbour.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	rows := [3][]int{make([]int, len(y)+1), make([]int, len(y)+1), make([]int, len(y)+1)}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(x); i++ {
		before, last, row := rows[0], rows[1], rows[2]
		row[0] = i
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		rows = [3][]int{last, row, before}
	}
	return rows[1][len(y)]
}
