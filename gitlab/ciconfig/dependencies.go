package ciconfig

import (
	"fmt"
	"slices"
	"strconv"
)

// dependency is an entry of `dependencies`.
type dependency struct {
	at   pos
	path string
	job  string
}

// dependencies reads `dependencies`; the list is not nil, an empty one means no artifacts at all.
func (c *compiler) dependencies(n *node, path string) []dependency {
	list, ok := c.texts(n, path)
	if !ok {
		return []dependency{}
	}
	out := make([]dependency, len(list))
	for i, name := range list {
		out[i] = dependency{at: n.items[i].at, path: join(path, strconv.Itoa(i)), job: name}
	}
	return out
}

// checkDependencies reports jobs that do not exist, come later, or are not among the needs.
func (c *compiler) checkDependencies() {
	for _, j := range c.jobs {
		for _, d := range j.dependencies {
			if c.report.full() || !c.spend(1) {
				return
			}
			c.checkDependency(j, d)
		}
	}
}

func (c *compiler) checkDependency(j *job, d dependency) {
	of := c.byName[d.job]
	if of == nil {
		of = c.byInstance[d.job]
	}
	switch {
	case of == nil:
		hint := ""
		if near := c.near(d.job, slices.Concat(c.names(), c.instances)); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		c.report.at(d.at, d.path, fmt.Sprintf("the job %q does not exist", d.job), hint)
	case c.stageIndex[of.stage] > c.stageIndex[j.stage]:
		c.report.at(d.at, d.path, fmt.Sprintf("the job %q is in the stage %q, which comes after %q", d.job, of.stage, j.stage),
			"a job can have artifacts of its own and of earlier stages")
	case j.needs != nil && len(j.needs.needs) > 0 && !j.needs.names(d.job):
		c.report.at(d.at, d.path, fmt.Sprintf("the job %q is not among the `needs` of this one", d.job),
			"a job with `needs` gets artifacts from these jobs only")
	}
}

// names are those of the jobs as they are written.
func (c *compiler) names() []string {
	names := make([]string, len(c.jobs))
	for i, j := range c.jobs {
		names[i] = j.name
	}
	return names
}

// names says whether a need has this name, as it is written.
func (l *needList) names(job string) bool {
	return slices.ContainsFunc(l.needs, func(n need) bool { return n.job == job })
}

// dependencyNames writes parallel jobs out; nil if a job has no `dependencies`.
func (c *compiler) dependencyNames(j *job) []string {
	if j.dependencies == nil {
		return nil
	}
	names := []string{}
	for _, d := range j.dependencies {
		instances := c.instanceNames(need{job: d.job})
		if !c.spend(len(instances)) {
			break
		}
		names = append(names, instances...)
	}
	return names
}
