package ciconfig

import (
	"fmt"
	"slices"
	"strings"
)

// Compile returns the pipeline that a configuration means in the context of opt. file is the name for errors and, for
// files that include it, its path in the repository; src is its text. Both stay the caller's. Compile keeps no state:
// equal input gives equal output, and calls may run concurrently if the callbacks of opt may.
//
// A configuration that is refused returns [Errors], as many at once as can be told apart. [ErrWorkflow] and [ErrNoJobs]
// are in the chain when the configuration is valid but makes no pipeline in this context.
//
// The pipeline is the caller's; its jobs share slices, so that whoever changes one copies it first.
func Compile(file string, src []byte, opt Options) (*Pipeline, error) {
	c := &compiler{
		opt:     opt,
		report:  &report{files: []string{file}},
		context: contextLayers{predefined: newLayer(opt.Predefined), project: newLayer(opt.Project), pipeline: newLayer(opt.Pipeline)},
	}
	root := c.load(file, src)
	if root == nil {
		return nil, c.report.err()
	}
	for _, step := range []func(*node) *node{
		func(n *node) *node { return c.include(n, []string{file}) },
		c.extend,
		c.resolve,
	} {
		if root = step(root); len(c.report.errs) > 0 {
			return nil, c.report.err()
		}
		if limit := root.tooBig(); limit != "" {
			c.fail(root, "", "", "%s", limit)
			return nil, c.report.err()
		}
	}
	c.read(root)
	if len(c.report.errs) == 0 {
		c.checkNeeds()
		c.checkDependencies()
	}
	if len(c.report.errs) > 0 {
		return nil, c.report.err()
	}
	p := c.build()
	if err := c.report.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// compiler is the state of one Compile.
type compiler struct {
	opt     Options
	report  *report
	context contextLayers

	nodes    int // values written in all files
	includes int // files included
	copied   int // fields copied by merges
	produced int // what the pipeline was made of so far, see spend

	stages     []string       // .pre first, .post last
	stageIndex map[string]int // into stages
	globals    []Variable     // top-level variables
	defaults   inheritable
	workflow   workflow
	jobs       []*job
	byName     map[string]*job // as they are written
	byInstance map[string]*job // after `parallel`
	instances  []string        // the names of byInstance, in order
	targetsOf  map[targetKey][]target
	digests    map[string]string // of cache:key:files
	warnings   []string
}

func (c *compiler) warn(message string) {
	if !slices.Contains(c.warnings, message) && len(c.warnings) < maxErrors {
		c.warnings = append(c.warnings, message)
	}
}

// near is [nearest] for hints, while there is room for another error.
func (c *compiler) near(word string, candidates []string) string {
	if c.report.full() {
		return ""
	}
	return nearest(word, candidates)
}

// maxProduced bounds what a configuration may grow to: variables, needs and rules, counted for every instance of
// every job.
const maxProduced = 1_000_000

// spend counts n things that the pipeline is made of. It reports false, once with an error, when there are too many.
func (c *compiler) spend(n int) bool {
	c.produced += n
	if c.produced > maxProduced {
		c.report.add(&Error{File: c.report.files[0], Message: "the pipeline is too large: variables, needs and rules of all jobs together are more than " + fmt.Sprint(maxProduced)})
		return false
	}
	return true
}

// read reads the top level of a configuration in which includes, extends and references are written out.
func (c *compiler) read(root *node) {
	c.setStages([]string{"build", "test", "deploy"})
	if n := root.present("stages"); n != nil {
		if list, ok := c.nestedTexts(n, "stages"); ok {
			c.setStages(list)
			if len(list) == 0 {
				c.fail(n, "stages", "leave the keyword out for build, test and deploy", "there is no stage")
			}
		}
	}
	if n := root.present("variables"); n != nil {
		c.globals = c.variables(n, "variables", globalVariables)
	}
	if n := root.present("workflow"); n != nil {
		c.readWorkflow(n)
	}
	c.readDefaults(root)
	known := globalKeywords()
	for _, f := range root.fields {
		if c.report.full() {
			return
		}
		supported, keyword := known[f.key]
		switch {
		case keyword:
			if !supported && nonNull(f.value) {
				c.report.at(f.at, f.key, notSupported(f.key), unsupportedHint(f.key))
			}
		case !strings.HasPrefix(f.key, "."):
			if j := c.readJob(f); j != nil {
				c.checkStage(j, f.value)
				c.jobs = append(c.jobs, j)
			}
		}
	}
	if len(c.jobs) == 0 && len(c.report.errs) == 0 {
		c.fail(root, "", "names that begin with a dot are not jobs", "the configuration has no job")
	}
	c.indexJobs()
}

// setStages puts .pre and .post where they belong, whatever the list says.
func (c *compiler) setStages(list []string) {
	c.stages, c.stageIndex = nil, map[string]int{}
	add := func(s string) {
		if _, ok := c.stageIndex[s]; !ok {
			c.stageIndex[s] = len(c.stages)
			c.stages = append(c.stages, s)
		}
	}
	add(".pre")
	for _, s := range list {
		if s != ".post" {
			add(s)
		}
	}
	add(".post")
}

// maxJobs is how many jobs a configuration may have after `parallel`.
const maxJobs = 10_000

// indexJobs makes the instances of all jobs and their names.
func (c *compiler) indexJobs() {
	c.byName, c.byInstance = map[string]*job{}, map[string]*job{}
	for _, j := range c.jobs {
		c.byName[j.name] = j
		for _, i := range j.instances() {
			if other, taken := c.byInstance[i.name]; taken {
				c.report.at(j.at, j.path, fmt.Sprintf("the name %q is also one of the names of the job %q", i.name, other.name), "")
			}
			c.byInstance[i.name] = j
			c.instances = append(c.instances, i.name)
		}
		if len(c.byInstance) > maxJobs {
			c.report.at(j.at, j.path, fmt.Sprintf("the configuration has more than %d jobs", maxJobs), "")
			return
		}
	}
}

// instances returns what `parallel` makes of a job, or the job itself.
func (j *job) instances() []instance {
	if j.parallel != nil {
		return j.parallel
	}
	return []instance{{name: j.name}}
}
