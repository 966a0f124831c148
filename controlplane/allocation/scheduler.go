package allocation

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Errors of calls about what the scheduler does not know, or knows to be otherwise. They are mistakes of the caller;
// nothing has changed.
var (
	ErrUnknownRunner = errors.New("unknown runner")
	ErrUnknownJob    = errors.New("unknown job")
	ErrNotWaiting    = errors.New("the job does not wait")
	ErrNotRunning    = errors.New("the job has no slot")
	ErrNoClaim       = errors.New("the runner has no claim under way")
)

// Scope is what a runner's registration in GitLab is for.
type Scope uint8

// The scopes. A runner whose scope is not known is taken for an instance runner.
const (
	InstanceRunner Scope = iota
	GroupRunner
	ProjectRunner
)

// Runner is one registration at a GitLab.
type Runner struct {
	Name   string
	GitLab string // its URL
	Scope  Scope
	Path   string // of the group or project that it is bound to; empty for an instance runner
	Pool   string // whose slots it uses
	Limit  int    // slots that it never exceeds, claims under way and waiting jobs included; 0: none
}

// Project is what a job says of its project. A project is known by its ID; Path (with its namespace) says where in the
// tree it is.
type Project struct {
	ID   int64
	Path string
}

// JobKey names a job.
type JobKey struct {
	GitLab string
	ID     int64
}

// Job is a job that a runner has claimed.
type Job struct {
	GitLab  string
	ID      int64
	Project Project
	Runner  string
	Name    string // as in .gitlab-ci.yml, for what has been learned of its length; may be empty
	// Class goes before everything else across projects; it is granted by the administrator only. 0 to MaxClass.
	Class int
	// Priority counts inside the job's project; a higher one is served first. See Policy.Ageing.
	Priority int
	// Since is when it began to wait; the zero time means now.
	Since time.Time
	// Committed jobs run already as far as GitLab knows: no quota and no pause holds them back, only their runner's limit.
	Committed bool
	// Held, if not empty, keeps the job from being served from the beginning, as Hold with this reason does.
	Held string
	// Factor is how much a second of the job's slot is charged; 0 means 1.
	Factor float64
}

// Key returns the job's name.
func (j *Job) Key() JobKey { return JobKey{j.GitLab, j.ID} }

// Decision says who gets the free slot.
type Decision struct {
	Runner string
	Claim  bool   // the runner may claim a job; otherwise Job gets the slot
	Job    JobKey // if it is no claim
}

// Scheduler decides. It is not safe for concurrent use. The times that it is told must not go back; one that does is
// taken for the last one.
type Scheduler struct {
	policy   Policy
	settings settings
	now      int64
	keeping  bool // what leaves a ranking now comes back to it at once

	root     *node
	nodes    map[nodeKey]*node
	projects map[projectKey]*node
	runners  map[string]*runner
	jobs     map[JobKey]*job
	pools    map[string]*pool
	bands    []*band
	domains  int
	spare    []*job
	restored *remembered // between Restore and the first Next
}

// runner is a Runner and what it has.
type runner struct {
	Runner
	pool       *pool
	leaf       *node
	limit      int // its own and the policy's
	wants      int
	wantsSince int64
	claims     []lease
	leases     int
	waiting    int
	queue      []*job // that wait and are not held
	gated      bool   // it is at its limit: its queue is in no ranking
	retired    bool
}

type lease struct {
	leaf       *node
	domain     int
	start      int64 // µs
	cost       int64 // charged so far, slot-µs
	factor     int64 // thousandths
	isInstance bool
}

type state uint8

const (
	queued state = iota
	parked       // its runner is at its limit
	held         // by Hold
	running
)

type job struct {
	key      JobKey
	project  *node
	runner   *runner
	band     *band
	name     string
	reason   string // of Hold
	class    int
	priority int
	commit   bool
	state    state
	since    int64
	order    int64
	pos      int32 // in its project's queue
	place    int32 // in its runner's
	lease    lease
}

// pool is a kind of slot. Pools whose slots may be the same ones are of one domain: their usage is one account.
type pool struct {
	name     string
	domain   int
	bands    [MaxClass + 2]*band // 0: committed jobs, then the classes from the highest down
	starving [MaxClass + 2]int64 // since when a band has been passed over; 0: it has not
}

