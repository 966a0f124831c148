package allocation

import (
	"cmp"
	"slices"
	"time"
)

// Usage is what a node has and is allowed.
type Usage struct {
	Kind    string // fleet, GitLab, group, project or runner
	Name    string // NodeName, or the runner's
	GitLab  string // of a project that has had a job
	Project int64  // its id

	Running   int           // leases now, claims under way included
	Waiting   int           // jobs of a project that are known and do not run
	SlotTime  time.Duration // that it has used since it is known, up to now, weighed with the jobs' factors
	JobLength time.Duration // what a job of a project or runner is expected to take; 0: nothing is known
	Weight    float64
	Min       int
	Soft      int // 0: none
	Hard      int // 0: none
	Paused    bool
	Due       float64 // slots: its part by weight of what its parent has now, among the siblings that run or wait
}

// Usage returns the usage of all nodes that are known, parents before children, then by name. It costs O(nodes and
// leases). SlotTime only grows, except that a node is forgotten when it has been idle for long (Snapshot): so the use in
// a span of time is the difference of two calls.
func (s *Scheduler) Usage(now time.Time) []Usage {
	s.tick(now)
	open := make(map[*node]int64) // what is charged for leases beyond what they have used up to now
	active := make(map[*node]int64)
	for _, j := range s.jobs {
		if j.state == running {
			rest := scale(s.now-j.lease.start, j.lease.factor) - j.lease.cost
			for n, end := j.lease.leaf, meeting(j.project, j.lease.leaf); n != end; n = n.parent {
				open[n] += rest
			}
			for n := j.project; n != nil; n = n.parent {
				open[n] += rest
			}
		}
	}
	for _, r := range s.runners {
		for _, l := range r.claims {
			for n := l.leaf; n != nil; n = n.parent {
				open[n] += s.now - l.start - l.cost
			}
		}
	}
	nodes := make([]*node, 0, len(s.nodes))
	for _, n := range s.nodes {
		nodes = append(nodes, n)
		if n.parent != nil && n.active() {
			active[n.parent] += n.limits.weight
		}
	}
	slices.SortFunc(nodes, func(a, b *node) int {
		return cmp.Or(cmp.Compare(a.depth, b.depth), cmp.Compare(a.name, b.name), cmp.Compare(a.kind, b.kind))
	})
	all := make([]Usage, 0, len(nodes))
	for _, n := range nodes {
		u := Usage{
			Kind: n.kind.String(), Name: n.name, GitLab: n.gitlab, Project: n.id, Running: int(n.running), Waiting: int(n.waiting),
			SlotTime:  time.Duration(n.charged+open[n]) * time.Microsecond,
			JobLength: time.Duration(n.lengths.mean) * time.Microsecond,
			Weight:    float64(n.limits.weight) / 1000, Min: int(n.limits.min), Soft: int(n.limits.soft), Hard: int(n.limits.hard),
			Paused: n.limits.paused,
		}
		if n.parent != nil && n.active() {
			u.Due = float64(n.parent.running) * float64(n.limits.weight) / float64(active[n.parent])
		}
		all = append(all, u)
	}
	return all
}

// active says whether a node has a part in what its parent has.
func (n *node) active() bool {
	if n.kind == kindRunner { // what a runner's jobs use is their projects'
		return false
	}
	if n.running > 0 || n.waiting > 0 {
		return true
	}
	for d := range n.accounts {
		if n.accounts[d].standing > 0 || n.accounts[d].parked > 0 {
			return true
		}
	}
	return false
}
