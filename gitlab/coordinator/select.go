package coordinator

import (
	"fmt"
	"slices"
	"strings"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
)

// selectJobs leaves the jobs that were asked for and what they need.
func (run *pipelineRun) selectJobs() error {
	if len(run.opts.Jobs) == 0 {
		return nil
	}
	jobs := run.def.Jobs
	byName := map[string]int{}
	for i := range jobs {
		byName[jobs[i].Name] = i
	}
	keep := make([]bool, len(jobs))
	run.namedJobs = map[string]bool{}
	var todo []int
	for _, name := range run.opts.Jobs {
		found := false
		for i := range jobs {
			if jobs[i].Name == name || jobs[i].Group == name {
				found, keep[i] = true, true
				run.namedJobs[jobs[i].Name] = true
				todo = append(todo, i)
			}
		}
		if !found {
			return fmt.Errorf("there is no job %q in this pipeline; its jobs are: %s", name, strings.Join(run.jobNames(), ", "))
		}
	}
	for len(todo) > 0 {
		i := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		before := slices.Clone(jobs[i].Dependencies)
		for _, n := range jobs[i].Needs {
			before = append(before, n.Job)
		}
		for _, name := range before {
			if at, ok := byName[name]; ok && !keep[at] {
				keep[at] = true
				todo = append(todo, at)
			}
		}
	}
	def := *run.def
	def.Jobs, def.Stages = nil, nil
	for i := range jobs {
		if keep[i] {
			def.Jobs = append(def.Jobs, jobs[i])
		}
	}
	for _, s := range run.def.Stages {
		if slices.ContainsFunc(def.Jobs, func(j ciconfig.Job) bool { return j.Stage == s }) {
			def.Stages = append(def.Stages, s)
		}
	}
	run.def = &def
	return nil
}

func (run *pipelineRun) jobNames() []string {
	var names []string
	for i := range run.def.Jobs {
		names = append(names, run.def.Jobs[i].Name)
	}
	return names
}
