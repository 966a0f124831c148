package fleettest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
)

// sharedFleet is a fleet whose projects compete for the slots.
type sharedFleet struct {
	*processes
	projects map[string]coordinator.Project
}

// startShared starts a GitLab with projects and runners, and a control plane under a policy (none if it is empty). There
// is no agent yet, so everything that is pushed next stands in GitLab's queue before anything is claimed.
func startShared(t *testing.T, o processOptions, policy string, paths []string, runners ...coordinator.RunnerOptions) *sharedFleet {
	t.Helper()
	f := &sharedFleet{projects: make(map[string]coordinator.Project)}
	o.runnerKeys += "    requests_per_minute: 60000\n"
	o.register = func(gitlab *coordinator.Coordinator) []coordinator.RunnerOptions {
		for _, path := range paths {
			f.projects[path] = project(t, gitlab, path)
		}
		return runners
	}
	f.processes = startProcesses(t, o)
	if policy != "" {
		f.apply(policy)
	}
	return f
}

// groupRunner takes the jobs of all projects of a group.
func groupRunner(name, group string) coordinator.RunnerOptions {
	return coordinator.RunnerOptions{Description: name, Type: coordinator.GroupRunner, Group: group, RunUntagged: true}
}

// push makes a pipeline of n jobs with one script; keys are further ones of the job, indented by two.
func (f *sharedFleet) push(path string, n int, script, keys string) []coordinator.Pipeline {
	f.t.Helper()
	const most = 200 // of `parallel`
	var runs []coordinator.Pipeline
	for ; n > 0; n -= most {
		parallel := ""
		if n > 1 {
			parallel = fmt.Sprintf("  parallel: %d\n", min(n, most))
		}
		runs = append(runs, pipeline(f.t, f.gitlab, f.projects[path], fmt.Sprintf("job:\n  script: ['%s']\n%s%s", script, parallel, keys)))
	}
	return runs
}

// jobs are those of some pipelines, as GitLab sees them now, the one that was created first in front.
func (f *sharedFleet) jobs(runs []coordinator.Pipeline) []coordinator.Job {
	f.t.Helper()
	var jobs []coordinator.Job
	for _, run := range runs {
		now, err := f.gitlab.Pipeline(run.ID)
		require.NoError(f.t, err)
		jobs = append(jobs, now.Jobs...)
	}
	return jobs
}

// succeed waits until pipelines have ended, and wants them to have succeeded.
func (f *sharedFleet) succeed(runs []coordinator.Pipeline) []coordinator.Job {
	f.t.Helper()
	for _, run := range runs {
		require.Equal(f.t, "success", wait(f.t, f.gitlab, run).Status, "pipeline %d", run.ID)
	}
	return f.jobs(runs)
}

// cancel ends what is left of pipelines.
func (f *sharedFleet) cancel(runs []coordinator.Pipeline) {
	f.t.Helper()
	for _, run := range runs {
		_, err := f.gitlab.CancelPipeline(run.ID)
		require.NoError(f.t, err)
	}
}

// eventually waits for as long as it takes on a machine that is busy with other things.
func (f *sharedFleet) eventually(what string, is func() bool) {
	f.t.Helper()
	if !f.poll(patience, is) {
		f.t.Fatalf("waited in vain: %s\n%s", what, f.logs())
	}
}

// explains waits until switchyard explain says all of some texts.
func (f *sharedFleet) explains(what, which string, texts ...string) {
	f.t.Helper()
	var said string
	if !f.poll(time.Minute, func() bool {
		said = f.command("explain", what, which)
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(said, text) })
	}) {
		f.t.Fatalf("of %s %s it does not say %q, but:\n%s", what, which, texts, said)
	}
}

func (f *sharedFleet) poll(atMost time.Duration, is func() bool) bool {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), atMost)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !is() {
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
	return true
}

