package allocation

import (
	"math"
	"slices"
	"time"
)

// enqueue puts a waiting job where it belongs.
func (s *Scheduler) enqueue(j *job) {
	r := j.runner
	j.place = int32(len(r.queue))
	r.queue = append(r.queue, j)
	if r.gated {
		s.park(j, 1)
		return
	}
	s.compete(j)
}

// park counts a job that begins (1) or ceases (-1) to wait for its runner to be below its limit.
func (s *Scheduler) park(j *job, by int32) {
	j.state = queued
	if by > 0 {
		j.state = parked
	}
	for n := j.project; n.parent != nil; n = n.parent {
		a := n.account(j.runner.pool.domain)
		a.parked += by
		if a.parked == 0 && a.standing == 0 && a.kept != forgets && !s.keeping {
			a.kept, a.left = forgets, s.now
		}
	}
}

// compete puts a job of a runner that is below its limit into its project's queue.
func (s *Scheduler) compete(j *job) {
	j.state, j.band = queued, s.bandOf(j)
	switch s.settings.mode {
	case GitLab:
		j.order = j.key.ID
	case FIFO:
		j.order = j.since
	case Fair:
		j.order = j.since - int64(j.priority)*s.settings.ageing
	}
	st := j.project.standing(j.band)
	st.jobs.insert(j)
	s.refreshUp(st)
}

// dequeue takes a job out of the queues that it is in.
func (s *Scheduler) dequeue(j *job) {
	ranked := j.pos != absent
	s.remove(j)
	if ranked {
		s.refreshUp(j.project.standing(j.band))
	}
}

// remove does so without bringing the rankings up to date.
func (s *Scheduler) remove(j *job) {
	if j.place != absent {
		queue, last := j.runner.queue, len(j.runner.queue)-1
		queue[j.place] = queue[last]
		queue[j.place].place = j.place
		queue[last] = nil
		j.runner.queue, j.place = queue[:last], absent
	}
	if j.state == parked {
		s.park(j, -1)
	}
	if j.pos != absent {
		j.project.standing(j.band).jobs.remove(j)
	}
}

// dequeueAll takes a runner's jobs out of the queues and returns them.
func (s *Scheduler) dequeueAll(r *runner) []*job {
	all := slices.Clone(r.queue)
	for _, j := range all {
		s.dequeue(j)
	}
	return all
}

// gate takes a runner's jobs out of the ranking when it reaches its limit, and brings them back when it is below. What
// their projects have used stays as it is: they wait all the time. It costs O(log n) for each waiting job of the runner.
func (s *Scheduler) gate(r *runner) {
	full := r.limit > 0 && r.leases >= r.limit
	if full == r.gated {
		return
	}
	r.gated = full
	for _, j := range r.queue {
		if !full {
			s.compete(j)
			s.park(j, -1)
			continue
		}
		s.park(j, 1)
		st := j.project.standing(j.band)
		st.jobs.remove(j)
		s.refreshUp(st)
	}
}

// refreshUp brings a standing and those above it up to date.
func (s *Scheduler) refreshUp(st *standing) {
	for ; st != nil; st = st.up {
		s.refresh(st)
	}
}

// refreshChain brings a node and those above it up to date in all bands, for its account has changed.
func (s *Scheduler) refreshChain(n *node) { s.refreshTo(n, nil) }

// refreshChains does so for two nodes that were charged together.
func (s *Scheduler) refreshChains(n, side *node) {
	if side != nil {
		s.refreshTo(side, meeting(n, side))
	}
	s.refreshTo(n, nil)
}

func (s *Scheduler) refreshTo(n, end *node) {
	for ; n != end; n = n.parent {
		for _, st := range n.at {
			if st != nil {
				s.refresh(st)
			}
		}
	}
}

// refresh brings a standing up to date among its siblings. It costs O(log siblings).
func (s *Scheduler) refresh(st *standing) {
	n, up := st.node, st.up
	if up == nil {
		return
	}
	in := st.work() && (st.band.rank == committed || !n.blocked())
	domain := st.band.pool.domain
	if !in {
		if st.present() {
			s.exit(st, domain)
		}
		return
	}
	entering := !st.present()
	if entering {
		a := n.account(domain)
		above := n.parent.account(domain)
		if a.standing == 0 {
			a.begin(s.now, above.virtual, &s.settings)
			above.waitingWeight += n.limits.weight
			above.waitingRunning += int64(a.running)
			defer s.refreshOthers(n.parent, st.up, domain)
		}
		a.standing++
	}
	k := s.keyOf(st, domain)
	if !entering && k == st.key {
		return
	}
	st.key = k
	if s.settings.mode != Fair {
		s.place(up, st, byShare, entering)
		return
	}
	s.place(up, st, byShare, entering)
	s.place(up, st, byTag, entering)
}

