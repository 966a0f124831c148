package dispatch

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/policy"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// twoPhaseGitLab waits for acknowledgements: PUT state=pending is answered by 200.
func twoPhaseGitLab() *gitlabStub { return newGitLab() }

// legacyGitLab has no two-phase commit: a claimed job runs.
func legacyGitLab() *gitlabStub {
	g := newGitLab()
	g.answer = func(_ int64, state string) client.UpdateResult {
		if state == runnerapi.StatePending {
			return answerWith(http.StatusBadRequest, runnerapi.StateRunning)
		}
		return answerWith(http.StatusOK, "")
	}
	return g
}

func rules(t *testing.T, text string) *policy.Policy {
	t.Helper()
	p, warnings, err := policy.Parse("policy", []byte(text))
	require.NoError(t, err)
	require.Empty(t, warnings)
	return p
}

// startUnder starts a fleet under a policy.
func startUnder(t *testing.T, g *gitlabStub, text string) *fleet {
	t.Helper()
	return start(t, t.TempDir(), g, func(c *Config) { c.Policy = rules(t, text) })
}

// from is a job of a project; change may be nil.
func (f *fleet) from(project int64, change func(*runnerapi.Envelope)) runnerapi.Envelope {
	f.nextJob++
	paths := map[int64]string{1: "first/app", 2: "second/app", 3: "second/lib"}
	e := runnerapi.Envelope{ID: f.nextJob, Token: "t", JobInfo: runnerapi.JobInfo{ProjectID: project, ProjectFullPath: paths[project], Name: "job"}}
	if change != nil {
		change(&e)
	}
	return e
}

// take claims a job with a slot.
func (f *fleet) take(runner string, e runnerapi.Envelope) int64 {
	f.t.Helper()
	r, err := f.d.Reserve(f.t.Context(), runner)
	require.NoError(f.t, err)
	f.bring(runner, r, e)
	return e.ID
}

// bring hands over what a claim has brought.
func (f *fleet) bring(runner string, r *Reservation, e runnerapi.Envelope) {
	f.t.Helper()
	require.NoError(f.t, f.d.Claimed(f.t.Context(), runner, r, Claim{Payload: []byte(`{"id":1}`), Envelope: e, At: time.Now()}))
}

// mayClaim says whether the runner is given a slot to claim with; it gives it back.
func (f *fleet) mayClaim(runner string) bool {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.t.Context())
	granted := make(chan *Reservation, 1)
	go func() {
		r, _ := f.d.Reserve(ctx, runner)
		granted <- r
	}()
	synctest.Wait()
	cancel()
	r := <-granted
	if r != nil {
		r.Release()
	}
	synctest.Wait()
	return r != nil
}

// learn lets the dispatcher find out whether the GitLab has two-phase commit, by a job that ends at once.
func (f *fleet) learn(w *worker, runner, want string) {
	f.t.Helper()
	f.take(runner, f.from(9, nil))
	ref, _ := w.begins()
	w.ends(ref)
	synctest.Wait()
	require.Equal(f.t, want, f.d.TwoPhase(runner))
}

// worker is an agent that keeps the offers that come in between.
type worker struct {
	*fake
	offers []*fleetv1.Offer
}

func (f *fleet) worker(id string, h *fleetv1.Hello) *worker {
	f.t.Helper()
	a, _ := f.join(id, h)
	return &worker{fake: a}
}

// expect reads until a message is the wanted one.
func (w *worker) expect(is func(*fleetv1.SessionResponse) bool) {
	w.t.Helper()
	for {
		m := w.next()
		if o := m.GetOffer(); o != nil {
			w.offers = append(w.offers, o)
		}
		if is(m) {
			return
		}
	}
}

// begins takes the next offer, starts the job and returns its number at GitLab.
func (w *worker) begins() (*fleetv1.JobRef, int64) {
	w.t.Helper()
	for len(w.offers) == 0 {
		w.expect(func(m *fleetv1.SessionResponse) bool { return m.GetOffer() != nil })
	}
	offer := w.offers[0]
	w.offers = w.offers[1:]
	w.reply(offer.GetRef(), true)
	w.expect(func(m *fleetv1.SessionResponse) bool {
		return m.GetStart().GetRef().GetJob() == offer.GetRef().GetJob()
	})
	w.report(offer.GetRef(), fleetv1.JobState_JOB_STATE_STARTED, nil)
	w.expect(func(m *fleetv1.SessionResponse) bool { return m.GetReportAck() != nil })
	return offer.GetRef(), offer.GetEnvelope().GetGitlabJobId()
}

