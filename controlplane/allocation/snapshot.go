package allocation

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

const (
	snapshotVersion = 1
	// forgetAfter is how long a node may be idle before its account and what was learned of it are forgotten.
	forgetAfter = 30 * 24 * time.Hour
	// remember is how many idle nodes are kept at most: the ones idle longest go first.
	remember = 10_000
)

// What a snapshot consists of. Times are µs since 1970, costs slot-µs.
type (
	savedState struct {
		Version int           `json:"version"`
		At      int64         `json:"at"`
		Pools   []savedPool   `json:"pools,omitempty"`
		Nodes   []savedNode   `json:"nodes,omitempty"`
		Jobs    []savedLease  `json:"jobs,omitempty"`
		Wants   []savedWanted `json:"wants,omitempty"`
	}
	savedPool struct {
		Name     string        `json:"name"`
		Domain   int           `json:"domain"`
		Starving map[int]int64 `json:"starving,omitempty"`
	}
	savedNode struct {
		Kind     kind             `json:"kind"`
		Name     string           `json:"name"`
		Parent   int              `json:"parent"` // index in Nodes; the fleet is its own
		GitLab   string           `json:"gitlab,omitempty"`
		ID       int64            `json:"id,omitempty"`
		Charged  int64            `json:"charged,omitempty"`
		Seen     int64            `json:"seen,omitempty"`
		Mean     int64            `json:"mean,omitempty"`
		Names    map[string]int64 `json:"names,omitempty"`
		Accounts []savedAccount   `json:"accounts,omitempty"`
	}
	savedAccount struct {
		Domain  int     `json:"domain"`
		Finish  int64   `json:"finish,omitempty"`
		Virtual int64   `json:"virtual,omitempty"`
		Left    int64   `json:"left,omitempty"`
		Lag     int64   `json:"lag,omitempty"`
		Kept    keeping `json:"kept,omitempty"`
	}
	savedLease struct {
		GitLab string `json:"gitlab"`
		ID     int64  `json:"id"`
		Cost   int64  `json:"cost"`
	}
	savedWanted struct {
		Runner string `json:"runner"`
		Since  int64  `json:"since"`
	}
)

// Snapshot returns the usage accounts and what was learned, for Restore. First it forgets what has been idle for 30 days,
// and the nodes idle longest where there are more than 10,000; so it has to be called now and then even if nobody wants
// the bytes. Claims under way are not in it: a restart ends them.
func (s *Scheduler) Snapshot(now time.Time) []byte {
	s.tick(now)
	s.forgetIdle()
	nodes := make([]*node, 0, len(s.nodes))
	for _, n := range s.nodes {
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b *node) int {
		return cmp.Or(cmp.Compare(a.depth, b.depth), cmp.Compare(a.kind, b.kind), cmp.Compare(a.name, b.name))
	})
	index := make(map[*node]int, len(nodes))
	state := savedState{Version: snapshotVersion, At: s.now, Nodes: make([]savedNode, 0, len(nodes))}
	unsaved := s.claimCosts()
	for i, n := range nodes {
		index[n] = i
		saved := savedNode{
			Kind: n.kind, Name: n.name, GitLab: n.gitlab, ID: n.id, Seen: n.seen, Mean: n.lengths.mean, Names: n.lengths.names,
			Charged: n.charged,
		}
		if n.parent != nil {
			saved.Parent = index[n.parent]
		}
		for d := range n.accounts {
			a := n.accounts[d]
			cost := unsaved[claimed{n, d}]
			saved.Charged -= cost
			if n.parent != nil {
				a.finish -= perWeight(cost, n.limits.weight)
			}
			if a.standing > 0 {
				a.kept = keeps
			}
			if a.finish != 0 || a.virtual != 0 || a.left != 0 || a.kept != forgets {
				saved.Accounts = append(saved.Accounts, savedAccount{d, a.finish, a.virtual, a.left, a.lag, a.kept})
			}
		}
		state.Nodes = append(state.Nodes, saved)
	}
	for _, p := range s.pools {
		saved := savedPool{Name: p.name, Domain: p.domain}
		for rank, since := range p.starving {
			if since != 0 {
				if saved.Starving == nil {
					saved.Starving = make(map[int]int64)
				}
				saved.Starving[rank] = since
			}
		}
		state.Pools = append(state.Pools, saved)
	}
	for _, j := range s.jobs {
		if j.state == running {
			state.Jobs = append(state.Jobs, savedLease{j.key.GitLab, j.key.ID, j.lease.cost})
		}
	}
	for _, r := range s.runners {
		if r.wants > 0 {
			state.Wants = append(state.Wants, savedWanted{r.Name, r.wantsSince})
		}
	}
	slices.SortFunc(state.Pools, func(a, b savedPool) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(state.Jobs, func(a, b savedLease) int {
		return cmp.Or(cmp.Compare(a.GitLab, b.GitLab), cmp.Compare(a.ID, b.ID))
	})
	slices.SortFunc(state.Wants, func(a, b savedWanted) int { return cmp.Compare(a.Runner, b.Runner) })
	bytes, err := json.Marshal(state)
	if err != nil {
		panic(fmt.Sprintf("allocation: marshal a snapshot: %v", err)) // there is nothing in it that JSON has no form for
	}
	return bytes
}

type claimed struct {
	node   *node
	domain int
}