// band is what waits in a pool with one class.
type band struct {
	index int
	rank  int // in pool.bands
	pool  *pool
}

const committed = 0 // the rank of jobs that nothing but their runner's limit holds back

// New returns a scheduler that knows nothing yet.
func New(p Policy) *Scheduler {
	s := &Scheduler{
		policy: p, settings: p.settings(),
		nodes: make(map[nodeKey]*node), projects: make(map[projectKey]*node), runners: make(map[string]*runner),
		jobs: make(map[JobKey]*job), pools: make(map[string]*pool),
	}
	s.root = s.node(kindFleet, "", nil)
	return s
}

func (s *Scheduler) tick(now time.Time) {
	s.now = max(s.now, now.UnixMicro())
}

// SetRunner makes a runner known or changes it. What it has running or waiting stays with it.
func (s *Scheduler) SetRunner(now time.Time, r Runner) {
	s.tick(now)
	p := s.pool(r.Pool)
	known := s.runners[r.Name]
	if known == nil {
		known = &runner{Runner: r, pool: p}
		s.runners[r.Name] = known
		s.bind(known)
	} else {
		s.keeping = true
		moved := s.dequeueAll(known)
		s.want(known, 0)
		bound := known.GitLab != r.GitLab || known.Scope != r.Scope || known.Path != r.Path
		known.Runner, known.pool, known.retired = r, p, false
		if bound {
			s.unbind(known)
			s.bind(known)
		}
		s.keeping = false
		known.limit = s.runnerLimit(known)
		for _, j := range moved {
			s.enqueue(j)
		}
		s.want(known, known.wants)
		s.kept()
	}
	known.limit = s.runnerLimit(known)
	s.leafChanged(known)
	s.gate(known)
}

// RemoveRunner ends a runner's claiming. What it has running or waiting goes on; it is forgotten after that.
func (s *Scheduler) RemoveRunner(now time.Time, name string) {
	s.tick(now)
	r := s.runners[name]
	if r == nil {
		return
	}
	r.retired, r.wants = true, 0
	s.want(r, 0)
	s.forgetRunner(r)
}

func (s *Scheduler) forgetRunner(r *runner) {
	if r.retired && r.leases == 0 && r.waiting == 0 && s.runners[r.Name] == r {
		delete(s.runners, r.Name)
		s.unbind(r)
	}
}

func (s *Scheduler) bind(r *runner) {
	var parent *node
	switch {
	case r.Scope == GroupRunner:
		parent = s.group(r.GitLab, r.Path)
	case r.Scope == ProjectRunner && r.Path != "":
		parent = s.project(r.GitLab, Project{Path: r.Path})
	default:
		parent = s.gitlab(r.GitLab)
	}
	if old := s.nodes[nodeKey{kindRunner, r.Name}]; old != nil && old.parent != parent {
		s.forgetNode(old) // it was bound elsewhere before a restart
	}
	r.leaf = s.node(kindRunner, r.Name, parent)
	r.leaf.runner = r
}

func (s *Scheduler) unbind(r *runner) {
	delete(s.nodes, nodeKey{kindRunner, r.leaf.name})
	r.leaf.parent.below--
	r.leaf.runner = nil
}

func (s *Scheduler) runnerLimit(r *runner) int {
	limit, hard := max(r.Limit, 0), int(r.leaf.limits.hard)
	if limit == 0 || hard > 0 && hard < limit {
		return hard
	}
	return limit
}

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

// Arrive makes a job known that waits for a slot. A job that waits already is changed and keeps its time; one that has
// a slot is left alone.
func (s *Scheduler) Arrive(now time.Time, w Job) error {
	s.tick(now)
	r := s.runners[w.Runner]
	if r == nil {
		return fmt.Errorf("queue job %d of runner %q: %w", w.ID, w.Runner, ErrUnknownRunner)
	}
	j := s.jobs[w.Key()]
	switch {
	case j == nil:
		j = s.newJob(&w, r)
		j.since = s.now
	case j.state == running:
		return nil
	default:
		s.keeping = true
		s.dequeue(j)
		s.keeping = false
		s.countWaiting(j, -1)
		since, project := j.since, j.project
		s.describe(j, &w, r)
		j.since = since
		if j.project != project {
			defer s.kept()
		}
	}
	if !w.Since.IsZero() {
		j.since = w.Since.UnixMicro()
	}
	s.countWaiting(j, 1)
	if w.Held != "" {
		j.state, j.reason = held, w.Held
	}
	if j.state != held {
		s.enqueue(j)
	}
	s.leafChanged(r)
	return nil
}