// ends reports a job's success and waits until it is reported.
func (w *worker) ends(ref *fleetv1.JobRef) {
	w.t.Helper()
	w.report(ref, fleetv1.JobState_JOB_STATE_FINISHED, &fleetv1.Result{State: "success"})
	w.expect(func(m *fleetv1.SessionResponse) bool { return m.GetForget().GetRef().GetJob() == ref.GetJob() })
}

// live answers pings for so long.
func (w *worker) live(d time.Duration) {
	w.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		w.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Ping{Ping: &fleetv1.Ping{Seq: 1}}})
		w.expect(func(m *fleetv1.SessionResponse) bool { return m.GetPong() != nil })
		time.Sleep(5 * time.Second)
	}
	synctest.Wait()
}

func (f *fleet) snapshot(job int64) JobSnapshot {
	for _, j := range f.d.Jobs() {
		if j.GitLabJobID == job {
			return j
		}
	}
	return JobSnapshot{}
}

// A job that its project's quota forbids waits, kept alive in GitLab and without a slot, and runs when it may.
func TestAQuotaHoldsClaimedJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := twoPhaseGitLab()
		f := startUnder(t, g, "projects: {hard_quota: 1}\nrunners: [{name: any, hold: 2}]\n")
		defer f.stop()
		a := f.worker("a", hello("1", 4))
		defer a.leave()
		f.learn(a, "any", TwoPhaseOn)

		f.take("any", f.from(1, nil))
		first, _ := a.begins()
		held := f.take("any", f.from(1, nil))
		synctest.Wait()
		require.Equal(t, "claimed", f.snapshot(held).State)
		require.Equal(t, 1, f.d.Agents()[0].UsedSlots, "no slot is kept for it")
		e, err := f.d.ExplainJob(held)
		require.NoError(t, err)
		require.EqualValues(t, "blocked", e.Verdict)
		require.Contains(t, e.Sentence, "first/app uses 1 of the 1 slots of its quota")

		other := f.take("any", f.from(2, nil))
		second, id := a.begins()
		require.Equal(t, other, id, "another project is not held up")

		f.take("any", f.from(1, nil))
		require.False(t, f.mayClaim("any"), "two jobs are held: no more are claimed")
		why, err := f.d.ExplainRunner("any")
		require.NoError(t, err)
		require.EqualValues(t, "blocked", why.Verdict)
		require.Equal(t, "Runner any claims no more: 2 jobs that it has claimed wait already.", why.Sentence)

		g.mu.Lock()
		g.puts = nil
		g.mu.Unlock()
		a.live(10 * time.Minute)
		g.mu.Lock()
		alive := 0
		for _, put := range g.puts {
			if put == fmt.Sprint(held, " pending") {
				alive++
			}
		}
		g.mu.Unlock()
		require.GreaterOrEqual(t, alive, 12, "it is kept alive")

		a.ends(first)
		_, id = a.begins()
		require.Equal(t, held, id)
		require.True(t, f.mayClaim("any"))
		a.ends(second)
	})
}

// Without two-phase commit a claimed job runs whatever the quota says, and the runner claims no more until the project is
// below it again.
func TestWithoutTwoPhaseCommitTheRunnerStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startUnder(t, legacyGitLab(), "projects: {hard_quota: 1}\n")
		defer f.stop()
		a := f.worker("a", hello("1", 4))
		defer a.leave()
		f.learn(a, "any", TwoPhaseOff)

		f.take("any", f.from(2, nil))
		other, _ := a.begins()
		require.False(t, f.mayClaim("any"), "second/app has all that it may have")
		why, err := f.d.ExplainRunner("any")
		require.NoError(t, err)
		require.Contains(t, why.Sentence, "Runner any claims no more: its GitLab has no two-phase commit, so what it claims has to run at once, and second/app may run no more: "+
			"http://gitlab/second/app has 1 of 1 slots.")
		require.True(t, f.mayClaim("one"), "other runners go on")

		// A watch brings a job all the same.
		over := f.from(2, nil)
		f.bring("any", nil, over)
		ref, id := a.begins()
		require.Equal(t, over.ID, id, "it runs: GitLab takes it for running")
		a.ends(other)
		synctest.Wait()
		require.False(t, f.mayClaim("any"))
		a.ends(ref)
		synctest.Wait()
		require.True(t, f.mayClaim("any"))

		// From now on it claims one by one: two at a time could both bring a job of that project.
		r, err := f.d.Reserve(t.Context(), "any")
		require.NoError(t, err)
		require.False(t, f.mayClaim("any"))
		f.bring("any", r, f.from(1, nil))
		ref, _ = a.begins()
		require.False(t, f.mayClaim("any"), "first/app is at its quota")
		a.ends(ref)
		synctest.Wait()
		r, err = f.d.Reserve(t.Context(), "any")
		require.NoError(t, err)
		r.Release()
		require.True(t, f.mayClaim("any"))
	})
}

