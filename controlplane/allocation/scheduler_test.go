package allocation

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const gitlabURL = "https://gitlab.example.com"

// fleet is a scheduler with a clock, for tests that tell a story.
type fleet struct {
	t   testing.TB
	s   *Scheduler
	now time.Time
}

func newFleet(t testing.TB, p Policy, runners ...Runner) *fleet {
	f := &fleet{t: t, s: New(p), now: start}
	for _, r := range runners {
		if r.GitLab == "" {
			r.GitLab = gitlabURL
		}
		if r.Pool == "" {
			r.Pool = "linux"
		}
		f.s.SetRunner(f.now, r)
	}
	return f
}

func (f *fleet) after(d time.Duration) { f.now = f.now.Add(d) }

func (f *fleet) arrive(id int64, path string, change ...func(*Job)) {
	f.t.Helper()
	j := Job{GitLab: gitlabURL, ID: id, Project: Project{ID: projectID(path), Path: path}, Runner: "shared"}
	for _, c := range change {
		c(&j)
	}
	require.NoError(f.t, f.s.Arrive(f.now, j))
}

// projectID makes a project's id of its path.
func projectID(path string) int64 {
	id := int64(17)
	for _, c := range path {
		id = id*31 + int64(c)
	}
	return max(id, -id)
}

// serve gives one slot of the pool away and returns the job that got it, 0 for none.
func (f *fleet) serve(pools ...string) int64 {
	f.t.Helper()
	if len(pools) == 0 {
		pools = []string{"linux"}
	}
	d, ok := f.s.Next(f.now, pools...)
	if !ok {
		return 0
	}
	require.False(f.t, d.Claim, "%+v", d)
	require.NoError(f.t, f.s.Start(f.now, d.Job))
	return d.Job.ID
}

func (f *fleet) serveAll() []int64 {
	f.t.Helper()
	var ids []int64
	for id := f.serve(); id != 0; id = f.serve() {
		ids = append(ids, id)
	}
	return ids
}

func (f *fleet) finish(id int64) {
	f.t.Helper()
	require.NoError(f.t, f.s.Finish(f.now, JobKey{gitlabURL, id}))
}

// The two examples of GitLab's documentation (doc/ci/runners/runners_scope.md, "How instance runners pick jobs").
func TestGitLabsOwnSequences(t *testing.T) {
	queue := func(t *testing.T) *fleet {
		f := newFleet(t, Policy{Mode: GitLab}, Runner{Name: "shared"})
		for id, project := range []string{"p1", "p1", "p1", "p2", "p2", "p3"} {
			f.arrive(int64(id+1), "group/"+project)
		}
		return f
	}
	t.Run("several jobs run at a time", func(t *testing.T) {
		require.Equal(t, []int64{1, 4, 6, 2, 5, 3}, queue(t).serveAll())
	})
	t.Run("one job runs at a time", func(t *testing.T) {
		f := queue(t)
		var got []int64
		serve := func(n int) {
			for range n {
				got = append(got, f.serve())
			}
		}
		serve(1)
		f.finish(1)
		serve(2) // 2, 4: the documentation does not let 2 finish
		f.finish(4)
		serve(3)
		require.Equal(t, []int64{1, 2, 4, 5, 6, 3}, got)
	})
}

func TestGitLabsRuleCountsJobsOfInstanceRunnersOnlyAndOrdersTheOthersByID(t *testing.T) {
	f := newFleet(t, Policy{Mode: GitLab}, Runner{Name: "shared"}, Runner{Name: "own", Scope: GroupRunner, Path: "a"})
	own := func(j *Job) { j.Runner = "own" }
	f.arrive(1, "a/p", own)
	f.arrive(2, "a/p", own)
	f.arrive(3, "a/p")
	f.arrive(4, "b/p")
	require.Equal(t, []int64{1, 2, 3, 4}, f.serveAll(), "two jobs on a group runner do not count against 3")
}

func TestFIFOServesWhoHasWaitedLongest(t *testing.T) {
	f := newFleet(t, Policy{Mode: FIFO}, Runner{Name: "shared"})
	for i, path := range []string{"a/p", "a/p", "b/p", "a/p", "b/q"} {
		f.arrive(int64(9-i), path)
		f.after(time.Second)
	}
	require.Equal(t, []int64{9, 8, 7, 6, 5}, f.serveAll())
}

func TestAShareIsOfGroupsFirst(t *testing.T) {
	f := newFleet(t, Policy{}, Runner{Name: "shared"})
	id := int64(0)
	for i := range 9 { // nine projects of one group, one of the other
		for range 12 {
			id++
			f.arrive(id, fmt.Sprintf("many/p%d", i))
		}
	}
	for range 12 {
		id++
		f.arrive(id, "one/p")
	}
	ones := 0
	for range 12 {
		if f.serve() > 9*12 {
			ones++
		}
	}
	require.Equal(t, 6, ones)
}