// claimCosts is what claims under way are charged, by node and domain.
func (s *Scheduler) claimCosts() map[claimed]int64 {
	costs := make(map[claimed]int64)
	for _, r := range s.runners {
		for _, l := range r.claims {
			for n := l.leaf; n != nil; n = n.parent {
				costs[claimed{n, l.domain}] += l.cost
			}
		}
	}
	return costs
}

func (s *Scheduler) forgetIdle() {
	for again := true; again; {
		again = false
		var idle []*node
		for _, n := range s.nodes {
			if n.idle() {
				idle = append(idle, n)
			}
		}
		slices.SortFunc(idle, func(a, b *node) int {
			return cmp.Or(cmp.Compare(a.seen, b.seen), cmp.Compare(a.name, b.name))
		})
		for i, n := range idle {
			if len(idle)-i <= remember && s.now-n.seen < forgetAfter.Microseconds() {
				break
			}
			s.forgetNode(n)
			again = true // its parent may be idle now
		}
	}
}

func (s *Scheduler) forgetNode(n *node) {
	delete(s.nodes, nodeKey{n.kind, n.name})
	if pk := (projectKey{n.gitlab, n.id}); s.projects[pk] == n {
		delete(s.projects, pk)
	}
	n.parent.below--
}

// remembered is what a snapshot knows of things that are made known again after Restore.
type remembered struct {
	costs  map[JobKey]int64
	wanted map[string]int64
}

func (r *remembered) take(k JobKey) (cost int64, charged bool) {
	if r == nil {
		return 0, false
	}
	cost, charged = r.costs[k]
	delete(r.costs, k)
	return cost, charged
}

func (r *remembered) since(runner string, now int64) int64 {
	if r == nil {
		return now
	}
	since, ok := r.wanted[runner]
	if !ok {
		return now
	}
	delete(r.wanted, runner)
	return since
}

// restart ends the time in which what was known before a restart is made known again.
func (s *Scheduler) restart() {
	if s.restored == nil {
		return
	}
	s.restored = nil
	s.kept()
}

// Restore brings back what Snapshot returned, into a scheduler that is new. SetRunner, Want, Arrive and Resume then make
// known what there is; the first Next ends it. Decisions are the same as if there had been no restart.
func (s *Scheduler) Restore(now time.Time, snapshot []byte) error {
	s.tick(now)
	if len(s.nodes) > 1 {
		return fmt.Errorf("restore fair usage: the scheduler is in use already")
	}
	var state savedState
	if err := json.Unmarshal(snapshot, &state); err != nil {
		return fmt.Errorf("restore fair usage: %w", err)
	}
	if state.Version != snapshotVersion {
		return fmt.Errorf("restore fair usage: the snapshot is of version %d, this program reads version %d", state.Version, snapshotVersion)
	}
	if err := state.check(); err != nil {
		return fmt.Errorf("restore fair usage: %w", err)
	}
	nodes := make([]*node, len(state.Nodes))
	for i, saved := range state.Nodes {
		var parent *node
		if i > 0 {
			parent = nodes[saved.Parent]
		}
		n := s.node(saved.Kind, saved.Name, parent)
		nodes[i] = n
		n.gitlab, n.id, n.charged, n.seen = saved.GitLab, saved.ID, saved.Charged, saved.Seen
		n.lengths = lengths{mean: saved.Mean, names: saved.Names}
		if n.id != 0 {
			s.projects[projectKey{n.gitlab, n.id}] = n
		}
		for _, a := range saved.Accounts {
			*n.account(a.Domain) = account{finish: a.Finish, virtual: a.Virtual, left: a.Left, lag: a.Lag, kept: a.Kept}
		}
	}
	for _, saved := range state.Pools {
		p := s.pool(saved.Name)
		p.domain = saved.Domain
		s.domains = max(s.domains, p.domain+1)
		for rank, since := range saved.Starving {
			p.starving[rank] = since
		}
	}
	s.restored = &remembered{costs: make(map[JobKey]int64, len(state.Jobs)), wanted: make(map[string]int64, len(state.Wants))}
	for _, l := range state.Jobs {
		s.restored.costs[JobKey{l.GitLab, l.ID}] = l.Cost
	}
	for _, w := range state.Wants {
		s.restored.wanted[w.Runner] = w.Since
	}
	return nil
}

// check refuses what Snapshot cannot have written.
func (state *savedState) check() error {
	const domains = 10_000
	for i, n := range state.Nodes {
		switch {
		case (n.Kind == kindFleet) != (i == 0), i > 0 && (n.Parent < 0 || n.Parent >= i), int(n.Kind) >= len(kinds):
			return fmt.Errorf("node %d (%q) has no place in the tree", i, n.Name)
		case len(n.Names) > learnedNames:
			return fmt.Errorf("node %d (%q) has %d job names, %d are allowed", i, n.Name, len(n.Names), learnedNames)
		}
		for _, a := range n.Accounts {
			if a.Domain < 0 || a.Domain >= domains || a.Kept > keeps {
				return fmt.Errorf("node %d (%q) has an account in domain %d", i, n.Name, a.Domain)
			}
		}
	}
	for _, p := range state.Pools {
		if p.Domain < 0 || p.Domain >= domains {
			return fmt.Errorf("pool %q is of domain %d", p.Name, p.Domain)
		}
		for rank := range p.Starving {
			if rank < 0 || rank >= MaxClass+2 {
				return fmt.Errorf("pool %q has no class with rank %d", p.Name, rank)
			}
		}
	}
	return nil
}
