package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/allocation"
	"github.com/switchyard-ci/switchyard/controlplane/placement"
	"github.com/switchyard-ci/switchyard/controlplane/policy"
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
	waiting backlog             // those of them that have no slot
	waiters []*waiter           // Reserve calls, oldest first
	wants   int                 // claims, as allocation was told
	ahead   int                 // claims under way without a slot
	stalls  map[allocation.Project]struct{}
	careful bool // it has stalled: one claim at a time, so that what each brings is known before the next

	twoPhase twoPhase
}

type waiter struct {
	slot chan *lease // capacity 1; written under the dispatcher's lock; nil is a claim without a slot
}

// ErrUnknownRunner is returned for a runner that is not in the configuration.
var ErrUnknownRunner = errors.New("unknown runner")

func newRunner(r Runner, p *pool) *runner {
	return &runner{
		Runner: r, pool: p,
		leases: make(map[*lease]struct{}), claims: make(map[*lease]struct{}), jobs: make(map[int64]*job),
		waiting: newBacklog(), stalls: make(map[allocation.Project]struct{}),
	}
}

// Reservation is a slot that is held for a claim, or leave to claim without one. It is used up by Claimed or given back
// by Release.
type Reservation struct {
	d     *Dispatcher
	lease *lease  // nil once used up or given back; guarded by d.mu
	ahead *runner // whose claim it is, if it has no slot; nil once used up or given back
}

// Release gives the slot back. It does nothing after Claimed, and nothing the second time.
func (r *Reservation) Release() {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	run := r.ahead
	if l := r.takeLocked(); l != nil {
		r.d.releaseLocked(l)
	} else if run != nil {
		r.d.serveRunnerLocked(run)
	}
}

// takeLocked ends the claim. It returns the claim's slot, which is nobody's now; nil if it has none.
func (r *Reservation) takeLocked() *lease {
	switch {
	case r == nil:
	case r.ahead != nil:
		r.ahead.ahead--
		r.ahead = nil
	case r.lease != nil:
		l := r.lease
		r.lease = nil
		delete(l.runner.claims, l)
		r.d.mustShare(r.d.shares.EndClaim(time.Now(), l.runner.Name))
		return l
	}
	return nil
}