// command is what a person types; it returns what is printed.
func (f *sharedFleet) command(args ...string) string {
	f.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "switchyard"), append(args, "-c", f.config())...)
	var failure strings.Builder
	cmd.Stderr = &failure
	out, err := cmd.Output()
	require.NoError(f.t, err, "switchyard %s: %s", strings.Join(args, " "), &failure)
	return string(out)
}

// apply puts a policy in force.
func (f *sharedFleet) apply(policy string) {
	f.t.Helper()
	file := filepath.Join(f.dir, "policy.yaml")
	require.NoError(f.t, os.WriteFile(file, []byte(policy), 0o600))
	require.Contains(f.t, f.command("policy", "apply", "-f", file), "is in force")
}

// slotSeconds is what switchyard usage says that a project has used in the last hour.
func (f *sharedFleet) slotSeconds(path string) float64 {
	f.t.Helper()
	var rows []struct {
		Path string `json:"project_path"`
		Hour struct {
			SlotSeconds float64 `json:"slot_seconds"`
		} `json:"hour"`
	}
	require.NoError(f.t, json.Unmarshal([]byte(f.command("usage", "-o", "json")), &rows))
	for _, r := range rows {
		if r.Path == path {
			return r.Hour.SlotSeconds
		}
	}
	return 0
}

func begun(j coordinator.Job) bool    { return !j.StartedAt.IsZero() }
func finished(j coordinator.Job) bool { return j.Finished() }

func count(jobs []coordinator.Job, is func(coordinator.Job) bool) int {
	n := 0
	for _, j := range jobs {
		if is(j) {
			n++
		}
	}
	return n
}

// byStart are the jobs that have begun, in the order in which they did.
func byStart(jobs ...coordinator.Job) []coordinator.Job {
	jobs = slices.DeleteFunc(slices.Clone(jobs), func(j coordinator.Job) bool { return !begun(j) })
	slices.SortFunc(jobs, func(a, b coordinator.Job) int { return a.StartedAt.Compare(b.StartedAt) })
	return jobs
}

// used is the time that jobs have run between two moments.
func used(jobs []coordinator.Job, from, to time.Time) time.Duration {
	var sum time.Duration
	for _, j := range byStart(jobs...) {
		begin, end := j.StartedAt, to
		if begin.Before(from) {
			begin = from
		}
		if j.Finished() && j.FinishedAt.Before(to) {
			end = j.FinishedAt
		}
		sum += max(end.Sub(begin), 0)
	}
	return sum
}

// jain is Jain's index: 1 if all have the same.
func jain(x []time.Duration) float64 {
	var sum, squares float64
	for _, v := range x {
		sum += v.Seconds()
		squares += v.Seconds() * v.Seconds()
	}
	return sum * sum / (float64(len(x)) * squares)
}

// Four runners, each of one project, whose jobs last 1, 3, 5 and 7 s, on four slots: what is shared is slot-time, not the
// number of jobs. gitlab-runner's index is 0.845 here: it serves its runners in turn.
func TestProjectsGetTheSameSlotTime(t *testing.T) {
	lengths := []int{1, 3, 5, 7}
	var paths []string
	var runners []coordinator.RunnerOptions
	for _, n := range lengths {
		path := fmt.Sprintf("group/seconds-%d", n)
		paths = append(paths, path)
		runners = append(runners, coordinator.RunnerOptions{
			Description: fmt.Sprintf("runner-%d", n), Type: coordinator.ProjectRunner, Projects: []string{path}, RunUntagged: true,
		})
	}
	f := startShared(t, processOptions{}, "", paths, runners...)
	var runs [][]coordinator.Pipeline
	for i, path := range paths {
		runs = append(runs, f.push(path, 200/lengths[i], fmt.Sprintf("sleep %d", lengths[i]), ""))
	}
	f.startAgent("only", 4)

	var from, to time.Time
	var share []time.Duration
	f.eventually("300 slot-seconds are used", func() bool {
		to, share = time.Now(), nil
		var all []coordinator.Job
		for _, r := range runs {
			all = append(all, f.jobs(r)...)
		}
		if first := byStart(all...); len(first) > 0 {
			from = first[0].StartedAt
		}
		var sum time.Duration
		for _, r := range runs {
			jobs := f.jobs(r)
			require.Less(t, count(jobs, begun), len(jobs), "it has a backlog all the time")
			share = append(share, used(jobs, from, to))
			sum += share[len(share)-1]
		}
		return sum >= 300*time.Second
	})
	var accounts []time.Duration
	for _, path := range paths {
		accounts = append(accounts, time.Duration(f.slotSeconds(path)*float64(time.Second)))
	}
	t.Logf("in %s of backlog: Jain's index %.4f by GitLab's times %v; %.4f by switchyard usage %v",
		to.Sub(from).Round(time.Second), jain(share), share, jain(accounts), accounts)
	require.GreaterOrEqual(t, jain(share), 0.97)
	require.GreaterOrEqual(t, jain(accounts), 0.97)
	for _, r := range runs {
		f.cancel(r)
	}
}