func (s *Scheduler) newJob(w *Job, r *runner) *job {
	var j *job
	if n := len(s.spare); n > 0 {
		j, s.spare = s.spare[n-1], s.spare[:n-1]
	} else {
		j = new(job)
	}
	*j = job{key: w.Key(), pos: absent, place: absent}
	s.describe(j, w, r)
	s.jobs[j.key] = j
	return j
}

func (s *Scheduler) describe(j *job, w *Job, r *runner) {
	j.project, j.runner, j.name = s.project(w.GitLab, w.Project), r, w.Name
	j.class, j.priority, j.commit = min(max(w.Class, 0), MaxClass), w.Priority, w.Committed
	factor := w.Factor
	if factor <= 0 {
		factor = 1
	}
	j.lease = lease{factor: int64(math.Round(min(max(factor, 0.001), 1000) * 1000))}
	j.project.seen = s.now
}

func (s *Scheduler) forgetJob(j *job) {
	delete(s.jobs, j.key)
	r := j.runner
	*j = job{}
	if len(s.spare) < 1024 {
		s.spare = append(s.spare, j)
	}
	s.forgetRunner(r)
}

func (s *Scheduler) countWaiting(j *job, by int) {
	j.runner.waiting += by
	j.project.waiting += int32(by)
}

// Withdraw forgets a job that waits: it was cancelled, or given back to GitLab.
func (s *Scheduler) Withdraw(now time.Time, k JobKey) error {
	s.tick(now)
	j, err := s.waitingJob(k, "withdraw")
	if err != nil {
		return err
	}
	s.dequeue(j)
	s.countWaiting(j, -1)
	s.leafChanged(j.runner)
	s.forgetJob(j)
	return nil
}

// Hold keeps a waiting job from being served until Release, for a reason that the caller has and Explain repeats.
func (s *Scheduler) Hold(now time.Time, k JobKey, reason string) error {
	s.tick(now)
	j, err := s.waitingJob(k, "hold")
	if err != nil {
		return err
	}
	s.dequeue(j)
	j.state, j.reason = held, reason
	return nil
}

// Release ends Hold; a job that is not held is left alone.
func (s *Scheduler) Release(now time.Time, k JobKey) error {
	s.tick(now)
	j, err := s.waitingJob(k, "release")
	if err != nil || j.state != held {
		return err
	}
	j.reason = ""
	s.enqueue(j)
	return nil
}

func (s *Scheduler) waitingJob(k JobKey, verb string) (*job, error) {
	j := s.jobs[k]
	if j == nil {
		return nil, fmt.Errorf("%s job %d: %w", verb, k.ID, ErrUnknownJob)
	}
	if j.state == running {
		return nil, fmt.Errorf("%s job %d: %w", verb, k.ID, ErrNotWaiting)
	}
	return j, nil
}

// Start gives a slot to a waiting job; mostly it is the one that Next named, but it need not be.
func (s *Scheduler) Start(now time.Time, k JobKey) error {
	s.tick(now)
	j, err := s.waitingJob(k, "start")
	if err != nil {
		return err
	}
	r := j.runner
	j.lease.cost = scale(j.project.lengths.expect(j.name, s.settings.firstGuess), j.lease.factor)
	b := s.bandOf(j)
	s.take(j, s.now, b, false)
	s.served(b)
	s.refreshChains(j.project, r.leaf)
	s.gate(r)
	s.leafChanged(r)
	return nil
}

