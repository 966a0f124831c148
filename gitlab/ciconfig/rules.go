package ciconfig

import (
	"fmt"
	"strconv"
	"time"
)

// ruleList are the rules of a job, of the workflow or of an include.
type ruleList struct {
	rules []rule
}

// rule is one entry of `rules`: it matches if all its conditions do.
type rule struct {
	at   pos
	path string

	condition *expression
	changes   []string // patterns; nil: no such condition
	exists    []string

	when          When // "" if not set
	startIn       time.Duration
	allowFailure  *bool
	variables     []Variable
	needs         *needList
	interruptible *bool
	autoCancel    AutoCancel

	whenOnly bool // nothing but `when`
}

// never is the `when` of a rule that leaves the job out.
const never When = "never"

// ruleForm says where rules stand, which decides what they may say.
type ruleForm uint8

const (
	jobRules ruleForm = iota
	workflowRules
	includeRules
)

func (f ruleForm) keywords() keywords {
	known := keywords{"if": true, "changes": true, "exists": true, "when": true}
	switch f {
	case jobRules:
		for _, k := range []string{"start_in", "allow_failure", "variables", "needs", "interruptible"} {
			known[k] = true
		}
	case workflowRules:
		known["variables"], known["auto_cancel"] = true, true
	}
	return known
}

func (f ruleForm) whens() []string {
	if f == jobRules {
		return append(jobWhens(), string(never))
	}
	return []string{"always", string(never)}
}

// maxPatterns is how many patterns rules:changes and rules:exists may have.
const maxPatterns = 50

// rules reads a list of rules. Lists inside it, as !reference makes them, are written out.
func (c *compiler) rules(n *node, path string, form ruleForm) *ruleList {
	list := &ruleList{}
	if n.kind != kindList {
		c.fail(n, path, "write - if: ...", "`rules` must be a list, this is %s", n.kind)
		return list
	}
	if len(n.items) == 0 {
		c.fail(n, path, "leave the keyword out", "`rules` is empty")
		return list
	}
	c.ruleItems(list, n, path, form, 1)
	return list
}

func (c *compiler) ruleItems(list *ruleList, n *node, path string, form ruleForm, level int) {
	for i, it := range n.items {
		here := join(path, strconv.Itoa(i))
		switch {
		case it.kind == kindList && level < maxNesting:
			c.ruleItems(list, it, here, form, level+1)
		case it.kind == kindList:
			c.fail(it, here, "", "lists are nested too deep here")
		case it.kind != kindMap:
			c.fail(it, here, "write - if: ...", "a rule must be a mapping, this is %s", it.kind)
		case len(it.fields) == 0:
			c.fail(it, here, "", "the rule is empty")
		default:
			list.rules = append(list.rules, c.rule(it, here, form))
		}
	}
}

func (c *compiler) rule(n *node, path string, form ruleForm) rule {
	c.check(n, path, form.keywords())
	r := rule{at: n.at, path: path}
	if v := n.present("if"); v != nil {
		r.condition = c.condition(v, join(path, "if"))
	}
	if v := n.present("changes"); v != nil {
		r.changes = c.patterns(v, join(path, "changes"), "changes", c.opt.Changes != nil)
	}
	if v := n.present("exists"); v != nil {
		r.exists = c.patterns(v, join(path, "exists"), "exists", c.opt.Exists != nil)
	}
	if v := n.present("when"); v != nil {
		if s, ok := c.text(v, join(path, "when")); ok && c.oneOf(v, join(path, "when"), form.whens()) {
			r.when = When(s)
		}
		r.whenOnly = len(n.fields) == 1
	}
	switch form {
	case jobRules:
		c.jobRule(&r, n)
	case workflowRules:
		if v := n.present("auto_cancel"); v != nil {
			r.autoCancel = c.autoCancel(v, join(path, "auto_cancel"))
		}
	}
	if v := n.present("variables"); v != nil && form != includeRules {
		r.variables = c.variables(v, join(path, "variables"), plainVariables)
	}
	return r
}

