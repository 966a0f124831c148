package allocation

import (
	"slices"
	"strings"
	"time"
)

// NodeStatus is what is to be said of a node of the tree.
type NodeStatus struct {
	Name    string // see NodeName; "" is the whole fleet
	Kind    string // fleet, GitLab, group, project or runner
	Running int    // slots, claims under way included
	Waiting int    // jobs
	Weight  float64
	// Share is the part of the fleet that the node is entitled to now: its weight among the siblings that run or wait, times
	// the same of every node above it. 0 if nothing of it runs or waits, or if nothing runs and it or a node above is paused.
	Share           float64
	Min, Soft, Hard int // slots; 0: none
	Paused          bool
}

// Status returns the nodes that something runs or waits below, and those that the policy has a rule for, ordered by kind
// and name. Runners are not counted as siblings: their shares are those of the nodes that they are bound to.
func (s *Scheduler) Status(now time.Time) []NodeStatus {
	s.tick(now)
	waiting := make(map[*node]int)
	for _, j := range s.jobs {
		if j.state != running {
			for n := j.project; n != nil; n = n.parent {
				waiting[n]++
			}
			waiting[j.runner.leaf]++
		}
	}
	active := func(n *node) bool { return n.running > 0 || waiting[n] > 0 }
	entitled := func(n *node) bool { return n.running > 0 || waiting[n] > 0 && !n.limits.paused }
	weights := make(map[*node]int64) // of the children that are entitled to something
	for _, n := range s.nodes {
		if n.parent != nil && n.kind != kindRunner && entitled(n) {
			weights[n.parent] += n.limits.weight
		}
	}
	var list []NodeStatus
	for _, n := range s.nodes {
		if _, ruled := s.policy.Nodes[n.name]; !active(n) && !ruled && (n.kind != kindRunner || n.runner == nil) {
			continue
		}
		st := NodeStatus{
			Name: n.name, Kind: n.kind.String(), Running: int(n.running), Waiting: waiting[n],
			Weight: float64(n.limits.weight) / 1000, Min: int(n.limits.min), Soft: int(n.limits.soft), Hard: int(n.limits.hard),
			Paused: n.limits.paused,
		}
		if active(n) && n.kind != kindRunner {
			st.Share = 1
			for at := n; at.parent != nil; at = at.parent {
				if !entitled(at) {
					st.Share = 0
					break
				}
				st.Share *= float64(at.limits.weight) / float64(weights[at.parent])
			}
		}
		list = append(list, st)
	}
	order := func(kind string) int { return slices.Index(kinds[:], kind) }
	slices.SortFunc(list, func(a, b NodeStatus) int {
		if a.Kind != b.Kind {
			return order(a.Kind) - order(b.Kind)
		}
		return strings.Compare(a.Name, b.Name)
	})
	return list
}
