package allocation

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// start is when the histories begin.
var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// op is one thing that happens to a fleet. What its numbers mean depends on what there is when it happens, so that any
// sequence is a history, and a shorter one too.
type op struct {
	what    string
	a, b, c int
}

var opKinds = []string{
	"arrive", "arrive", "arrive", "arrive", "arrive", "serve", "serve", "serve", "serve", "finish", "finish", "pass", "want", "want",
	"endclaim", "hold", "release", "return", "withdraw", "policy", "limit", "again", "load", "load", "busy", "busy", "busy", "both",
}

func genOps() *rapid.Generator[[]op] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) op {
		return op{
			rapid.SampledFrom(opKinds).Draw(t, "what"), rapid.IntRange(0, 99).Draw(t, "a"), rapid.IntRange(0, 99).Draw(t, "b"),
			rapid.IntRange(0, 99).Draw(t, "c"),
		}
	}), 1, 80)
}

const otherGitLab = "https://gitlab.example.org"

var (
	paths        = []string{"a/p", "a/q", "a/s/p", "a/s/t/p", "b/p", "b/q", "c/p"}
	worldPools   = []string{"linux", "macos", "spare"}
	worldRunners = []Runner{
		{Name: "shared", Pool: "linux"},
		{Name: "second", Pool: "linux", Limit: 3},
		{Name: "group-a", Pool: "linux", Scope: GroupRunner, Path: "a", Limit: 2},
		{Name: "sub", Pool: "macos", Scope: GroupRunner, Path: "a/s"},
		{Name: "own-b-p", Pool: "macos", Scope: ProjectRunner, Path: "b/p"},
		{Name: "mac", Pool: "macos"},
		{Name: "elsewhere", Pool: "spare", GitLab: otherGitLab},
	}
)

// world replays a history on a scheduler and keeps what the caller of one would know.
type world struct {
	s       *Scheduler
	now     time.Time
	policy  Policy
	limits  map[string]int
	next    int64
	jobs    map[JobKey]*worldJob
	claims  []worldClaim
	wants   map[string]int
	log     []string
	used    map[string]time.Duration // slot-time of what has ended, by the name of each node charged
	restart bool                     // "again" is a restart; otherwise nothing
	patient bool                     // no job is committed
}

type worldJob struct {
	Job
	started time.Time // zero: it waits
	held    bool
}

type worldClaim struct {
	runner string
	since  time.Time
}

func newWorld(p Policy, restart bool) *world {
	w := &world{
		s: New(p), policy: p, now: start, limits: map[string]int{}, jobs: map[JobKey]*worldJob{}, wants: map[string]int{},
		used: map[string]time.Duration{}, restart: restart,
	}
	w.setRunners()
	return w
}

func (w *world) runner(i int) Runner {
	r := worldRunners[i%len(worldRunners)]
	r.GitLab = cmp.Or(r.GitLab, gitlabURL)
	if l, ok := w.limits[r.Name]; ok {
		r.Limit = l
	}
	return r
}

func (w *world) setRunners() {
	for i := range worldRunners {
		w.s.SetRunner(w.now, w.runner(i))
	}
}

