package ciconfig

import (
	"fmt"
	"slices"
	"strings"
)

// maxExtends is how many levels of `extends` may stand above a job.
const maxExtends = 11

// extender writes out `extends`: each parent in its order, then the job itself, merged deeply with lists replaced.
type extender struct {
	c     *compiler
	root  *node
	done  map[string]*node
	depth map[string]int // levels above
	path  []string       // being written out
}

func (c *compiler) extend(root *node) *node {
	x := &extender{c: c, root: root, done: map[string]*node{}, depth: map[string]int{}}
	fields := slices.Clone(root.fields)
	known := globalKeywords()
	for i, f := range fields {
		if _, keyword := known[f.key]; !keyword && f.value.kind == kindMap {
			fields[i].value = x.entry(f.key, f.value)
		}
	}
	return newMap(root.at, fields)
}

// entry returns a job with its parents merged in. After an error it returns the job as it is.
func (x *extender) entry(name string, n *node) *node {
	if done := x.done[name]; done != nil {
		return done
	}
	x.done[name] = n
	v := n.present("extends")
	if v == nil {
		return n
	}
	path := join(join("jobs", name), "extends")
	var parents []string
	var ok bool
	if v.kind == kindList {
		parents, ok = x.c.texts(v, path)
	} else {
		var parent string
		parent, ok = x.c.text(v, path)
		parents = []string{parent}
	}
	if !ok {
		return n
	}
	if len(x.path) > maxExtends {
		x.c.fail(v, path, "", "`extends` goes over more than %d levels", maxExtends)
		return n
	}
	x.path = append(x.path, name)
	defer func() { x.path = x.path[:len(x.path)-1] }()
	merged := newMap(n.at, nil)
	for _, parent := range parents {
		base := x.parent(parent, v, path)
		if base == nil {
			return n
		}
		x.depth[name] = max(x.depth[name], x.depth[parent]+1)
		merged = deepMerge(merged, base, &x.c.copied)
	}
	if x.depth[name] > maxExtends {
		x.c.fail(v, path, "", "`extends` goes over more than %d levels", maxExtends)
		return n
	}
	merged = deepMerge(merged, n, &x.c.copied)
	if x.c.copied > maxExpandedNodes {
		x.c.fail(v, path, "", "merging the configuration copies more than %d values", maxExpandedNodes)
		return n
	}
	x.done[name] = merged
	return merged
}

func (x *extender) parent(name string, at *node, path string) *node {
	if i := slices.Index(x.path, name); i >= 0 {
		x.c.fail(at, path, "", "`extends` goes in a circle: %s", strings.Join(append(slices.Clone(x.path[i:]), name), " -> "))
		return nil
	}
	base := x.root.get(name)
	if base == nil {
		hint := ""
		if near := x.c.near(name, x.names()); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		x.c.fail(at, path, hint, "the job %q that this extends does not exist", name)
		return nil
	}
	if base.kind != kindMap {
		x.c.fail(at, path, "", "%q cannot be extended: it is %s", name, base.kind)
		return nil
	}
	return x.entry(name, base)
}

func (x *extender) names() []string {
	names := make([]string, 0, len(x.root.fields))
	for _, f := range x.root.fields {
		if f.value.kind == kindMap {
			names = append(names, f.key)
		}
	}
	return names
}
