package dispatch

import (
	"fmt"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/allocation"
	"github.com/switchyard-ci/switchyard/controlplane/placement"
	"github.com/switchyard-ci/switchyard/controlplane/policy"
	"github.com/switchyard-ci/switchyard/controlplane/usage"
)

// aheadProjects is for how many projects a runner looks ahead as far as its policy allows: with more of them it stops
// earlier.
const aheadProjects = 10

// standing is what allocation was told of a job.
type standing int

const (
	absent  standing = iota
	held             // it waits, and something keeps it from being served
	queued           // it waits for a slot
	running          // it has one
)

// key is how allocation and GitLab know the job.
func (j *job) key() allocation.JobKey {
	return allocation.JobKey{GitLab: j.row.GitLabURL, ID: j.row.GitLabJobID}
}

// project is the job's, as allocation knows it. GitLab's paths do not differ in case alone.
func (j *job) project() allocation.Project {
	e := &j.row.Envelope
	return allocation.Project{ID: e.ProjectID, Path: strings.ToLower(e.ProjectPath)}
}

func (j *job) home() placement.Project {
	return placement.Project{GitLab: j.row.GitLabURL, ID: j.row.Envelope.ProjectID}
}

func (d *Dispatcher) rankLocked(j *job) { d.rank(d.policy, j) }

// rank lets a policy's rules judge the job, which nobody else sees yet unless the lock is held.
func (d *Dispatcher) rank(p *policy.Policy, j *job) {
	e := &j.row.Envelope
	facts := policy.Facts{
		GitLab: j.row.GitLabURL, Project: e.ProjectPath, Ref: e.Ref, Protected: e.Protected, Stage: e.Stage, Job: e.JobName,
		Environment: e.Environment, Source: e.Source, User: e.User, Runner: j.runner.Name,
	}
	if e.Tag {
		facts.Tag = e.Ref
	}
	var err error
	if j.rank, err = p.Rank(facts); err != nil {
		d.log.Warn("rules of the policy could not be asked about a job", "job", j.row.ID, "gitlab_job", j.row.GitLabJobID, "error", err)
	}
	j.class, _ = p.Class(j.rank.Class, j.row.GitLabURL, e.ProjectPath)
}

// shared is the job as allocation sees it.
func (j *job) shared() allocation.Job {
	return allocation.Job{
		GitLab: j.row.GitLabURL, ID: j.row.GitLabJobID, Project: j.project(), Runner: j.runner.Name, Name: j.row.Envelope.JobName,
		Class: j.class, Priority: j.rank.Priority, Since: j.row.ClaimedAt,
		// Without two-phase commit the job runs already, as GitLab sees it: no quota may hold it back. While nobody knows
		// which, it may: GitLab is asked as soon as a job waits.
		Committed: j.life.confirmed || j.runner.twoPhase.state == TwoPhaseOff,
	}
}

// standingLocked is what allocation should know of the job.
func (j *job) standingLocked() (standing, string) {
	switch {
	case j.runner.pool == nil || j.life.phase >= finished:
		return absent, ""
	case j.lease != nil:
		return running, ""
	case j.parked != "":
		return held, j.parked
	case j.life.asked:
		return queued, ""
	case j.life.phase == confirming:
		return held, "GitLab is being asked whether the job is still to be run"
	}
	return held, "agents have refused it; the next attempt follows in a moment"
}

// accountLocked tells allocation what has become of a job. It is called whenever that may have changed.
func (d *Dispatcher) accountLocked(j *job) {
	want, why := j.standingLocked()
	if j.standing == held || j.standing == queued {
		d.tellLocked(j)
	}
	if want == j.standing {
		return
	}
	now, key, was := time.Now(), j.key(), j.standing
	j.standing = want
	if want == held || want == queued {
		j.runner.waiting.add(j)
	} else {
		j.runner.waiting.remove(j)
	}
	switch {
	case was == running && want == absent:
		d.mustShare(d.shares.Finish(now, key))
		d.book.Finish(now, usage.Job(key))
		return
	case was == running:
		d.mustShare(d.shares.Return(now, key))
		d.book.Finish(now, usage.Job(key))
	case was == absent:
		d.tellLocked(j)
	case was == held:
		d.mustShare(d.shares.Release(now, key))
	}
	switch want { // from here on it waits and is not held
	case absent:
		d.mustShare(d.shares.Withdraw(now, key))
	case running:
		d.mustShare(d.shares.Start(now, key))
		d.book.Start(now, usage.Job(key), usage.Project(j.home()), j.row.Envelope.ProjectPath, j.row.Envelope.Queued+now.Sub(j.row.ClaimedAt))
		d.stallLocked(j)
	case held:
		d.mustShare(d.shares.Hold(now, key, why))
	}
}