// some returns the jobs that are in a state, in the order of their ids.
func (w *world) some(running bool) []*worldJob {
	var list []*worldJob
	for _, j := range w.jobs {
		if !j.started.IsZero() == running {
			list = append(list, j)
		}
	}
	slices.SortFunc(list, func(a, b *worldJob) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (w *world) do(o op) {
	w.now = w.now.Add(time.Millisecond)
	switch o.what {
	case "pass":
		w.now = w.now.Add(time.Duration(o.a*o.a) * time.Second)
	case "arrive":
		r := w.runner(o.a)
		path := paths[o.b%len(paths)]
		switch r.Scope {
		case GroupRunner:
			path = r.Path + "/p"
		case ProjectRunner:
			path = r.Path
		case InstanceRunner:
		}
		w.next++
		j := &worldJob{Job: Job{
			GitLab: r.GitLab, ID: w.next, Project: Project{projectID(path), path}, Runner: r.Name,
			Name: []string{"", "build", "test"}[o.c%3], Priority: o.c % 4, Since: w.now,
			Class: []int{0, 0, 0, 0, 1, 2}[o.c%6], Committed: o.c%10 == 9 && !w.patient,
		}}
		w.jobs[j.Key()] = j
		must(w.s.Arrive(w.now, j.Job))
	case "load": // several jobs of several projects
		for i := range 6 {
			w.do(op{"arrive", o.a % 2, o.b + i*o.c, o.c + i})
		}
	case "busy": // time passes, some jobs end, others begin
		for i := range 5 {
			w.do(op{"pass", (o.b + 7*i) % 40, 0, 0})
			w.do(op{"finish", o.a + i, 0, 0})
			w.do(op{"serve", o.c / 90, 0, 0})
			w.do(op{"serve", 0, 0, 0})
		}
	case "serve":
		w.serve(worldPools[o.a%len(worldPools)])
	case "both": // the pools have slots in common from now on
		w.serve("linux", "macos")
	case "finish", "return":
		list := w.some(true)
		if len(list) == 0 {
			return
		}
		j := list[o.a%len(list)]
		w.use(j, w.now.Sub(j.started))
		if o.what == "return" {
			j.started = time.Time{}
			must(w.s.Return(w.now, j.Key()))
			return
		}
		delete(w.jobs, j.Key())
		must(w.s.Finish(w.now, j.Key()))
	case "want":
		name := w.runner(o.a).Name
		w.wants[name] = o.b % 4
		must(w.s.Want(w.now, name, w.wants[name]))
	case "endclaim":
		w.endClaim()
	case "hold", "release", "withdraw":
		list := w.some(false)
		if len(list) == 0 {
			return
		}
		j := list[o.a%len(list)]
		switch o.what {
		case "hold":
			j.held = true
			must(w.s.Hold(w.now, j.Key(), "a test holds it"))
		case "release":
			j.held = false
			must(w.s.Release(w.now, j.Key()))
		case "withdraw":
			delete(w.jobs, j.Key())
			must(w.s.Withdraw(w.now, j.Key()))
		}
	case "policy":
		p := w.policy
		p.Nodes = map[string]Rule{}
		maps.Copy(p.Nodes, w.policy.Nodes)
		names := []string{"", "a", "a/s", "b", "b/p"}
		name := NodeName(gitlabURL, names[o.a%len(names)])
		p.Nodes[name] = Rule{Weight: float64(1 + o.b%3), Hard: o.c % 4, Min: o.b % 2, Soft: o.c % 3, Paused: o.c%20 == 0}
		w.policy = p
		w.s.SetPolicy(w.now, p)
	case "limit":
		name := w.runner(o.a).Name
		w.limits[name] = o.b % 4
		w.s.SetRunner(w.now, w.runner(o.a))
	case "again":
		for len(w.claims) > 0 {
			w.endClaim()
		}
		if w.restart {
			w.begin()
		}
	}
}

// begin is a restart of the caller: only the snapshot and what a store would know survive.
func (w *world) begin() {
	snapshot := w.s.Snapshot(w.now)
	w.s = New(w.policy)
	must(w.s.Restore(w.now, snapshot))
	w.setRunners()
	for _, j := range w.some(true) {
		must(w.s.Resume(w.now, j.Job, j.started))
	}
	for _, j := range w.some(false) {
		if j.held {
			j.Held = "a test holds it"
		}
		must(w.s.Arrive(w.now, j.Job))
		j.Held = ""
	}
	for _, name := range slices.Sorted(maps.Keys(w.wants)) {
		must(w.s.Want(w.now, name, w.wants[name]))
	}
}

func (w *world) serve(pools ...string) {
	d, ok := w.s.Next(w.now, pools...)
	w.log = append(w.log, fmt.Sprintf("%v %s: %+v %v", w.now.Sub(start), pools, d, ok))
	switch {
	case !ok:
	case d.Claim:
		must(w.s.StartClaim(w.now, d.Runner))
		w.wants[d.Runner]--
		w.claims = append(w.claims, worldClaim{d.Runner, w.now})
	default:
		must(w.s.Start(w.now, d.Job))
		w.jobs[d.Job].started = w.now
	}
}

func (w *world) endClaim() {
	if len(w.claims) == 0 {
		return
	}
	c := w.claims[0]
	w.claims = w.claims[1:]
	must(w.s.EndClaim(w.now, c.runner))
	for n := w.s.runners[c.runner].leaf; n != nil; n = n.parent {
		w.used[n.kind.String()+n.name] += w.now.Sub(c.since)
	}
}

// use notes what a job's nodes are to be charged.
func (w *world) use(j *worldJob, d time.Duration) {
	seen := map[*node]bool{}
	known := w.s.jobs[j.Key()]
	for _, n := range []*node{known.project, known.lease.leaf} {
		for ; n != nil; n = n.parent {
			if !seen[n] {
				seen[n] = true
				w.used[n.kind.String()+n.name] += d
			}
		}
	}
}

func genPolicy() *rapid.Generator[Policy] {
	return rapid.Custom(func(t *rapid.T) Policy {
		p := Policy{
			Mode:       rapid.SampledFrom([]Mode{Fair, Fair, Fair, GitLab, FIFO}).Draw(t, "mode"),
			FirstGuess: time.Duration(rapid.IntRange(1, 600).Draw(t, "first guess")) * time.Second,
			Nodes:      map[string]Rule{},
		}
		p.Defaults.Project.Soft = rapid.SampledFrom([]int{0, 0, 2}).Draw(t, "soft quota of projects")
		for _, path := range []string{"a", "a/s", "b", "a/p"} {
			p.Nodes[NodeName(gitlabURL, path)] = Rule{
				Weight: float64(rapid.SampledFrom([]int{0, 1, 2, 5}).Draw(t, "weight")),
				Min:    rapid.SampledFrom([]int{0, 0, 1}).Draw(t, "min"),
				Hard:   rapid.SampledFrom([]int{0, 0, 0, 1, 3}).Draw(t, "hard"),
				Soft:   rapid.SampledFrom([]int{0, 0, 0, 2}).Draw(t, "soft"),
			}
		}
		return p
	})
}

// Work is never held back without a reason, quotas hold for a node and all above it, and the choice is the one that
// looking at everything each time gives.
func TestDecisionsAgreeWithLookingAtEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(genPolicy().Draw(t, "policy"), true)
		w.policy.ClassPatience = 1000 * time.Hour // its own test looks at it
		w.s.SetPolicy(w.now, w.policy)
		for _, o := range genOps().Draw(t, "history") {
			switch o.what {
			case "serve":
				compareWithBrute(t, w, worldPools[o.a%len(worldPools)])
			case "both":
				both, ok := w.s.Next(w.now, "linux", "macos")
				one, okOne := w.s.Next(w.now, "linux")
				other, okOther := w.s.Next(w.now, "macos")
				first := okOne && both == one || okOther && both == other
				if ok != (okOne || okOther) || ok && !first {
					t.Fatalf("linux %+v, macos %+v, both %+v", one, other, both)
				}
			}
			w.do(o)
			checkState(t, w.s)
		}
		for _, pool := range worldPools { // whatever is left
			for range 100 {
				if !compareWithBrute(t, w, pool) {
					break
				}
				w.serve(pool)
				w.now = w.now.Add(time.Millisecond)
				checkState(t, w.s)
			}
		}
	})
}

