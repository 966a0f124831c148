package allocation

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Capacity is what the caller knows of a pool's slots.
type Capacity struct {
	Free     int // that may be handed out now
	Draining int // that are empty, of agents that take no more jobs
	Total    int // of the agents that are there
	// Pools are the other pools that these agents serve: what waits there competes for the same slots.
	Pools []string
}

// Verdict is the short answer of Explain.
type Verdict string

// The verdicts.
const (
	Running Verdict = "running" // it has its slot
	Idle    Verdict = "idle"    // nothing waits that could be served
	Blocked Verdict = "blocked" // it would not be served even if all slots were free
	NoSlot  Verdict = "no slot" // it is the first, and there is no free slot
	Behind  Verdict = "behind"  // others are served before
	First   Verdict = "next"    // it gets the next slot, and there is one
)

// Cause is one kind of reason.
type Cause string

// The causes.
const (
	Paused      Cause = "paused"       // Node is paused
	HardQuota   Cause = "hard quota"   // Node has Running of Limit slots
	RunnerLimit Cause = "runner limit" // the runner, Node, has Running of Limit slots
	RunnerGone  Cause = "runner gone"  // the runner, Node, is in the configuration no more
	Held        Cause = "held"         // the caller holds it; Detail says why
	NoFreeSlot  Cause = "no free slot" // the pool, Node, has Running of Limit slots in use, and Count of agents that drain
	Outclassed  Cause = "outclassed"   // Count jobs of a higher class or that GitLab takes for running go first
	Siblings    Cause = "siblings"     // below Node, Count others are served before
	Earlier     Cause = "earlier"      // in the same project, Node, Count jobs are served before
	PatientJob  Cause = "patient job"  // the class of Node, a project, has been passed over for long enough and has its turn
	OtherPool   Cause = "other pool"   // in another pool of the same slots, Node, somebody comes first
	OwnJobs     Cause = "own jobs"     // a claim: Count jobs of the project, Node, that the runner is bound to go first
	NoWish      Cause = "no wish"      // a runner: it does not ask for a slot to claim with now
	NothingHere Cause = "nothing here" // a project: no job of it is known
)

// Reason is one of the reasons why something is not served now.
type Reason struct {
	Cause   Cause
	Node    string // its name; "" is the whole fleet
	Kind    string // of the node: fleet, GitLab, group, project or runner
	Running int
	Limit   int
	Count   int
	Rivals  []Rival // of the Count siblings, the first five
	Detail  string
}

// Rival is somebody who is served before.
type Rival struct {
	Name        string
	Kind        string
	Running     int // leases in the pools that share slots with this one
	Weight      float64
	SlotSeconds float64 // charged since it is known
}

// Explanation says why a job, a runner's claim or a project is served or not.
type Explanation struct {
	Verdict  Verdict
	Reasons  []Reason
	Running  int // leases of the project or the runner
	Waiting  int // jobs of the project or the runner
	Sentence string
}

const rivals = 5

// ExplainJob says why a job waits, by what Next would decide for its runner's pool. It costs O(jobs and siblings).
func (s *Scheduler) ExplainJob(now time.Time, k JobKey, c Capacity) (Explanation, error) {
	s.tick(now)
	j := s.jobs[k]
	if j == nil {
		return Explanation{}, fmt.Errorf("explain job %d: %w", k.ID, ErrUnknownJob)
	}
	return s.explainJob(j, c), nil
}

func (s *Scheduler) explainJob(j *job, c Capacity) Explanation {
	e := Explanation{Running: int(j.project.running), Waiting: int(j.project.waiting)}
	what := "job " + strconv.FormatInt(j.key.ID, 10)
	if j.state == running {
		return e.conclude(Running, what)
	}
	p := j.runner.pool
	switch j.state {
	case held:
		e.add(Reason{Cause: Held, Node: j.project.name, Kind: j.project.kind.String(), Detail: j.reason})
	case parked:
		e.add(Reason{
			Cause: RunnerLimit, Node: j.runner.Name, Kind: kindRunner.String(),
			Running: j.runner.leases, Limit: j.runner.limit,
		})
	}
	if !j.commit {
		e.blockers(j.project)
	}
	if len(e.Reasons) > 0 {
		e.noSlot(p, c)
		return e.conclude(Blocked, what)
	}
	st := j.project.in(j.band)
	s.outclassed(&e, j.band)
	s.siblings(&e, st)
	if ahead := st.jobsBefore(j); ahead > 0 {
		e.add(Reason{Cause: Earlier, Node: j.project.name, Kind: j.project.kind.String(), Count: ahead})
	}
	return s.rank(e, st, j, p, c, what)
}

