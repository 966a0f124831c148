package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/allocation"
	"github.com/switchyard-ci/switchyard/controlplane/placement"
	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// A lease is one slot of one agent, held for a claim that is under way or for a job. An agent's free slots are always
// its slots minus its leases; nothing is counted up and down.
type lease struct {
	agent *agent
}

// pool is the agents that serve the runners with one executor and one selector.
type pool struct {
	executor string
	selector registry.Selector
	agents   placement.Pool
	claims   allocation.Queue // runners that wait for a slot to claim with
	jobs     []*job           // claimed jobs without an agent: served before new claims, oldest first

	// What the agents have in common, for GitLab; features is nil before the first agent came.
	stale           bool
	slots           int
	features        *runnerapi.Features
	shell, os, arch string
}

// runner is a runner's side of the slots.
type runner struct {
	Runner
	pool    *pool
	claims  map[*lease]struct{} // claims under way
	jobs    map[int64]*job      // claimed and not finished, with an agent or without
	waiters []*waiter           // Reserve calls, oldest first
}

type waiter struct {
	since time.Time
	slot  chan *lease // capacity 1; written under the dispatcher's lock
}

// ErrUnknownRunner is returned for a runner that is not in the configuration.
var ErrUnknownRunner = errors.New("unknown runner")

// Reservation is a slot that is held for a claim. It is used up by Claimed or given back by Release.
type Reservation struct {
	d      *Dispatcher
	runner *runner
	lease  *lease // nil once used up or given back; guarded by d.mu
}

// Release gives the slot back. It does nothing after Claimed, and nothing the second time.
func (r *Reservation) Release() {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	if l := r.takeLocked(); l != nil {
		r.d.releaseLocked(l)
		r.d.queueLocked(r.runner)
	}
}

func (r *Reservation) takeLocked() *lease {
	l := r.lease
	r.lease = nil
	delete(r.runner.claims, l)
	return l
}

// Reserve waits until the runner may claim a job and an agent has a slot for it: which of the waiting runners is served
// is allocation's decision, which agent gives the slot is placement's. It fails with ErrUnknownRunner or with the
// context's error.
func (d *Dispatcher) Reserve(ctx context.Context, name string) (*Reservation, error) {
	d.mu.Lock()
	r := d.runners[name]
	if r == nil {
		d.mu.Unlock()
		return nil, fmt.Errorf("reserve a slot for runner %q: %w", name, ErrUnknownRunner)
	}
	w := &waiter{since: time.Now(), slot: make(chan *lease, 1)}
	r.waiters = append(r.waiters, w)
	d.queueLocked(r)
	d.mu.Unlock()

	select {
	case l := <-w.slot:
		return &Reservation{d: d, runner: r, lease: l}, nil
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(r.waiters, w); i >= 0 {
		r.waiters = slices.Delete(r.waiters, i, i+1)
	} else { // granted in the same moment
		l := <-w.slot
		delete(r.claims, l)
		d.releaseLocked(l)
	}
	d.queueLocked(r)
	return nil, ctx.Err()
}

// held is what counts against a runner's limit.
func (r *runner) held() int { return len(r.claims) + len(r.jobs) }

// queueLocked puts a runner where it now belongs among those that wait, and serves its pool.
func (d *Dispatcher) queueLocked(r *runner) {
	if len(r.waiters) == 0 || r.Limit > 0 && r.held() >= r.Limit {
		r.pool.claims.Remove(r.Name)
		return
	}
	r.pool.claims.Set(allocation.Key{Runner: r.Name, Running: r.held(), Since: r.waiters[0].since})
	d.serveLocked(r.pool)
}

// serveLocked hands out a pool's free slots: to jobs that need an agent, then to claims.
func (d *Dispatcher) serveLocked(p *pool) {
	for {
		id, ok := p.agents.Best()
		if !ok {
			return
		}
		a := d.agents[id]
		if len(p.jobs) > 0 {
			j := p.jobs[0]
			p.jobs = slices.Delete(p.jobs, 0, 1)
			j.lease = d.takeSlotLocked(p, a)
			d.bindLocked(j, a)
			d.applyLocked(j, event{kind: evPlaced, agent: a.id})
			continue
		}
		next, ok := p.claims.Next()
		if !ok {
			return
		}
		r := d.runners[next.Runner]
		w := r.waiters[0]
		r.waiters = slices.Delete(r.waiters, 0, 1)
		l := d.takeSlotLocked(p, a)
		r.claims[l] = struct{}{}
		w.slot <- l
		if len(r.waiters) == 0 || r.Limit > 0 && r.held() >= r.Limit {
			p.claims.Remove(r.Name)
		} else {
			p.claims.Set(allocation.Key{Runner: r.Name, Running: r.held(), Since: r.waiters[0].since})
		}
	}
}

func (d *Dispatcher) takeSlotLocked(p *pool, a *agent) *lease {
	l := &lease{agent: a}
	a.leases[l] = struct{}{}
	p.agents.Chosen(a.id)
	a.offerRoomLocked()
	return l
}

// releaseLocked gives a slot back and serves whoever waits for one of that agent's. When the agent's pools compete, the
// one whose first runner allocation prefers is served first.
func (d *Dispatcher) releaseLocked(l *lease) {
	a := l.agent
	if _, ok := a.leases[l]; !ok {
		return
	}
	delete(a.leases, l)
	a.offerRoomLocked()
	d.serveAgentLocked(a)
	d.forgetLocked(a)
}

func (d *Dispatcher) serveAgentLocked(a *agent) {
	for a.free() > 0 {
		var first *pool
		var firstKey allocation.Key
		for _, p := range a.pools {
			if len(p.jobs) > 0 {
				first = p
				break
			}
			if k, ok := p.claims.Next(); ok && (first == nil || k.Before(firstKey)) {
				first, firstKey = p, k
			}
		}
		if first == nil {
			return
		}
		before := a.free()
		d.serveLocked(first)
		if a.free() == before {
			return
		}
	}
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
		p.agents.Set(a.id, free)
	}
}

// poolLocked returns the pool for an executor and a selector, making it at the first call.
func (d *Dispatcher) poolLocked(executor string, s registry.Selector) *pool {
	key := executor + " " + s.String()
	p := d.pools[key]
	if p == nil {
		p = &pool{executor: executor, selector: s}
		d.pools[key] = p
	}
	return p
}

// joinPoolsLocked puts an agent into the pools whose jobs it can run, and out of all others.
func (d *Dispatcher) joinPoolsLocked(a *agent) {
	for _, p := range a.pools {
		p.agents.Remove(a.id)
		p.stale = true
	}
	a.pools = nil
	for _, p := range d.pools {
		if _, ok := a.executors[p.executor]; ok && p.selector.Matches(a.labels) {
			a.pools = append(a.pools, p)
			p.stale = true
		}
	}
	a.offerRoomLocked()
}
