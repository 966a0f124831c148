// Package yamlform reads YAML files that people write: every key must be known, every value fit, and each complaint says
// where it is, what is wrong and what to do. Reading goes on after a complaint, so that a file's mistakes are told
// together.
package yamlform

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Reader goes through a file's tree and gathers complaints. It is not safe for concurrent use.
type Reader struct {
	file               string
	problems, warnings []Problem
}

// ErrEmpty is in the error of Parse for a file without a document.
var ErrEmpty = errors.New("the file is empty")

// Parse returns the root of a file with one document. The file's name is for messages only. The error is Problems, or
// ErrEmpty.
func Parse(file string, data []byte) (*Reader, *yaml.Node, error) {
	root, err := parse(bytes.NewReader(data))
	switch {
	case errors.Is(err, ErrEmpty):
		return nil, nil, fmt.Errorf("%s: %w", file, ErrEmpty)
	case err != nil:
		return nil, nil, Problems{syntaxProblem(file, data, err)}
	}
	return &Reader{file: file}, root, nil
}

func parse(data io.Reader) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(data)
	var document, second yaml.Node
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil, ErrEmpty
	case err != nil:
		return nil, err
	}
	switch err := decoder.Decode(&second); {
	case err == nil:
		return nil, &secondDocument{second.Line}
	case !errors.Is(err, io.EOF):
		return nil, err
	}
	return document.Content[0], nil
}

// Problem adds a complaint about a node.
func (r *Reader) Problem(at *yaml.Node, field, message, hint string) {
	r.problems = append(r.problems, r.at(at, field, message, hint))
}

// Warn adds a warning about a node.
func (r *Reader) Warn(at *yaml.Node, field, message, hint string) {
	r.warnings = append(r.warnings, r.at(at, field, message, hint))
}

func (r *Reader) at(n *yaml.Node, field, message, hint string) Problem {
	return Problem{File: r.file, Line: n.Line, Column: n.Column, Field: field, Message: message, Hint: hint}
}

// Warnings returns the warnings in the file's order.
func (r *Reader) Warnings() []Problem {
	slices.SortStableFunc(r.warnings, inOrder)
	return r.warnings
}

// Err returns Problems, at most MaxProblems in the file's order, or nil if there are none.
func (r *Reader) Err() error {
	if len(r.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(r.problems, inOrder)
	return Problems(r.problems[:min(len(r.problems), MaxProblems)])
}

// Fields are the known keys of a mapping; each function is given the value and its path.
type Fields map[string]func(value *yaml.Node, path string)

// Mapping reads a mapping. It says no if n is none; wrong keys and values are complained about.
func (r *Reader) Mapping(n *yaml.Node, path string, known Fields) bool {
	n = Resolve(n)
	if n.Kind != yaml.MappingNode {
		r.Problem(n, path, "must be a mapping of keys to values, not "+Kind(n), "known keys: "+names(known))
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
			r.Problem(key, path, "has a key that is "+Kind(key)+" instead of a name", "")
			continue
		case again:
			r.Problem(key, at, fmt.Sprintf("is set twice, first in line %d", line), "remove one of them")
			continue
		case name == "<<":
			r.Problem(key, at, "merging is not supported", "write the keys out, or use an alias for a whole value")
			continue
		case !ok:
			r.Problem(key, at, "unknown key", keyHint(name, known))
			continue
		case Resolve(value).ShortTag() == "!!null":
			r.Problem(value, at, "has no value", "give it one or remove the line")
			seen[name] = key.Line
			continue
		}
		seen[name] = key.Line
		read(value, at)
	}
	return true
}

func keyHint(name string, known Fields) string {
	if near := Nearest(name, slices.Sorted(maps.Keys(known))); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "known keys: " + names(known)
}

func names(known Fields) string {
	return strings.Join(slices.Sorted(maps.Keys(known)), ", ")
}

// List reads a list of at most limit entries; read is given each with its path.
func (r *Reader) List(n *yaml.Node, path string, limit int, read func(item *yaml.Node, path string)) {
	n = Resolve(n)
	switch {
	case n.Kind != yaml.SequenceNode:
		r.Problem(n, path, "must be a list, not "+Kind(n), "")
	case len(n.Content) > limit:
		r.Problem(n, path, fmt.Sprintf("has %d entries, more than %d", len(n.Content), limit), "")
	default:
		for i, item := range n.Content {
			read(Resolve(item), fmt.Sprintf("%s[%d]", path, i))
		}
	}
}

// Value returns the value of a key of a mapping, nil if it has none.
func Value(mapping *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

// Resolve follows an alias; an alias never leads to another.
func Resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// Kind is what a node is, in people's words.
func Kind(n *yaml.Node) string {
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
	return "the text " + Quoted(n.Value)
}

// Quoted shows a value that may be long.
func Quoted(s string) string {
	if runes := []rune(s); len(runes) > 60 {
		s = string(runes[:60]) + "…"
	}
	return strconv.Quote(s)
}

// Text reads a string that is not empty. Numbers are taken as they were written.
func (r *Reader) Text(n *yaml.Node, path string) (string, bool) {
	n = Resolve(n)
	switch {
	case n.Kind != yaml.ScalarNode:
		r.Problem(n, path, "must be text, not "+Kind(n), "")
		return "", false
	case n.Value == "":
		r.Problem(n, path, "is empty", "give it a value or remove the line")
		return "", false
	}
	return n.Value, true
}

// Choice reads one of a few words; "" if it is none of them.
func (r *Reader) Choice(n *yaml.Node, path string, words ...string) string {
	text, ok := r.Text(n, path)
	switch {
	case !ok:
		return ""
	case !slices.Contains(words, text):
		r.Problem(n, path, Quoted(text)+" is unknown", "available: "+strings.Join(words, ", "))
		return ""
	}
	return text
}

// Number reads a whole number within limits.
func (r *Reader) Number(n *yaml.Node, path string, lowest, highest int64, hint string) (int64, bool) {
	n = Resolve(n)
	value, err := strconv.ParseInt(n.Value, 10, 64)
	switch {
	case n.Kind != yaml.ScalarNode, n.ShortTag() != "!!int" && n.ShortTag() != "!!float":
		r.Problem(n, path, "must be a whole number, not "+Kind(n), hint)
	case err != nil:
		r.Problem(n, path, fmt.Sprintf("%s is not a whole number", n.Value), hint)
	case value < lowest:
		r.Problem(n, path, fmt.Sprintf("%d is less than %d", value, lowest), hint)
	case value > highest:
		r.Problem(n, path, fmt.Sprintf("%d is more than %d", value, highest), hint)
	default:
		return value, true
	}
	return 0, false
}

// Boolean reads true or false.
func (r *Reader) Boolean(n *yaml.Node, path string) bool {
	n = Resolve(n)
	value, err := strconv.ParseBool(n.Value)
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" || err != nil {
		r.Problem(n, path, "must be true or false, not "+Kind(n), "")
		return false
	}
	return value
}

// Duration reads a time with its unit; 0 if it is wrong.
func (r *Reader) Duration(n *yaml.Node, path string, shortest, longest time.Duration) time.Duration {
	n = Resolve(n)
	d, err := time.ParseDuration(n.Value)
	switch {
	case n.Kind != yaml.ScalarNode || err != nil:
		r.Problem(n, path, "must be a time with its unit, not "+Kind(n), "write it like 500ms, 10s, 25m or 1h30m")
	case d < shortest || d > longest:
		r.Problem(n, path, fmt.Sprintf("%s is not between %s and %s", d, shortest, longest), "")
	default:
		return d
	}
	return 0
}
