package ciconfig

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// maxIncludes is how many files may be included, repeated ones counted each time.
const maxIncludes = 150

// location is an entry of `include`.
type location struct {
	at    *node // of the path
	path  string
	local string
}

// include merges the files that a configuration includes below it, and drops the keyword. stack are the files being
// read.
func (c *compiler) include(root *node, stack []string) *node {
	v := root.get("include")
	if v == nil {
		return root
	}
	fields := slices.DeleteFunc(slices.Clone(root.fields), func(f field) bool { return f.key == "include" })
	own := newMap(root.at, fields)
	merged := newMap(root.at, nil)
	for _, l := range c.locations(v) {
		for _, file := range c.expandLocation(l) {
			n := c.readInclude(l, file, stack)
			if n == nil {
				return own // reported
			}
			merged = deepMerge(merged, n, &c.copied)
			if limit := merged.tooBig(); limit != "" {
				c.fail(l.at, l.path, "", "%s", limit)
				return own
			}
			if c.copied > maxExpandedNodes {
				c.fail(l.at, l.path, "", "merging the configuration copies more than %d values", maxExpandedNodes)
				return own
			}
		}
	}
	return deepMerge(merged, own, &c.copied)
}

// locations returns the local files that `include` names and whose rules match.
func (c *compiler) locations(n *node) []location {
	if n.kind == kindNull {
		return nil
	}
	items := []*node{n}
	if n.kind == kindList {
		items = n.items
	}
	var out []location
	for i, it := range items {
		here := "include"
		if n.kind == kindList {
			here = join(here, strconv.Itoa(i))
		}
		switch it.kind {
		case kindString:
			if strings.HasPrefix(it.text, "http://") || strings.HasPrefix(it.text, "https://") {
				c.fail(it, here, "", "%s", notSupported("include:remote"))
				continue
			}
			out = append(out, location{at: it, path: here, local: it.text})
		case kindMap:
			if l, ok := c.locationMapping(it, here); ok {
				out = append(out, l)
			}
		default:
			c.fail(it, here, "", "an entry of `include` is a path or a mapping with `local`, this is %s", it.kind)
		}
	}
	return out
}

func (c *compiler) locationMapping(n *node, here string) (location, bool) {
	before := len(c.report.errs)
	c.check(n, here, keywords{
		"local": true, "rules": true,
		"project": false, "file": false, "ref": false, "remote": false, "integrity": false, "cache": false, "template": false,
		"component": false, "artifact": false, "job": false, "inputs": false,
	})
	if len(c.report.errs) > before {
		return location{}, false
	}
	v := n.present("local")
	if v == nil {
		c.fail(n, here, "write - local: path/to/file.yml", "the entry names no file")
		return location{}, false
	}
	l := location{at: v, path: join(here, "local")}
	var ok bool
	if l.local, ok = c.text(v, l.path); !ok {
		return l, false
	}
	if r := n.present("rules"); r != nil {
		rules := c.rules(r, join(here, "rules"), includeRules)
		if len(c.report.errs) > before {
			return l, false
		}
		m := c.match(rules, c.globalScope(nil))
		if m == nil || m.when == never {
			return l, false
		}
	}
	return l, true
}

// expandLocation returns the paths that an entry stands for.
func (c *compiler) expandLocation(l location) []string {
	local := strings.TrimLeft(l.local, "/")
	if !strings.Contains(local, "*") {
		return []string{expand(local, c.globalScope(nil).lookup, false)}
	}
	if c.opt.Glob == nil {
		c.fail(l.at, l.path, "name each file", "wildcards cannot be used here: the repository's files are not known")
		return nil
	}
	files, err := c.opt.Glob(local)
	if err != nil {
		c.failWith(l, fmt.Sprintf("find %q: %s", l.local, err), err)
		return nil
	}
	files = slices.Clone(files)
	slices.Sort(files)
	return slices.Compact(files)
}

func (c *compiler) failWith(l location, message string, err error) {
	c.report.add(&Error{File: l.at.at.file, Line: l.at.at.line, Column: l.at.at.col, Path: l.path, Message: message, cause: err})
}

// readInclude returns the content of a file with its own includes, or nil after a report.
func (c *compiler) readInclude(l location, file string, stack []string) *node {
	file = strings.TrimLeft(file, "/")
	switch {
	case file == "" || path.Clean(file) != file || file == ".." || strings.HasPrefix(file, "../"):
		c.fail(l.at, l.path, "paths begin at the root of the repository", "%q is not a path of the repository", file)
		return nil
	case !strings.EqualFold(path.Ext(file), ".yml") && !strings.EqualFold(path.Ext(file), ".yaml"):
		c.fail(l.at, l.path, "", "%q does not end in .yml or .yaml", file)
		return nil
	case slices.Contains(stack, file):
		c.fail(l.at, l.path, "", "%q includes itself: %s", file, strings.Join(append(slices.Clone(stack), file), " -> "))
		return nil
	case c.opt.Include == nil:
		c.fail(l.at, l.path, "", "%q cannot be included here: the repository's files are not known", file)
		return nil
	}
	if c.includes++; c.includes > maxIncludes {
		c.fail(l.at, l.path, "", "the configuration includes more than %d files", maxIncludes)
		return nil
	}
	src, err := c.opt.Include(file)
	if err != nil {
		c.failWith(l, fmt.Sprintf("read %q: %s", file, err), err)
		return nil
	}
	if blank(string(src[:min(len(src), 1<<10)])) && blank(string(src)) {
		c.fail(l.at, l.path, "", "%q is empty", file)
		return nil
	}
	if !slices.Contains(c.report.files, file) {
		c.report.files = append(c.report.files, file)
	}
	n := c.load(file, src)
	if n == nil {
		return nil
	}
	return c.include(n, append(slices.Clone(stack), file))
}
