package ciconfig

import (
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxNeeds is how many jobs one job may need (GitLab's ci_needs_size_limit).
const maxNeeds = 50

// needList is `needs` as it is written.
type needList struct {
	at           pos
	path         string
	needs        []need
	interpolated bool // has $[[ matrix.X ]]
}

// need is an entry of `needs`.
type need struct {
	at        pos
	path      string
	job       string
	artifacts bool
	optional  bool
	matrix    []cell // of parallel:matrix; nil: every instance
}

// needs reads `needs`: a list, or the mapping of one entry.
func (c *compiler) needs(n *node, path string) *needList {
	list := &needList{at: n.at, path: path}
	switch {
	case n.kind == kindMap && len(n.fields) > 0:
		c.need(list, n, path)
	case n.kind == kindList:
		c.needItems(list, n, path, 1)
	default:
		c.fail(n, path, "write needs: [job]", "`needs` must be a list of jobs, this is %s", n.kind)
	}
	if len(list.needs) > maxNeeds {
		c.fail(n, path, "", "the job needs %d others, GitLab allows %d", len(list.needs), maxNeeds)
		list.needs = list.needs[:maxNeeds]
	}
	return list
}

func (c *compiler) needItems(list *needList, n *node, path string, level int) {
	for i, it := range n.items {
		here := join(path, strconv.Itoa(i))
		switch {
		case it.kind == kindList && level < maxNesting:
			c.needItems(list, it, here, level+1)
		case it.kind == kindList:
			c.fail(it, here, "", "lists are nested too deep here")
		default:
			c.need(list, it, here)
		}
	}
}

func (c *compiler) need(list *needList, n *node, path string) {
	d := need{at: n.at, path: path, artifacts: true}
	switch {
	case n.kind == kindMap:
		if !c.needMapping(&d, n, path) {
			return
		}
	case n.kind == kindString && n.text != "":
		d.job = n.text
	default:
		c.fail(n, path, "", "an entry of `needs` is the name of a job or a mapping with `job`, this is %s", n.kind)
		return
	}
	list.needs = append(list.needs, d)
	list.interpolated = list.interpolated || d.interpolated()
}

// interpolated tells whether a need has $[[ matrix.X ]].
func (d *need) interpolated() bool {
	if matrixReference.MatchString(d.job) {
		return true
	}
	for _, cl := range d.matrix {
		for _, v := range cl.variables {
			if matrixReference.MatchString(v.Value) {
				return true
			}
		}
	}
	return false
}

func (c *compiler) needMapping(d *need, n *node, path string) bool {
	c.check(n, path, keywords{"job": true, "artifacts": true, "optional": true, "parallel": true, "project": false, "pipeline": false, "ref": false})
	v := n.present("job")
	if v == nil {
		if n.present("pipeline") == nil {
			c.fail(n, path, "", "the entry has no `job`")
		}
		return false
	}
	var ok bool
	d.job, ok = c.text(v, join(path, "job"))
	if ok && d.job == "" {
		c.fail(v, join(path, "job"), "", "the name is empty")
		ok = false
	}
	if v := n.present("artifacts"); v != nil {
		d.artifacts, _ = c.boolean(v, join(path, "artifacts"))
	}
	if v := n.present("optional"); v != nil {
		d.optional, _ = c.boolean(v, join(path, "optional"))
	}
	if v := n.present("parallel"); v != nil {
		here := join(path, "parallel")
		if v.kind != kindMap {
			c.fail(v, here, "write parallel: {matrix: [...]}", "this must be a mapping with `matrix`, it is %s", v.kind)
			return false
		}
		d.matrix = c.matrix(v, here)
	}
	return ok
}

// matrixReference is $[[ matrix.NAME ]] in a need.
var matrixReference = regexp.MustCompile(`\$\[\[\s*matrix\.([a-zA-Z0-9_-]+)\s*\]\]`)

// interpolate fills the variables of an instance of parallel:matrix into a need.
func (c *compiler) interpolate(d need, variables map[string]string) need {
	fill := func(s string) string {
		return matrixReference.ReplaceAllStringFunc(s, func(whole string) string {
			key := matrixReference.FindStringSubmatch(whole)[1]
			if v, ok := variables[key]; ok {
				return v
			}
			c.report.at(d.at, d.path, fmt.Sprintf("the matrix of this job has no variable %q", key), "")
			return whole
		})
	}
	d.job = fill(d.job)
	if d.matrix != nil {
		cells := make([]cell, len(d.matrix))
		for i, from := range d.matrix {
			cells[i].variables = make([]Variable, len(from.variables))
			for k, v := range from.variables {
				v.Value = fill(v.Value)
				cells[i].variables[k] = v
			}
		}
		d.matrix = cells
	}
	return d
}

// target is a job that a need names, after `parallel` is written out.
type target struct {
	need
	name string
}

// targetKey is where the result of targets is kept: by list, and by instance if the list has $[[ matrix.X ]].
type targetKey struct {
	list     *needList
	instance string
}

// targets returns the instances that a list of needs of one instance names, and reports those that cannot be.
func (c *compiler) targets(j *job, instanceName string, list *needList) []target {
	key := targetKey{list: list}
	if list.interpolated {
		key.instance = instanceName
	}
	if done, ok := c.targetsOf[key]; ok {
		return done
	}
	var variables map[string]string
	if list.interpolated {
		variables = matrixVariables(j, instanceName)
	}
	var out []target
	seen := map[string]bool{}
	for _, d := range list.needs {
		if list.interpolated {
			d = c.interpolate(d, variables)
		}
		names := c.instanceNames(d)
		if !c.spend(len(names)) {
			break
		}
		for _, name := range names {
			if seen[name] {
				c.report.at(d.at, d.path, fmt.Sprintf("the job %q is in `needs` twice", name), "")
				continue
			}
			seen[name] = true
			if c.checkNeed(j, d, name) {
				out = append(out, target{need: d, name: name})
			}
		}
	}
	if c.targetsOf == nil {
		c.targetsOf = map[targetKey][]target{}
	}
	c.targetsOf[key] = out
	return out
}

// matrixVariables are the variables of an instance of parallel:matrix, and those that the job itself sets.
func matrixVariables(j *job, instanceName string) map[string]string {
	values := map[string]string{}
	for _, v := range j.variables {
		values[v.Key] = v.Value
	}
	for _, i := range j.instances() {
		if i.name == instanceName {
			for _, v := range i.variables {
				values[v.Key] = v.Value
			}
		}
	}
	return values
}

// instanceNames returns what the name in a need stands for: a parallel job is all its instances, or those of the
// need's own matrix.
func (c *compiler) instanceNames(d need) []string {
	of, ok := c.byName[d.job]
	if !ok || of.parallel == nil {
		if ok && d.matrix != nil {
			c.warn(fmt.Sprintf("%s: the job %q has no parallel:matrix, the one here has no effect", d.path, d.job))
		}
		return []string{d.job}
	}
	var names []string
	for _, cl := range d.matrix {
		names = append(names, matrixName(d.job, cl))
	}
	if d.matrix == nil {
		for _, i := range of.parallel {
			names = append(names, i.name)
		}
	}
	return names
}

// checkNeed reports a need of a job that is not in the configuration or comes later.
func (c *compiler) checkNeed(j *job, d need, name string) bool {
	of, ok := c.byInstance[name]
	switch {
	case !ok && d.optional:
		return false
	case !ok:
		hint := ""
		if near := c.near(name, c.instances); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		c.report.at(d.at, d.path, fmt.Sprintf("the job %q that this one needs does not exist", name), hint)
	case of == j:
		c.report.at(d.at, d.path, "the job needs itself", "")
	case c.stageIndex[of.stage] > c.stageIndex[j.stage]:
		c.report.at(d.at, d.path, fmt.Sprintf("the job %q is in the stage %q, which comes after %q", name, of.stage, j.stage), "a job can need jobs of its own and of earlier stages")
	default:
		return true
	}
	return false
}

// checkNeeds checks the needs of all jobs, before rules are evaluated.
func (c *compiler) checkNeeds() {
	edges := map[string][]string{}
	for _, j := range c.jobs {
		if c.report.full() {
			return
		}
		for _, i := range j.instances() {
			if j.needs != nil {
				targets := c.targets(j, i.name, j.needs)
				if !c.spend(len(targets)) {
					return
				}
				for _, t := range targets {
					edges[i.name] = append(edges[i.name], t.name)
				}
			}
			if j.rules == nil {
				continue
			}
			for _, r := range j.rules.rules {
				if r.needs != nil {
					c.targets(j, i.name, r.needs)
				}
			}
		}
	}
	if len(c.report.errs) > 0 {
		return
	}
	c.checkCircle(edges, func(yield func(string) bool) {
		for _, j := range c.jobs {
			for _, i := range j.instances() {
				if !yield(i.name) {
					return
				}
			}
		}
	})
}

// checkCircle reports the first circle that it finds.
func (c *compiler) checkCircle(edges map[string][]string, names iter.Seq[string]) {
	const open, done = 1, 2
	state := map[string]int{}
	var path []string
	var visit func(name string) bool
	visit = func(name string) bool {
		switch state[name] {
		case done:
			return true
		case open:
			circle := append(slices.Clone(path[slices.Index(path, name):]), name)
			j := c.byInstance[name]
			c.report.at(j.at, join(j.path, "needs"), "jobs need each other in a circle: "+strings.Join(circle, " -> "), "")
			return false
		}
		state[name] = open
		path = append(path, name)
		for _, to := range edges[name] {
			if !visit(to) {
				return false
			}
		}
		path = path[:len(path)-1]
		state[name] = done
		return true
	}
	for name := range names {
		if !visit(name) {
			return
		}
	}
}