// compareWithBrute says whether anybody is served.
func compareWithBrute(t *rapid.T, w *world, pool string) bool {
	b := brute{w.s}
	d, ok := w.s.Next(w.now, pool)
	want, wantOK := b.next(w.s.pool(pool))
	if ok != wantOK {
		t.Fatalf("in %s somebody is served: %v, should be %v (%+v)", pool, ok, wantOK, want)
	}
	if !ok {
		return false
	}
	got := Decision{Runner: d.Runner, Claim: want.job == nil}
	if want.job != nil {
		got.Runner, got.Job = want.job.runner.Name, want.job.key
	} else {
		got.Runner = want.leaf.name
	}
	if got != d {
		t.Fatalf("in %s %+v is served, should be %+v", pool, d, got)
	}
	return true
}

// checkState compares what is counted up and down with what there is.
func checkState(t *rapid.T, s *Scheduler) {
	b := brute{s}
	for _, n := range s.nodes {
		if got := b.running(n, -1); got != int(n.running) {
			t.Fatalf("%s %q has %d leases, its count says %d", n.kind, n.name, got, n.running)
		}
		for d := range n.accounts {
			a := &n.accounts[d]
			if got := b.running(n, d); got != int(a.running) {
				t.Fatalf("%s %q has %d leases in domain %d, its count says %d", n.kind, n.name, got, d, a.running)
			}
			weight, leases := int64(0), int64(0)
			for _, child := range s.nodes {
				if child.parent == n && d < len(child.accounts) && child.accounts[d].standing > 0 {
					weight += child.limits.weight
					leases += int64(child.accounts[d].running)
				}
			}
			if weight != a.waitingWeight || leases != a.waitingRunning {
				t.Fatalf("%s %q: children that wait have weight %d and %d leases, the counts say %d and %d",
					n.kind, n.name, weight, leases, a.waitingWeight, a.waitingRunning)
			}
		}
	}
}

