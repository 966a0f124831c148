package simulation

import (
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/controlplane/policy"
	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// MaxSize is the longest text of a scenario, in bytes.
const MaxSize = 1 << 20

// Limits of a scenario, so that a mistake in a file does not take the machine's memory.
const (
	maxSlots    = 100_000
	maxLoads    = 10_000
	maxProjects = 10_000
	maxSeeds    = 1_000
	maxJobs     = 5_000_000
	longest     = 10 * 365 * 24 * time.Hour
	shortest    = time.Millisecond
)

// standardGitLab is a scenario's GitLab where it names none.
const standardGitLab = "https://gitlab.example.com"

// reading is one text on its way to a Scenario.
type reading struct {
	*yamlform.Reader
	s Scenario

	projects int
	jobs     float64
	loads    map[loadName]string // where each stands
	backlogs map[string]string   // by project
}

// loadName names one load of a project.
type loadName struct{ project, job string }

// Read reads a scenario. name is what the text is called in messages. Its policy has the form of a policy that is applied
// to a control plane (package policy). The error is yamlform.Problems: all mistakes, each with its place. Warnings come
// with a scenario and with an error alike.
func Read(name string, text []byte) (Scenario, []yamlform.Problem, error) {
	if len(text) > MaxSize {
		return Scenario{}, nil, yamlform.Problems{{File: name, Message: "it has more than 1024 KiB", Hint: "use count for projects that are alike"}}
	}
	form, root, err := yamlform.Parse(name, text)
	if err != nil {
		return Scenario{}, nil, err
	}
	r := &reading{
		Reader: form, loads: make(map[loadName]string), backlogs: make(map[string]string),
		s: Scenario{GitLab: standardGitLab, Seeds: 1, Policy: policy.Default()},
	}
	r.scenario(root)
	return r.s, r.Warnings(), r.Err()
}

func (r *reading) scenario(root *yaml.Node) {
	s := &r.s
	var projects *yaml.Node
	if !r.Mapping(root, "", yamlform.Fields{
		"name":        func(n *yaml.Node, at string) { s.Name, _ = r.Text(n, at) },
		"description": func(n *yaml.Node, at string) { s.Description, _ = r.Text(n, at) },
		"gitlab": func(n *yaml.Node, at string) {
			if text, ok := r.Text(n, at); ok {
				s.GitLab = strings.TrimRight(text, "/")
			}
		},
		"slots":    r.number(&s.Slots, 1, maxSlots),
		"duration": r.duration(&s.Duration, shortest),
		"seed": func(n *yaml.Node, at string) {
			if v, ok := r.Number(n, at, 0, 1<<62, ""); ok {
				s.Seed = uint64(v) //nolint:gosec // not below 0
			}
		},
		"seeds":    r.number(&s.Seeds, 1, maxSeeds),
		"policy":   func(n *yaml.Node, at string) { s.Policy = policy.Read(r.Reader, n, at) },
		"projects": func(n *yaml.Node, _ string) { projects = n },
	}) {
		return
	}
	r.require(root, "", "slots", "say how many there are")
	r.require(root, "", "duration", "say how long to play, for example 24h")
	if projects == nil || len(yamlform.Resolve(projects).Content) == 0 {
		r.Problem(root, "projects", "there are none", "write at least one with its path and load")
		return
	}
	r.List(projects, "projects", maxLoads, r.project)
	if r.projects > maxProjects {
		r.Problem(projects, "projects", fmt.Sprintf("are %d: at most %d can be played", r.projects, maxProjects), "")
	}
	if r.jobs > maxJobs {
		r.Problem(projects, "projects", fmt.Sprintf("have %.0f jobs: at most %d can be played", r.jobs, maxJobs), "play for a shorter time")
	}
}

func (r *reading) number(to *int, lowest, highest int64) func(*yaml.Node, string) {
	return func(n *yaml.Node, at string) {
		if v, ok := r.Number(n, at, lowest, highest, ""); ok {
			*to = int(v)
		}
	}
}

func (r *reading) duration(to *time.Duration, shortest time.Duration) func(*yaml.Node, string) {
	return func(n *yaml.Node, at string) { *to = r.Duration(n, at, shortest, longest) }
}

func (r *reading) text(to *string) func(*yaml.Node, string) {
	return func(n *yaml.Node, at string) { *to, _ = r.Text(n, at) }
}

// require complains if a mapping does not have a key.
func (r *reading) require(n *yaml.Node, path, key, hint string) {
	if yamlform.Value(n, key) == nil {
		r.Problem(n, strings.TrimPrefix(path+"."+key, "."), "is missing", hint)
	}
}

func (r *reading) project(n *yaml.Node, path string) {
	var p Project
	if !r.Mapping(n, path, yamlform.Fields{
		"path":    func(n *yaml.Node, at string) { p.Path = r.path(n, at) },
		"count":   r.number(&p.Count, 1, maxProjects),
		"backlog": func(n *yaml.Node, at string) { p.Backlog = r.Boolean(n, at) },
		"jobs":    r.number(&p.Jobs, 1, maxJobs),
		"every":   r.duration(&p.Every, shortest),
		"start":   r.duration(&p.Start, 0),
		"stop":    r.duration(&p.Stop, shortest),
		"length":  r.duration(&p.Length, shortest),
		"fixed":   func(n *yaml.Node, at string) { p.Fixed = r.Boolean(n, at) },

		"name":        r.text(&p.Facts.Job),
		"stage":       r.text(&p.Facts.Stage),
		"ref":         r.text(&p.Facts.Ref),
		"tag":         r.text(&p.Facts.Tag),
		"protected":   func(n *yaml.Node, at string) { p.Facts.Protected = r.Boolean(n, at) },
		"environment": r.text(&p.Facts.Environment),
		"source":      r.text(&p.Facts.Source),
		"user":        r.text(&p.Facts.User),
		"runner":      r.text(&p.Facts.Runner),
	}) {
		return
	}
	r.require(n, path, "path", "write it as group/project")
	r.require(n, path, "length", "say how long its jobs last, for example 5m")
	given := 0
	for _, key := range []string{"backlog", "jobs", "every"} {
		if yamlform.Value(n, key) != nil {
			given++
		}
	}
	switch {
	case given > 1:
		r.Problem(n, path, "says twice how many jobs come", "write one of backlog: true, jobs: N and every: TIME; a project may have several entries with different names")
	case given == 0, yamlform.Value(n, "backlog") != nil && !p.Backlog:
		r.Problem(n, path, "does not say how many jobs come", "write one of backlog: true, jobs: N and every: TIME")
	case p.Stop > 0 && p.Stop <= p.Start:
		r.Problem(n, path, fmt.Sprintf("stop (%s) is not after start (%s)", p.Stop, p.Start), "")
	case r.s.Duration > 0 && p.Start >= r.s.Duration:
		r.Problem(n, path, fmt.Sprintf("start (%s) is not before the end (duration: %s)", p.Start, r.s.Duration), "")
	case p.Facts.Tag != "" && p.Facts.Ref != "":
		r.Problem(n, path, "has a ref and a tag", "a pipeline is of one of them")
	}
	if p.Facts.Tag != "" {
		p.Facts.Ref = p.Facts.Tag
	}
	r.projects += max(p.Count, 1)
	perProject := float64(p.Jobs)
	if p.Every > 0 {
		perProject = float64(r.s.Duration) / float64(p.Every)
	}
	r.jobs += perProject * float64(max(p.Count, 1))
	if p.Path != "" && r.projects <= maxProjects {
		r.alone(n, path, &p)
	}
	r.s.Projects = append(r.s.Projects, p)
}

// alone complains if the same jobs, or another backlog of the same project, stand in the scenario already.
func (r *reading) alone(n *yaml.Node, path string, p *Project) {
	for _, project := range p.paths() {
		project = strings.ToLower(project)
		key := loadName{project, p.Facts.Job}
		if first, again := r.loads[key]; again {
			r.Problem(n, path, fmt.Sprintf("is of the project %s, like %s", project, first), "give the jobs of the two different names (its key name), or put them together")
			return
		}
		r.loads[key] = path
		if first, again := r.backlogs[project]; again && p.Backlog {
			r.Problem(n, path, fmt.Sprintf("is a backlog of the project %s, which has one already: %s", project, first), "")
			return
		}
		if p.Backlog {
			r.backlogs[project] = path
		}
	}
}

func (r *reading) path(n *yaml.Node, at string) string {
	text, ok := r.Text(n, at)
	if ok && (strings.Trim(text, "/") != text || strings.Contains(text, "//")) {
		r.Problem(n, at, yamlform.Quoted(text)+" is no path of a project", "write it as group/project, without / at the ends")
		return ""
	}
	return text
}
