package ciconfig

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// job is a job as it is written, before its rules and `parallel`.
type job struct {
	name string
	at   pos // of its name
	path string

	stage     string
	variables []Variable // its own
	inherits  filter     // which top-level variables it gets
	settings  inheritable
	script    []string

	needs        *needList    // nil: not declared
	dependencies []dependency // nil: not declared
	rules        *ruleList    // nil: none
	parallel     []instance

	when         When
	startIn      time.Duration
	allowFailure *bool
	exitCodes    []int

	// What is made of the above when the pipeline is built.
	dependsOn []string
	caches    []Cache
}

// maxName is the longest name of a job, in characters.
const maxName = 255

// readJob reads a job. It returns nil, after a report, for what cannot be one.
func (c *compiler) readJob(f field) *job {
	n, path := f.value, join("jobs", f.key)
	j := &job{name: f.key, at: f.at, path: path, stage: "test", when: OnSuccess}
	if !c.isJob(f, path) {
		return nil
	}
	c.check(n, path, jobKeywords())
	c.checkName(j)
	if v := n.present("stage"); v != nil {
		j.stage, _ = c.text(v, join(path, "stage"))
	}
	if v := n.present("variables"); v != nil {
		j.variables = c.variables(v, join(path, "variables"), jobVariables)
	}
	var defaults filter
	if v := n.present("inherit"); v != nil {
		defaults, j.inherits = c.inherit(v, join(path, "inherit"))
	}
	j.settings = c.inheritable(n, path)
	j.settings.take(c.defaults, defaults)
	c.readScript(j, n)
	if v := n.present("needs"); v != nil {
		j.needs = c.needs(v, join(path, "needs"))
	}
	if v := n.present("dependencies"); v != nil {
		j.dependencies = c.dependencies(v, join(path, "dependencies"))
	}
	if j.name == "pages" {
		j.settings.artifacts = j.settings.artifacts.withPages()
	}
	if v := n.present("parallel"); v != nil {
		j.parallel = c.parallel(v, join(path, "parallel"), j.name)
	}
	c.readWhen(j, n)
	if v := n.present("allow_failure"); v != nil {
		c.readAllowFailure(j, v, join(path, "allow_failure"))
	}
	return j
}

// isJob tells whether an entry of the top level can be a job, and says why not.
func (c *compiler) isJob(f field, path string) bool {
	n := f.value
	switch {
	case f.kind != kindString:
		c.report.at(f.at, path, "the name of a job must be a string, this is "+f.kind.String(), "quote it: \""+f.raw+"\"")
		return false
	case f.key == "":
		c.report.at(f.at, path, "the name of a job is empty", "")
		return false
	case f.key == "nil" || f.key == "true" || f.key == "false":
		c.report.at(f.at, path, "`"+f.key+"` is reserved and cannot be the name of a job", "")
		return false
	}
	for _, other := range []string{"trigger", "run"} {
		if n.kind == kindMap && nonNull(n.get(other)) && !nonNull(n.get("script")) {
			c.report.at(n.keyAt(other), join(path, other), notSupported(other), "")
			return false
		}
	}
	if n.kind == kindMap && nonNull(n.get("script")) {
		return true
	}
	names := slices.DeleteFunc(globalKeywords().sorted(), func(k string) bool { return k == f.key })
	hint := "every job has one; a name that begins with a dot (." + f.key + ") is no job"
	if near := c.near(f.key, names); near != "" {
		hint = fmt.Sprintf("did you mean the keyword `%s`?", near)
	}
	for _, g := range n.fields {
		if c.near(g.key, []string{"script"}) != "" {
			hint = fmt.Sprintf("did you mean `script` instead of `%s`?", g.key)
		}
	}
	c.report.at(f.at, path, "the job has no `script`", hint)
	return false
}

func (c *compiler) checkName(j *job) {
	if utf8.RuneCountInString(j.name) > maxName {
		c.report.at(j.at, j.path, fmt.Sprintf("the name of the job is longer than %d characters", maxName), "")
	}
	if j.name == "pages" {
		c.warn("the job `pages` runs, but its site is not published")
	}
}

