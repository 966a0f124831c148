package allocation

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// brute decides without heaps and without counters: it looks at every job, runner and lease each time. Only what was
// charged (account.finish) is taken from the scheduler.
type brute struct{ s *Scheduler }

// candidate is somebody who waits, for nothing but its turn or a quota.
type candidate struct {
	leaf *node
	job  *job // nil: a claim
	rank int
	pool *pool
}

// running counts the leases that are charged to a node.
func (b brute) running(n *node, domain int) int {
	count := 0
	charged := func(chains ...*node) bool {
		for _, c := range chains {
			for ; c != nil; c = c.parent {
				if c == n {
					return true
				}
			}
		}
		return false
	}
	for _, j := range b.s.jobs {
		if j.state == running && (domain < 0 || j.lease.domain == domain) && charged(j.project, j.lease.leaf) {
			count++
		}
	}
	for _, r := range b.s.runners {
		for _, l := range r.claims {
			if (domain < 0 || l.domain == domain) && charged(l.leaf) {
				count++
			}
		}
	}
	return count
}

func (b brute) leases(r *runner) int {
	count := len(r.claims)
	for _, j := range b.s.jobs {
		if j.runner == r && j.state == running {
			count++
		}
	}
	return count
}

func (b brute) waiting(r *runner) int {
	count := 0
	for _, j := range b.s.jobs {
		if j.runner == r && j.state != running {
			count++
		}
	}
	return count
}

// stopped says whether a node itself may not be served.
func (b brute) stopped(n *node) bool {
	if n.limits.paused || n.limits.hard > 0 && b.running(n, -1) >= int(n.limits.hard) {
		return true
	}
	r := n.runner
	return r != nil && (r.retired || r.limit > 0 && b.leases(r)+b.waiting(r) >= r.limit)
}

func (b brute) stoppedAnywhere(n *node) bool {
	for ; n != nil; n = n.parent {
		if b.stopped(n) {
			return true
		}
	}
	return false
}

// full says whether a runner's waiting jobs have to wait for its limit.
func (b brute) full(r *runner) bool { return r.limit > 0 && b.leases(r) >= r.limit }

func (b brute) rank(j *job) int {
	switch {
	case j.commit:
		return 0
	case b.s.settings.mode != Fair:
		return MaxClass + 1
	}
	return MaxClass + 1 - j.class
}

// candidates returns all that wait, also those that a pause or a quota holds back somewhere.
func (b brute) candidates() []candidate {
	var all []candidate
	for _, j := range b.s.jobs {
		if j.state == running || j.state == held || b.full(j.runner) {
			continue
		}
		all = append(all, candidate{j.project, j, b.rank(j), j.runner.pool})
	}
	for _, r := range b.s.runners {
		if r.wants > 0 {
			all = append(all, candidate{r.leaf, nil, MaxClass + 1, r.pool})
		}
	}
	return all
}

// reaches says whether nothing holds the candidate back below n.
func (b brute) reaches(c candidate, n *node) bool {
	for x := c.leaf; c.rank != committed && x != n; x = x.parent {
		if b.stopped(x) {
			return false
		}
	}
	return true
}

// eligible are the candidates that may be served.
func (b brute) eligible() []candidate {
	return slices.DeleteFunc(b.candidates(), func(c candidate) bool { return c.rank != committed && b.stoppedAnywhere(c.leaf) })
}

func (c candidate) below(n *node) bool {
	for x := c.leaf; x != nil; x = x.parent {
		if x == n {
			return true
		}
	}
	return false
}

// childOf is the child of n that the candidate is below of.
func (c candidate) childOf(n *node) *node {
	x := c.leaf
	for x.parent != n {
		x = x.parent
	}
	return x
}

// next decides for one pool; classes that were passed over for too long are not its subject.
func (b brute) next(p *pool) (candidate, bool) {
	all := b.candidates()
	for rank := range MaxClass + 2 {
		var here []candidate
		for _, c := range b.eligible() {
			if c.pool == p && c.rank == rank {
				here = append(here, c)
			}
		}
		if len(here) > 0 {
			return b.pick(b.s.root, here, all), true
		}
	}
	return candidate{}, false
}