func TestAHardQuotaHoldsBackANodeBelowAnyAncestor(t *testing.T) {
	f := newFleet(t, Policy{Nodes: map[string]Rule{NodeName(gitlabURL, "g"): {Hard: 2}}}, Runner{Name: "shared"})
	for id := range int64(4) {
		f.arrive(id+1, fmt.Sprintf("g/sub/p%d", id))
	}
	require.Len(t, f.serveAll(), 2)
	f.finish(1)
	require.Len(t, f.serveAll(), 1)
	f.s.SetPolicy(f.now, Policy{Nodes: map[string]Rule{NodeName(gitlabURL, "g"): {Hard: 2, Paused: true}}})
	f.finish(2)
	require.Empty(t, f.serveAll())
	f.s.SetPolicy(f.now, Policy{})
	require.Len(t, f.serveAll(), 1)
}

func TestNoQuotaHoldsBackWhatGitLabTakesForRunning(t *testing.T) {
	f := newFleet(t, Policy{Nodes: map[string]Rule{NodeName(gitlabURL, "g/p"): {Paused: true}}}, Runner{Name: "shared"})
	f.arrive(1, "g/p")
	f.arrive(2, "g/p", func(j *Job) { j.Committed = true })
	require.Equal(t, []int64{2}, f.serveAll())
}

func TestAGuaranteedMinimumComesFirstAndASoftQuotaLast(t *testing.T) {
	f := newFleet(t, Policy{Nodes: map[string]Rule{
		NodeName(gitlabURL, "min"): {Min: 2}, NodeName(gitlabURL, "soft"): {Soft: 1},
	}}, Runner{Name: "shared"})
	for i := range int64(3) {
		f.arrive(1+i, "soft/p")
		f.arrive(11+i, "plain/p")
		f.arrive(21+i, "min/p")
	}
	got := f.serveAll()
	require.Equal(t, []int64{21, 22}, got[:2])
	require.Equal(t, []int64{2, 3}, got[7:])
}

func TestPriorityCountsInsideAProjectAndWaitingMakesUpForIt(t *testing.T) {
	f := newFleet(t, Policy{Ageing: time.Minute}, Runner{Name: "shared"})
	priority := func(n int) func(*Job) { return func(j *Job) { j.Priority = n } }
	f.arrive(1, "g/p")
	f.after(90 * time.Second)
	f.arrive(2, "g/p", priority(1)) // 1 has waited longer than one step
	f.arrive(3, "g/p", priority(2))
	require.Equal(t, []int64{3, 1, 2}, f.serveAll())

	f.arrive(4, "g/p", priority(100))
	f.arrive(5, "other/p")
	require.Equal(t, []int64{5, 4}, f.serveAll(), "priority does not count across projects")
}

func TestAGrantedClassGoesFirstButNotForEver(t *testing.T) {
	f := newFleet(t, Policy{ClassPatience: 10 * time.Minute}, Runner{Name: "shared"})
	f.arrive(1, "a/p")
	for id := int64(100); ; id++ {
		f.arrive(id, "b/p", func(j *Job) { j.Class = 1 })
		got := f.serve()
		if got == 1 {
			break
		}
		require.Equal(t, id, got)
		require.Less(t, id, int64(200), "the lower class starves")
		f.after(time.Minute)
		f.finish(id)
	}
	require.Equal(t, start.Add(10*time.Minute), f.now)
}

func TestARunnerNeverExceedsItsLimit(t *testing.T) {
	f := newFleet(t, Policy{}, Runner{Name: "shared", Limit: 1}, Runner{Name: "other"})
	f.arrive(1, "a/p")
	f.arrive(2, "a/p")
	f.arrive(3, "b/p")
	f.arrive(4, "b/p", func(j *Job) { j.Runner = "other" })
	require.ElementsMatch(t, []int64{1, 4}, f.serveAll())
	f.finish(1)
	require.Len(t, f.serveAll(), 1)
	f.s.SetRunner(f.now, Runner{Name: "shared", GitLab: gitlabURL, Pool: "linux", Limit: 2})
	require.Len(t, f.serveAll(), 1)
}

