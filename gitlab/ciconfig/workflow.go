package ciconfig

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// AutoCancel is `workflow:auto_cancel` after the workflow's rules; an empty field is GitLab's default.
type AutoCancel struct {
	OnNewCommit  string // "conservative" (the default), "interruptible" or "none": what a newer pipeline of the ref cancels
	OnJobFailure string // "none" (the default) or "all": whether a failed job cancels the rest of the pipeline
}

// workflow is the keyword of that name.
type workflow struct {
	at         pos
	name       string
	nameAt     pos
	rules      *ruleList // nil: none
	autoCancel AutoCancel
}

func (c *compiler) readWorkflow(n *node) {
	const path = "workflow"
	c.workflow.at = n.at
	if n.kind != kindMap {
		c.fail(n, path, "", "this must be a mapping, it is %s", n.kind)
		return
	}
	c.check(n, path, keywords{"name": true, "rules": true, "auto_cancel": true})
	if v := n.present("name"); v != nil {
		c.workflow.nameAt = v.at
		c.workflow.name, _ = c.text(v, join(path, "name"))
		if utf8.RuneCountInString(c.workflow.name) > maxName {
			c.fail(v, join(path, "name"), "", "the name is longer than %d characters", maxName)
		}
	}
	if v := n.present("auto_cancel"); v != nil {
		c.workflow.autoCancel = c.autoCancel(v, join(path, "auto_cancel"))
	}
	if v := n.present("rules"); v != nil {
		c.workflow.rules = c.rules(v, join(path, "rules"), workflowRules)
		c.workflow.at = v.at
	}
}

func (c *compiler) autoCancel(n *node, path string) (a AutoCancel) {
	if n.kind != kindMap {
		c.fail(n, path, "", "this must be a mapping with `on_new_commit` or `on_job_failure`, it is %s", n.kind)
		return a
	}
	c.check(n, path, keywords{"on_new_commit": true, "on_job_failure": true})
	read := func(key string, values ...string) string {
		v := n.present(key)
		if v == nil {
			return ""
		}
		s, ok := c.text(v, join(path, key))
		if !ok || !c.oneOf(v, join(path, key), values) {
			return ""
		}
		return s
	}
	a.OnNewCommit = read("on_new_commit", "conservative", "interruptible", "none")
	a.OnJobFailure = read("on_job_failure", "none", "all")
	return a
}

// decide evaluates the workflow's rules. It sets the pipeline's name, its variables and its auto_cancel, and reports
// [ErrWorkflow] if there is no pipeline.
func (c *compiler) decide(p *Pipeline) {
	p.Variables = c.globals
	p.AutoCancel = c.workflow.autoCancel
	if c.workflow.rules != nil {
		r := c.match(c.workflow.rules, c.globalScope(p.Variables))
		if r == nil || r.when == never {
			at, path := c.workflow.at, "workflow:rules"
			message := "no rule matches"
			if r != nil {
				at, path, message = r.at, r.path, "the rule that matches says `when: never`"
			}
			c.report.add(&Error{
				File: at.file, Line: at.line, Column: at.col, Path: path,
				Message: "they create no pipeline here: " + message, cause: ErrWorkflow,
			})
			return
		}
		p.Variables = mergeVariables(p.Variables, r.variables)
		if r.autoCancel.OnNewCommit != "" {
			p.AutoCancel.OnNewCommit = r.autoCancel.OnNewCommit
		}
		if r.autoCancel.OnJobFailure != "" {
			p.AutoCancel.OnJobFailure = r.autoCancel.OnJobFailure
		}
	}
	if c.workflow.name != "" {
		name := expand(c.workflow.name, c.globalScope(p.Variables).expanded(), false)
		p.Name = strings.TrimSpace(name)
		if utf8.RuneCountInString(p.Name) > maxName {
			c.report.at(c.workflow.nameAt, "workflow:name", fmt.Sprintf("with its variables filled in, the name is longer than %d characters", maxName), "")
		}
	}
}