// jobRule reads what only the rules of jobs know.
func (c *compiler) jobRule(r *rule, n *node) {
	start, here := n.present("start_in"), join(r.path, "start_in")
	switch {
	case r.when == Delayed && start == nil:
		c.fail(n.get("when"), join(r.path, "when"), `add start_in: "30 minutes"`, "`when: delayed` needs `start_in`")
	case r.when != Delayed && start != nil:
		c.report.at(n.keyAt("start_in"), here, "`start_in` is only for `when: delayed`", "")
	case start != nil:
		r.startIn = c.duration(start, here, maxStartIn, "a week")
	}
	if v := n.present("allow_failure"); v != nil {
		if b, ok := c.boolean(v, join(r.path, "allow_failure")); ok {
			r.allowFailure = &b
		}
	}
	if v := n.present("interruptible"); v != nil {
		if b, ok := c.boolean(v, join(r.path, "interruptible")); ok {
			r.interruptible = &b
		}
	}
	if v := n.present("needs"); v != nil {
		r.needs = c.needs(v, join(r.path, "needs"))
	}
}

func (c *compiler) condition(n *node, path string) *expression {
	if n.kind != kindString {
		c.fail(n, path, `an expression is a text as $CI_COMMIT_BRANCH == "main"`, "an expression must be a string, this is %s", n.kind)
		return nil
	}
	e, hint, err := parseExpression(n.text)
	if err != nil {
		c.fail(n, path, hint, "invalid expression: %s", err)
		return nil
	}
	return e
}

// patterns reads the paths of rules:changes or rules:exists.
func (c *compiler) patterns(n *node, path, keyword string, supported bool) []string {
	if !supported {
		c.fail(n, path, "", "`rules:%s` cannot be evaluated here: the repository's files are not known", keyword)
		return nil
	}
	if n.kind == kindMap {
		known := keywords{"paths": true, "compare_to": false}
		if keyword == "exists" {
			known = keywords{"paths": true, "project": false, "ref": false}
		}
		c.check(n, path, known)
		paths := n.present("paths")
		if paths == nil {
			c.fail(n, path, "", "the mapping has no `paths`")
			return nil
		}
		n, path = paths, join(path, "paths")
	}
	if n.kind == kindString && keyword == "exists" {
		return []string{n.text}
	}
	list, _ := c.texts(n, path)
	if len(list) > maxPatterns {
		c.fail(n, path, "", "there are %d patterns, GitLab allows %d", len(list), maxPatterns)
	}
	return list
}

// match returns the first rule that matches, or nil.
func (c *compiler) match(list *ruleList, s *scope) *rule {
	var expanded func(string) (string, bool)
	for i := range list.rules {
		r := &list.rules[i]
		if r.condition != nil && !r.condition.matches(s.lookup) {
			continue
		}
		if r.changes != nil {
			if expanded == nil { // GitLab: variables inside variables count for changes, not for exists
				expanded = s.expanded()
			}
			if !c.matchesAny(r, "changes", r.changes, expanded, c.opt.Changes) {
				continue
			}
		}
		if r.exists != nil && !c.matchesAny(r, "exists", r.exists, s.lookup, c.opt.Exists) {
			continue
		}
		return r
	}
	return nil
}

// matchesAny tells whether one of the patterns matches.
func (c *compiler) matchesAny(r *rule, keyword string, patterns []string, lookup func(string) (string, bool), ask func(string) (bool, error)) bool {
	for _, p := range patterns {
		p = expand(p, lookup, true)
		yes, err := ask(p)
		if err != nil {
			c.report.add(&Error{
				File: r.at.file, Line: r.at.line, Column: r.at.col, Path: join(r.path, keyword),
				Message: fmt.Sprintf("evaluate %q: %s", p, err), cause: err,
			})
			return false
		}
		if yes {
			return true
		}
	}
	return false
}

// warnRules is GitLab's warning about rules that end in an unconditional `when`.
func (c *compiler) warnRules(j *job) {
	if c.workflow.rules != nil || len(j.rules.rules) == 0 {
		return
	}
	if last := j.rules.rules[len(j.rules.rules)-1]; last.whenOnly && last.when != never {
		c.warn(j.path + ": the last rule matches always and there is no workflow:rules, so that a push to a branch with a merge request may start two pipelines")
	}
}