// take makes a waiting job one that has a slot, without bringing the rankings up to date.
func (s *Scheduler) take(j *job, start int64, b *band, charged bool) {
	r := j.runner
	j.lease.leaf, j.lease.domain, j.lease.start = r.leaf, r.pool.domain, start
	j.lease.isInstance = r.Scope == InstanceRunner
	if charged {
		s.count(j.project, r.leaf, j.lease.domain)
	} else {
		s.charge(b, j.project, r.leaf, &j.lease)
	}
	s.remove(j)
	j.state = running
	s.countWaiting(j, -1)
	r.leases++
	if j.lease.isInstance {
		j.project.instance++
	}
}

// Resume makes a job known that has had a slot since started: after a restart, between Restore and the first Next. What
// a restored account has been charged for it is not charged again.
func (s *Scheduler) Resume(now time.Time, w Job, started time.Time) error {
	s.tick(now)
	r := s.runners[w.Runner]
	if r == nil {
		return fmt.Errorf("resume job %d of runner %q: %w", w.ID, w.Runner, ErrUnknownRunner)
	}
	if j := s.jobs[w.Key()]; j != nil {
		if j.state == running {
			return nil
		}
		s.dequeue(j)
		s.countWaiting(j, -1)
		s.describe(j, &w, r)
	} else {
		s.newJob(&w, r)
	}
	j := s.jobs[w.Key()]
	s.countWaiting(j, 1)
	b := s.bandOf(j)
	cost, charged := s.restored.take(j.key)
	if !charged {
		cost = scale(j.project.lengths.expect(j.name, s.settings.firstGuess), j.lease.factor)
	}
	j.lease.cost = cost
	s.take(j, started.UnixMicro(), b, charged)
	s.refreshChains(j.project, r.leaf)
	s.gate(r)
	return nil
}

// Finish ends a job that had a slot: what it really used is charged, and its length is learned.
func (s *Scheduler) Finish(now time.Time, k JobKey) error {
	j, err := s.leave(now, k, "finish")
	if err != nil {
		return err
	}
	length := s.now - j.lease.start
	j.project.lengths.learn(j.name, length)
	j.lease.leaf.lengths.learn("", length)
	s.forgetJob(j)
	return nil
}

// Return takes the slot of a job that did not run after all, and lets it wait again with the time that it had.
func (s *Scheduler) Return(now time.Time, k JobKey) error {
	j, err := s.leave(now, k, "take back the slot of")
	if err != nil {
		return err
	}
	j.state = queued
	s.countWaiting(j, 1)
	s.enqueue(j)
	s.leafChanged(j.runner)
	return nil
}

func (s *Scheduler) leave(now time.Time, k JobKey, verb string) (*job, error) {
	s.tick(now)
	j := s.jobs[k]
	if j == nil {
		return nil, fmt.Errorf("%s job %d: %w", verb, k.ID, ErrUnknownJob)
	}
	if j.state != running {
		return nil, fmt.Errorf("%s job %d: %w", verb, k.ID, ErrNotRunning)
	}
	r := j.runner
	r.leases--
	if j.lease.isInstance {
		j.project.instance--
	}
	s.settle(j.project, j.lease.leaf, &j.lease)
	s.refreshChains(j.project, j.lease.leaf)
	s.gate(r)
	s.leafChanged(r)
	return j, nil
}

// Next says who gets a slot that one of these pools may use; false if nobody who wants it may have it. It takes nothing:
// Start or StartClaim follows. Pools that are named together have slots in common: from then on their usage is one
// account.
func (s *Scheduler) Next(now time.Time, pools ...string) (Decision, bool) {
	s.tick(now)
	s.restart()
	for i := 1; i < len(pools); i++ {
		s.join(s.pool(pools[0]), s.pool(pools[i]))
	}
	st := s.choose(pools, true)
	switch {
	case st == nil:
		return Decision{}, false
	case len(st.jobs) == 0:
		return Decision{Runner: st.node.name, Claim: true}, true
	}
	return Decision{Runner: st.jobs[0].runner.Name, Job: st.jobs[0].key}, true
}

// choose returns who is first: a project with its first job, or a runner that may claim. Note says whether classes that
// are passed over begin to count their patience.
func (s *Scheduler) choose(pools []string, note bool) *standing {
	patient := s.patient(pools, note)
	for rank := range MaxClass + 2 {
		if rank > committed && patient != nil {
			return patient
		}
		var best *standing
		for _, name := range pools {
			p := s.pools[name]
			if p == nil || p.bands[rank] == nil {
				continue
			}
			if st := s.first(p.bands[rank]); st != nil && (best == nil || s.precedes(st, best)) {
				best = st
			}
		}
		if best != nil {
			return best
		}
	}
	return nil
}

