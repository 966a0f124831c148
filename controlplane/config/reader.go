package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// reader goes through the tree and gathers complaints.
type reader struct {
	file   string // for messages
	folder string // absolute; relative paths start here

	problems, warnings []Problem
	inlineSecret       *yaml.Node // the first that is in the file itself
	inlineNoun         string     // what it is
}

var errEmpty = errors.New("the file is empty")

// parse returns the root of a file with one document.
func parse(data []byte) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil, errEmpty
	case err != nil:
		return nil, err
	}
	switch err := decoder.Decode(&second); {
	case err == nil:
		return nil, fmt.Errorf("yaml: line %d: a second document begins here, but there must be one", second.Line)
	case !errors.Is(err, io.EOF):
		return nil, err
	}
	return document.Content[0], nil
}

// fields are the known keys of a mapping; each function is given the value and its path.
type fields map[string]func(value *yaml.Node, path string)

// mapping reads a mapping. It says no if n is none; wrong keys and values are complained about.
func (r *reader) mapping(n *yaml.Node, path string, known fields) bool {
	n = resolve(n)
	if n.Kind != yaml.MappingNode {
		r.problem(n, path, "must be a mapping of keys to values, not "+kind(n), "known keys: "+names(known))
		return false
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := key.Value
		at := name
		if path != "" {
			at = path + "." + name
		}
		read, ok := known[name]
		switch line, again := seen[name]; {
		case key.Kind != yaml.ScalarNode:
			r.problem(key, path, "has a key that is "+kind(key)+" instead of a name", "")
			continue
		case again:
			r.problem(key, at, fmt.Sprintf("is set twice, first in line %d", line), "remove one of them")
			continue
		case name == "<<":
			r.problem(key, at, "merging is not supported", "write the keys out, or use an alias for a whole value")
			continue
		case !ok:
			r.problem(key, at, "unknown key", keyHint(name, known))
			continue
		case resolve(value).ShortTag() == "!!null":
			r.problem(value, at, "has no value", "give it one or remove the line")
			seen[name] = key.Line
			continue
		}
		seen[name] = key.Line
		read(value, at)
	}
	return true
}

func keyHint(name string, known fields) string {
	if near := nearest(name, slices.Sorted(maps.Keys(known))); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "known keys: " + names(known)
}

func names(known fields) string {
	return strings.Join(slices.Sorted(maps.Keys(known)), ", ")
}

// value returns the value of a key of a mapping, nil if it has none.
func value(mapping *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

// resolve follows an alias; an alias never leads to another.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// kind is what a node is, in people's words.
func kind(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.ShortTag() == "!!null":
		return "nothing"
	case n.ShortTag() == "!!int", n.ShortTag() == "!!float":
		return "the number " + n.Value
	case n.ShortTag() == "!!bool":
		return n.Value + " (a truth value)"
	}
	return "the text " + quoted(n.Value)
}

// quoted shows a value that may be long.
func quoted(s string) string {
	if runes := []rune(s); len(runes) > 60 {
		s = string(runes[:60]) + "…"
	}
	return strconv.Quote(s)
}

// text reads a string that is not empty. Numbers are taken as they were written.
func (r *reader) text(n *yaml.Node, path string) (string, bool) {
	n = resolve(n)
	switch {
	case n.Kind != yaml.ScalarNode:
		r.problem(n, path, "must be text, not "+kind(n), "")
		return "", false
	case n.Value == "":
		r.problem(n, path, "is empty", "give it a value or remove the line")
		return "", false
	}
	return n.Value, true
}

// number reads a whole number within limits.
func (r *reader) number(n *yaml.Node, path string, lowest, highest int64, hint string) (int64, bool) {
	n = resolve(n)
	value, err := strconv.ParseInt(n.Value, 10, 64)
	switch {
	case n.Kind != yaml.ScalarNode, n.ShortTag() != "!!int" && n.ShortTag() != "!!float":
		r.problem(n, path, "must be a whole number, not "+kind(n), hint)
	case err != nil:
		r.problem(n, path, fmt.Sprintf("%s is not a whole number", n.Value), hint)
	case value < lowest:
		r.problem(n, path, fmt.Sprintf("%d is less than %d", value, lowest), hint)
	case value > highest:
		r.problem(n, path, fmt.Sprintf("%d is more than %d", value, highest), hint)
	default:
		return value, true
	}
	return 0, false
}

// boolean reads true or false.
func (r *reader) boolean(n *yaml.Node, path string) bool {
	n = resolve(n)
	value, err := strconv.ParseBool(n.Value)
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" || err != nil {
		r.problem(n, path, "must be true or false, not "+kind(n), "")
		return false
	}
	return value
}

// duration reads a time with its unit; 0 if it is wrong.
func (r *reader) duration(n *yaml.Node, path string, shortest, longest time.Duration) time.Duration {
	n = resolve(n)
	d, err := time.ParseDuration(n.Value)
	switch {
	case n.Kind != yaml.ScalarNode || err != nil:
		r.problem(n, path, "must be a time with its unit, not "+kind(n), "write it like 500ms, 10s, 25m or 1h30m")
	case d < shortest || d > longest:
		r.problem(n, path, fmt.Sprintf("%s is not between %s and %s", d, shortest, longest), "")
	default:
		return d
	}
	return 0
}

// path makes a path of the file absolute.
func (r *reader) path(p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(r.folder, p)
}