// Inside a project the priority counts, across projects a class that was granted; the rest is shared.
func TestPrioritiesAndClasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startUnder(t, twoPhaseGitLab(), `
classes: [urgent, normal]
nodes: [{path: second/lib, classes: [urgent]}]
runners: [{name: any, hold: 10}]
rules:
  - {name: deploys, when: environment == "production", priority: 10, class: urgent}
  - {name: lint, when: stage == "lint", priority: -10}
`)
		defer f.stop()
		a := f.worker("a", hello("1", 1))
		defer a.leave()
		f.learn(a, "any", TwoPhaseOn)
		f.take("any", f.from(1, nil))
		running, _ := a.begins()

		deploy := func(e *runnerapi.Envelope) { e.Origin.Environment = "production" }
		lint := func(e *runnerapi.Envelope) { e.JobInfo.Stage = "lint" }
		jobs := []runnerapi.Envelope{
			f.from(2, lint), f.from(2, nil), f.from(2, deploy), f.from(3, nil), f.from(3, deploy),
		}
		for _, e := range jobs {
			f.bring("any", nil, e)
		}
		synctest.Wait()
		e, err := f.d.ExplainJob(jobs[2].ID)
		require.NoError(t, err)
		require.Contains(t, e.Notes, `By the rule "deploys" it has priority 10; the class urgent, which the rule names too, is not granted to the project.`)
		e, err = f.d.ExplainJob(jobs[1].ID)
		require.NoError(t, err)
		require.EqualValues(t, "behind", e.Verdict)

		var order []int64
		for range jobs {
			a.ends(running)
			var id int64
			running, id = a.begins()
			order = append(order, id)
		}
		a.ends(running)
		require.Equal(t, jobs[4].ID, order[0], "a granted class goes before everything")
		require.Equal(t, []int64{jobs[2].ID, jobs[1].ID, jobs[0].ID}, of(order, jobs[:3]), "a deploy does not wait behind lint jobs of its own project")
		require.Equal(t, jobs[2].ID, order[1], "its project has had no slot yet, the other one has")
	})
}

// of returns those of order that are among some.
func of(order []int64, some []runnerapi.Envelope) []int64 {
	var list []int64
	for _, id := range order {
		for _, e := range some {
			if e.ID == id {
				list = append(list, id)
			}
		}
	}
	return list
}

// What GitLab can do is found out with the first job, which is held all the same if its project may not run it; what the
// answer allows happens at once.
func TestTheFirstJobIsHeldToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startUnder(t, twoPhaseGitLab(), "nodes: [{path: first, paused: true}]\n")
		defer f.stop()
		a := f.worker("a", hello("1", 1))
		defer a.leave()
		claims := make(chan *Reservation, 2)
		for range 2 { // the second one waits for the slot of the first
			go func() {
				if r, err := f.d.Reserve(t.Context(), "any"); err == nil {
					claims <- r
				}
			}()
		}
		synctest.Wait()
		e := f.from(1, nil)
		held := e.ID
		f.bring("any", <-claims, e)
		synctest.Wait()
		require.Equal(t, "claimed", f.snapshot(held).State)
		require.Equal(t, TwoPhaseOn, f.d.TwoPhase("any"))
		(<-claims).Release()
		f.d.SetPolicy(policy.Default())
		ref, id := a.begins()
		require.Equal(t, held, id)
		a.ends(ref)
	})
	synctest.Test(t, func(t *testing.T) {
		f := startUnder(t, legacyGitLab(), "nodes: [{path: first, paused: true}]\n")
		defer f.stop()
		a := f.worker("a", hello("1", 1))
		defer a.leave()
		id := f.take("any", f.from(1, nil))
		ref, got := a.begins()
		require.Equal(t, id, got, "GitLab takes it for running: it is not held")
		require.False(t, f.mayClaim("any"))
		a.ends(ref)
	})
	synctest.Test(t, func(t *testing.T) {
		f := startUnder(t, twoPhaseGitLab(), "projects: {hard_quota: 1}\nrunners: [{name: any, claim_ahead: {jobs: 5}}]\n")
		defer f.stop()
		a := f.worker("a", hello("1", 1))
		defer a.leave()
		f.take("any", f.from(1, nil))
		claim := make(chan *Reservation, 1)
		go func() {
			if r, err := f.d.Reserve(t.Context(), "any"); err == nil {
				claim <- r
			}
		}()
		ref, _ := a.begins()
		synctest.Wait()
		require.Len(t, claim, 1, "it looks ahead from then on")
		(<-claim).Release()
		a.ends(ref)
	})
}

