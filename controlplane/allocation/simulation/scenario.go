// Package simulation plays a scenario with the very code that decides in a running control plane: who would get how much
// of which slots, and who would wait for how long. It is pure: the same scenario gives the same report, everywhere.
package simulation

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/allocation"
	"github.com/switchyard-ci/switchyard/controlplane/policy"
)

// Scenario is a fleet with its load; see Read.
type Scenario struct {
	Name, Description string
	GitLab            string // address, which nodes of the policy may name
	Slots             int
	Duration          time.Duration // how long it is played
	Seed              uint64        // of the lengths and arrivals; the same numbers under each policy
	Seeds             int           // how many times it is played, with other lengths each time; at least 1
	Policy            *policy.Policy
	Projects          []Project
}

// Project is the load of one project, or of some that are alike. A project may have several loads: of jobs with other
// names.
type Project struct {
	Path    string        // group/subgroup/project
	Count   int           // so many such projects: path-1, path-2, …; 0 means one with this very path
	Backlog bool          // there are always jobs that wait
	Jobs    int           // all at Start
	Every   time.Duration // the mean time between two jobs, from Start on (a Poisson process)
	Start   time.Duration // when its first job comes
	Stop    time.Duration // when its last one may come; 0: the end
	Length  time.Duration // of a job; the mean, if it varies
	Fixed   bool          // all jobs are of that length; otherwise it is exponential, at most 5 times the mean

	// Facts are what rules of the policy see of its jobs. GitLab and Project are filled in.
	Facts policy.Facts
}

// paths are the paths of the load's projects.
func (p *Project) paths() []string {
	if p.Count == 0 {
		return []string{p.Path}
	}
	all := make([]string, 0, p.Count)
	for n := range p.Count {
		all = append(all, fmt.Sprintf("%s-%d", p.Path, n+1))
	}
	return all
}

// Unplayed says, a sentence each, what of its policy a scenario cannot show.
func (s *Scenario) Unplayed() []string {
	var all []string
	for _, n := range s.Policy.Nodes {
		if n.GitLab != "" && n.GitLab != s.GitLab {
			all = append(all, fmt.Sprintf("what the policy says of nodes of %s is not played: the scenario's GitLab is %s (its key gitlab)", n.GitLab, s.GitLab))
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	if len(s.Policy.Runners) > 0 {
		all = append(all, "what the policy says of runners is not played: a scenario's jobs are claimed as soon as they come")
	}
	return all
}

// allocation is the policy as package allocation has it.
func (s *Scenario) allocation() allocation.Policy {
	p := s.Policy.Allocation([]string{s.GitLab})
	p.Runners = nil
	return p
}

// rule is what holds for a project, a group or, without a path, the GitLab.
func rule(p *allocation.Policy, gitlab, path string, project bool) allocation.Rule {
	own, standard := p.Nodes[allocation.NodeName(gitlab, path)], p.Defaults.Group
	switch {
	case path == "":
		standard = p.Defaults.GitLab
	case project:
		standard = p.Defaults.Project
	}
	return allocation.Rule{
		Weight: cmp.Or(own.Weight, standard.Weight, 1), Min: max(cmp.Or(own.Min, standard.Min), 0),
		Soft: max(cmp.Or(own.Soft, standard.Soft), 0), Hard: max(cmp.Or(own.Hard, standard.Hard), 0), Paused: own.Paused || standard.Paused,
	}
}
