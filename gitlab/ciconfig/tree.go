package ciconfig

import (
	"fmt"
	"slices"
)

type kind uint8

const (
	kindNull kind = iota
	kindBool
	kindInt
	kindFloat
	kindString
	kindList
	kindMap
	kindReference // !reference [a, b]: items are its path
)

func (k kind) String() string {
	return [...]string{"nothing", "a boolean", "an integer", "a decimal number", "a string", "a list", "a mapping", "a !reference"}[k]
}

// pos is a place in a file; line and col are 1-based.
type pos struct {
	file      string
	line, col int
}

// node is a value of a configuration. Nodes never change once built, so aliases share them; size and depth are of the
// tree with every alias written out, which keeps an alias bomb from being walked.
type node struct {
	kind   kind
	at     pos
	text   string // of a scalar, as Ruby's to_s would write it
	raw    string // of a scalar, as it is written
	truth  bool   // of a boolean
	items  []*node
	fields []field
	index  map[string]int // into fields

	size, depth int
}

// field is an entry of a mapping.
type field struct {
	key   string
	raw   string // the key as it is written
	kind  kind   // of the key: kindInt for 1, kindBool for true
	at    pos    // of the key
	value *node
}

// maxNodes bounds the values that are written in all files together (merge keys written out), maxExpandedNodes those
// of the configuration with its aliases, references and extends written out, maxDepth its nesting (GitLab's
// max_yaml_depth).
const (
	maxNodes         = 400_000
	maxExpandedNodes = 2_000_000
	maxDepth         = 100
)

func (n *node) scalar() bool { return n.kind <= kindString }

// get returns the value of a key, or nil.
func (n *node) get(key string) *node {
	if i, ok := n.index[key]; ok {
		return n.fields[i].value
	}
	return nil
}

// present is get without YAML's null.
func (n *node) present(key string) *node {
	if v := n.get(key); v != nil && v.kind != kindNull {
		return v
	}
	return nil
}

// keyAt returns where a key stands, or where the mapping does.
func (n *node) keyAt(key string) pos {
	if i, ok := n.index[key]; ok {
		return n.fields[i].at
	}
	return n.at
}

// measure sets size and depth from the children.
func (n *node) measure() *node {
	n.size, n.depth = 1, 1
	grow := func(c *node) {
		n.size = min(n.size+c.size, 2*maxExpandedNodes)
		n.depth = max(n.depth, c.depth+1)
	}
	for _, c := range n.items {
		grow(c)
	}
	for _, f := range n.fields {
		grow(f.value)
	}
	return n
}

func newList(at pos, items []*node) *node {
	return (&node{kind: kindList, at: at, items: items}).measure()
}

func newMap(at pos, fields []field) *node {
	index := make(map[string]int, len(fields))
	for i, f := range fields {
		index[f.key] = i
	}
	return (&node{kind: kindMap, at: at, fields: fields, index: index}).measure()
}

// tooBig names the limit that the node passes, or is empty.
func (n *node) tooBig() string {
	switch {
	case n.size > maxExpandedNodes:
		return fmt.Sprintf("the configuration has more than %d values with its aliases, references and extends written out", maxExpandedNodes)
	case n.depth > maxDepth:
		return fmt.Sprintf("the configuration is nested more than %d levels deep", maxDepth)
	}
	return ""
}

// deepMerge returns base with over on top: mappings are merged key by key, everything else is replaced (Rails'
// deep_merge, which GitLab uses for extends and include).
// Mappings that only one of them has are shared; copied grows by the fields that are not.
func deepMerge(base, over *node, copied *int) *node {
	*copied += len(base.fields) + len(over.fields)
	fields := slices.Clone(base.fields)
	index := make(map[string]int, len(fields)+len(over.fields))
	for i, f := range fields {
		index[f.key] = i
	}
	for _, f := range over.fields {
		i, ok := index[f.key]
		if !ok {
			index[f.key] = len(fields)
			fields = append(fields, f)
			continue
		}
		if fields[i].value.kind == kindMap && f.value.kind == kindMap {
			f.value = deepMerge(fields[i].value, f.value, copied)
		}
		fields[i] = f
	}
	return (&node{kind: kindMap, at: over.at, fields: fields, index: index}).measure()
}
