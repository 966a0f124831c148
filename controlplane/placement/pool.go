// Package placement says which agent gets a job. It is pure: callers tell it who has how much room and it answers; it
// knows nothing of sessions, clocks or the network.
package placement

import "container/heap"

// Pool is a set of agents that are interchangeable for some runner's jobs, ordered so that the one with the most free
// slots comes first and, among equals, the one that was chosen longest ago: work spreads evenly. The zero value is an
// empty pool. A Pool is not safe for concurrent use. Every operation costs O(log n) for n agents.
type Pool struct {
	byAgent map[string]*entry
	order   entries
	turn    uint64
}

// Set adds an agent or changes its number of free slots, which may be negative while an agent that shrank still has
// more jobs than slots.
func (p *Pool) Set(agent string, free int) {
	if e, ok := p.byAgent[agent]; ok {
		if e.free != free {
			e.free = free
			heap.Fix(&p.order, e.index)
		}
		return
	}
	if p.byAgent == nil {
		p.byAgent = make(map[string]*entry)
	}
	e := &entry{agent: agent, free: free}
	p.byAgent[agent] = e
	heap.Push(&p.order, e)
}

// Remove takes an agent out: gone, draining, or no longer matching.
func (p *Pool) Remove(agent string) {
	if e, ok := p.byAgent[agent]; ok {
		heap.Remove(&p.order, e.index)
		delete(p.byAgent, agent)
	}
}

// Best returns the agent that should get the next job, or false if none has a free slot. Agents that avoid says yes to
// are chosen only if no other has a free slot; avoid may be nil. Looking past an avoided one costs O(n).
func (p *Pool) Best(avoid func(agent string) bool) (agent string, ok bool) {
	if len(p.order) == 0 || p.order[0].free <= 0 {
		return "", false
	}
	best := p.order[0]
	if avoid == nil || !avoid(best.agent) {
		return best.agent, true
	}
	var other *entry
	for _, e := range p.order[1:] {
		if e.free > 0 && !avoid(e.agent) && (other == nil || e.before(other)) {
			other = e
		}
	}
	if other != nil {
		best = other
	}
	return best.agent, true
}

// Chosen notes that an agent was given a job, so that its equals come before it the next time.
func (p *Pool) Chosen(agent string) {
	if e, ok := p.byAgent[agent]; ok {
		p.turn++
		e.turn = p.turn
		heap.Fix(&p.order, e.index)
	}
}

// Len returns the number of agents in the pool.
func (p *Pool) Len() int { return len(p.order) }

type entry struct {
	agent string
	free  int
	turn  uint64
	index int
}

func (e *entry) before(other *entry) bool {
	if e.free != other.free {
		return e.free > other.free
	}
	if e.turn != other.turn {
		return e.turn < other.turn
	}
	return e.agent < other.agent
}

// entries implements heap.Interface.
type entries []*entry

func (o entries) Len() int { return len(o) }

func (o entries) Less(i, j int) bool { return o[i].before(o[j]) }

func (o entries) Swap(i, j int) {
	o[i], o[j] = o[j], o[i]
	o[i].index, o[j].index = i, j
}

func (o *entries) Push(x any) {
	e := x.(*entry)
	e.index = len(*o)
	*o = append(*o, e)
}

func (o *entries) Pop() any {
	last := len(*o) - 1
	e := (*o)[last]
	(*o)[last] = nil
	*o = (*o)[:last]
	return e
}