// tellLocked tells allocation about a job that waits, if there is news.
func (d *Dispatcher) tellLocked(j *job) {
	if now := j.shared(); now != j.told {
		j.told = now
		d.mustShare(d.shares.Arrive(time.Now(), now))
	}
}

// seatLocked gives a job that was just claimed a slot: that of the claim or, if an agent suits it better, one of that
// agent's. If others come first the claim's slot is theirs and the job has none. l, which is nobody's, may be nil.
func (d *Dispatcher) seatLocked(j *job, l *lease) {
	if l == nil {
		return
	}
	d.tellLocked(j)
	first := j.told.Committed
	if !first {
		next, ok := d.shares.Next(time.Now(), l.agent.poolNames...)
		first = ok && !next.Claim && next.Job == j.key()
		if ok && next.Claim && next.Runner == j.runner.Name {
			// By the shares another claim of the same runner goes before it, but that would only bring one more job.
			_, blocked := d.shares.Blocked(time.Now(), j.row.GitLabURL, j.project())
			first = !blocked
		}
	}
	l.giveBackLocked()
	if first {
		if choice, ok := j.runner.pool.agents.Best(d.wantedLocked(j, d.policy.Place(j.runner.Name))); ok {
			j.lease = j.runner.takeSlotLocked(d.agents[choice.Agent])
			d.warmth.Built(j.home(), choice.Agent)
			j.standing = queued
			d.accountLocked(j)
		}
	}
	if j.lease == nil {
		j.told = allocation.Job{}
		d.mustShare(d.shares.Withdraw(time.Now(), j.key()))
		d.roomLocked(l.agent)
	} else if j.lease.agent != l.agent {
		d.roomLocked(l.agent)
	}
	d.forgetLocked(l.agent)
}

// unseatLocked takes a job's slot, which is nobody's then; nil if it has none.
func (d *Dispatcher) unseatLocked(j *job) *lease {
	l := j.lease
	if l == nil {
		return nil
	}
	j.lease, j.standing, j.told = nil, absent, allocation.Job{}
	d.book.Finish(time.Now(), usage.Job(j.key()))
	d.mustShare(d.shares.Return(time.Now(), j.key()))
	d.mustShare(d.shares.Withdraw(time.Now(), j.key()))
	return l
}

// restoreShares begins with the accounts of the last run.
func (d *Dispatcher) restoreShares() error {
	now := time.Now()
	if len(d.cfg.Shares) > 0 {
		if err := d.shares.Restore(now, d.cfg.Shares); err != nil {
			return fmt.Errorf("take up the accounts of fair usage: %w", err)
		}
	}
	for _, r := range d.runners {
		d.shares.SetRunner(now, d.allocationRunner(r))
	}
	if len(d.cfg.Usage) == 0 {
		return nil
	}
	book, err := usage.Restore(now, d.cfg.Usage)
	if err != nil { // figures for people: no reason not to start
		d.log.Warn("what projects have used before is not known", "error", err)
	}
	d.book = book
	return nil
}

// resumeLocked accounts for a job that has had its slot since before the start.
func (d *Dispatcher) resumeLocked(j *job) {
	if j.runner.pool == nil {
		return
	}
	j.standing, j.told = running, j.shared()
	d.mustShare(d.shares.Resume(time.Now(), j.told, j.row.StartedAt))
	d.book.Resume(time.Now(), usage.Job(j.key()), usage.Project(j.home()), j.row.Envelope.ProjectPath)
	d.warmth.Built(j.home(), j.lease.agent.id)
}

// mustShare is for calls that cannot fail unless this package is wrong.
func (d *Dispatcher) mustShare(err error) {
	if err != nil {
		d.log.Error("the accounts of fair usage do not fit what is so", "error", err)
	}
}

