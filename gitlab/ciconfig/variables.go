package ciconfig

import (
	"fmt"
	"slices"
	"strings"
)

// variableForm says which keys a variable may have besides its value.
type variableForm uint8

const (
	plainVariables  variableForm = iota // of rules: a value only
	jobVariables                        // value and expand
	globalVariables                     // also description and options, for whoever starts a pipeline by hand
)

// variables reads a mapping of variables.
func (c *compiler) variables(n *node, path string, form variableForm) []Variable {
	if n.kind != kindMap {
		c.fail(n, path, "write KEY: value", "variables must be a mapping, this is %s", n.kind)
		return nil
	}
	out := make([]Variable, 0, len(n.fields))
	for _, f := range n.fields {
		here := join(path, f.key)
		if f.kind != kindString && f.kind != kindInt {
			c.report.at(f.at, here, "the name of a variable must be a string", "quote it")
			continue
		}
		v := Variable{Key: f.key, Public: true}
		switch {
		case f.value.kind == kindMap && form != plainVariables:
			if !c.variableMapping(f.value, here, form, &v) {
				continue
			}
		case !c.variableValue(f.value, here, &v):
			continue
		}
		out = append(out, v)
	}
	return out
}

// variableValue reads a scalar. A number or a boolean gets the form that Ruby gives it.
func (c *compiler) variableValue(n *node, path string, v *Variable) bool {
	switch n.kind {
	case kindString, kindInt, kindFloat, kindBool:
		if n.kind != kindString && n.text != n.raw {
			c.warn(fmt.Sprintf("%s: YAML reads %s as %s; quote it if you mean the text", path, n.raw, n.text))
		}
		v.Value = n.text
		return true
	case kindNull:
		c.fail(n, path, `write "" for an empty value`, "the variable has no value")
	default:
		c.fail(n, path, "", "a variable must be a string, a number or a boolean, this is %s", n.kind)
	}
	return false
}

// variableMapping reads {value, expand, description, options}.
func (c *compiler) variableMapping(n *node, path string, form variableForm, v *Variable) bool {
	known := keywords{"value": true, "expand": true}
	if form == globalVariables {
		known["description"], known["options"] = true, true
	}
	c.check(n, path, known)
	ok := true
	if f := n.present("value"); f != nil {
		ok = c.variableValue(f, join(path, "value"), v)
	}
	if f := n.present("expand"); f != nil {
		expands, good := c.boolean(f, join(path, "expand"))
		v.Raw, ok = good && !expands, ok && good
	}
	if form != globalVariables {
		return ok
	}
	if f := n.present("description"); f != nil && f.kind != kindInt {
		_, good := c.text(f, join(path, "description"))
		ok = ok && good
	}
	if f := n.present("options"); f != nil {
		options, good := c.texts(f, join(path, "options"))
		ok = ok && good
		if good && len(options) > 0 && !slices.Contains(options, v.Value) {
			c.fail(f, join(path, "options"), "its options are "+strings.Join(options, ", "), "the value %q is not among the options", v.Value)
			ok = false
		}
	}
	return ok
}