// ExplainRunner says why a runner gets no slot to claim with.
func (s *Scheduler) ExplainRunner(now time.Time, name string, c Capacity) (Explanation, error) {
	s.tick(now)
	r := s.runners[name]
	if r == nil {
		return Explanation{}, fmt.Errorf("explain runner %q: %w", name, ErrUnknownRunner)
	}
	e := Explanation{Running: r.leases, Waiting: r.waiting}
	what := "runner " + name
	quota := int(r.leaf.limits.hard)
	toldByQuota := quota == r.limit && int(r.leaf.running) >= quota
	switch {
	case r.retired:
		e.add(Reason{Cause: RunnerGone, Node: name, Kind: kindRunner.String()})
	case r.limit > 0 && r.leases+r.waiting >= r.limit && !toldByQuota:
		e.add(Reason{
			Cause: RunnerLimit, Node: name, Kind: kindRunner.String(), Running: r.leases + r.waiting, Limit: r.limit,
		})
	}
	e.blockers(r.leaf)
	if len(e.Reasons) > 0 {
		e.noSlot(r.pool, c)
		return e.conclude(Blocked, what), nil
	}
	if r.wants == 0 {
		e.add(Reason{Cause: NoWish, Node: name, Kind: kindRunner.String()})
		return e.conclude(Idle, what), nil
	}
	st := r.leaf.in(s.band(r.pool, MaxClass+1))
	s.outclassed(&e, st.band)
	if above := st.up; len(above.jobs) > 0 {
		e.add(Reason{Cause: OwnJobs, Node: above.node.name, Kind: above.node.kind.String(), Count: len(above.jobs)})
	}
	s.siblings(&e, st)
	return s.rank(e, st, nil, r.pool, c, what), nil
}

// ExplainProject says why the job of a project waits that would be served first, or what else there is to say of it. The
// capacity is asked for by the name of that job's pool.
func (s *Scheduler) ExplainProject(now time.Time, gitlab, path string, capacity func(pool string) Capacity) Explanation {
	s.tick(now)
	n := s.nodes[nodeKey{kindProject, NodeName(gitlab, path)}]
	what := "project " + NodeName(gitlab, path)
	var e Explanation
	if n != nil {
		e.Running, e.Waiting = int(n.running), int(n.waiting)
	}
	var first *job
	for _, j := range s.jobs {
		if j.project == n && j.state != running && (first == nil || j.sooner(first)) {
			first = j
		}
	}
	if first != nil {
		of := s.explainJob(first, capacity(first.runner.pool.name))
		of.Sentence = fmt.Sprintf("P%s: %d running, %d waiting. %s", what[1:], of.Running, of.Waiting, of.Sentence)
		return of
	}
	if n != nil {
		e.blockers(n)
		if len(e.Reasons) > 0 {
			return e.conclude(Blocked, what)
		}
	}
	e.add(Reason{Cause: NothingHere, Node: NodeName(gitlab, path), Kind: kindProject.String()})
	return e.conclude(Idle, what)
}

// sooner orders the waiting jobs of a project over all bands.
func (j *job) sooner(other *job) bool {
	rank := func(j *job) int {
		switch {
		case j.commit:
			return committed
		case j.state == held:
			return MaxClass + 2
		}
		return MaxClass + 1 - j.class
	}
	if a, b := rank(j), rank(other); a != b {
		return a < b
	}
	return j.before(other)
}

func (e *Explanation) add(r Reason) { e.Reasons = append(e.Reasons, r) }

