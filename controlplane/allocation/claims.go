package allocation

import (
	"fmt"
	"time"
)

// Want says how many claims a runner would begin now if it had slots for them. Each one that begins counts one down.
func (s *Scheduler) Want(now time.Time, runner string, claims int) error {
	s.tick(now)
	r := s.runners[runner]
	if r == nil || r.retired {
		return fmt.Errorf("note that runner %q wants to claim: %w", runner, ErrUnknownRunner)
	}
	if r.wants == 0 {
		r.wantsSince = s.restored.since(runner, s.now)
	}
	r.wants = max(claims, 0)
	s.want(r, r.wants)
	return nil
}

func (s *Scheduler) want(r *runner, claims int) {
	st := r.leaf.standing(s.band(r.pool, MaxClass+1))
	if st.wants != claims {
		st.wants = claims
		s.refreshUp(st)
	}
}

// leafChanged is called when a runner's limit may have begun or ceased to hold it back.
func (s *Scheduler) leafChanged(r *runner) {
	if r.wants > 0 {
		s.refreshUp(r.leaf.standing(s.band(r.pool, MaxClass+1)))
	}
}

// StartClaim takes a slot for a claim of this runner.
func (s *Scheduler) StartClaim(now time.Time, runner string) error {
	s.tick(now)
	r := s.runners[runner]
	if r == nil {
		return fmt.Errorf("begin a claim of runner %q: %w", runner, ErrUnknownRunner)
	}
	b := s.band(r.pool, MaxClass+1)
	l := lease{
		leaf: r.leaf, domain: r.pool.domain, start: s.now, factor: 1000,
		cost: r.leaf.lengths.expect("", s.settings.firstGuess),
	}
	s.charge(b, r.leaf, nil, &l)
	r.claims = append(r.claims, l)
	r.leases++
	if r.wants > 0 {
		r.wants--
		r.wantsSince = s.now
		r.leaf.standing(b).wants = r.wants
	}
	s.served(b)
	s.refreshChain(r.leaf)
	s.gate(r)
	return nil
}

// EndClaim gives back the slot of a runner's claim. If the claim brought a job, Arrive and Start follow.
func (s *Scheduler) EndClaim(now time.Time, runner string) error {
	s.tick(now)
	r := s.runners[runner]
	if r == nil {
		return fmt.Errorf("end a claim of runner %q: %w", runner, ErrUnknownRunner)
	}
	if len(r.claims) == 0 {
		return fmt.Errorf("end a claim of runner %q: %w", runner, ErrNoClaim)
	}
	l := r.claims[0]
	r.claims = r.claims[:copy(r.claims, r.claims[1:])]
	r.leases--
	s.settle(l.leaf, nil, &l)
	s.refreshChain(l.leaf)
	s.gate(r)
	s.forgetRunner(r)
	return nil
}
