package ciconfig

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// build evaluates the rules and returns the pipeline.
func (c *compiler) build() *Pipeline {
	p := &Pipeline{}
	c.decide(p)
	if len(c.report.errs) > 0 {
		return nil
	}
	var needs []*needList // of p.Jobs
	var jobs []*job
	for _, j := range c.jobs {
		shared := mergeVariables(inherited(p.Variables, j.inherits), j.variables)
		c.expandLists(j)
		for _, i := range j.instances() {
			variables := shared
			if len(i.variables) > 0 {
				variables = mergeVariables(shared, i.variables)
			}
			if !c.spend(1 + len(variables)) {
				return nil
			}
			out, list := c.buildJob(j, i, variables)
			if out != nil {
				p.Jobs = append(p.Jobs, *out)
				needs, jobs = append(needs, list), append(jobs, j)
			}
		}
	}
	c.buildNeeds(p, jobs, needs)
	if len(c.report.errs) > 0 {
		return nil
	}
	c.order(p)
	p.Warnings = c.warnings
	return p
}

// inherited returns the top-level variables that a job gets.
func inherited(variables []Variable, f filter) []Variable {
	if !f.none && f.names == nil {
		return variables
	}
	return slices.DeleteFunc(slices.Clone(variables), func(v Variable) bool { return !f.allows(v.Key) })
}

// expandLists makes what all instances of a job share.
func (c *compiler) expandLists(j *job) {
	j.dependsOn = c.dependencyNames(j)
	if j.settings.caches != nil {
		j.caches = c.resolveCaches(j.settings.caches)
	}
}

// buildJob returns an instance of a job and what it needs, or nil if its rules leave it out.
func (c *compiler) buildJob(j *job, i instance, variables []Variable) (*Job, *needList) {
	s := c.jobScope(j, i, variables)
	out := &Job{
		Name: i.name, Group: j.name, Stage: j.stage,
		Variables: variables, BeforeScript: j.settings.before, Script: j.script, AfterScript: j.settings.after,
		When: j.when, StartIn: j.startIn,
		Timeout: j.settings.timeout, Interruptible: j.settings.interruptible,
		NodeIndex: i.index, NodeTotal: i.total,
		Dependencies: j.dependsOn, Image: j.settings.image, Services: j.settings.services, Artifacts: j.settings.artifacts,
		Caches: j.caches, PreGetSources: j.settings.preGetSources, Retry: j.settings.retry,
	}
	if j.allowFailure != nil {
		out.AllowFailure, out.AllowFailureExitCodes = *j.allowFailure, j.exitCodes
	} else {
		out.AllowFailure = j.when == Manual
	}
	needs := j.needs
	if j.rules != nil {
		if !c.spend(len(j.rules.rules)) {
			return nil, nil
		}
		r := c.match(j.rules, s)
		if r == nil || r.when == never || !c.spend(len(r.variables)) {
			return nil, nil
		}
		needs = apply(r, out, needs)
	}
	if cycle := s.cycle(); cycle != nil {
		c.report.at(j.at, j.path, "variables contain each other: "+strings.Join(append(cycle, cycle[0]), " -> "), "")
	}
	tags := make([]string, len(j.settings.tags))
	for k, t := range j.settings.tags {
		tags[k] = expand(t, s.lookup, true)
	}
	slices.Sort(tags)
	out.Tags = slices.Compact(tags)
	out.NeedsDeclared = needs != nil
	return out, needs
}

// apply puts what a matching rule says into a job.
func apply(r *rule, out *Job, needs *needList) *needList {
	if r.when != "" {
		out.When, out.StartIn = r.when, r.startIn
	}
	if r.allowFailure != nil {
		out.AllowFailure, out.AllowFailureExitCodes = *r.allowFailure, nil
	}
	if r.interruptible != nil {
		out.Interruptible = *r.interruptible
	}
	out.Variables = mergeVariables(out.Variables, r.variables)
	if r.needs != nil {
		return r.needs
	}
	return needs
}

// buildNeeds fills in the edges; a job that is needed must be in the pipeline, unless the need is optional.
func (c *compiler) buildNeeds(p *Pipeline, jobs []*job, lists []*needList) {
	present := make(map[string]bool, len(p.Jobs))
	for k := range p.Jobs {
		present[p.Jobs[k].Name] = true
	}
	for k, list := range lists {
		if list == nil {
			continue
		}
		out := &p.Jobs[k]
		targets := c.targets(jobs[k], out.Name, list)
		if len(targets) > maxNeeds {
			c.report.at(list.at, list.path, fmt.Sprintf("the job needs %d others, GitLab allows %d", len(targets), maxNeeds), "")
			continue
		}
		for _, t := range targets {
			if present[t.name] {
				out.Needs = append(out.Needs, Need{Job: t.name, Artifacts: t.artifacts, Optional: t.optional})
			} else if !t.optional {
				c.report.at(t.at, t.path, fmt.Sprintf("the job %q that %q needs is not in this pipeline: its rules leave it out", t.name, out.Name), "write optional: true if the job can do without it")
			}
		}
	}
	edges := make(map[string][]string, len(p.Jobs))
	for k := range p.Jobs {
		for _, n := range p.Jobs[k].Needs {
			edges[p.Jobs[k].Name] = append(edges[p.Jobs[k].Name], n.Job)
		}
	}
	c.checkCircle(edges, func(yield func(string) bool) {
		for k := range p.Jobs {
			if !yield(p.Jobs[k].Name) {
				return
			}
		}
	})
}

// order sorts the jobs by stage and lists the stages that have some.
func (c *compiler) order(p *Pipeline) {
	slices.SortStableFunc(p.Jobs, func(a, b Job) int {
		return cmp.Compare(c.stageIndex[a.Stage], c.stageIndex[b.Stage])
	})
	inner := false
	for k := range p.Jobs {
		stage := p.Jobs[k].Stage
		if len(p.Stages) == 0 || p.Stages[len(p.Stages)-1] != stage {
			p.Stages = append(p.Stages, stage)
		}
		inner = inner || stage != ".pre" && stage != ".post"
	}
	if inner {
		return
	}
	message, hint := ErrNoJobs.Error(), ""
	if len(p.Jobs) > 0 {
		message = "the pipeline has jobs in .pre and .post only"
		hint = "GitLab creates a pipeline if there is a job in another stage"
	}
	c.report.add(&Error{File: c.report.files[0], Message: message, Hint: hint, cause: ErrNoJobs})
}
