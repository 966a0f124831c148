package ciconfig

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxParallel is how many instances of a job there may be.
const maxParallel = 200

// instance is one of the jobs that `parallel` makes of a job; without it there is one, with index and total 0.
type instance struct {
	name         string
	index, total int
	cell         bool       // of a matrix
	variables    []Variable // of the matrix
}

// cell is one combination of a matrix, its variables in the order in which they are written.
type cell struct {
	variables []Variable
}

// parallel reads `parallel`: a number or {matrix: [...]}.
func (c *compiler) parallel(n *node, path, name string) []instance {
	var out []instance
	switch n.kind {
	case kindMap:
		cells := c.matrix(n, path)
		at := map[string]int{}
		for i, cl := range cells {
			in := instance{name: matrixName(name, cl), index: i + 1, total: len(cells), cell: true, variables: cl.variables}
			if first, twice := at[in.name]; twice { // as in GitLab, where the name is a key
				c.warn(fmt.Sprintf("%s: two combinations have the name %q, the later one replaces the earlier one", path, in.name))
				out[first] = in
				continue
			}
			at[in.name] = len(out)
			out = append(out, in)
		}
	case kindInt:
		total, ok := c.integer(n, path, 1, maxParallel)
		if !ok {
			return nil
		}
		for i := 1; i <= total; i++ {
			out = append(out, instance{name: fmt.Sprintf("%s %d/%d", name, i, total), index: i, total: total})
		}
	default:
		hint := ""
		if n.kind == kindString {
			hint = "remove the quotes"
		}
		c.fail(n, path, hint, "`parallel` must be a whole number or a mapping with `matrix`, it is %s", n.kind)
	}
	for _, in := range out {
		if utf8.RuneCountInString(in.name) > maxName {
			c.fail(n, path, "use shorter values", "the name %q is longer than %d characters", in.name, maxName)
			break
		}
	}
	return out
}

// matrixName is GitLab's name of an instance; the values are not expanded.
func matrixName(name string, cl cell) string {
	values := make([]string, len(cl.variables))
	for i, v := range cl.variables {
		values[i] = v.Value
	}
	return name + ": [" + strings.Join(values, ", ") + "]"
}

// matrix reads {matrix: [...]} and returns all combinations, the last variable changing fastest.
func (c *compiler) matrix(n *node, path string) []cell {
	c.check(n, path, keywords{"matrix": true})
	m := n.present("matrix")
	path = join(path, "matrix")
	switch {
	case m == nil:
		c.fail(n, path, "", "the mapping has no `matrix`")
		return nil
	case m.kind != kindList:
		c.fail(m, path, "write - VARIABLE: [a, b]", "a matrix must be a list of mappings, this is %s", m.kind)
		return nil
	case len(m.items) == 0:
		c.fail(m, path, "", "the matrix is empty")
		return nil
	}
	var out []cell
	total := 0
	for i, it := range m.items {
		keys, values := c.matrixEntry(it, join(path, strconv.Itoa(i)))
		if keys == nil {
			return nil
		}
		count := 1
		for _, v := range values {
			count = min(count*len(v), maxParallel+1)
		}
		if total += count; total > maxParallel {
			c.fail(m, path, "", "the matrix makes more than %d jobs", maxParallel)
			return nil
		}
		out = append(out, combine(keys, values)...)
	}
	return out
}

// matrixEntry reads a mapping of variables to values or lists of values.
func (c *compiler) matrixEntry(n *node, path string) (keys []string, values [][]string) {
	if n.kind != kindMap || len(n.fields) == 0 {
		c.fail(n, path, "write - VARIABLE: [a, b]", "an entry of a matrix must be a mapping of variables, this is %s", n.kind)
		return nil, nil
	}
	ok := true
	for _, f := range n.fields {
		here := join(path, f.key)
		if f.kind != kindString && f.kind != kindInt {
			c.report.at(f.at, here, "the name of a variable must be a string", "quote it")
			ok = false
		}
		list := []*node{f.value}
		if f.value.kind == kindList {
			list = f.value.items
		}
		var texts []string
		for i, it := range list {
			at := here
			if f.value.kind == kindList {
				at = join(here, strconv.Itoa(i))
			}
			switch it.kind {
			case kindString, kindInt:
				texts = append(texts, it.text)
			case kindFloat, kindBool:
				c.fail(it, at, quoteIt(it), "a value of a matrix must be a string or an integer, this is %s", it.kind)
				ok = false
			default:
				c.fail(it, at, "", "a value of a matrix must be a string or an integer, this is %s", it.kind)
				ok = false
			}
		}
		if ok && len(texts) == 0 || f.value.kind == kindString && blank(f.value.text) {
			c.fail(f.value, here, "", "the variable has no value")
			ok = false
		}
		keys, values = append(keys, f.key), append(values, texts)
	}
	if !ok {
		return nil, nil
	}
	return keys, values
}

func combine(keys []string, values [][]string) []cell {
	cells := []cell{{}}
	for i, key := range keys {
		var next []cell
		for _, cl := range cells {
			for _, v := range values[i] {
				variable := Variable{Key: key, Value: v, Public: true}
				next = append(next, cell{variables: slices.Concat(cl.variables, []Variable{variable})})
			}
		}
		cells = next
	}
	return cells
}