// patient returns who is first in the lowest class that higher ones have kept from its turn for long enough.
func (s *Scheduler) patient(pools []string, note bool) *standing {
	var patient *standing
	higher := false
	for rank := committed + 1; rank <= MaxClass+1; rank++ {
		some := false
		for _, name := range pools {
			p := s.pools[name]
			if p == nil {
				continue
			}
			var st *standing
			if b := p.bands[rank]; b != nil {
				st = s.first(b)
			}
			since := p.starving[rank]
			switch {
			case st == nil || !higher:
				since = 0
			case since == 0:
				since = s.now
			case s.now-since >= s.settings.classPatience:
				patient = st
			}
			if note {
				p.starving[rank] = since
			}
			some = some || st != nil
		}
		higher = higher || some
	}
	return patient
}

// first returns who is first in one band.
func (s *Scheduler) first(b *band) *standing {
	st := s.root.in(b)
	if st == nil || !st.work() || b.rank != committed && s.root.blocked() {
		return nil
	}
	for {
		next := s.best(st)
		if next == nil {
			return st
		}
		st = next
	}
}

// best returns the child that is served next, or nil if it is the node itself: its own jobs go before the claims of
// runners that are bound to it.
func (s *Scheduler) best(st *standing) *standing {
	if len(st.jobs) > 0 || st.wants > 0 {
		return nil
	}
	few := st.ranks[byShare].items[0]
	if s.settings.mode != Fair || s.short(few) {
		return few
	}
	return st.ranks[byTag].items[0]
}

// short says whether one lease more leaves the node at or below its part of the slots that it and the siblings that wait
// have. Where every sibling's part is less than one slot, nobody is short, and slot-time decides alone: fewest running
// per weight by itself would never serve a node whose part is small.
func (s *Scheduler) short(st *standing) bool {
	up := st.node.parent.account(st.band.pool.domain)
	return st.key.share*up.waitingWeight <= (up.waitingRunning+1)*st.key.weight
}

// precedes compares two that are first in their bands of the same rank in different pools.
func (s *Scheduler) precedes(a, b *standing) bool {
	if s.settings.mode != Fair {
		return a.before(b, byShare)
	}
	x, y := a, b
	for x.node.depth > y.node.depth {
		x = x.up
	}
	for y.node.depth > x.node.depth {
		y = y.up
	}
	if x.node == y.node { // one is above the other, or they are the same
		if len(a.jobs) > 0 && len(b.jobs) > 0 {
			return a.jobs[0].before(b.jobs[0])
		}
		return len(a.jobs) > 0
	}
	for x.node.parent != y.node.parent {
		x, y = x.up, y.up
	}
	if x.key.class == y.key.class && (s.short(x) || s.short(y)) {
		return x.before(y, byShare)
	}
	return x.before(y, byTag)
}

// served notes that a band had its turn.
func (s *Scheduler) served(b *band) { b.pool.starving[b.rank] = 0 }

func (s *Scheduler) pool(name string) *pool {
	p := s.pools[name]
	if p == nil {
		p = &pool{name: name, domain: s.domains}
		s.domains++
		s.pools[name] = p
	}
	return p
}

func (s *Scheduler) band(p *pool, rank int) *band {
	if p.bands[rank] == nil {
		p.bands[rank] = &band{index: len(s.bands), rank: rank, pool: p}
		s.bands = append(s.bands, p.bands[rank])
	}
	return p.bands[rank]
}

func (s *Scheduler) bandOf(j *job) *band {
	switch {
	case j.commit:
		return s.band(j.runner.pool, committed)
	case s.settings.mode != Fair:
		return s.band(j.runner.pool, MaxClass+1)
	}
	return s.band(j.runner.pool, MaxClass+1-j.class)
}

func scale(x, thousandths int64) int64 { return x/1000*thousandths + x%1000*thousandths/1000 }
