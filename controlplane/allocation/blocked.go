package allocation

import "time"

// Block is why nothing below a node is served now, whatever is free.
type Block struct {
	Node           string // its name
	Paused         bool
	Running, Limit int // of its hard quota, if it is not paused
}

// Blocked says whether the next job of a project would have to wait although there were free slots: the project or a node
// above it is paused or has all the slots of its hard quota. Of several it is the one nearest to the project.
func (s *Scheduler) Blocked(now time.Time, gitlab string, p Project) (Block, bool) {
	s.tick(now)
	for n := s.project(gitlab, p); n != nil; n = n.parent {
		if n.limits.paused || n.limits.hard > 0 && n.running >= n.limits.hard {
			return Block{n.name, n.limits.paused, int(n.running), int(n.limits.hard)}, true
		}
	}
	return Block{}, false
}