// stallLocked stops the claims of a runner whose GitLab has no two-phase commit when a job of it runs that allocation would
// have kept waiting: GitLab would give it more of the same.
func (d *Dispatcher) stallLocked(j *job) {
	r := j.runner
	if r.twoPhase.state == TwoPhaseOn {
		return
	}
	if _, blocked := d.shares.Blocked(time.Now(), j.row.GitLabURL, j.project()); blocked {
		r.stalls[j.project()] = struct{}{}
		r.careful = true
		d.stalled[r] = struct{}{}
	}
}

// unstallLocked lets runners claim again whose reason to stop has gone.
func (d *Dispatcher) unstallLocked() {
	for r := range d.stalled {
		for p := range r.stalls {
			if _, blocked := d.shares.Blocked(time.Now(), r.URL, p); !blocked {
				delete(r.stalls, p)
			}
		}
		if len(r.stalls) == 0 {
			delete(d.stalled, r)
			d.serveRunnerLocked(r)
		}
	}
}

// learnedLocked is called when it has turned out whether a runner's GitLab has two-phase commit.
func (d *Dispatcher) learnedLocked(r *runner) {
	if r.pool == nil {
		return
	}
	if r.twoPhase.state == TwoPhaseOn { // jobs can be held, so there is no need to stop
		clear(r.stalls)
		r.careful = false
		delete(d.stalled, r)
	}
	for j := range r.waiting.all() {
		d.tellLocked(j)
	}
	d.serveRunnerLocked(r)
}

// stoppedLocked says why the runner may not claim although it would be its turn, or "".
func (d *Dispatcher) stoppedLocked(r *runner) string {
	rules := d.policy.Runner(r.Name)
	if n := r.waiting.len(); n >= max(rules.Hold, aheadProjects*rules.Ahead) {
		return fmt.Sprintf("%d jobs that it has claimed wait already", n)
	}
	for p := range r.stalls {
		if b, blocked := d.shares.Blocked(time.Now(), r.URL, p); blocked {
			return "its GitLab has no two-phase commit, so what it claims has to run at once, and " + p.Path + " may run no more: " + blockSentence(b)
		}
	}
	return ""
}

func blockSentence(b allocation.Block) string {
	if b.Paused {
		return b.Node + " is paused"
	}
	return fmt.Sprintf("%s has %d of %d slots", b.Node, b.Running, b.Limit)
}

// wantLocked tells allocation how many claims a runner would begin.
func (d *Dispatcher) wantLocked(r *runner) {
	if r.pool == nil {
		return
	}
	n := len(r.waiters)
	if n > 0 && (r.careful && len(r.claims) > 0 || d.stoppedLocked(r) != "") {
		n = 0
	}
	if n != r.wants {
		r.wants = n
		d.mustShare(d.shares.Want(time.Now(), r.Name, n))
	}
}

// allocationRunner is a runner as allocation knows it.
func (d *Dispatcher) allocationRunner(r *runner) allocation.Runner {
	rules := d.policy.Runner(r.Name)
	a := allocation.Runner{Name: r.Name, GitLab: r.URL, Pool: r.pool.name, Limit: r.Limit, Scope: r.Scope}
	switch {
	case rules.Group != "":
		a.Scope, a.Path = allocation.GroupRunner, rules.Group
	case rules.Project != "":
		a.Scope, a.Path = allocation.ProjectRunner, rules.Project
	}
	return a
}

// SetPolicy puts another policy in force. Jobs that wait are judged anew; what runs goes on.
func (d *Dispatcher) SetPolicy(p *policy.Policy) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	now := time.Now()
	d.policy = p
	d.shares.SetPolicy(now, p.Allocation(d.gitlabs()))
	for _, r := range d.runners {
		r.careful = len(r.stalls) > 0
		d.shares.SetRunner(now, d.allocationRunner(r))
	}
	for _, j := range d.jobs {
		if j.standing != absent && j.standing != running {
			d.rankLocked(j)
			d.tellLocked(j)
		}
	}
	d.unstallLocked()
	for _, p := range d.pools {
		p.unparkLocked(d)
	}
	for _, r := range d.runners {
		d.serveRunnerLocked(r)
	}
}

// gitlabs are the addresses of the runners' GitLabs.
func (d *Dispatcher) gitlabs() []string {
	seen := make(map[string]bool)
	var all []string
	for _, r := range d.runners {
		if !seen[r.URL] {
			seen[r.URL] = true
			all = append(all, r.URL)
		}
	}
	return all
}

// Shares returns the accounts of fair usage for the next start; see Config.Shares.
func (d *Dispatcher) Shares() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shares.Snapshot(time.Now())
}