// No node gets above its hard quota, nor a runner above its limit, unless GitLab takes the job for running already.
func TestQuotasAreNeverExceeded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(genPolicy().Draw(t, "policy"), true)
		w.patient = true
		for _, o := range genOps().Draw(t, "history") {
			before := map[*node]int32{}
			for _, n := range w.s.nodes {
				before[n] = n.running
			}
			leases := map[*runner]int{}
			for _, r := range w.s.runners {
				leases[r] = r.leases
			}
			w.do(o)
			if o.what != "serve" && o.what != "busy" {
				continue
			}
			for _, n := range w.s.nodes {
				onPath := n.runner == nil // a runner's own quota is its limit, below
				if n.running > before[n] && n.limits.hard > 0 && n.running > n.limits.hard && onPath && !chargedAside(w.s, n) {
					t.Fatalf("%s %q has %d leases, its hard quota is %d", n.kind, n.name, n.running, n.limits.hard)
				}
			}
			for _, r := range w.s.runners {
				if r.leases > leases[r] && r.limit > 0 && r.leases > r.limit {
					t.Fatalf("runner %q has %d leases, its limit is %d", r.Name, r.leases, r.limit)
				}
			}
		}
	})
}

// chargedAside says whether a node is charged for jobs of projects that are not below it, by a runner that is: a claimed
// job is held back by the quotas of its project only.
func chargedAside(s *Scheduler, n *node) bool {
	for _, j := range s.jobs {
		if j.state == running && !(candidate{leaf: j.project}).below(n) && (candidate{leaf: j.lease.leaf}).below(n) {
			return true
		}
	}
	return false
}

// The same history gives the same decisions, and a restart in the middle changes nothing.
func TestARestartChangesNoDecision(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy, ops := genPolicy().Draw(t, "policy"), genOps().Draw(t, "history")
		a, b, c := newWorld(policy, false), newWorld(policy, false), newWorld(policy, true)
		for _, o := range ops {
			a.do(o)
			b.do(o)
			c.do(o)
		}
		if !slices.Equal(a.log, b.log) {
			t.Fatalf("two runs differ:\n%v\n%v", a.log, b.log)
		}
		if !slices.Equal(a.log, c.log) {
			t.Fatalf("after a restart:\n%v\nwithout:\n%v", c.log, a.log)
		}
		kept, restored := essence(a), essence(c)
		for i, line := range kept {
			if i >= len(restored) || line != restored[i] {
				t.Fatalf("after a restart:\n%s\nwithout:\n%s", restored[i], line)
			}
		}
	})
}

