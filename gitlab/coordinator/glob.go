package coordinator

import (
	"path"
	"strings"
)

// matchGlob matches a path with a pattern: `*`, `?` and [...] stand for characters of one path element, `**` as an
// element for any number of elements, as in Ruby's File.fnmatch with FNM_PATHNAME.
func matchGlob(pattern, name string) bool {
	return matchElements(strings.Split(strings.TrimPrefix(pattern, "/"), "/"), strings.Split(name, "/"))
}

// matchElements goes back to the last `**` only, which is enough: what an earlier one took need not change.
func matchElements(pattern, name []string) bool {
	retryPattern, retryName := -1, 0
	p, n := 0, 0
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == "**":
			retryPattern, retryName = p, n
			p++
		case p < len(pattern) && matchElement(pattern[p], name[n]):
			p++
			n++
		case retryPattern >= 0:
			retryName++
			p, n = retryPattern+1, retryName
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == "**" {
		p++
	}
	return p == len(pattern)
}

func matchElement(pattern, name string) bool {
	// `**` within an element is what `*` is: path.Match takes it so.
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}