// blockers adds the pauses and full quotas of a node and those above it.
func (e *Explanation) blockers(n *node) {
	for ; n != nil; n = n.parent {
		if n.limits.paused {
			e.add(Reason{Cause: Paused, Node: n.name, Kind: n.kind.String(), Running: int(n.running)})
		}
		if n.limits.hard > 0 && n.running >= n.limits.hard {
			e.add(Reason{
				Cause: HardQuota, Node: n.name, Kind: n.kind.String(), Running: int(n.running), Limit: int(n.limits.hard),
			})
		}
	}
}

func (e *Explanation) noSlot(p *pool, c Capacity) {
	if c.Free <= 0 {
		e.add(Reason{
			Cause: NoFreeSlot, Node: p.name, Kind: "pool", Running: c.Total - max(c.Free, 0) - c.Draining, Limit: c.Total, Count: c.Draining,
		})
	}
}

func (s *Scheduler) outclassed(e *Explanation, b *band) {
	count := 0
	for _, j := range s.jobs {
		if j.state == queued && j.band.pool == b.pool && j.band.rank < b.rank && (j.commit || !j.project.anyBlocked()) {
			count++
		}
	}
	if count > 0 {
		e.add(Reason{Cause: Outclassed, Node: b.pool.name, Kind: "pool", Count: count})
	}
}

func (n *node) anyBlocked() bool {
	for ; n != nil; n = n.parent {
		if n.blocked() {
			return true
		}
	}
	return false
}

// siblings adds, for each level of the tree, those that are served before the node or the one above it there.
func (s *Scheduler) siblings(e *Explanation, st *standing) {
	if s.settings.mode != Fair { // the first of all comes first, whatever group it is in
		e.behind(s.root, s.before(s.leaves(st.band), st))
		return
	}
	at := len(e.Reasons)
	for ; st.up != nil; st = st.up {
		e.behind(st.up.node, s.before(st.up.ranks[byShare].items, st))
	}
	slices.Reverse(e.Reasons[at:]) // from the top
}

// leaves returns the projects and runners that may be served in a band.
func (s *Scheduler) leaves(b *band) []*standing {
	var all []*standing
	for _, n := range s.nodes {
		st := n.in(b)
		if st == nil || !st.present() || len(st.jobs) == 0 && st.wants == 0 {
			continue
		}
		up := st.up
		for up.up != nil && up.present() {
			up = up.up
		}
		if up.up == nil {
			all = append(all, st)
		}
	}
	return all
}

// before returns those of some that are served before one, in their order.
func (s *Scheduler) before(some []*standing, one *standing) []*standing {
	var ahead []*standing
	for _, other := range some {
		if other != one && s.ahead(other, one) {
			ahead = append(ahead, other)
		}
	}
	slices.SortFunc(ahead, func(a, b *standing) int {
		if s.ahead(a, b) {
			return -1
		}
		return 1
	})
	return ahead
}

func (e *Explanation) behind(above *node, ahead []*standing) {
	if len(ahead) == 0 {
		return
	}
	r := Reason{Cause: Siblings, Node: above.name, Kind: above.kind.String(), Count: len(ahead)}
	for _, other := range ahead[:min(len(ahead), rivals)] {
		n := other.node
		r.Rivals = append(r.Rivals, Rival{
			Name: n.name, Kind: n.kind.String(), Running: int(n.account(other.band.pool.domain).running),
			Weight: float64(n.limits.weight) / 1000, SlotSeconds: float64(n.charged) / 1e6,
		})
	}
	e.add(r)
}

// ahead says whether a is served before b, two siblings in one band: what best decides for two.
func (s *Scheduler) ahead(a, b *standing) bool {
	if s.settings.mode != Fair || s.short(a) || s.short(b) {
		return a.before(b, byShare)
	}
	return a.before(b, byTag)
}

func (st *standing) jobsBefore(j *job) int {
	ahead := 0
	for _, other := range st.jobs {
		if other.before(j) {
			ahead++
		}
	}
	return ahead
}

