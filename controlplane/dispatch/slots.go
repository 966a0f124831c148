package dispatch

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/allocation"
	"github.com/switchyard-ci/switchyard/controlplane/placement"
)

// A lease is one slot of one agent, held for a runner's claim that is under way or for a job. An agent's free slots are
// always its slots minus its leases; nothing is counted up and down.
type lease struct {
	agent  *agent
	runner *runner
}

// runner is a runner's side of the slots.
type runner struct {
	Runner
	pool    *pool               // nil if the runner is retired: it gets no slots any more
	leases  map[*lease]struct{} // all that it holds
	claims  map[*lease]struct{} // those of them that are for claims under way
	jobs    map[int64]*job      // claimed and not finished, with an agent or without
	waiting list.List           // of *job: those that wait for an agent, oldest first
	waiters []*waiter           // Reserve calls, oldest first

	twoPhase twoPhase
}

type waiter struct {
	since time.Time
	slot  chan *lease // capacity 1; written under the dispatcher's lock
}

// ErrUnknownRunner is returned for a runner that is not in the configuration.
var ErrUnknownRunner = errors.New("unknown runner")

func newRunner(r Runner, p *pool) *runner {
	return &runner{
		Runner: r, pool: p,
		leases: make(map[*lease]struct{}), claims: make(map[*lease]struct{}), jobs: make(map[int64]*job),
	}
}

// held is what counts against the limit before a claim: a job that waits for an agent is one that will run.
func (r *runner) held() int { return len(r.claims) + len(r.jobs) }

func (r *runner) below(n int) bool { return r.Limit == 0 || n < r.Limit }

// Reservation is a slot that is held for a claim. It is used up by Claimed or given back by Release.
type Reservation struct {
	d     *Dispatcher
	lease *lease // nil once used up or given back; guarded by d.mu
}

// Release gives the slot back. It does nothing after Claimed, and nothing the second time.
func (r *Reservation) Release() {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	if l := r.takeLocked(); l != nil {
		r.d.releaseLocked(l)
	}
}

func (r *Reservation) takeLocked() *lease {
	if r == nil || r.lease == nil {
		return nil
	}
	l := r.lease
	r.lease = nil
	delete(l.runner.claims, l)
	return l
}

// Reserve waits until the runner may claim a job, an agent has a slot for it, and there is room on the disks for its
// row and its trace: which of the waiting runners is served is allocation's decision, which agent gives the slot is
// placement's. It fails with ErrUnknownRunner or with the context's error.
func (d *Dispatcher) Reserve(ctx context.Context, name string) (*Reservation, error) {
	for {
		if err := d.awaitRoom(ctx); err != nil {
			return nil, err
		}
		res, err := d.reserve(ctx, name)
		if err != nil || d.Full() == nil {
			return res, err
		}
		res.Release() // the disk has become full while the slot was waited for
	}
}

