// Package placement says which agent gets a job. It is pure: callers tell it who has how much room and it answers; it
// knows nothing of sessions, clocks or the network.
package placement

import "container/heap"

// Agent is one agent of a pool.
type Agent struct {
	Name string
	// Free is its number of free slots. It may be negative while an agent that shrank still has more jobs than slots; one
	// that is cordoned, drained or away has none.
	Free int
	// ProtectedOnly: it takes jobs of protected refs only.
	ProtectedOnly bool
}

// Pool is a set of agents that are interchangeable for some runner's jobs: they have its executor and its labels. The
// zero value is an empty pool. A Pool is not safe for concurrent use. Set, Remove and Chosen cost O(log n) for n agents.
type Pool struct {
	byName map[string]*entry
	// Only agents with a free slot are in the orders.
	open, restricted orders
	members          [2]int // agents that take every job, and those that take only protected ones
	turn             uint64
}

// Set adds an agent or changes what is known of it.
func (p *Pool) Set(a Agent) {
	e := p.byName[a.Name]
	switch {
	case e == nil:
		if p.byName == nil {
			p.byName = make(map[string]*entry)
		}
		e = &entry{Agent: a, most: -1, least: -1}
		p.byName[a.Name] = e
	case e.Agent == a:
		return
	default:
		p.of(e).remove(e)
		p.members[e.kind()]--
		e.Agent = a
	}
	p.members[e.kind()]++
	if a.Free > 0 {
		p.of(e).add(e)
	}
}

// Remove takes an agent out: it is gone, or no longer has what the pool's agents have.
func (p *Pool) Remove(agent string) {
	if e, ok := p.byName[agent]; ok {
		p.of(e).remove(e)
		p.members[e.kind()]--
		delete(p.byName, agent)
	}
}

// Chosen notes that an agent was given a job, so that its equals come before it the next time (Spread), or behind it
// (Pack).
func (p *Pool) Chosen(agent string) {
	if e, ok := p.byName[agent]; ok {
		p.turn++
		e.turn = p.turn
		p.of(e).moved(e)
	}
}

// Len returns the number of agents in the pool, with a free slot or without.
func (p *Pool) Len() int { return len(p.byName) }

func (p *Pool) of(e *entry) *orders {
	if e.ProtectedOnly {
		return &p.restricted
	}
	return &p.open
}

type entry struct {
	Agent
	turn        uint64
	most, least int // indices in the orders; -1 if it is not in them
}

func (e *entry) kind() int {
	if e.ProtectedOnly {
		return 1
	}
	return 0
}

// orders are the agents with a free slot in the two orders in which they are chosen.
type orders struct {
	most, least order
}

func (o *orders) order(s Strategy) *order {
	if s == Pack {
		return &o.least
	}
	return &o.most
}

func (o *orders) add(e *entry) {
	o.most.by, o.least.by = mostFree{}, leastFree{}
	heap.Push(&o.most, e)
	heap.Push(&o.least, e)
}

func (o *orders) remove(e *entry) {
	if e.most >= 0 {
		heap.Remove(&o.most, e.most)
		heap.Remove(&o.least, e.least)
	}
}

func (o *orders) moved(e *entry) {
	if e.most >= 0 {
		heap.Fix(&o.most, e.most)
		heap.Fix(&o.least, e.least)
	}
}

// ranking is one of the two orders.
type ranking interface {
	before(a, b *entry) bool
	index(e *entry) *int
}

// mostFree spreads: the most free slots, then whoever was chosen longest ago, then the name.
type mostFree struct{}

func (mostFree) index(e *entry) *int { return &e.most }

func (mostFree) before(a, b *entry) bool {
	if a.Free != b.Free {
		return a.Free > b.Free
	}
	if a.turn != b.turn {
		return a.turn < b.turn
	}
	return a.Name < b.Name
}

// leastFree packs: the fewest free slots, then whoever was chosen last, then the name.
type leastFree struct{}

func (leastFree) index(e *entry) *int { return &e.least }

func (leastFree) before(a, b *entry) bool {
	if a.Free != b.Free {
		return a.Free < b.Free
	}
	if a.turn != b.turn {
		return a.turn > b.turn
	}
	return a.Name < b.Name
}

// order implements heap.Interface.
type order struct {
	by      ranking
	entries []*entry
}

func (o *order) Len() int           { return len(o.entries) }
func (o *order) Less(i, j int) bool { return o.by.before(o.entries[i], o.entries[j]) }

func (o *order) Swap(i, j int) {
	o.entries[i], o.entries[j] = o.entries[j], o.entries[i]
	*o.by.index(o.entries[i]), *o.by.index(o.entries[j]) = i, j
}

func (o *order) Push(x any) {
	e := x.(*entry)
	*o.by.index(e) = len(o.entries)
	o.entries = append(o.entries, e)
}

func (o *order) Pop() any {
	last := len(o.entries) - 1
	e := o.entries[last]
	o.entries[last] = nil
	o.entries = o.entries[:last]
	*o.by.index(e) = -1
	return e
}

// best returns the first agent that is not avoided. Looking past avoided ones costs O(n).
func (o *order) best(avoid func(agent string) bool) *entry {
	switch {
	case len(o.entries) == 0:
		return nil
	case avoid == nil || !avoid(o.entries[0].Name):
		return o.entries[0]
	}
	var best *entry
	for _, e := range o.entries[1:] {
		if !avoid(e.Name) && (best == nil || o.by.before(e, best)) {
			best = e
		}
	}
	return best
}