func TestClaimsAreSharedOutAmongRunners(t *testing.T) {
	var runners []Runner
	for i := range 4 {
		runners = append(runners, Runner{Name: fmt.Sprintf("r%d", i), Scope: ProjectRunner, Path: fmt.Sprintf("g/p%d", i)})
	}
	f := newFleet(t, Policy{}, runners...)
	for _, r := range runners {
		require.NoError(t, f.s.Want(f.now, r.Name, 8))
	}
	counts := map[string]int{}
	for range 8 {
		d, ok := f.s.Next(f.now, "linux")
		require.True(t, ok)
		require.True(t, d.Claim)
		require.NoError(t, f.s.StartClaim(f.now, d.Runner))
		counts[d.Runner]++
	}
	require.Equal(t, map[string]int{"r0": 2, "r1": 2, "r2": 2, "r3": 2}, counts)

	// A claim that brought a job hands its slot over.
	require.NoError(t, f.s.EndClaim(f.now, "r0"))
	f.arrive(7, "g/p0", func(j *Job) { j.Runner = "r0" })
	require.Equal(t, int64(7), f.serve())
	require.ErrorIs(t, f.s.EndClaim(f.now, "r9"), ErrUnknownRunner)
}

func TestAJobThatIsHeldIsPassedOver(t *testing.T) {
	f := newFleet(t, Policy{}, Runner{Name: "shared"})
	f.arrive(1, "a/p")
	f.arrive(2, "a/p")
	require.NoError(t, f.s.Hold(f.now, JobKey{gitlabURL, 1}, "its agents are busy"))
	require.Equal(t, []int64{2}, f.serveAll())
	require.NoError(t, f.s.Release(f.now, JobKey{gitlabURL, 1}))
	require.Equal(t, []int64{1}, f.serveAll())
	require.NoError(t, f.s.Return(f.now, JobKey{gitlabURL, 1}))
	require.NoError(t, f.s.Withdraw(f.now, JobKey{gitlabURL, 1}))
	require.Empty(t, f.serveAll())
	require.ErrorIs(t, f.s.Withdraw(f.now, JobKey{gitlabURL, 1}), ErrUnknownJob)
	require.ErrorIs(t, f.s.Withdraw(f.now, JobKey{gitlabURL, 2}), ErrNotWaiting)
	require.ErrorIs(t, f.s.Finish(f.now, JobKey{gitlabURL, 1}), ErrUnknownJob)
}

// A weight that entitles to less than one slot gets its part over time: by the fewest running per weight alone, b would
// have both slots for ever.
func TestASmallWeightIsServed(t *testing.T) {
	f := newFleet(t, Policy{Nodes: map[string]Rule{NodeName(gitlabURL, "b"): {Weight: 3}}}, Runner{Name: "shared"})
	served := map[string]int{}
	id := int64(0)
	names := map[int64]string{}
	for range 2 {
		for _, g := range []string{"a", "b"} {
			id++
			names[id] = g
			f.arrive(id, g+"/p")
		}
	}
	running := []int64{f.serve(), f.serve()}
	for range 400 {
		f.after(time.Minute)
		done := running[0]
		running = running[1:]
		f.finish(done)
		served[names[done]]++
		id++
		names[id] = names[done]
		f.arrive(id, names[done]+"/p")
		running = append(running, f.serve())
	}
	require.InDelta(t, 100, served["a"], 3, "%v", served)
}

// Two pools without a common slot do not know of each other; two that have one share it.
func TestPoolsThatShareSlotsShareTheAccount(t *testing.T) {
	f := newFleet(t, Policy{}, Runner{Name: "shared"}, Runner{Name: "mac", Pool: "macos"}, Runner{Name: "other", Pool: "other"})
	on := func(runner string) func(*Job) { return func(j *Job) { j.Runner = runner } }
	for id := range int64(3) {
		f.arrive(1+id, "busy/p")
	}
	f.serveAll()
	f.arrive(10, "busy/p", on("mac"))
	f.after(time.Second)
	f.arrive(11, "quiet/p", on("mac"))
	require.Equal(t, int64(10), f.serve("macos"), "load on linux costs no turn on macos")

	f.arrive(20, "busy/p", on("other"))
	f.arrive(21, "quiet/p")
	require.Equal(t, int64(21), f.serve("other", "linux"), "the slots are the same: quiet has fewer of them")
}

func TestAProjectThatMovedIsChargedWhereItIs(t *testing.T) {
	f := newFleet(t, Policy{Nodes: map[string]Rule{NodeName(gitlabURL, "full"): {Hard: 1}}}, Runner{Name: "shared"})
	at := func(path string) func(*Job) { return func(j *Job) { j.Project = Project{ID: 5, Path: path} } }
	f.arrive(1, "", at("full/p"))
	f.arrive(2, "", at("full/p"))
	require.Equal(t, []int64{1}, f.serveAll())
	f.arrive(3, "", at("free/p"))
	require.Equal(t, []int64{3}, f.serveAll())
	f.finish(1)
	require.Equal(t, []int64{2}, f.serveAll())
}