func (s *Scheduler) place(up, st *standing, c contest, entering bool) {
	if entering {
		up.ranks[c].insert(st, c)
	} else {
		up.ranks[c].fix(st, c)
	}
}

func (s *Scheduler) exit(st *standing, domain int) {
	for c := range st.up.ranks {
		if st.pos[c] != absent {
			st.up.ranks[c].remove(st, contest(c))
		}
	}
	n := st.node
	a := n.account(domain)
	a.standing--
	if a.standing == 0 {
		above := n.parent.account(domain)
		above.waitingWeight -= n.limits.weight
		above.waitingRunning -= int64(a.running)
		a.left, a.lag, a.kept = s.now, above.virtual-a.finish, forgets
		switch {
		case s.keeping:
			a.kept = keeps
		case a.parked > 0:
			a.kept = capped
		}
		s.refreshOthers(n.parent, st.up, domain)
	}
}

// refreshOthers brings a node up to date in the other bands of a domain: which of its children comes first may depend on
// who waits in any of them.
func (s *Scheduler) refreshOthers(n *node, but *standing, domain int) {
	for _, st := range n.at {
		if st != nil && st != but && st.band.pool.domain == domain && st.present() {
			s.refreshUp(st)
		}
	}
}

// keyOf works out what a standing that has work is judged by.
func (s *Scheduler) keyOf(st *standing, domain int) key {
	k := key{class: 1, weight: 1}
	if b := s.best(st); b != nil {
		if s.settings.mode != Fair {
			return b.key
		}
		k.since, k.job = b.key.since, b.key.job
	} else if len(st.jobs) > 0 {
		j := st.jobs[0]
		k.since, k.job = j.since, j.key.ID
		if s.settings.mode == GitLab {
			k.since = 0
			if j.runner.Scope == InstanceRunner {
				k.share = int64(st.node.instance)
			}
		}
	} else {
		r := st.node.runner
		k.since = r.wantsSince
		if s.settings.mode == GitLab {
			k.share = int64(r.leases)
		}
	}
	if s.settings.mode == Fair {
		a := st.node.account(domain)
		k.class, k.share, k.weight, k.tag = st.node.class(), int64(a.running)+1, st.node.limits.weight, a.finish
	}
	return k
}

// charge counts a new lease and what it is expected to cost, for a node and those above it, and for a second one and
// those above it that are not above the first. The rankings are brought up to date by the caller.
func (s *Scheduler) charge(b *band, n, side *node, l *lease) {
	if side != nil {
		for end := meeting(n, side); side != end; side = side.parent {
			s.chargeOne(side, l)
		}
	}
	for ; n.parent != nil; n = n.parent {
		above := n.parent.account(l.domain)
		// The virtual time follows those whose turn it is, also if another is served.
		turn := int64(math.MaxInt64)
		if up := n.parent.in(b); up != nil && len(up.jobs) == 0 && len(up.ranks[byTag].items) > 0 {
			if next := s.best(up); next.node != n {
				turn = next.key.tag
			}
		}
		v := min(s.chargeOne(n, l), turn)
		above.virtual = max(above.virtual, v)
	}
	n.running++
	n.account(l.domain).running++
	n.charged += l.cost
	n.seen = s.now
}

// chargeOne charges one node, which is not the fleet, and returns its start tag.
func (s *Scheduler) chargeOne(n *node, l *lease) int64 {
	a, above := n.account(l.domain), n.parent.account(l.domain)
	switch {
	case a.standing > 0:
		above.waitingRunning++
		a.finish = max(a.finish, above.virtual-s.settings.creditCap)
	case a.kept == forgets:
		a.finish = a.start(s.now, above.virtual, &s.settings)
		a.left = s.now
	}
	tag := a.finish
	a.finish += perWeight(l.cost, n.limits.weight)
	a.lag = above.virtual - a.finish
	a.running++
	n.running++
	n.charged += l.cost
	n.seen = s.now
	return tag
}