func (c *compiler) readScript(j *job, n *node) {
	v := n.get("script")
	path := join(j.path, "script")
	script, ok := c.commands(v, path)
	if ok && len(script) == 0 || v.kind == kindString && blank(v.text) {
		c.fail(v, path, "", "the script is empty")
	}
	j.script = script
}

// checkStage reports a stage that does not exist. It comes after all stages are known.
func (c *compiler) checkStage(j *job, n *node) {
	if _, ok := c.stageIndex[j.stage]; ok {
		return
	}
	hint := "stages are " + strings.Join(c.stages, ", ")
	if near := c.near(j.stage, c.stages); near != "" {
		hint = fmt.Sprintf("did you mean %q? Stages are %s", near, strings.Join(c.stages, ", "))
	}
	if v := n.present("stage"); v != nil {
		if v.kind == kindString {
			c.fail(v, join(j.path, "stage"), hint, "the stage %q does not exist", j.stage)
		}
		return
	}
	c.report.at(j.at, j.path, fmt.Sprintf("the job has no `stage`, and the default one, %q, does not exist", j.stage), hint)
}

// jobWhens are the values of a job's `when`.
func jobWhens() []string { return []string{"on_success", "on_failure", "always", "manual", "delayed"} }

// readWhen reads when, start_in and rules.
func (c *compiler) readWhen(j *job, n *node) {
	if v := n.present("when"); v != nil {
		here := join(j.path, "when")
		if s, ok := c.text(v, here); ok && c.oneOf(v, here, jobWhens()) {
			j.when = When(s)
		}
	}
	start := n.present("start_in")
	here := join(j.path, "start_in")
	if v := n.present("rules"); v != nil {
		j.rules = c.rules(v, join(j.path, "rules"), jobRules)
		switch {
		case start != nil:
			c.report.at(n.keyAt("start_in"), here, "`start_in` and `rules` cannot stand in one job", "write it into the rules that have `when: delayed`")
		case j.when == Delayed:
			c.fail(n.get("when"), join(j.path, "when"), "write it into the rules", "`when: delayed` and `rules` cannot stand in one job")
		}
		c.warnRules(j)
		return
	}
	switch {
	case j.when == Delayed && start == nil:
		c.fail(n.get("when"), join(j.path, "when"), `add start_in: "30 minutes"`, "`when: delayed` needs `start_in`")
	case j.when != Delayed && start != nil:
		c.report.at(n.keyAt("start_in"), here, "`start_in` is only for `when: delayed`", "")
	case start != nil:
		j.startIn = c.duration(start, here, maxStartIn, "a week")
	}
}

// oneOf reports a text that is not among the values.
func (c *compiler) oneOf(n *node, path string, values []string) bool {
	if slices.Contains(values, n.text) {
		return true
	}
	hint := "it is one of " + strings.Join(values, ", ")
	if near := c.near(n.text, values); near != "" {
		hint = fmt.Sprintf("did you mean %q? It is one of %s", near, strings.Join(values, ", "))
	} else if n.text == "never" && slices.Contains(values, string(Manual)) {
		hint += "; `never` is for rules, a job that never runs has a name that begins with a dot"
	}
	c.fail(n, path, hint, "%q is not a value of this keyword", n.text)
	return false
}

func (c *compiler) readAllowFailure(j *job, n *node, path string) {
	no := false
	switch n.kind {
	case kindBool:
		j.allowFailure = &n.truth
	case kindMap:
		j.allowFailure = &no
		c.check(n, path, keywords{"exit_codes": true})
		codes := n.present("exit_codes")
		if codes == nil {
			c.fail(n, path, "write exit_codes: [1, 2]", "the mapping has no `exit_codes`")
			return
		}
		j.exitCodes = c.exitCodes(codes, join(path, "exit_codes"))
	default:
		c.fail(n, path, "", "this must be true, false or a mapping with `exit_codes`, it is %s", n.kind)
	}
}
