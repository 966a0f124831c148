package placement

import "container/list"

const (
	// maxWarmProjects is how many projects are remembered; those that were not built for longest are forgotten.
	maxWarmProjects = 100000
	// maxWarmAgents is how many agents are remembered for a project.
	maxWarmAgents = 4
)

// Project names a project of a GitLab.
type Project struct {
	GitLab string // address
	ID     int64
}

// Warmth remembers which agents have built which projects, and so have their working copies and caches. It is a hint:
// what it has forgotten costs time and nothing else. The zero value is empty. It is not safe for concurrent use.
type Warmth struct {
	projects map[Project]*list.Element // of *warm
	recent   list.List                 // the one built last in front
}

type warm struct {
	project Project
	agents  []string // the last in front
}

// Built notes that an agent was given a job of a project.
func (w *Warmth) Built(p Project, agent string) {
	if w.projects == nil {
		w.projects = make(map[Project]*list.Element)
	}
	at := w.projects[p]
	if at == nil {
		if w.recent.Len() >= maxWarmProjects {
			oldest := w.recent.Back()
			delete(w.projects, oldest.Value.(*warm).project)
			w.recent.Remove(oldest)
		}
		w.projects[p] = w.recent.PushFront(&warm{project: p, agents: []string{agent}})
		return
	}
	w.recent.MoveToFront(at)
	k := at.Value.(*warm)
	if k.agents[0] == agent {
		return
	}
	agents := make([]string, 1, maxWarmAgents) // callers may still hold the old one
	agents[0] = agent
	for _, a := range k.agents {
		if a != agent && len(agents) < maxWarmAgents {
			agents = append(agents, a)
		}
	}
	k.agents = agents
}

// Agents returns the agents that built a project, the last one first; at most four. The slice must not be changed.
func (w *Warmth) Agents(p Project) []string {
	if at := w.projects[p]; at != nil {
		return at.Value.(*warm).agents
	}
	return nil
}
