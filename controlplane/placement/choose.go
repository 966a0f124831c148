package placement

import "time"

// Strategy is how one of several agents with a free slot is chosen.
type Strategy string

// The strategies.
const (
	// Spread takes the agent with the most free slots: jobs disturb one another least.
	Spread Strategy = "spread"
	// Pack takes the agent with the fewest free slots: others become idle and can be switched off.
	Pack Strategy = "pack"
)

// Want is what is looked for.
type Want struct {
	Strategy Strategy // empty: Spread
	// Known: it is for a job, and not for a claim that may bring any.
	Known bool
	// Protected: the job is of a protected ref.
	Protected bool
	// Warm are agents that have built the job's project, the best first: one of them that has a free slot is taken before
	// all others.
	Warm []string
	// Avoid says which agents are taken only if no other has a free slot (they refused the job); nil: none.
	Avoid func(agent string) bool
}

// Choice is the answer to a Want.
type Choice struct {
	Agent string
	Warm  bool // it is one of Want.Warm
}

// Best returns the agent to be given the next slot of, or false if none that may run the job has a free one.
//
// Agents that take only protected jobs are kept for these: a protected job is placed on them first, a claim, of which
// nobody knows what it brings, last. Avoided agents come after all others. It costs O(len(Warm)) and, if agents are
// avoided, O(n).
func (p *Pool) Best(w Want) (Choice, bool) {
	for _, name := range w.Warm {
		e := p.byName[name]
		if e != nil && e.Free > 0 && w.allows(e) && (w.Avoid == nil || !w.Avoid(name)) {
			return Choice{name, true}, true
		}
	}
	first, second := &p.open, &p.restricted
	switch {
	case w.Known && w.Protected:
		first, second = second, first
	case w.Known:
		second = nil
	}
	for _, avoid := range []func(string) bool{w.Avoid, nil} {
		for _, o := range []*orders{first, second} {
			if o == nil {
				continue
			}
			if e := o.order(w.Strategy).best(avoid); e != nil {
				return Choice{Agent: e.Name}, true
			}
		}
		if w.Avoid == nil {
			break
		}
	}
	return Choice{}, false
}

func (w *Want) allows(e *entry) bool { return !w.Known || w.Protected || !e.ProtectedOnly }

// Never says that the pool has agents and that none of them will ever take the job: all take protected jobs only, and it
// is not one.
func (p *Pool) Never(w Want) bool {
	return w.Known && !w.Protected && p.members[0] == 0 && p.members[1] > 0
}

// Pass says whether a job that is next in line lets a free slot go to the job behind it and waits for an agent that has
// built its project. It does so for wait at most, counted from since, when it began to wait, and only if somebody else
// takes the slot: a slot is never idle for the sake of a warm agent. choice is what Best said; somewhere says whether one
// of Want.Warm is in the pool, though without a free slot.
func Pass(now, since time.Time, wait time.Duration, choice Choice, somewhere, others bool) bool {
	return wait > 0 && !choice.Warm && somewhere && others && now.Before(since.Add(wait))
}

// Somewhere says whether one of the wanted warm agents is in the pool and may run the job.
func (p *Pool) Somewhere(w Want) bool {
	for _, name := range w.Warm {
		if e := p.byName[name]; e != nil && w.allows(e) {
			return true
		}
	}
	return false
}

// Census is why a job finds no agent.
type Census struct {
	Agents    int // in the pool
	Full      int // without a free slot
	Forbidden int // with a free slot, but for protected jobs only
	Avoided   int // with a free slot, but they refused the job
	Fit       int // with a free slot that the job may have
}

// Census counts the pool's agents by what they mean for a job. It costs O(n).
func (p *Pool) Census(w Want) Census {
	c := Census{Agents: len(p.byName)}
	for _, e := range p.byName {
		switch {
		case e.Free <= 0:
			c.Full++
		case !w.allows(e):
			c.Forbidden++
		case w.Avoid != nil && w.Avoid(e.Name):
			c.Avoided++
		default:
			c.Fit++
		}
	}
	return c
}