// A claimed job keeps its slot although its runner wants to claim more: claiming ahead is what the policy allows or not.
func TestAClaimedJobGoesBeforeFurtherClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startUnder(t, twoPhaseGitLab(), "{}")
		defer f.stop()
		a := f.worker("a", hello("1", 1))
		defer a.leave()
		f.learn(a, "any", TwoPhaseOn)
		f.take("any", f.from(1, nil))
		running, _ := a.begins()
		claims := make(chan *Reservation, 2)
		for range 2 {
			go func() {
				if r, err := f.d.Reserve(t.Context(), "any"); err == nil {
					claims <- r
				}
			}()
		}
		synctest.Wait()
		a.ends(running)
		e := f.from(1, nil)
		f.bring("any", <-claims, e)
		synctest.Wait()
		require.Empty(t, claims, "the other claim waits")
		running, id := a.begins()
		require.Equal(t, e.ID, id)
		a.ends(running)
		(<-claims).Release()
	})
}

// A policy takes effect at once: what was held runs, what was allowed waits.
func TestAPolicyIsPutInForceWhileJobsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startUnder(t, twoPhaseGitLab(), "nodes: [{path: first, paused: true}]\n")
		defer f.stop()
		a := f.worker("a", hello("1", 2))
		defer a.leave()
		f.learn(a, "any", TwoPhaseOn)
		held := f.take("any", f.from(1, nil))
		synctest.Wait()
		require.Equal(t, "claimed", f.snapshot(held).State)
		e, err := f.d.ExplainProject("", "First/App")
		require.NoError(t, err)
		require.Contains(t, e.Sentence, "http://gitlab/first is paused")

		f.d.SetPolicy(rules(t, "nodes: [{path: first, hard_quota: 1}]\n"))
		ref, id := a.begins()
		require.Equal(t, held, id)
		next := f.take("any", f.from(1, nil))
		synctest.Wait()
		require.Equal(t, "claimed", f.snapshot(next).State)
		f.d.SetPolicy(policy.Default())
		second, id := a.begins()
		require.Equal(t, next, id)
		a.ends(ref)
		a.ends(second)
		synctest.Wait()
		require.Empty(t, f.d.Jobs())
	})
}

// Of a runner that may not claim a project is told why.
func TestAProjectsExplanationNamesWhatKeepsItsRunner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startUnder(t, twoPhaseGitLab(), "runners: [{name: any, hard_quota: 1}]\n")
		defer f.stop()
		a := f.worker("a", hello("1", 2))
		defer a.leave()
		f.learn(a, "any", TwoPhaseOn)
		f.take("any", f.from(1, nil))
		a.begins()

		ctx, cancel := context.WithCancel(t.Context())
		asked := make(chan error)
		go func() {
			_, err := f.d.Reserve(ctx, "any")
			asked <- err
		}()
		synctest.Wait()
		e, err := f.d.ExplainProject("", "second/app")
		require.NoError(t, err)
		require.Contains(t, e.Notes, "Runner any is not served: runner any uses 1 of the 1 slots of its quota.")
		cancel()
		require.ErrorIs(t, <-asked, context.Canceled)
	})
}

// A job goes to the agent that has built its project, even if the claim's slot was on another one; and it lets others pass
// for a while if that agent is busy, but no slot is idle for that.
func TestWarmAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startUnder(t, twoPhaseGitLab(), "placement: [{warm_wait: 1m}]\nrunners: [{name: any, hold: 10}]\n")
		defer f.stop()
		a := f.worker("a", hello("1", 1))
		defer a.leave()
		f.learn(a, "any", TwoPhaseOn)
		f.take("any", f.from(1, nil))
		warm, _ := a.begins()
		b := f.worker("b", hello("2", 3))
		defer b.leave()
		a.ends(warm)

		again := f.take("any", f.from(1, nil)) // the slot was on b, which has more room
		warm, id := a.begins()
		require.Equal(t, again, id)

		// a is busy: alone, the next job of the project takes a cold slot at once.
		cold := f.take("any", f.from(1, nil))
		ref, id := b.begins()
		require.Equal(t, cold, id)
		b.ends(ref)
		synctest.Wait()
		a.ends(warm)
	})
}