// A group runner that looks ahead: ten jobs of a project that stand behind a thousand of another in GitLab's queue are
// served at their share.
//
// The bound: two of the four slots are theirs by right. While the ten run on these the thousand have the other two, so
// about ten of them start, and one for each slot more at the most, because jobs do not end all at the same moment. As much
// again is allowed, because what is shared is time, and on a busy machine jobs do not all take the same time. Before the
// length of the ten's jobs is known each of them is taken to last five minutes, but up to its part of the slots a project
// is served all the same.
func TestLookingAheadServesWhoStandsBehindAThousand(t *testing.T) {
	const thousand, ten, slots = 1000, 10, 4
	f := startShared(t, processOptions{}, "runners: [{name: shared, group: team, claim_ahead: {jobs: 1000}}]\n",
		[]string{"team/many", "team/few"}, groupRunner("shared", "team"))
	many := f.push("team/many", thousand, "sleep 1", "")
	few := f.push("team/few", ten, "sleep 1", "")
	created := time.Now()
	f.startAgent("only", slots)

	// They are in sight when they are claimed: before they run GitLab waits for their acknowledgement.
	f.eventually("the ten are in sight", func() bool {
		return count(f.jobs(few), func(j coordinator.Job) bool { return j.WaitingForAck || begun(j) }) == ten
	})
	inSight := time.Now()
	before := count(f.jobs(many), begun)
	f.eventually("the ten have started", func() bool { return count(f.jobs(few), begun) == ten })
	last := byStart(f.jobs(few)...)[ten-1].StartedAt
	between := count(f.jobs(many), func(j coordinator.Job) bool {
		return begun(j) && j.StartedAt.After(inSight) && j.StartedAt.Before(last)
	})
	t.Logf("1000 jobs were claimed in %s, in which %d of them began; until the last of the ten began, %s later, %d more did",
		inSight.Sub(created).Round(time.Second), before, last.Sub(inSight).Round(100*time.Millisecond), between)
	require.LessOrEqual(t, between, 2*(ten+slots))
	f.succeed(few)
	f.cancel(many)
}

// Without looking ahead a group runner gets the jobs in GitLab's order, the oldest first, and switchyard says so.
func TestWithoutLookingAheadTheOldestComeFirst(t *testing.T) {
	const slots = 4
	f := startShared(t, processOptions{}, "", []string{"team/many", "team/few"}, groupRunner("shared", "team"))
	gate := f.newGate()
	many := f.push("team/many", 40, gate.wait(), "")
	few := f.push("team/few", 4, "true", "")
	f.startAgent("only", slots)
	f.eventually("all slots are used", func() bool { return count(f.jobs(many), begun) == slots })
	f.explains("project", "team/few", "GitLab has given no job of it that waits",
		"Runner shared waits for a slot before it asks GitLab for its next job", "claim_ahead")
	gate.open()
	first := byStart(f.succeed(few)...)[0].StartedAt
	after := count(f.succeed(many), func(j coordinator.Job) bool { return j.StartedAt.After(first) })
	t.Logf("%d of 40 jobs that were created before began after the first of the others", after)
	require.Less(t, after, 2*slots, "as many as may be on their way at the same time")
}

