package allocation

import (
	"time"
)

// SetRunner makes a runner known or changes it. What it has running or waiting stays with it.
func (s *Scheduler) SetRunner(now time.Time, r Runner) {
	s.tick(now)
	p := s.pool(r.Pool)
	known := s.runners[r.Name]
	if known == nil {
		known = &runner{Runner: r, pool: p}
		s.runners[r.Name] = known
		s.bind(known)
	} else {
		s.keeping = true
		moved := s.dequeueAll(known)
		s.want(known, 0)
		bound := known.GitLab != r.GitLab || known.Scope != r.Scope || known.Path != r.Path
		known.Runner, known.pool, known.retired = r, p, false
		if bound {
			s.unbind(known)
			s.bind(known)
		}
		s.keeping = false
		known.limit = s.runnerLimit(known)
		for _, j := range moved {
			s.enqueue(j)
		}
		s.want(known, known.wants)
		s.kept()
	}
	known.limit = s.runnerLimit(known)
	s.leafChanged(known)
	s.gate(known)
}

// RemoveRunner ends a runner's claiming. What it has running or waiting goes on; it is forgotten after that.
func (s *Scheduler) RemoveRunner(now time.Time, name string) {
	s.tick(now)
	r := s.runners[name]
	if r == nil {
		return
	}
	r.retired, r.wants = true, 0
	s.want(r, 0)
	s.forgetRunner(r)
}

func (s *Scheduler) forgetRunner(r *runner) {
	if r.retired && r.leases == 0 && r.waiting == 0 && s.runners[r.Name] == r {
		delete(s.runners, r.Name)
		s.unbind(r)
	}
}

func (s *Scheduler) bind(r *runner) {
	var parent *node
	switch {
	case r.Scope == GroupRunner:
		parent = s.group(r.GitLab, r.Path)
	case r.Scope == ProjectRunner && r.Path != "":
		parent = s.project(r.GitLab, Project{Path: r.Path})
	default:
		parent = s.gitlab(r.GitLab)
	}
	if old := s.nodes[nodeKey{kindRunner, r.Name}]; old != nil && old.parent != parent {
		s.forgetNode(old) // it was bound elsewhere before a restart
	}
	r.leaf = s.node(kindRunner, r.Name, parent)
	r.leaf.runner = r
}

func (s *Scheduler) unbind(r *runner) {
	delete(s.nodes, nodeKey{kindRunner, r.leaf.name})
	r.leaf.parent.below--
	r.leaf.runner = nil
}

func (s *Scheduler) runnerLimit(r *runner) int {
	limit, hard := max(r.Limit, 0), int(r.leaf.limits.hard)
	if limit == 0 || hard > 0 && hard < limit {
		return hard
	}
	return limit
}
