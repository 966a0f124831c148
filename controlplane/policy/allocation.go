package policy

import (
	"slices"
	"strings"

	"github.com/switchyard-ci/switchyard/controlplane/allocation"
)

// Allocation is the policy as package allocation takes it. gitlabs are the addresses of all GitLabs: a node that names
// none is meant on each; what is said of a node by its GitLab's address wins.
func (p *Policy) Allocation(gitlabs []string) allocation.Policy {
	mode, _ := allocation.ParseMode(string(p.Mode))
	a := allocation.Policy{
		Mode: mode, FirstGuess: p.FirstGuess, CreditCap: p.Credit, HalfLife: p.HalfLife, Ageing: p.Ageing,
		ClassPatience: p.ClassPatience, Nodes: make(map[string]allocation.Rule), Runners: make(map[string]allocation.Rule),
	}
	a.Defaults.Project, a.Defaults.Group = p.Projects.rule(), p.Groups.rule()
	for _, n := range p.Nodes {
		if n.GitLab == "" {
			for _, url := range gitlabs {
				a.Nodes[allocation.NodeName(url, n.Path)] = n.rule()
			}
		}
	}
	for _, n := range p.Nodes {
		if n.GitLab != "" {
			a.Nodes[allocation.NodeName(n.GitLab, n.Path)] = n.rule()
		}
	}
	for _, r := range p.Runners {
		a.Runners[r.Name] = r.rule()
	}
	return a
}

func (s Share) rule() allocation.Rule {
	return allocation.Rule{Weight: float64(s.Weight), Min: s.Guaranteed, Soft: s.Soft, Hard: s.Hard, Paused: s.Paused}
}

// Class returns the number by which package allocation knows a class: the greater goes first. A class that needs a grant
// counts as ClassNormal for a project that has none, which granted says.
func (p *Policy) Class(name, gitlab, project string) (class int, granted bool) {
	if p.NeedsGrant(name) && !p.grants(name, gitlab, project) {
		return p.number(ClassNormal), false
	}
	return p.number(name), true
}

func (p *Policy) number(class string) int {
	i := slices.Index(p.Classes, class)
	if i < 0 {
		i = slices.Index(p.Classes, ClassNormal)
	}
	return len(p.Classes) - 1 - i
}

// grants says whether a node above a project, or the project itself, grants it a class.
func (p *Policy) grants(class, gitlab, project string) bool {
	gitlab, project = strings.TrimRight(gitlab, "/"), strings.ToLower(project)
	for _, n := range p.granting[class] {
		if (n.GitLab == "" || n.GitLab == gitlab) && within(project, n.Path) {
			return true
		}
	}
	return false
}

func within(project, node string) bool {
	return node == "" || project == node || strings.HasPrefix(project, node+"/")
}