// reserve is Reserve without a look at the disks.
func (d *Dispatcher) reserve(ctx context.Context, name string) (*Reservation, error) {
	d.mu.Lock()
	r := d.runners[name]
	if r == nil {
		d.mu.Unlock()
		return nil, fmt.Errorf("reserve a slot for runner %q: %w", name, ErrUnknownRunner)
	}
	w := &waiter{since: time.Now(), slot: make(chan *lease, 1)}
	r.waiters = append(r.waiters, w)
	d.serveRunnerLocked(r)
	d.mu.Unlock()

	select {
	case l := <-w.slot:
		return &Reservation{d: d, lease: l}, nil
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(r.waiters, w); i >= 0 {
		r.waiters = slices.Delete(r.waiters, i, i+1)
		r.rankLocked()
	} else { // granted in the same moment
		l := <-w.slot
		delete(r.claims, l)
		d.releaseLocked(l)
	}
	return nil, ctx.Err()
}

// serveRunnerLocked is for a runner that wants more than before, or may have more.
func (d *Dispatcher) serveRunnerLocked(r *runner) {
	r.rankLocked()
	for r.pool != nil && d.serveLocked(r.pool) {
	}
}

// rankLocked puts a runner where it now belongs among those that wait.
func (r *runner) rankLocked() {
	if r.pool == nil {
		return
	}
	if oldest := r.waiting.Front(); oldest != nil && r.below(len(r.leases)) {
		r.pool.jobs.Set(allocation.Key{Runner: r.Name, Running: len(r.leases), Since: oldest.Value.(*job).row.ClaimedAt})
	} else {
		r.pool.jobs.Remove(r.Name)
	}
	if len(r.waiters) > 0 && r.below(r.held()) {
		r.pool.claims.Set(allocation.Key{Runner: r.Name, Running: r.held(), Since: r.waiters[0].since})
	} else {
		r.pool.claims.Remove(r.Name)
	}
}

// serveLocked gives one of a pool's free slots away: to a job that needs an agent, else to a claim. It returns false if
// nobody wants one or there is none.
func (d *Dispatcher) serveLocked(p *pool) bool {
	if k, ok := p.jobs.Next(); ok {
		return d.placeLocked(d.runners[k.Runner])
	}
	k, ok := p.claims.Next()
	if !ok {
		return false
	}
	choice, ok := p.agents.Best(placement.Want{})
	if !ok {
		return false
	}
	r := d.runners[k.Runner]
	w := r.waiters[0]
	r.waiters = slices.Delete(r.waiters, 0, 1)
	l := r.takeSlotLocked(d.agents[choice.Agent])
	r.claims[l] = struct{}{}
	w.slot <- l
	r.rankLocked()
	return true
}

// placeLocked gives a slot to the runner's oldest job that waits for one.
func (d *Dispatcher) placeLocked(r *runner) bool {
	j := r.waiting.Front().Value.(*job)
	choice, ok := r.pool.agents.Best(placement.Want{
		Known: true, Protected: j.row.Envelope.Protected, Avoid: func(agent string) bool { return j.life.avoided[agent] },
	})
	if !ok {
		return false
	}
	j.lease = r.takeSlotLocked(d.agents[choice.Agent])
	d.applyLocked(j, event{kind: evPlaced, agent: choice.Agent})
	return true
}

func (r *runner) takeSlotLocked(a *agent) *lease {
	l := &lease{agent: a, runner: r}
	a.leases[l], r.leases[l] = struct{}{}, struct{}{}
	r.pool.agents.Chosen(a.id)
	a.offerRoomLocked()
	return l
}

// releaseLocked gives a slot back and serves whoever waits for it.
func (d *Dispatcher) releaseLocked(l *lease) {
	a := l.agent
	delete(a.leases, l)
	delete(l.runner.leases, l)
	a.offerRoomLocked()
	l.runner.rankLocked()
	d.serveAgentLocked(a)
	d.serveRunnerLocked(l.runner) // it may have been at its limit
	d.forgetLocked(a)
}

// serveAgentLocked gives an agent's free slots away, one by one to the pool whose first runner allocation prefers; jobs
// come before claims.
func (d *Dispatcher) serveAgentLocked(a *agent) {
	for a.free() > 0 {
		p := first(a.pools, func(p *pool) *allocation.Queue { return &p.jobs })
		if p == nil {
			p = first(a.pools, func(p *pool) *allocation.Queue { return &p.claims })
		}
		if p == nil || !d.serveLocked(p) {
			return
		}
	}
}

func first(pools []*pool, queue func(*pool) *allocation.Queue) *pool {
	var best *pool
	var bestKey allocation.Key
	for _, p := range pools {
		if k, ok := queue(p).Next(); ok && (best == nil || k.Before(bestKey)) {
			best, bestKey = p, k
		}
	}
	return best
}

// free is the number of slots that may be handed out: none while the agent is away or drains.
func (a *agent) free() int {
	if a.session == nil || a.draining {
		return 0
	}
	return a.slots - len(a.leases)
}

// offerRoomLocked tells the agent's pools how much room it has.
func (a *agent) offerRoomLocked() {
	free := a.free()
	for _, p := range a.pools {
		p.agents.Set(placement.Agent{Name: a.id, Free: free})
	}
}