// pick goes down the tree from n, below which all of here are.
func (b brute) pick(n *node, here, all []candidate) candidate {
	if b.s.settings.mode != Fair {
		firsts := map[*node]candidate{}
		for _, c := range here {
			if c.job == nil && slices.ContainsFunc(here, func(o candidate) bool { return o.job != nil && o.leaf == c.leaf.parent }) {
				continue // a project's own jobs go before claims for it
			}
			if f, ok := firsts[c.leaf]; !ok || c.job != nil && b.inProject(c, f) < 0 {
				firsts[c.leaf] = c
			}
		}
		return slices.MinFunc(slices.Collect(maps.Values(firsts)), b.flat)
	}
	var own []candidate
	for _, c := range here {
		if c.leaf == n {
			own = append(own, c)
		}
	}
	if len(own) > 0 {
		return slices.MinFunc(own, b.inProject)
	}
	children := map[*node][]candidate{}
	for _, c := range here {
		child := c.childOf(n)
		children[child] = append(children[child], c)
	}
	domain := here[0].pool.domain
	weight, leases := int64(0), int64(0)
	seen := map[*node]bool{}
	for _, c := range all {
		if c.leaf != n && c.below(n) && b.reaches(c, n) && c.pool.domain == domain && !seen[c.childOf(n)] {
			child := c.childOf(n)
			seen[child] = true
			weight += child.limits.weight
			leases += int64(b.running(child, domain))
		}
	}
	type contender struct {
		node       *node
		class      int
		share, tag int64
		short      bool
		first      candidate
		since, id  int64
	}
	var list []contender
	for child, below := range children {
		c := contender{node: child, class: 1, share: int64(b.running(child, domain)) + 1, tag: child.accounts[domain].finish}
		total := b.running(child, -1)
		switch {
		case total < int(child.limits.min):
			c.class = 0
		case child.limits.soft > 0 && total >= int(child.limits.soft):
			c.class = 2
		}
		c.short = c.share*weight <= (leases+1)*child.limits.weight
		c.first = b.pick(child, below, all)
		c.since, c.id = b.age(c.first)
		list = append(list, c)
	}
	best := slices.MinFunc(list, func(x, y contender) int {
		byShare := 0
		if x.short || y.short {
			byShare = cmp.Compare(x.share*y.node.limits.weight, y.share*x.node.limits.weight)
		}
		return cmp.Or(cmp.Compare(x.class, y.class), byShare, cmp.Compare(x.tag, y.tag), cmp.Compare(x.since, y.since),
			cmp.Compare(x.id, y.id), strings.Compare(x.node.name, y.node.name), cmp.Compare(x.node.kind, y.node.kind))
	})
	return best.first
}

func (b brute) age(c candidate) (since, id int64) {
	if c.job == nil {
		return c.leaf.runner.wantsSince, 0
	}
	return c.job.since, c.job.key.ID
}

func (b brute) inProject(x, y candidate) int {
	effective := func(j *job) int64 {
		switch b.s.settings.mode {
		case GitLab:
			return 0
		case FIFO:
			return j.since
		}
		return j.since - int64(j.priority)*b.s.settings.ageing
	}
	return cmp.Or(cmp.Compare(effective(x.job), effective(y.job)), cmp.Compare(x.job.key.ID, y.job.key.ID))
}

// flat is the order of the rules that know no tree.
func (b brute) flat(x, y candidate) int {
	// A project is represented by its first job, and compared by that.
	count := func(c candidate) (n int) {
		switch {
		case b.s.settings.mode == FIFO:
			return 0
		case c.job == nil:
			return b.leases(c.leaf.runner)
		case c.job.runner.Scope != InstanceRunner:
			return 0
		}
		for _, j := range b.s.jobs {
			if j.state == running && j.project == c.leaf && j.lease.isInstance {
				n++
			}
		}
		return n
	}
	since := func(c candidate) int64 {
		if c.job != nil && b.s.settings.mode == GitLab {
			return 0
		}
		since, _ := b.age(c)
		return since
	}
	_, xid := b.age(x)
	_, yid := b.age(y)
	return cmp.Or(cmp.Compare(count(x), count(y)), cmp.Compare(since(x), since(y)), cmp.Compare(xid, yid),
		strings.Compare(x.leaf.name, y.leaf.name))
}
