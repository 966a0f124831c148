package ciconfig

import (
	"fmt"
	"strconv"
)

// maxNesting is how deep lists of commands, stages and rules may be nested (GitLab's MAX_NESTING_LEVEL).
const maxNesting = 10

// fail adds an error at a value.
func (c *compiler) fail(n *node, path, hint, format string, args ...any) {
	c.report.at(n.at, path, fmt.Sprintf(format, args...), hint)
}

// text reads a string.
func (c *compiler) text(n *node, path string) (string, bool) {
	if n.kind == kindString {
		return n.text, true
	}
	hint := ""
	if n.scalar() && n.kind != kindNull {
		hint = quoteIt(n)
	}
	c.fail(n, path, hint, "this must be a string, it is %s", n.kind)
	return "", false
}

// quoteIt is the hint for a number or a boolean that should be a string.
func quoteIt(n *node) string { return `quote it: "` + n.raw + `"` }

func (c *compiler) boolean(n *node, path string) (value, ok bool) {
	if n.kind == kindBool {
		return n.truth, true
	}
	hint := ""
	if n.kind == kindString && (n.text == "true" || n.text == "false") {
		hint = "remove the quotes"
	}
	c.fail(n, path, hint, "this must be true or false, it is %s", n.kind)
	return false, false
}

// texts reads a list of strings.
func (c *compiler) texts(n *node, path string) ([]string, bool) {
	if n.kind != kindList {
		hint := ""
		if n.kind == kindString {
			hint = "write [" + n.text + "]"
		}
		c.fail(n, path, hint, "this must be a list of strings, it is %s", n.kind)
		return nil, false
	}
	return c.flatten(n, path, 1, nil)
}

// nestedTexts reads lists of strings inside lists, as `!reference` makes them, as one list.
func (c *compiler) nestedTexts(n *node, path string) ([]string, bool) {
	if n.kind != kindList {
		c.fail(n, path, "", "this must be a list of strings, it is %s", n.kind)
		return nil, false
	}
	return c.flatten(n, path, maxNesting, nil)
}

func (c *compiler) flatten(n *node, path string, levels int, out []string) ([]string, bool) {
	ok := true
	if out == nil {
		out = []string{}
	}
	for i, it := range n.items {
		here := join(path, strconv.Itoa(i))
		if it.kind == kindList {
			if levels <= 1 {
				c.fail(it, here, "", "lists are nested too deep here")
				ok = false
				continue
			}
			var good bool
			out, good = c.flatten(it, here, levels-1, out)
			ok = ok && good
			continue
		}
		if it.kind == kindMap && len(it.fields) > 0 {
			c.fail(it, here, "quote the whole line: YAML reads \": \" in it as a key and its value", "this must be a string, it is a mapping")
			ok = false
			continue
		}
		s, good := c.text(it, here)
		ok = ok && good
		out = append(out, s)
	}
	return out, ok
}

// commands reads a script: one string or (nested) lists of strings.
func (c *compiler) commands(n *node, path string) ([]string, bool) {
	if n.kind == kindString {
		return []string{n.text}, true
	}
	if n.kind != kindList {
		c.fail(n, path, "", "a script must be a string or a list of strings, it is %s", n.kind)
		return nil, false
	}
	return c.flatten(n, path, maxNesting, nil)
}

// integer reads a whole number between lo and hi.
func (c *compiler) integer(n *node, path string, lo, hi int) (int, bool) {
	if n.kind == kindInt {
		if v, err := strconv.Atoi(n.text); err == nil && v >= lo && v <= hi {
			return v, true
		}
		c.fail(n, path, "", "%s is not between %d and %d", n.text, lo, hi)
		return 0, false
	}
	hint := ""
	if n.kind == kindString {
		if _, err := strconv.Atoi(n.text); err == nil {
			hint = "remove the quotes"
		}
	}
	c.fail(n, path, hint, "this must be a whole number, it is %s", n.kind)
	return 0, false
}

// nonNull tells whether a field is there and not null; GitLab treats both alike.
func nonNull(n *node) bool { return n != nil && n.kind != kindNull }
