// Package simulation plays a scenario with the very code that decides in a running control plane: who would get how much
// of which slots, and who would wait for how long. It is pure: the same scenario gives the same report, everywhere.
package simulation

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/controlplane/allocation"
)

// Scenario is a fleet with its load. Times are as Go writes them: 90s, 5m, 24h.
type Scenario struct {
	Name        string        `yaml:"name"`
	Description string        `yaml:"description"`
	Slots       int           `yaml:"slots"`
	Duration    time.Duration `yaml:"duration"` // how long it is played
	Seed        uint64        `yaml:"seed"`     // of the lengths and arrivals; the same numbers under each policy
	Seeds       int           `yaml:"seeds"`    // how many times it is played, with other lengths each time; 0 means 1
	Policy      Policy        `yaml:"policy"`
	Projects    []Project     `yaml:"projects"`
}

// Policy is what the administrator decides; see allocation.Policy. A zero field is the default.
type Policy struct {
	Mode          string          `yaml:"mode"` // fair, gitlab, fifo
	FirstGuess    time.Duration   `yaml:"first_guess"`
	CreditCap     time.Duration   `yaml:"credit_cap"`
	HalfLife      time.Duration   `yaml:"half_life"`
	Ageing        time.Duration   `yaml:"ageing"`
	ClassPatience time.Duration   `yaml:"class_patience"`
	Nodes         map[string]Rule `yaml:"nodes"` // by the path of a group or project; "" is the whole GitLab
}

// Rule is what holds for one group or project; see allocation.Rule.
type Rule struct {
	Weight float64 `yaml:"weight"`
	Min    int     `yaml:"min"`
	Soft   int     `yaml:"soft"`
	Hard   int     `yaml:"hard"`
	Paused bool    `yaml:"paused"`
}

// Project is one project's load.
type Project struct {
	Path     string        `yaml:"path"`  // group/subgroup/project
	Count    int           `yaml:"count"` // so many such projects: path-1, path-2, …; 0 means one with this very path
	Backlog  bool          `yaml:"backlog"`
	Jobs     int           `yaml:"jobs"`     // all at Start
	Every    time.Duration `yaml:"every"`    // the mean time between two jobs, from Start on (a Poisson process)
	Start    time.Duration `yaml:"start"`    // when its first job comes
	Stop     time.Duration `yaml:"stop"`     // when its last one may come; 0: the end
	Length   time.Duration `yaml:"length"`   // of a job; the mean, if it varies
	Fixed    bool          `yaml:"fixed"`    // all jobs are of that length; otherwise it is exponential, at most 5 times the mean
	Priority int           `yaml:"priority"` // see allocation.Job
	Class    int           `yaml:"class"`
}

// Limits of a scenario, so that a mistake in a file does not take the machine's memory.
const (
	maxSlots    = 100_000
	maxProjects = 10_000
	maxSeeds    = 1_000
	maxJobs     = 5_000_000
)

// Read reads a scenario and says everything that is wrong with it.
func Read(r io.Reader) (Scenario, error) {
	var s Scenario
	raw, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err != nil {
		return s, fmt.Errorf("read the scenario: %w", err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&s); err != nil {
		return s, fmt.Errorf("read the scenario: %w", err)
	}
	return s, s.check()
}

func (s *Scenario) check() error {
	var wrong []error
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	if s.Slots < 1 || s.Slots > maxSlots {
		complain("slots: %d: write a number from 1 to %d", s.Slots, maxSlots)
	}
	if s.Duration <= 0 {
		complain("duration: %v: write how long to play, for example 24h", s.Duration)
	}
	if s.Seeds < 0 || s.Seeds > maxSeeds {
		complain("seeds: %d: write a number from 1 to %d", s.Seeds, maxSeeds)
	}
	if _, ok := allocation.ParseMode(s.Policy.Mode); !ok && s.Policy.Mode != "" {
		complain("policy.mode: %q: write fair, gitlab or fifo", s.Policy.Mode)
	}
	for path, rule := range s.Policy.Nodes {
		if rule.Weight < 0 || rule.Min < 0 || rule.Soft < 0 || rule.Hard < 0 {
			complain("policy.nodes.%s: no number may be below 0", path)
		}
	}
	projects, jobs, seen := 0, 0.0, make(map[string]bool)
	if len(s.Projects) == 0 {
		complain("projects: there are none: write at least one with its path and load")
	}
	for i, p := range s.Projects {
		at := fmt.Sprintf("projects[%d] (%s)", i, p.Path)
		switch {
		case strings.Trim(p.Path, "/") != p.Path || p.Path == "":
			complain("%s.path: write it as group/project, without / at the ends", at)
		case seen[p.Path]:
			complain("%s.path: there is one with this path already", at)
		}
		seen[p.Path] = true
		if p.Length <= 0 {
			complain("%s.length: %v: write how long its jobs last, for example 5m", at, p.Length)
		}
		if p.Count < 0 || p.Jobs < 0 || p.Every < 0 || p.Start < 0 || p.Stop < 0 || p.Class < 0 || p.Class > allocation.MaxClass {
			complain("%s: no number may be below 0, and class is at most %d", at, allocation.MaxClass)
		}
		if loads := count(p.Backlog, p.Jobs > 0, p.Every > 0); loads != 1 {
			complain("%s: write one of backlog: true, jobs: N and every: TIME", at)
		}
		projects += max(p.Count, 1)
		perProject := float64(p.Jobs)
		if p.Every > 0 {
			perProject = float64(s.Duration) / float64(p.Every)
		}
		jobs += perProject * float64(max(p.Count, 1))
	}
	if projects > maxProjects {
		complain("projects: %d of them: %d are allowed", projects, maxProjects)
	}
	if jobs > maxJobs {
		complain("projects: they have %.0f jobs: %d are allowed", jobs, maxJobs)
	}
	if len(wrong) > 0 {
		return fmt.Errorf("the scenario is wrong: %w", errors.Join(wrong...))
	}
	return nil
}

func count(flags ...bool) (n int) {
	for _, f := range flags {
		if f {
			n++
		}
	}
	return n
}

const gitlabURL = "https://gitlab.example.com"

// policy is the scenario's as allocation has it.
func (s *Scenario) policy() allocation.Policy {
	mode, _ := allocation.ParseMode(s.Policy.Mode)
	p := allocation.Policy{
		Mode: mode, FirstGuess: s.Policy.FirstGuess, CreditCap: s.Policy.CreditCap, HalfLife: s.Policy.HalfLife,
		Ageing: s.Policy.Ageing, ClassPatience: s.Policy.ClassPatience, Nodes: make(map[string]allocation.Rule, len(s.Policy.Nodes)),
	}
	for path, r := range s.Policy.Nodes {
		p.Nodes[allocation.NodeName(gitlabURL, path)] = allocation.Rule(r)
	}
	return p
}
