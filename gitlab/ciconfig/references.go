package ciconfig

import (
	"fmt"
	"strings"
)

// resolver replaces !reference [a, b] by the value at that place of the configuration.
type resolver struct {
	c      *compiler
	root   *node
	done   map[*node]*node
	open   map[*node]bool
	failed bool
}

// resolve returns the configuration without references, or nil after a report.
func (c *compiler) resolve(root *node) *node {
	r := &resolver{c: c, root: root, done: map[*node]*node{}, open: map[*node]bool{}}
	n := r.node(root, 1)
	if n == nil || r.failed {
		return nil
	}
	return n
}

// node returns a value with the references inside it replaced, or nil after a report.
func (r *resolver) node(n *node, level int) *node {
	if n.scalar() {
		return n
	}
	if done, ok := r.done[n]; ok {
		return done
	}
	if level > 10*maxDepth {
		return r.fail(n, "!reference goes over too many steps")
	}
	var out *node
	switch n.kind {
	case kindReference:
		if r.open[n] {
			return r.fail(n, describe(n)+" is part of a circle")
		}
		r.open[n] = true
		out = r.reference(n, level)
		delete(r.open, n)
	case kindList:
		items := make([]*node, 0, len(n.items))
		for _, it := range n.items {
			if v := r.node(it, level+1); v != nil {
				items = append(items, v)
			}
		}
		out = newList(n.at, items)
	case kindMap:
		fields := make([]field, 0, len(n.fields))
		for _, f := range n.fields {
			if f.value = r.node(f.value, level+1); f.value != nil {
				fields = append(fields, f)
			}
		}
		out = newMap(n.at, fields)
	}
	if out != nil {
		if limit := out.tooBig(); limit != "" {
			return r.fail(n, limit)
		}
	}
	r.done[n] = out
	return out
}

func (r *resolver) reference(n *node, level int) *node {
	target := r.root
	for _, key := range n.items {
		if target.kind != kindMap || !nonNull(target.get(key.text)) {
			return r.fail(n, describe(n)+" could not be found")
		}
		target = target.get(key.text)
	}
	return r.node(target, level+1)
}

func (r *resolver) fail(n *node, message string) *node {
	r.failed = true
	r.c.fail(n, "", "", "%s", message)
	return nil
}

func describe(reference *node) string {
	keys := make([]string, len(reference.items))
	for i, k := range reference.items {
		keys[i] = k.text
	}
	return fmt.Sprintf("!reference [%s]", strings.Join(keys, ", "))
}