// rank concludes for somebody whom no quota holds back. The last word is Next's.
func (s *Scheduler) rank(e Explanation, st *standing, j *job, p *pool, c Capacity, what string) Explanation {
	chosen := s.choose(append([]string{p.name}, c.Pools...), false)
	first := chosen == st && (j == nil || st.jobs[0] == j)
	switch {
	case first:
		e.Reasons = nil // its class had to wait for long enough: whoever stands before it does not matter now
	case chosen != nil && chosen.band.pool == p && chosen.band.rank > st.band.rank:
		e.add(Reason{Cause: PatientJob, Node: chosen.node.name, Kind: chosen.node.kind.String()})
	case chosen != nil && chosen.band.pool != p:
		e.add(Reason{Cause: OtherPool, Node: chosen.band.pool.name, Kind: "pool"})
	}
	e.noSlot(p, c)
	switch {
	case first && c.Free > 0:
		return e.conclude(First, what)
	case first:
		return e.conclude(NoSlot, what)
	}
	return e.conclude(Behind, what)
}

// conclude writes the sentence.
func (e Explanation) conclude(v Verdict, what string) Explanation {
	e.Verdict = v
	var lead string
	switch v {
	case Running:
		lead = "has a slot and runs"
	case First:
		lead = "gets the next free slot"
	case NoSlot:
		lead = "gets the next slot that becomes free"
	case Blocked:
		lead = "is not served"
	case Behind:
		lead = "waits for its turn"
	case Idle:
		lead = "waits for nothing"
	}
	parts := make([]string, 0, len(e.Reasons))
	for _, r := range e.Reasons {
		parts = append(parts, r.String())
	}
	e.Sentence = strings.ToUpper(what[:1]) + what[1:] + " " + lead
	if len(parts) > 0 {
		e.Sentence += ": " + strings.Join(parts, "; ")
	}
	e.Sentence += "."
	return e
}

// String is the reason as a part of a sentence.
func (r Reason) String() string {
	node := r.Kind + " " + r.Node
	if r.Kind == kindFleet.String() {
		node = "the fleet"
	}
	switch r.Cause {
	case Paused:
		return node + " is paused"
	case HardQuota:
		return fmt.Sprintf("%s uses %d of the %d slots of its quota", node, r.Running, r.Limit)
	case RunnerLimit:
		return fmt.Sprintf("%s uses %d of the %d slots of its limit", node, r.Running, r.Limit)
	case RunnerGone:
		return node + " is not in the configuration any more"
	case Held:
		return r.Detail
	case NoFreeSlot:
		switch r.Count {
		case 0:
		case r.Limit:
			return fmt.Sprintf("all agents of %s drain: they take no more jobs", node)
		default:
			return fmt.Sprintf("all slots of %s are in use (%d of %d) or of agents that drain (%d)", node, r.Running, r.Limit, r.Count)
		}
		if r.Limit == 0 {
			return fmt.Sprintf("%s has no agent with slots", node)
		}
		return fmt.Sprintf("all slots of %s are in use (%d of %d)", node, r.Running, r.Limit)
	case Outclassed:
		return fmt.Sprintf("%d %s of a higher class", r.Count, plural(r.Count, "job goes first that is", "jobs go first that are"))
	case Siblings:
		names := make([]string, 0, len(r.Rivals))
		for _, v := range r.Rivals {
			names = append(names, fmt.Sprintf("%s %s (%d running, weight %g, %.0f slot-seconds)", v.Kind, v.Name, v.Running, v.Weight, v.SlotSeconds))
		}
		if more := r.Count - len(r.Rivals); more > 0 {
			names = append(names, fmt.Sprintf("%d more", more))
		}
		return fmt.Sprintf("in %s it is behind %s", node, strings.Join(names, ", "))
	case Earlier:
		return fmt.Sprintf("%d %s of its own project %s first", r.Count, plural(r.Count, "job", "jobs"), plural(r.Count, "goes", "go"))
	case PatientJob:
		return node + ", of a lower class, has been passed over for long enough and has its turn"
	case OtherPool:
		return fmt.Sprintf("in %s, which uses the same slots, another comes first", node)
	case OwnJobs:
		return fmt.Sprintf("%d claimed %s of %s", r.Count, plural(r.Count, "job goes first", "jobs go first"), node)
	case NoWish:
		return "it does not ask for a slot to claim with"
	case NothingHere:
		return "GitLab has given no job of it that waits"
	}
	return string(r.Cause)
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