// settle ends a lease: the nodes are charged what it really cost.
func (s *Scheduler) settle(n, side *node, l *lease) {
	rest := scale(s.now-l.start, l.factor) - l.cost
	if side != nil {
		for end := meeting(n, side); side != end; side = side.parent {
			s.settleOne(side, l.domain, rest)
		}
	}
	for ; n != nil; n = n.parent {
		s.settleOne(n, l.domain, rest)
	}
}

func (s *Scheduler) settleOne(n *node, domain int, rest int64) {
	a := n.account(domain)
	a.running--
	n.running--
	n.charged += rest
	n.seen = s.now
	if n.parent == nil {
		return
	}
	above := n.parent.account(domain)
	if a.standing > 0 {
		above.waitingRunning--
	} else {
		a.left = s.now
	}
	charge := perWeight(rest, n.limits.weight)
	a.finish = max(a.finish+charge, above.virtual-s.settings.creditCap)
	a.lag -= charge
}

// count counts a lease that has been charged already.
func (s *Scheduler) count(n, side *node, domain int) {
	for end := meeting(n, side); side != end; side = side.parent {
		side.count(domain)
	}
	for ; n != nil; n = n.parent {
		n.count(domain)
	}
}

func (n *node) count(domain int) {
	a := n.account(domain)
	a.running++
	n.running++
	if a.standing > 0 && n.parent != nil {
		n.parent.account(domain).waitingRunning++
	}
}

// SetPolicy replaces the policy. Usage, learned lengths, and what waits and runs are kept.
func (s *Scheduler) SetPolicy(now time.Time, p Policy) {
	s.tick(now)
	s.rebuild(func() {
		s.policy, s.settings = p, p.settings()
		for _, n := range s.nodes {
			n.limits = p.limits(n.kind, n.name)
		}
		for _, r := range s.runners {
			r.limit = s.runnerLimit(r)
		}
	})
}

// join makes two pools one domain.
func (s *Scheduler) join(a, b *pool) {
	if a.domain == b.domain {
		return
	}
	from, to := max(a.domain, b.domain), min(a.domain, b.domain)
	s.rebuild(func() {
		for _, p := range s.pools {
			if p.domain == from {
				p.domain = to
			}
		}
		for _, j := range s.jobs {
			if j.state == running && j.lease.domain == from {
				j.lease.domain = to
			}
		}
		for _, r := range s.runners {
			for i := range r.claims {
				if r.claims[i].domain == from {
					r.claims[i].domain = to
				}
			}
		}
		s.joinAccounts(from, to)
	})
}

// rebuild makes a change on which the order of everything depends. It costs O(n log n).
func (s *Scheduler) rebuild(change func()) {
	s.keeping = true
	var waiting []*job
	for _, r := range s.runners {
		waiting = append(waiting, s.dequeueAll(r)...)
	}
	for _, r := range s.runners {
		s.want(r, 0)
	}
	s.keeping = false
	change()
	for _, r := range s.runners {
		s.gate(r)
	}
	for _, j := range waiting {
		s.enqueue(j)
	}
	for _, r := range s.runners {
		s.want(r, r.wants)
	}
	s.kept()
}

// kept ends the keeping of accounts of nodes that did not come back after all.
func (s *Scheduler) kept() {
	for _, n := range s.nodes {
		for d := range n.accounts {
			if a := &n.accounts[d]; a.standing == 0 && a.parked == 0 && a.kept != forgets {
				a.kept, a.left = forgets, s.now
			}
		}
	}
}

// joinAccounts adds up what the nodes have in two domains: how far each is before or behind its siblings.
func (s *Scheduler) joinAccounts(from, to int) {
	lag := func(n *node, domain int) int64 {
		a := n.account(domain)
		lag := a.finish - n.parent.account(domain).virtual
		if lag < 0 && a.kept == forgets && a.running == 0 {
			return 0
		}
		return lag
	}
	for _, n := range s.nodes {
		n.account(max(from, to)) // pointers to accounts stay good from here on
	}
	for _, n := range s.nodes {
		if n.parent != nil {
			n.account(to).finish = lag(n, from) + lag(n, to) // from now on relative to the parent's virtual time
		}
	}
	for _, n := range s.nodes {
		a, b := n.account(to), n.account(from)
		a.running += b.running
		a.kept = max(a.kept, b.kept)
		a.left, a.lag, a.virtual = max(a.left, b.left), a.lag+b.lag, max(a.virtual, b.virtual)
		*b = account{}
	}
	for _, n := range s.nodes {
		if n.parent != nil {
			n.account(to).finish += n.parent.account(to).virtual
		}
	}
}
