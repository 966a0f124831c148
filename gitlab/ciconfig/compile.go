package ciconfig

import (
	"slices"
	"strconv"
	"strings"
)

// Compile returns the pipeline that a configuration means in the context of opt. file is the name for errors, src its
// text; both stay the caller's. Compile has no state of its own: equal input gives equal output, and calls may run
// concurrently if the callbacks of opt may.
//
// A configuration that is refused returns [Errors]. [ErrWorkflow] and [ErrNoJobs] are in the chain when the
// configuration is valid but makes no pipeline in this context.
func Compile(file string, src []byte, opt Options) (*Pipeline, error) {
	c := &compiler{opt: opt, report: &report{files: []string{file}}}
	root := load(file, src, c.report)
	if root == nil {
		return nil, c.report.err()
	}
	c.read(root)
	if err := c.report.err(); err != nil {
		return nil, err
	}
	p := c.pipeline()
	if err := c.report.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// compiler is the state of one Compile.
type compiler struct {
	opt    Options
	report *report

	stages       []string // .pre first, .post last
	variables    []Variable
	defaults     *node // `default`, with the top-level forms of its keywords
	beforeScript []string
	jobs         []*job
	warnings     []string
}

// job is a job as it is written, before rules and parallel.
type job struct {
	name string
	at   pos // of its name
	path string

	stage     string
	variables []Variable
	before    []string
	script    []string
	after     []string

	needs         []need
	needsDeclared bool

	when          When
	tags          []string
	interruptible bool
}

// need is an entry of `needs` as it is written.
type need struct {
	job       string
	at        pos
	path      string
	artifacts bool
	optional  bool
}

func (c *compiler) read(root *node) {
	known := globalKeywords()
	c.defaults = newMap(root.at, nil)
	c.stages = []string{".pre", "build", "test", "deploy", ".post"}
	if n := root.present("stages"); n != nil {
		c.readStages(n)
	}
	if n := root.present("variables"); n != nil {
		c.variables = c.readVariables(n, "variables", true)
	}
	for _, f := range root.fields {
		supported, isKeyword := known[f.key]
		switch {
		case f.value.kind == kindNull && isKeyword:
		case isKeyword && !supported:
			c.report.at(f.at, f.key, notSupported(f.key), unsupportedHint(f.key))
		case isKeyword:
		case strings.HasPrefix(f.key, "."):
		default:
			if j := c.readJob(f); j != nil {
				c.jobs = append(c.jobs, j)
			}
		}
	}
}

func (c *compiler) readStages(n *node) {
	list, ok := c.nestedTexts(n, "stages")
	if !ok {
		return
	}
	c.stages = []string{".pre"}
	for _, s := range list {
		if s != ".post" && !slices.Contains(c.stages, s) {
			c.stages = append(c.stages, s)
		}
	}
	c.stages = append(c.stages, ".post")
}

func (c *compiler) readVariables(n *node, path string, _ bool) []Variable {
	if n.kind != kindMap {
		c.fail(n, path, "write KEY: value", "variables must be a mapping, they are %s", n.kind)
		return nil
	}
	var out []Variable
	for _, f := range n.fields {
		here := join(path, f.key)
		switch f.value.kind {
		case kindString, kindInt:
			out = append(out, Variable{Key: f.key, Value: f.value.text, Public: true})
		default:
			c.fail(f.value, here, "quote it", "a variable must be a string or an integer, it is %s", f.value.kind)
		}
	}
	return out
}

func (c *compiler) readJob(f field) *job {
	n, path := f.value, join("jobs", f.key)
	j := &job{name: f.key, at: f.at, path: path, stage: "test", when: OnSuccess}
	if n.kind != kindMap || !nonNull(n.get("script")) {
		c.report.at(f.at, path, "the job has no script", "names that begin with a dot are not jobs: ."+f.key)
		return nil
	}
	c.check(n, path, jobKeywords())
	if v := n.present("stage"); v != nil {
		if s, ok := c.text(v, join(path, "stage")); ok {
			j.stage = s
		}
	}
	if !slices.Contains(c.stages, j.stage) {
		c.report.at(n.keyAt("stage"), join(path, "stage"), "the stage "+strconv.Quote(j.stage)+" does not exist", "stages: "+strings.Join(c.stages, ", "))
	}
	if v := n.present("variables"); v != nil {
		j.variables = c.readVariables(v, join(path, "variables"), false)
	}
	for key, into := range map[string]*[]string{"before_script": &j.before, "script": &j.script, "after_script": &j.after} {
		if v := n.present(key); v != nil {
			*into, _ = c.commands(v, join(path, key))
		}
	}
	if v := n.present("needs"); v != nil && v.kind == kindList {
		j.needsDeclared = true
		for i, it := range v.items {
			here := join(join(path, "needs"), strconv.Itoa(i))
			if name, ok := c.text(it, here); ok {
				j.needs = append(j.needs, need{job: name, at: it.at, path: here, artifacts: true})
			}
		}
	}
	if v := n.present("when"); v != nil {
		if s, ok := c.text(v, join(path, "when")); ok {
			j.when = When(s)
		}
	}
	if v := n.present("tags"); v != nil {
		j.tags, _ = c.texts(v, join(path, "tags"))
	}
	return j
}

func (c *compiler) pipeline() *Pipeline {
	p := &Pipeline{Variables: c.variables, Warnings: c.warnings}
	names := map[string]bool{}
	for _, j := range c.jobs {
		names[j.name] = true
	}
	for _, stage := range c.stages {
		var has bool
		for _, j := range c.jobs {
			if j.stage != stage {
				continue
			}
			has = true
			out := Job{
				Name: j.name, Group: j.name, Stage: stage,
				Variables: slices.Concat(c.variables, j.variables), BeforeScript: j.before, Script: j.script, AfterScript: j.after,
				NeedsDeclared: j.needsDeclared, When: j.when, AllowFailure: j.when == Manual, Tags: slices.Compact(slices.Sorted(slices.Values(j.tags))),
			}
			for _, n := range j.needs {
				if !names[n.job] {
					c.report.at(n.at, n.path, "the job "+strconv.Quote(n.job)+" does not exist", "")
				}
				out.Needs = append(out.Needs, Need{Job: n.job, Artifacts: n.artifacts, Optional: n.optional})
			}
			p.Jobs = append(p.Jobs, out)
		}
		if has {
			p.Stages = append(p.Stages, stage)
		}
	}
	return p
}