// essence is what decides of a snapshot, in lines: when something was seen last does not.
func essence(w *world) []string {
	w.s.Next(w.now, worldPools[0]) // ends a restart
	var state savedState
	must(json.Unmarshal(w.s.Snapshot(w.now), &state))
	lines := []string{fmt.Sprintf("%+v %+v %+v", state.Pools, state.Jobs, state.Wants)}
	for _, n := range state.Nodes {
		n.Seen = 0
		lines = append(lines, fmt.Sprintf("%+v", n))
	}
	return lines
}

// When all is over, everything that was charged was used, and nothing is left behind.
func TestWhatIsChargedIsWhatWasUsed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(genPolicy().Draw(t, "policy"), true)
		for _, o := range genOps().Draw(t, "history") {
			w.do(o)
		}
		for len(w.claims) > 0 {
			w.endClaim()
		}
		for len(w.some(true)) > 0 {
			w.do(op{what: "finish"})
		}
		for len(w.some(false)) > 0 {
			w.do(op{what: "withdraw"})
		}
		for name := range w.wants {
			must(w.s.Want(w.now, name, 0))
		}
		for _, n := range w.s.nodes {
			if got := time.Duration(n.charged) * time.Microsecond; got != w.used[n.kind.String()+n.name] {
				t.Fatalf("%s %q is charged %v and used %v", n.kind, n.name, got, w.used[n.kind.String()+n.name])
			}
			for _, st := range n.at {
				if n.running != 0 || n.waiting != 0 || st != nil && (st.work() || st.present()) {
					t.Fatalf("%s %q has something left", n.kind, n.name)
				}
			}
		}
		checkState(t, w.s)
	})
}

// A claim is free to fail, a class to be passed over: some job that may be served always is, in the end.
func TestExplainTellsWhatNextDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(genPolicy().Draw(t, "policy"), true)
		for _, o := range genOps().Draw(t, "history") {
			w.do(o)
		}
		before := string(w.s.Snapshot(w.now))
		b := brute{w.s}
		free := Capacity{Free: 1, Total: 2}
		for k, wj := range w.jobs {
			j := w.s.jobs[k]
			e, err := w.s.ExplainJob(w.now, k, free)
			must(err)
			d, ok := w.s.Next(w.now, j.runner.pool.name)
			var want Verdict
			switch {
			case !wj.started.IsZero():
				want = Running
			case wj.held, b.full(j.runner), !j.commit && b.stoppedAnywhere(j.project):
				want = Blocked
			case ok && !d.Claim && d.Job == k:
				want = First
			default:
				want = Behind
			}
			if e.Verdict != want {
				t.Fatalf("job %d: %q, should be %q: %s", k.ID, e.Verdict, want, e.Sentence)
			}
			for _, r := range e.Reasons {
				checkReason(t, w, b, j, r)
			}
			if want == Behind && len(e.Reasons) == 0 || want == Blocked && len(e.Reasons) == 0 {
				t.Fatalf("job %d: no reason: %s", k.ID, e.Sentence)
			}
			if want == First {
				e, _ = w.s.ExplainJob(w.now, k, Capacity{Total: 2})
				if e.Verdict != NoSlot {
					t.Fatalf("job %d without a free slot: %s", k.ID, e.Sentence)
				}
			}
		}
		for name, r := range w.s.runners {
			e, err := w.s.ExplainRunner(w.now, name, free)
			must(err)
			d, ok := w.s.Next(w.now, r.pool.name)
			want := Behind
			switch {
			case b.stoppedAnywhere(r.leaf):
				want = Blocked
			case r.wants == 0:
				want = Idle
			case ok && d.Claim && d.Runner == name:
				want = First
			}
			if e.Verdict != want {
				t.Fatalf("runner %s: %q, should be %q: %s", name, e.Verdict, want, e.Sentence)
			}
			if len(e.Reasons) == 0 && want != First {
				t.Fatalf("runner %s: no reason: %s", name, e.Sentence)
			}
		}
		if after := string(w.s.Snapshot(w.now)); after != before && !hasClasses(w.s) {
			t.Fatalf("explaining has changed something:\n%s\n%s", before, after)
		}
	})
}

