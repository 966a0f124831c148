// Package ciconfig turns a .gitlab-ci.yml into the jobs of a pipeline.
//
// It is pure: the only thing it asks of the outside is the text of included files, through [Options.Include]. What it
// does not know it refuses with an [Error] that names file, line and column; nothing in a configuration is ignored.
// The rules are GitLab's: lib/gitlab/ci/config, lib/gitlab/ci/yaml_processor and doc/ci/yaml in GitLab's repository.
package ciconfig

import "time"

// When says on which condition a job runs (the YAML keyword `when`).
type When string

// The values of `when` that a job of a compiled pipeline can have; `never` leaves the job out of the pipeline.
const (
	OnSuccess When = "on_success"
	OnFailure When = "on_failure"
	Always    When = "always"
	Manual    When = "manual"
	Delayed   When = "delayed"
)

// Variable is one CI/CD variable in GitLab's form.
type Variable struct {
	Key    string
	Value  string
	Public bool // false for secrets: shown nowhere
	File   bool // the job gets the path of a file that holds Value
	Masked bool // Value never shows in a trace
	Raw    bool // Value is taken as it is, `$` included
}

// Pipeline is what a configuration means in one [Options] context.
type Pipeline struct {
	Name       string     // workflow:name, expanded; empty if there is none
	Stages     []string   // those that have jobs, in order; .pre first, .post last
	Variables  []Variable // top-level `variables` and those of the matched workflow rule
	Jobs       []Job      // ordered by stage, then by their place in the file; no job with `when: never`
	Warnings   []string   // what deserves a look: GitLab's own warnings, values that YAML changes, keywords without effect
	AutoCancel AutoCancel // workflow:auto_cancel
}

// Job is one job of a pipeline after extends, default, rules and parallel are applied.
type Job struct {
	Name  string // with the suffix of `parallel`: "test 1/3", "test: [linux, amd64]"
	Group string // Name without that suffix
	Stage string

	Variables    []Variable // top-level, then job-level, then those of the matched rule; a later key replaces an earlier one
	BeforeScript []string
	Script       []string
	AfterScript  []string

	// Needs is what `needs` names, expanded over `parallel`; optional ones that are absent are dropped.
	Needs []Need
	// NeedsDeclared tells `needs: []` (run at once) from no `needs` (wait for the earlier stages).
	NeedsDeclared bool
	// Dependencies are the jobs whose artifacts this one gets, expanded over `parallel`, whether they are in the pipeline
	// or not. Nil: those of all jobs that it needs, or of the earlier stages; not nil and empty: none.
	Dependencies []string

	Image     *Image     // nil: the runner's
	Services  []Image    // nil: none
	Artifacts *Artifacts // nil: none
	Caches    []Cache    // nil: none
	// PreGetSources is hooks:pre_get_sources_script; nil: none.
	PreGetSources []string

	When         When
	StartIn      time.Duration // with Delayed
	AllowFailure bool
	// AllowFailureExitCodes: the job may fail with these exit codes only.
	AllowFailureExitCodes []int
	Retry                 *Retry // nil: GitLab's own

	Tags          []string      // sorted, unique
	Timeout       time.Duration // 0: the project's
	Interruptible bool

	NodeIndex, NodeTotal int // of `parallel`, 1-based; 0 without
}

// Need is an edge of the pipeline's graph.
type Need struct {
	Job       string // full job name
	Artifacts bool
	Optional  bool
}