func TestIdleNodesAreForgotten(t *testing.T) {
	f := newFleet(t, Policy{}, Runner{Name: "shared"})
	f.arrive(1, "g/sub/p")
	f.serveAll()
	f.after(time.Minute)
	f.finish(1)
	before := len(f.s.nodes)
	f.after(29 * 24 * time.Hour)
	f.s.Snapshot(f.now)
	require.Len(t, f.s.nodes, before)
	f.after(2 * 24 * time.Hour)
	f.s.Snapshot(f.now)
	require.Len(t, f.s.nodes, 3, "the fleet, the GitLab and its runner")
	require.Empty(t, f.s.projects)
}

func TestARunnerMayBeBoundElsewhereAfterARestart(t *testing.T) {
	f := newFleet(t, Policy{}, Runner{Name: "shared"})
	f.arrive(1, "a/p")
	f.serve()
	f.after(time.Minute)
	f.finish(1)
	restored := New(Policy{Nodes: map[string]Rule{NodeName(gitlabURL, "a"): {Paused: true}}})
	require.NoError(t, restored.Restore(f.now, f.s.Snapshot(f.now)))
	restored.SetRunner(f.now, Runner{Name: "shared", GitLab: gitlabURL, Scope: GroupRunner, Path: "a", Pool: "linux"})
	require.NoError(t, restored.Want(f.now, "shared", 1))
	_, ok := restored.Next(f.now, "linux")
	require.False(t, ok, "its group is paused")
	restored.SetRunner(f.now, Runner{Name: "shared", GitLab: gitlabURL, Pool: "linux"})
	_, ok = restored.Next(f.now, "linux")
	require.True(t, ok, "it is bound to the group no more")
}

func TestASnapshotIsBounded(t *testing.T) {
	f := newFleet(t, Policy{}, Runner{Name: "shared"})
	const projects = remember + 2000
	for id := range int64(projects) {
		f.after(time.Millisecond)
		f.arrive(id+1, fmt.Sprintf("g/p%d", id))
		f.serve()
		f.finish(id + 1)
	}
	require.Less(t, len(f.s.Snapshot(f.now)), 5<<20)
	require.Less(t, len(f.s.nodes), remember+10)
	require.Nil(t, f.s.nodes[nodeKey{kindProject, NodeName(gitlabURL, "g/p0")}], "idle longest")
	require.NotNil(t, f.s.nodes[nodeKey{kindProject, NodeName(gitlabURL, fmt.Sprintf("g/p%d", projects-1))}])
}

func TestABadSnapshotIsRefused(t *testing.T) {
	for _, bad := range []string{
		`{`, `{"version":2}`, `{"version":1,"nodes":[{"kind":3}]}`,
		`{"version":1,"nodes":[{"kind":0},{"kind":1,"parent":1}]}`,
		`{"version":1,"nodes":[{"kind":0,"accounts":[{"domain":99999999}]}]}`,
	} {
		require.Error(t, New(Policy{}).Restore(start, []byte(bad)), bad)
	}
}

// BenchmarkDecision is one slot's way: Next, Start, and the Finish of another job, with so many projects that all have
// jobs waiting.
func BenchmarkDecision(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("projects=%d", n), func(b *testing.B) {
			s := New(Policy{})
			s.SetRunner(start, Runner{Name: "shared", GitLab: gitlabURL, Pool: "linux"})
			now := start
			job := func(id int64) Job {
				p := id % int64(n)
				return Job{
					GitLab: gitlabURL, ID: id, Runner: "shared",
					Project: Project{ID: p + 1, Path: fmt.Sprintf("g%d/p%d", p%100, p)},
				}
			}
			backlog := make([]Job, 0, n)
			for id := range int64(n) {
				backlog = append(backlog, job(id))
			}
			for _, j := range backlog {
				require.NoError(b, s.Arrive(now, j))
			}
			const slots = 64
			var running [slots]JobKey
			for i := range running {
				d, _ := s.Next(now, "linux")
				_ = s.Start(now, d.Job)
				running[i] = d.Job
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				now = now.Add(time.Second)
				done := running[i%slots]
				if err := s.Finish(now, done); err != nil {
					b.Fatal(err)
				}
				again := backlog[done.ID%int64(n)]
				again.ID = done.ID
				if err := s.Arrive(now, again); err != nil {
					b.Fatal(err)
				}
				d, ok := s.Next(now, "linux")
				if !ok {
					b.Fatal("nobody is served")
				}
				if err := s.Start(now, d.Job); err != nil {
					b.Fatal(err)
				}
				running[i%slots] = d.Job
			}
		})
	}
}