// hasClasses says whether Next may have begun to count the patience of a class.
func hasClasses(s *Scheduler) bool {
	for _, p := range s.pools {
		for rank := committed + 1; rank <= MaxClass; rank++ {
			if p.bands[rank] != nil {
				return true
			}
		}
	}
	return false
}

// checkReason compares a reason with what looking at everything finds.
func checkReason(t *rapid.T, w *world, b brute, j *job, r Reason) {
	var node *node
	for n := j.project; n != nil; n = n.parent {
		if n.name == r.Node && n.kind.String() == r.Kind {
			node = n
		}
	}
	switch r.Cause {
	case Paused:
		if node == nil || !node.limits.paused {
			t.Fatalf("job %d: %+v: it is not", j.key.ID, r)
		}
	case HardQuota:
		if node == nil || int(node.limits.hard) != r.Limit || b.running(node, -1) != r.Running || r.Running < r.Limit {
			t.Fatalf("job %d: %+v: that is not so", j.key.ID, r)
		}
	case RunnerLimit:
		if b.leases(j.runner) != r.Running || j.runner.limit != r.Limit || r.Running < r.Limit {
			t.Fatalf("job %d: %+v: that is not so", j.key.ID, r)
		}
	case Siblings:
		// Each of them is chosen before the job is, if only these two wait.
		if r.Count < 1 || len(r.Rivals) != min(r.Count, rivals) {
			t.Fatalf("job %d: %+v", j.key.ID, r)
		}
		if w.s.settings.mode == Fair {
			checkSiblings(t, b, j, node, r)
		}
	case Earlier:
		ahead := 0
		for _, other := range b.eligible() {
			mine := candidate{j.project, j, b.rank(j), j.runner.pool}
			if other.job != nil && other.leaf == j.project && other.pool == mine.pool && other.rank == mine.rank && b.inProject(other, mine) < 0 {
				ahead++
			}
		}
		if ahead != r.Count {
			t.Fatalf("job %d: %d jobs of its project are ahead, not %d", j.key.ID, ahead, r.Count)
		}
	case Outclassed:
		ahead := 0
		for _, other := range b.eligible() {
			if other.job != nil && other.pool == j.runner.pool && other.rank < b.rank(j) {
				ahead++
			}
		}
		if ahead != r.Count {
			t.Fatalf("job %d: %d jobs go first, not %d", j.key.ID, ahead, r.Count)
		}
	}
}

// checkSiblings counts by taking away: as long as the choice below the node is not the child that the job is below of,
// the chosen one is ahead, and is taken away.
func checkSiblings(t *rapid.T, b brute, j *job, above *node, r Reason) {
	all := b.candidates()
	mine := candidate{leaf: j.project}
	child := mine.childOf(above)
	var here []candidate
	for _, c := range b.eligible() {
		if c.leaf != above && c.below(above) && c.pool == j.runner.pool && c.rank == b.rank(j) {
			here = append(here, c)
		}
	}
	ahead := 0
	for {
		first := b.pick(above, here, all).childOf(above)
		if first == child {
			break
		}
		ahead++
		here = slices.DeleteFunc(here, func(c candidate) bool { return c.childOf(above) == first })
	}
	if ahead != r.Count {
		t.Fatalf("job %d: below %q %d are ahead, not %d", j.key.ID, above.name, ahead, r.Count)
	}
}