// A production deploy does not wait behind lint jobs of its own project, and a class that was granted goes before the
// backlog of every project.
func TestDeploysAndGrantedClassesGoFirst(t *testing.T) {
	f := startShared(t, processOptions{}, `
classes: [urgent, normal]
nodes:
  - {path: team/payments, classes: [urgent]}
runners:
  - {name: shared, group: team, claim_ahead: {jobs: 50}}
rules:
  - {name: production, when: environment == "production", priority: 100}
  - {name: hotfix, when: stage == "hotfix", class: urgent}
  - {name: lint, when: stage == "lint", priority: -10}
`, []string{"team/app", "team/other", "team/payments"}, groupRunner("shared", "team"))
	gate := f.newGate()
	lint := f.push("team/app", 15, gate.wait(), "  stage: lint\nstages: [lint]\n")
	other := f.push("team/other", 10, "true", "")
	deploy := f.push("team/app", 1, "true", "  stage: deploy\n  variables: {CI_ENVIRONMENT_NAME: production}\n")
	hotfix := f.push("team/payments", 1, "true", "  stage: hotfix\nstages: [hotfix]\n")
	f.startAgent("only", 1)
	all := slices.Concat(lint, other, deploy, hotfix)
	f.eventually("all are in sight", func() bool {
		jobs := f.jobs(all)
		return count(jobs, func(j coordinator.Job) bool { return j.WaitingForAck || begun(j) }) == len(jobs)
	})
	f.explains("job", fmt.Sprint(deploy[0].Jobs[0].ID), `By the rule "production" it has priority 100`)
	f.explains("job", fmt.Sprint(hotfix[0].Jobs[0].ID), "gets the next slot that becomes free")
	gate.open()
	f.succeed(all)

	order := byStart(f.jobs(all)...)
	require.Equal(t, lint[0].Jobs[0].ID, order[0].ID, "it ran before the others came into sight")
	require.Equal(t, hotfix[0].Jobs[0].ID, order[1].ID, "urgent goes before every backlog")
	own := byStart(append(f.jobs(lint), f.jobs(deploy)...)...)
	require.Equal(t, deploy[0].Jobs[0].ID, own[1].ID, "the next of its project is the deploy")
}

// A policy takes effect at once, and outlives the control plane as what was used does.
func TestAPolicyTakesEffectAtOnceAndStays(t *testing.T) {
	const ahead = "runners: [{name: shared, group: team, claim_ahead: {jobs: 20}}]\n"
	f := startShared(t, processOptions{}, ahead+"nodes: [{path: team/first, paused: true}]\n",
		[]string{"team/first", "team/second"}, groupRunner("shared", "team"))
	first := f.push("team/first", 6, "sleep 0.3", "")
	second := f.push("team/second", 6, "sleep 0.3", "")
	f.startAgent("only", 2)
	f.succeed(second)
	require.Zero(t, count(f.jobs(first), begun), "it is paused")
	f.explains("project", "team/first", "team/first is paused")

	later := f.push("team/second", 3, "sleep 0.3", "")
	f.until("the second project's next jobs end, too", func() bool { return count(f.jobs(later), finished) == 3 })
	const swapped = ahead + "nodes: [{path: team/second, paused: true}]\n"
	f.apply(swapped)
	held := f.push("team/second", 3, "sleep 0.3", "")
	f.succeed(first)
	require.Zero(t, count(f.jobs(held), begun))

	f.plane.signal(t, syscall.SIGKILL)
	f.startPlane()
	require.Contains(t, f.command("policy", "show"), swapped)
	more := f.push("team/first", 2, "sleep 0.3", "")
	f.succeed(more)
	require.Zero(t, count(f.jobs(held), begun), "the policy is in force after a crash")
	f.explains("project", "team/second", "team/second is paused")
	f.apply(ahead)
	f.succeed(held)

	f.until("the control plane has let go of the jobs", func() bool { return !strings.Contains(f.command("jobs", "list"), "team/") })
	before := f.slotSeconds("team/second")
	f.plane.signal(t, syscall.SIGTERM)
	f.startPlane()
	require.Greater(t, before, 0.9, "three jobs since the crash")
	require.InDelta(t, before, f.slotSeconds("team/second"), 0.01, "what was used is known after a restart")
}