// Agents for protected refs only get no other jobs; a job that nobody will ever take is accepted and failed.
func TestAgentsForProtectedRefsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := twoPhaseGitLab()
		f := startUnder(t, g, "{}")
		defer f.stop()
		kept := hello("1", 4)
		kept.ProtectedOnly = true
		a := f.worker("kept", kept)
		defer a.leave()
		protected := func(e *runnerapi.Envelope) { yes := true; e.GitInfo.Protected, e.GitInfo.Ref = &yes, "main" }
		open := func(e *runnerapi.Envelope) { e.GitInfo.Ref = "topic" }

		id := f.take("any", f.from(1, protected))
		ref, got := a.begins()
		require.Equal(t, id, got)

		doomed := f.take("any", f.from(1, open))
		synctest.Wait()
		a.live(time.Second)
		u, trace, ok := g.result(doomed)
		require.True(t, ok)
		require.Equal(t, runnerapi.StateFailed, u.State)
		require.Equal(t, runnerapi.ReasonRunnerSystem, u.FailureReason)
		require.Contains(t, trace, `topic is not protected, and all agents of runner "any" take jobs of protected branches and tags only`)

		b := f.worker("open", hello("2", 1))
		defer b.leave()
		id = f.take("any", f.from(1, open))
		second, got := b.begins()
		require.Equal(t, id, got)
		waits := f.take("any", f.from(1, open))
		synctest.Wait()
		require.Equal(t, "claimed", f.snapshot(waits).State, "there is an agent for it, though it is full")
		b.ends(second)
		second, got = b.begins()
		require.Equal(t, waits, got)
		b.ends(second)
		a.ends(ref)
	})
}

// Looking ahead brings jobs into sight that stand behind those of another project, within bounds.
func TestLookingAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startUnder(t, twoPhaseGitLab(), "runners: [{name: any, claim_ahead: {jobs: 2, for: 5m}}]\n")
		defer f.stop()
		a := f.worker("a", hello("1", 1))
		defer a.leave()
		f.learn(a, "any", TwoPhaseOn)
		f.take("any", f.from(1, nil))
		running, _ := a.begins()

		ahead := func(project int64) int64 {
			r, err := f.d.Reserve(t.Context(), "any")
			require.NoError(t, err)
			e := f.from(project, nil)
			f.bring("any", r, e)
			return e.ID
		}
		mine := ahead(1)
		require.False(t, f.mayClaim("one"), "other runners do not look ahead")
		r, err := f.d.Reserve(t.Context(), "any")
		require.NoError(t, err)
		require.False(t, f.mayClaim("any"), "what the claim brings may be the project's second job")
		e := f.from(2, nil)
		f.bring("any", r, e)
		synctest.Wait()
		require.True(t, f.mayClaim("any"), "one of each waits")
		more := ahead(1)
		require.False(t, f.mayClaim("any"), "two of one project wait")

		a.live(time.Minute)
		a.ends(running)
		running, id := a.begins()
		require.Equal(t, e.ID, id, "the project that has had nothing goes first")
		a.ends(running)
		running, id = a.begins()
		require.Equal(t, mine, id)
		require.True(t, f.mayClaim("any"))
		a.live(5 * time.Minute)
		require.False(t, f.mayClaim("any"), "one has waited too long already")
		a.ends(running)
		running, id = a.begins()
		require.Equal(t, more, id)
		a.ends(running)
	})
}

// Accounts and figures outlive a restart.
func TestSharesOutliveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, g := t.TempDir(), twoPhaseGitLab()
		f := start(t, dir, g)
		a := f.worker("a", hello("1", 1))
		f.take("any", f.from(1, nil))
		ref, _ := a.begins()
		a.live(time.Minute)
		a.ends(ref)
		f.take("any", f.from(2, nil))
		held, _ := a.begins()
		synctest.Wait()
		shares := f.d.Shares()
		used, err := f.d.UsageSnapshot()
		require.NoError(t, err)
		a.leave()
		f.stop()

		f = start(t, dir, g, func(c *Config) { c.Shares, c.Usage = shares, used })
		defer f.stop()
		rows := f.d.Usage()
		require.Len(t, rows, 2)
		require.Equal(t, "first/app", rows[0].Path)
		require.InDelta(t, 60, rows[0].Hour.SlotSeconds, 1)
		require.Equal(t, "second/app", rows[1].Path)
		require.Equal(t, 1, rows[1].Slots)
		require.InDelta(t, 1, rows[1].Share, 0.001)
		h := hello("1", 1)
		h.Jobs = []*fleetv1.HeldJob{{Ref: held, State: fleetv1.JobState_JOB_STATE_STARTED}}
		a = f.worker("a", h)
		defer a.leave()
		a.ends(held)
		synctest.Wait()
		require.Equal(t, 0, f.d.Usage()[1].Slots)
	})
}
