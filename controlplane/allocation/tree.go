package allocation

import (
	"strconv"
	"strings"
)

type kind uint8

const (
	kindFleet kind = iota
	kindGitLab
	kindGroup
	kindProject
	kindRunner
)

var kinds = [...]string{"fleet", "GitLab", "group", "project", "runner"}

func (k kind) String() string { return kinds[k] }

// A node is a place in the tree: the fleet, a GitLab, a group, a project, or a runner below the node that it is bound to.
type node struct {
	kind    kind
	name    string // NodeName, or a runner's name
	gitlab  string // of a project
	id      int64  // of a project; 0 while unknown
	parent  *node  // nil: the fleet
	depth   int
	below   int // nodes whose parent it is
	runner  *runner
	limits  limits
	lengths lengths // of projects and runners

	running  int32       // leases, in all domains
	instance int32       // of them those of jobs of instance runners
	waiting  int32       // jobs that are known and do not run
	charged  int64       // slot-µs
	seen     int64       // when something last happened to it, µs
	accounts []account   // by domain
	at       []*standing // by band
}

type nodeKey struct {
	kind kind
	name string
}

type projectKey struct {
	gitlab string
	id     int64
}

// blocked says whether what waits below may not be served now.
func (n *node) blocked() bool {
	if n.limits.paused || n.limits.hard > 0 && n.running >= n.limits.hard {
		return true
	}
	r := n.runner
	return r != nil && (r.retired || r.limit > 0 && int(n.running)+r.waiting >= r.limit)
}

func (n *node) class() int8 {
	switch {
	case n.running < n.limits.min:
		return 0
	case n.limits.soft > 0 && n.running >= n.limits.soft:
		return 2
	}
	return 1
}

// standing is a node's part in one band: what waits below it there, and where it stands among its siblings.
type standing struct {
	node  *node
	band  *band
	up    *standing  // the parent's
	ranks [2]ranking // the children, by contest
	jobs  jobHeap    // of a project
	wants int        // claims, of a runner
	pos   [2]int32   // in the parent's rankings
	key   key
}

const absent = -1

func (st *standing) present() bool { return st.pos[byShare] != absent }

func (st *standing) work() bool {
	return len(st.jobs) > 0 || st.wants > 0 || len(st.ranks[byShare].items) > 0
}

// standing returns the node's part in a band, making it at the first call.
func (n *node) standing(b *band) *standing {
	if st := n.in(b); st != nil {
		return st
	}
	for len(n.at) <= b.index {
		n.at = append(n.at, nil)
	}
	st := &standing{node: n, band: b, pos: [2]int32{absent, absent}}
	if n.parent != nil {
		st.up = n.parent.standing(b)
	}
	n.at[b.index] = st
	return st
}

func (n *node) in(b *band) *standing {
	if b.index < len(n.at) {
		return n.at[b.index]
	}
	return nil
}

func (n *node) account(domain int) *account {
	for len(n.accounts) <= domain {
		n.accounts = append(n.accounts, account{})
	}
	return &n.accounts[domain]
}

// node returns the node with this name, making it at the first call.
func (s *Scheduler) node(k kind, name string, parent *node) *node {
	nk := nodeKey{k, name}
	if n := s.nodes[nk]; n != nil {
		return n
	}
	n := &node{kind: k, name: name, parent: parent, limits: s.policy.limits(k, name)}
	if parent != nil {
		n.depth = parent.depth + 1
		parent.below++
	}
	s.nodes[nk] = n
	return n
}

func (s *Scheduler) gitlab(url string) *node { return s.node(kindGitLab, NodeName(url, ""), s.root) }

// group returns the node of a namespace, with those above it.
func (s *Scheduler) group(gitlab, path string) *node {
	path = strings.Trim(path, "/")
	if path == "" {
		return s.gitlab(gitlab)
	}
	if n := s.nodes[nodeKey{kindGroup, NodeName(gitlab, path)}]; n != nil {
		return n
	}
	above, _ := cutLast(path)
	return s.node(kindGroup, NodeName(gitlab, path), s.group(gitlab, above))
}

// project returns the node of a project. The id is what a project is known by: one whose path has changed gets a new
// node below its new group, with what was learned of it, and what still runs or waits stays charged to the old one.
func (s *Scheduler) project(gitlab string, p Project) *node {
	pk := projectKey{gitlab, p.ID}
	old := s.projects[pk]
	if old != nil && (p.Path == "" || s.isAt(old, gitlab, p.Path)) {
		return old
	}
	path := strings.Trim(p.Path, "/")
	if path == "" {
		path = "project-" + strconv.FormatInt(p.ID, 10)
	}
	above, _ := cutLast(path)
	n := s.node(kindProject, NodeName(gitlab, path), s.group(gitlab, above))
	if p.ID == 0 {
		return n
	}
	if n.id != p.ID && old != nil {
		n.lengths = old.lengths.clone()
	}
	n.gitlab, n.id = gitlab, p.ID
	s.projects[pk] = n
	return n
}

// isAt says whether the node is the project at this path, without making a string.
func (s *Scheduler) isAt(n *node, gitlab, path string) bool {
	return n.gitlab == gitlab && len(n.name) > len(path) && strings.HasSuffix(n.name, path) &&
		n.name[len(n.name)-len(path)-1] == '/' && len(n.name)-len(path)-1 == len(strings.TrimRight(gitlab, "/"))
}

func cutLast(path string) (above, last string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

// idle says whether nothing waits, runs or depends on a node.
func (n *node) idle() bool {
	if n.running > 0 || n.below > 0 || n.runner != nil || n.parent == nil || n.waiting > 0 {
		return false
	}
	return true
}

// meeting returns the lowest node that is above or equal to both.
func meeting(a, b *node) *node {
	for a != b {
		if a.depth >= b.depth {
			a = a.parent
		} else {
			b = b.parent
		}
	}
	return a
}