// giveLocked makes a slot the claim's again.
func (r *Reservation) giveLocked(l *lease) {
	r.lease = l
	l.runner.claims[l] = struct{}{}
	r.d.mustShare(r.d.shares.StartClaim(time.Now(), l.runner.Name))
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
	w := &waiter{slot: make(chan *lease, 1)}
	r.waiters = append(r.waiters, w)
	d.serveRunnerLocked(r)
	d.mu.Unlock()

	select {
	case l := <-w.slot:
		return d.reservation(r, l), nil
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(r.waiters, w); i >= 0 {
		r.waiters = slices.Delete(r.waiters, i, i+1)
		d.wantLocked(r)
		return nil, ctx.Err()
	}
	// It was granted in the same moment.
	if l := d.reservation(r, <-w.slot).takeLocked(); l != nil {
		d.releaseLocked(l)
	}
	return nil, ctx.Err()
}

func (d *Dispatcher) reservation(r *runner, l *lease) *Reservation {
	if l == nil {
		return &Reservation{d: d, ahead: r}
	}
	return &Reservation{d: d, lease: l}
}

// serveRunnerLocked is for a runner that wants more than before, or may have more.
func (d *Dispatcher) serveRunnerLocked(r *runner) {
	d.wantLocked(r)
	if r.pool == nil {
		return
	}
	for {
		choice, ok := r.pool.agents.Best(placement.Want{})
		if !ok || !d.serveAgentLocked(d.agents[choice.Agent]) {
			break
		}
	}
	d.lookAheadLocked(r)
}

// lookAheadLocked lets a runner claim without a slot, where the policy allows that and GitLab waits for an
// acknowledgement: so jobs of projects come into sight that stand behind those of others in GitLab's queue.
func (d *Dispatcher) lookAheadLocked(r *runner) {
	rules := d.policy.Runner(r.Name)
	for len(r.waiters) > 0 && rules.Ahead > 0 && r.twoPhase.state == TwoPhaseOn && d.mayLookAheadLocked(r, rules) {
		r.ahead++
		d.grantLocked(r, nil)
	}
}

// mayLookAheadLocked says whether one more claim without a slot keeps within the policy's bounds. What the claim brings is
// not known, so it counts for the project that has most.
func (d *Dispatcher) mayLookAheadLocked(r *runner, rules policy.Runner) bool {
	if r.Limit > 0 && len(r.claims)+r.ahead+len(r.jobs) >= r.Limit || d.stoppedLocked(r) != "" {
		return false
	}
	if j := r.waiting.oldest(); j != nil && time.Since(j.row.ClaimedAt) >= rules.AheadFor {
		return false
	}
	return r.waiting.most()+r.ahead < rules.Ahead
}

// grantLocked lets the oldest Reserve of a runner return.
func (d *Dispatcher) grantLocked(r *runner, l *lease) {
	w := r.waiters[0]
	r.waiters = slices.Delete(r.waiters, 0, 1)
	w.slot <- l
	d.wantLocked(r)
}

// serveAgentLocked gives an agent's free slots away, one by one to whom allocation names. It returns false if nobody got
// one. A slot of another agent may be given instead, where placement prefers it.
func (d *Dispatcher) serveAgentLocked(a *agent) (served bool) {
	var passing []*job // they let others have a slot, because an agent with their working copy is busy
	for a.free() > 0 && len(a.poolNames) > 0 {
		next, ok := d.shares.Next(time.Now(), a.poolNames...)
		switch {
		case ok && next.Claim:
			r := d.runners[next.Runner]
			choice, _ := r.pool.agents.Best(placement.Want{Strategy: d.policy.Place(r.Name).Strategy})
			l := r.takeSlotLocked(d.agents[choice.Agent])
			r.claims[l] = struct{}{}
			d.mustShare(d.shares.StartClaim(time.Now(), r.Name))
			r.wants--
			d.grantLocked(r, l)
			served = true
		case ok:
			j := d.known[next.Job]
			choice, pass := d.chooseLocked(j)
			switch {
			case choice.Agent == "" && j.runner.pool.agents.Never(d.wantedLocked(j, policy.Place{})):
				d.applyLocked(j, event{kind: evHopeless, reason: fmt.Sprintf(
					"%s is not protected, and all agents of runner %q take jobs of protected branches and tags only", j.row.Envelope.Ref, j.runner.Name)})
			case choice.Agent == "":
				d.parkLocked(j, "no agent with a free slot may run it")
			case pass:
				passing = append(passing, j)
				d.parkLocked(j, "it waits for an agent that has built its project")
			default:
				d.placeLocked(j, choice.Agent)
				served = true
			}
		case len(passing) > 0: // nobody else wants the slot: it does not stay idle for their sake
			j := passing[0]
			passing = passing[1:]
			if choice, _ := d.chooseLocked(j); choice.Agent != "" && j.parked != "" {
				j.parked = ""
				delete(j.runner.pool.parked, j)
				d.placeLocked(j, choice.Agent)
				served = true
			}
		default:
			return served
		}
	}
	return served
}

// chooseLocked finds an agent for a job; none if nobody with a free slot may run it. pass: the job would rather let
// somebody else have a slot.
func (d *Dispatcher) chooseLocked(j *job) (choice placement.Choice, pass bool) {
	p, place := j.runner.pool, d.policy.Place(j.runner.Name)
	want := d.wantedLocked(j, place)
	choice, ok := p.agents.Best(want)
	if !ok {
		return placement.Choice{}, false
	}
	return choice, placement.Pass(time.Now(), j.row.ClaimedAt, place.WarmWait, choice, p.agents.Somewhere(want), true)
}

func (d *Dispatcher) wantedLocked(j *job, place policy.Place) placement.Want {
	want := placement.Want{
		Strategy: place.Strategy, Known: true, Protected: j.row.Envelope.Protected,
		Avoid: func(agent string) bool { return j.life.avoided[agent] },
	}
	if place.Warm {
		want.Warm = d.warmth.Agents(j.home())
	}
	return want
}

// parkLocked keeps a job from being named again until an agent of its pool has more room.
func (d *Dispatcher) parkLocked(j *job, why string) {
	j.parked = why
	j.runner.pool.parked[j] = struct{}{}
	d.accountLocked(j)
}

// unparkLocked is called when an agent of the pool has got room.
func (p *pool) unparkLocked(d *Dispatcher) {
	for j := range p.parked {
		delete(p.parked, j)
		j.parked = ""
		d.accountLocked(j)
	}
}

// placeLocked gives a slot of an agent to a job that waits.
func (d *Dispatcher) placeLocked(j *job, agent string) {
	j.lease = j.runner.takeSlotLocked(d.agents[agent])
	d.warmth.Built(j.home(), agent)
	d.accountLocked(j)
	d.applyLocked(j, event{kind: evPlaced, agent: agent})
}

func (r *runner) takeSlotLocked(a *agent) *lease {
	l := &lease{agent: a, runner: r}
	a.leases[l], r.leases[l] = struct{}{}, struct{}{}
	r.pool.agents.Chosen(a.id)
	a.offerRoomLocked()
	return l
}

// giveBackLocked makes a slot free that allocation does not count any more.
func (l *lease) giveBackLocked() {
	delete(l.agent.leases, l)
	delete(l.runner.leases, l)
	l.agent.offerRoomLocked()
}

// releaseLocked gives a slot back and serves whoever waits for it.
func (d *Dispatcher) releaseLocked(l *lease) {
	a := l.agent
	l.giveBackLocked()
	d.roomLocked(a)
	d.serveRunnerLocked(l.runner) // it may have been at its limit
	d.unstallLocked()
	d.forgetLocked(a)
}

// roomLocked serves those who wait for a slot that an agent now has.
func (d *Dispatcher) roomLocked(a *agent) {
	for _, p := range a.pools {
		p.unparkLocked(d)
	}
	d.serveAgentLocked(a)
}

// free is the number of slots that may be handed out: none while the agent is away or drains.
func (a *agent) free() int {
	if !a.takesJobs() {
		return 0
	}
	return a.slots - len(a.leases)
}

// offerRoomLocked tells the agent's pools how much room it has.
func (a *agent) offerRoomLocked() {
	free := a.free()
	for _, p := range a.pools {
		p.agents.Set(placement.Agent{Name: a.id, Free: free, ProtectedOnly: a.protectedOnly})
	}
}
