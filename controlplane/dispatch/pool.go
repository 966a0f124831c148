package dispatch

import (
	"strings"

	"github.com/switchyard-ci/switchyard/controlplane/placement"
	"github.com/switchyard-ci/switchyard/controlplane/registry"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// pool is the agents that serve the runners with one executor and one selector. An agent is in its pools while its
// session is up.
type pool struct {
	name     string // for allocation
	executor string
	selector registry.Selector
	agents   placement.Pool
	parked   map[*job]struct{} // that wait until some agent has more room

	slots  int
	kinds  map[kind]int // how many agents of each kind there are
	stale  bool         // kinds has changed since common was worked out
	common *kind        // nil before the first agent came
}

// kind is what GitLab is told of the agents; those of a fleet are of few kinds.
type kind struct {
	features        runnerapi.Features
	shell, os, arch string
	gpus            string
}

// executor is one place where an agent can run jobs.
type executor struct {
	features runnerapi.Features
	shell    string
	gpus     string
}

func executorsOf(h *fleetv1.Hello) map[string]executor {
	all := make(map[string]executor, len(h.GetExecutors()))
	for _, e := range h.GetExecutors() {
		all[e.GetName()] = executor{runnerapi.FeaturesOf(e.GetFeatures()), e.GetShell(), e.GetGpus()}
	}
	return all
}

// poolLocked returns the pool for an executor and a selector, making it at the first call.
func (d *Dispatcher) poolLocked(executor string, s registry.Selector) *pool {
	key := strings.TrimSuffix(executor+" "+s.String(), " ")
	p := d.pools[key]
	if p == nil {
		p = &pool{name: key, executor: executor, selector: s, kinds: make(map[kind]int), parked: make(map[*job]struct{})}
		d.pools[key] = p
	}
	return p
}

// joinPoolsLocked puts an agent whose session has begun into the pools whose jobs it can run.
func (d *Dispatcher) joinPoolsLocked(a *agent) {
	for _, p := range d.pools {
		if _, ok := a.executors[p.executor]; ok && p.selector.Matches(a.labels) {
			a.pools, a.poolNames = append(a.pools, p), append(a.poolNames, p.name)
			p.count(a, 1)
		}
	}
	a.offerRoomLocked()
}

// leavePoolsLocked takes an agent out of its pools: its session has ended.
func (a *agent) leavePoolsLocked() {
	for _, p := range a.pools {
		p.agents.Remove(a.id)
		p.count(a, -1)
	}
	a.pools, a.poolNames = nil, nil
}

func (p *pool) count(a *agent, by int) {
	p.slots += by * a.slots
	x := a.executors[p.executor]
	k := kind{x.features, x.shell, a.os, a.arch, x.gpus}
	p.kinds[k] += by
	switch p.kinds[k] {
	case 0:
		delete(p.kinds, k)
		p.stale = true
	case by:
		p.stale = true
	}
}

// describe returns what all agents have in common. A pool that has lost its last agent keeps what it said before, so that
// what GitLab is told does not flicker.
func (p *pool) describe() *kind {
	if !p.stale {
		return p.common
	}
	p.stale = false
	var common *kind
	for k := range p.kinds {
		if common == nil {
			common = &k
			continue
		}
		common.features = common.features.Intersection(k.features)
		common.shell, common.os, common.arch = same(common.shell, k.shell), same(common.os, k.os), same(common.arch, k.arch)
		common.gpus = same(common.gpus, k.gpus)
	}
	if common != nil {
		p.common = common
	}
	return p.common
}

func same(a, b string) string {
	if a == b {
		return a
	}
	return ""
}

// Info returns what GitLab is to be told of a runner: the control plane's own part and the features that all agents
// have which may serve it. With no such agent at hand it is what any agent can do.
func (d *Dispatcher) Info(name string) runnerapi.Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.runners[name]; r != nil {
		return r.infoLocked()
	}
	return runnerapi.Info{}
}

func (r *runner) infoLocked() runnerapi.Info {
	info := r.Info
	info.Executor = r.Executor
	if r.pool == nil {
		return info
	}
	if k := r.pool.describe(); k != nil {
		info.Features = info.Features.Union(k.features)
		info.Shell, info.Platform, info.Architecture = k.shell, k.os, k.arch
		info.Config.GPUs = k.gpus
	}
	return info
}

// Slots returns how many jobs the runner can have at once: its limit or what its agents have, whichever is less.
func (d *Dispatcher) Slots(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.runners[name]
	if r == nil {
		return 0
	}
	if r.Limit > 0 {
		return min(r.Limit, r.pool.slots)
	}
	return r.pool.slots
}
