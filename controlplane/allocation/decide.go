package allocation

import (
	"time"
)

// Next says who gets a slot that one of these pools may use; false if nobody who wants it may have it. It takes nothing:
// Start or StartClaim follows. Pools that are named together have slots in common: from then on their usage is one
// account.
func (s *Scheduler) Next(now time.Time, pools ...string) (Decision, bool) {
	s.tick(now)
	s.restart()
	for i := 1; i < len(pools); i++ {
		s.join(s.pool(pools[0]), s.pool(pools[i]))
	}
	st := s.choose(pools, true)
	switch {
	case st == nil:
		return Decision{}, false
	case len(st.jobs) == 0:
		return Decision{Runner: st.node.name, Claim: true}, true
	}
	return Decision{Runner: st.jobs[0].runner.Name, Job: st.jobs[0].key}, true
}

// choose returns who is first: a project with its first job, or a runner that may claim. Note says whether classes that
// are passed over begin to count their patience.
func (s *Scheduler) choose(pools []string, note bool) *standing {
	patient := s.patient(pools, note)
	for rank := range MaxClass + 2 {
		if rank > committed && patient != nil {
			return patient
		}
		var best *standing
		for _, name := range pools {
			p := s.pools[name]
			if p == nil || p.bands[rank] == nil {
				continue
			}
			if st := s.first(p.bands[rank]); st != nil && (best == nil || s.precedes(st, best)) {
				best = st
			}
		}
		if best != nil {
			return best
		}
	}
	return nil
}

// patient returns who is first in the lowest class that higher ones have kept from its turn for long enough.
func (s *Scheduler) patient(pools []string, note bool) *standing {
	var patient *standing
	higher := false
	for rank := committed + 1; rank <= MaxClass+1; rank++ {
		some := false
		for _, name := range pools {
			p := s.pools[name]
			if p == nil {
				continue
			}
			var st *standing
			if b := p.bands[rank]; b != nil {
				st = s.first(b)
			}
			since := p.starving[rank]
			switch {
			case st == nil || !higher:
				since = 0
			case since == 0:
				since = s.now
			case s.now-since >= s.settings.classPatience:
				patient = st
			}
			if note {
				p.starving[rank] = since
			}
			some = some || st != nil
		}
		higher = higher || some
	}
	return patient
}

// first returns who is first in one band.
func (s *Scheduler) first(b *band) *standing {
	st := s.root.in(b)
	if st == nil || !st.work() || b.rank != committed && s.root.blocked() {
		return nil
	}
	for {
		next := s.best(st)
		if next == nil {
			return st
		}
		st = next
	}
}

// best returns the child that is served next, or nil if it is the node itself: its own jobs go before the claims of
// runners that are bound to it.
func (s *Scheduler) best(st *standing) *standing {
	if len(st.jobs) > 0 || st.wants > 0 {
		return nil
	}
	few := st.ranks[byShare].items[0]
	if s.settings.mode != Fair || s.short(few) {
		return few
	}
	return st.ranks[byTag].items[0]
}

// short says whether one lease more leaves the node at or below its part of the slots that it and the siblings that wait
// have. Where every sibling's part is less than one slot, nobody is short, and slot-time decides alone: fewest running
// per weight by itself would never serve a node whose part is small.
func (s *Scheduler) short(st *standing) bool {
	up := st.node.parent.account(st.band.pool.domain)
	return st.key.share*up.waitingWeight <= (up.waitingRunning+1)*st.key.weight
}

// precedes compares two that are first in their bands of the same rank in different pools.
func (s *Scheduler) precedes(a, b *standing) bool {
	if s.settings.mode != Fair {
		return a.before(b, byShare)
	}
	x, y := a, b
	for x.node.depth > y.node.depth {
		x = x.up
	}
	for y.node.depth > x.node.depth {
		y = y.up
	}
	if x.node == y.node { // one is above the other, or they are the same
		if len(a.jobs) > 0 && len(b.jobs) > 0 {
			return a.jobs[0].before(b.jobs[0])
		}
		return len(a.jobs) > 0
	}
	for x.node.parent != y.node.parent {
		x, y = x.up, y.up
	}
	if x.key.class == y.key.class && (s.short(x) || s.short(y)) {
		return x.before(y, byShare)
	}
	return x.before(y, byTag)
}

// served notes that a band had its turn.
func (s *Scheduler) served(b *band) { b.pool.starving[b.rank] = 0 }