// A quota below a shared runner holds claimed jobs where GitLab waits for acknowledgements.
func TestAHardQuotaHoldsJobs(t *testing.T) {
	f := startShared(t, processOptions{}, "projects: {hard_quota: 1}\n", []string{"team/first", "team/second"}, groupRunner("shared", "team"))
	gate := f.newGate()
	first := f.push("team/first", 8, gate.marked(), "")
	f.startAgent("only", 4)
	f.explains("runner", "shared", "Runner shared claims no more: ", " jobs that it has claimed wait already") // three, or four if one was on its way
	f.explains("project", "team/first", "uses 1 of the 1 slots of its quota")
	require.Equal(t, 1, count(f.jobs(first), func(j coordinator.Job) bool { return begun(j) && !j.WaitingForAck }))
	gate.open()
	second := f.push("team/second", 2, "true", "")
	jobs := f.succeed(first)
	f.succeed(second)
	require.Equal(t, 1, gate.atOnce())
	require.Zero(t, count(jobs, func(j coordinator.Job) bool { return j.Attempt > 1 }))
}

// Without two-phase commit a claimed job has to run, so its runner stops to claim until the project may run one more.
func TestAHardQuotaStopsARunnerWithoutTwoPhaseCommit(t *testing.T) {
	f := startShared(t, processOptions{coordinator: coordinator.Options{LegacyCommit: true}}, "projects: {hard_quota: 1}\n",
		[]string{"team/first", "team/second"}, groupRunner("shared", "team"))
	gate := f.newGate()
	first := f.push("team/first", 8, gate.marked(), "")
	f.startAgent("only", 4)
	f.explains("runner", "shared", "Runner shared claims no more: its GitLab has no two-phase commit")
	second := f.push("team/second", 2, "true", "")
	f.explains("project", "team/second", "Runner shared claims no more: its GitLab has no two-phase commit")
	gate.open()
	f.succeed(first)
	f.succeed(second)
	t.Logf("of 8 jobs of a project with a quota of 1 at most %d ran at once", gate.atOnce())
	require.LessOrEqual(t, gate.atOnce(), 2, "one more if a watch brings it")
}

// gate holds jobs back until it is opened.
type gate struct {
	t    testing.TB
	file string
}

func (f *sharedFleet) newGate() gate {
	return gate{t: f.t, file: filepath.Join(f.dir, "open")}
}

// wait is a script that waits for it.
func (g gate) wait() string { return fmt.Sprintf("until test -e %s; do sleep 0.1; done", g.file) }

// marked is the same, and says when the script begins and ends. GitLab's times are not good for that: a slot is free when
// its job has ended, a moment before GitLab has heard of it.
func (g gate) marked() string {
	return fmt.Sprintf("echo begin >> %[1]s; %[2]s; echo end >> %[1]s", g.file+".marks", g.wait())
}

// atOnce is how many of the marked scripts ran at the same time at most.
func (g gate) atOnce() int {
	g.t.Helper()
	marks, err := os.ReadFile(g.file + ".marks")
	require.NoError(g.t, err)
	now, most := 0, 0
	for mark := range strings.FieldsSeq(string(marks)) {
		if mark == "begin" {
			now++
		} else {
			now--
		}
		most = max(most, now)
	}
	return most
}

func (g gate) open() {
	g.t.Helper()
	require.NoError(g.t, os.WriteFile(g.file, nil, 0o600))
}
