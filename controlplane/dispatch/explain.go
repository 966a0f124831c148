package dispatch

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/allocation"
	"github.com/switchyard-ci/switchyard/controlplane/usage"
)

// Explanation says why something waits, or what becomes of it.
type Explanation struct {
	allocation.Explanation
	// Notes are what else there is to know, a sentence each, the most important first.
	Notes []string
}

// Errors of Explain.
var (
	ErrUnknownJob = errors.New("no such job is here: it has not been claimed yet, or has been reported")
	ErrAmbiguous  = errors.New("several GitLabs have a job with this number: name it by its number in the fleet (switchyard jobs list)")
)

// ExplainJob says why a job waits. id is its number in the fleet or at its GitLab.
func (d *Dispatcher) ExplainJob(id int64) (Explanation, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	j := d.jobs[id]
	if j == nil {
		for _, other := range d.jobs {
			switch {
			case other.row.GitLabJobID != id:
			case j != nil:
				return Explanation{}, fmt.Errorf("explain job %d: %w", id, ErrAmbiguous)
			default:
				j = other
			}
		}
	}
	if j == nil {
		return Explanation{}, fmt.Errorf("explain job %d: %w", id, ErrUnknownJob)
	}
	return d.explainJobLocked(j), nil
}

func (d *Dispatcher) explainJobLocked(j *job) Explanation {
	e := Explanation{Notes: j.progressLocked()}
	if j.standing == absent {
		e.Verdict, e.Sentence = allocation.Running, fmt.Sprintf("Job %d of %s has ended.", j.row.GitLabJobID, j.row.Envelope.ProjectPath)
		if j.life.phase < finished {
			e.Sentence = fmt.Sprintf("Job %d of %s is of runner %s, which is no longer configured.", j.row.GitLabJobID, j.row.Envelope.ProjectPath, j.runner.Name)
		}
		return e
	}
	p := j.runner.pool
	var err error
	if e.Explanation, err = d.shares.ExplainJob(time.Now(), j.key(), p.capacityLocked(d)); err != nil {
		d.mustShare(err)
	}
	if j.standing != running {
		e.Notes = append(e.Notes, d.roomForLocked(j)...)
	}
	e.Notes = append(e.Notes, d.judgementLocked(j)...)
	return e
}

// progressLocked is what the job itself is at.
func (j *job) progressLocked() []string {
	on := j.life.agent
	if j.holder != nil {
		on = j.holder.name
	}
	switch j.life.phase {
	case confirming:
		if j.life.hopeless != "" {
			return []string{"It will be failed: " + j.life.hopeless + "."}
		}
		return []string{"GitLab is being asked whether the job is still to be run."}
	case offered:
		return []string{fmt.Sprintf("It is offered to agent %s.", on)}
	case accepted:
		return []string{fmt.Sprintf("Agent %s has accepted it; GitLab is being told that it runs.", on)}
	case started:
		if !j.life.online {
			return []string{fmt.Sprintf("It was started on agent %s, which is away.", on)}
		}
		return []string{fmt.Sprintf("It runs on agent %s.", on)}
	case finished:
		return []string{"Its result is on the way to GitLab."}
	}
	if n := j.life.refusals; n > 0 {
		return []string{fmt.Sprintf("Agents have refused it %d times.", n)}
	}
	return nil
}

// roomForLocked is what placement says of a job.
func (d *Dispatcher) roomForLocked(j *job) []string {
	p := j.runner.pool
	if p.agents.Len() == 0 {
		return []string{p.emptySentence()}
	}
	c := p.agents.Census(d.wantedLocked(j, d.policy.Place(j.runner.Name)))
	var notes []string
	if c.Fit == 0 && c.Forbidden > 0 {
		notes = append(notes, fmt.Sprintf("%s a free slot, but for jobs of protected branches and tags only; %s is not protected.", haveAgents(c.Forbidden), j.row.Envelope.Ref))
	}
	if c.Fit == 0 && c.Avoided > 0 {
		notes = append(notes, haveAgents(c.Avoided)+" a free slot, but the job was refused there.")
	}
	switch {
	case c.Full < c.Agents:
	case c.Agents == 1:
		notes = append(notes, "The only agent that could run it is full or draining.")
	default:
		notes = append(notes, fmt.Sprintf("All %d agents that could run it are full or draining.", c.Agents))
	}
	return notes
}

func haveAgents(n int) string {
	if n == 1 {
		return "1 agent has"
	}
	return fmt.Sprintf("%d agents have", n)
}

func (p *pool) emptySentence() string {
	if s := p.selector.String(); s != "" {
		return fmt.Sprintf("There is no capacity: no agent is connected that has the executor %s and the labels %s.", p.executor, s)
	}
	return fmt.Sprintf("There is no capacity: no agent is connected that has the executor %s.", p.executor)
}

// judgementLocked is what the policy makes of a job.
func (d *Dispatcher) judgementLocked(j *job) []string {
	if j.rank.Rule == "" {
		return nil
	}
	note := fmt.Sprintf("By the rule %q it has priority %d", j.rank.Rule, j.rank.Priority)
	if _, granted := d.policy.Class(j.rank.Class, j.row.GitLabURL, j.row.Envelope.ProjectPath); !granted {
		return []string{note + fmt.Sprintf("; the class %s, which the rule names too, is not granted to the project.", j.rank.Class)}
	}
	return []string{note + fmt.Sprintf(" and the class %s.", j.rank.Class)}
}

// ExplainRunner says why a runner does not claim.
func (d *Dispatcher) ExplainRunner(name string) (Explanation, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.runners[name]
	if r == nil {
		return Explanation{}, fmt.Errorf("explain runner %q: %w: switchyard runners list has their names", name, ErrUnknownRunner)
	}
	var e Explanation
	var err error
	if e.Explanation, err = d.shares.ExplainRunner(time.Now(), name, r.pool.capacityLocked(d)); err != nil {
		d.mustShare(err)
	}
	if err := d.Full(); err != nil {
		e.Notes = append(e.Notes, "Nothing is claimed at all: "+err.Error()+".")
	}
	if r.pool.agents.Len() == 0 {
		e.Notes = append(e.Notes, r.pool.emptySentence())
	}
	if why := d.stoppedLocked(r); why != "" {
		e.Verdict, e.Sentence = allocation.Blocked, fmt.Sprintf("Runner %s claims no more: %s.", name, why)
		e.Reasons = []allocation.Reason{{Cause: allocation.Held, Node: name, Kind: "runner", Detail: why}}
	}
	switch n := r.waiting.len(); n {
	case 0:
	case 1:
		e.Notes = append(e.Notes, "1 job that it has claimed waits for a slot.")
	default:
		e.Notes = append(e.Notes, fmt.Sprintf("%d jobs that it has claimed wait for a slot.", n))
	}
	if r.twoPhase.state != "" {
		e.Notes = append(e.Notes, "Two-phase commit of its GitLab is "+r.twoPhase.state+".")
	}
	return e, nil
}

// ExplainProject says why jobs of a project wait. gitlab may be empty if the runners have one GitLab only.
func (d *Dispatcher) ExplainProject(gitlab, path string) (Explanation, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.gitlabs()
	gitlab = strings.TrimRight(gitlab, "/")
	switch {
	case gitlab == "" && len(known) == 1:
		gitlab = known[0]
	case gitlab == "":
		slices.Sort(known)
		return Explanation{}, fmt.Errorf("explain project %q: say of which GitLab: %s", path, strings.Join(known, ", "))
	case !slices.Contains(known, gitlab):
		return Explanation{}, fmt.Errorf("explain project %q: no runner is of the GitLab %s", path, gitlab)
	}
	var e Explanation
	e.Explanation = d.shares.ExplainProject(time.Now(), gitlab, strings.ToLower(strings.Trim(path, "/")), func(name string) allocation.Capacity {
		for _, p := range d.pools {
			if p.name == name {
				return p.capacityLocked(d)
			}
		}
		return allocation.Capacity{}
	})
	if e.Verdict == allocation.Idle && !d.heardOfLocked(gitlab, path) {
		e.Notes = append(e.Notes, "No job of it has been here in the last 24 hours: is that its path?")
	}
	for _, r := range d.askersLocked(gitlab, path) {
		switch why := d.stoppedLocked(r); {
		case len(e.Notes) >= maxAskers:
			e.Notes = append(e.Notes, "More runners could bring jobs of it: see switchyard runners list.")
			return e, nil
		case why != "":
			e.Notes = append(e.Notes, fmt.Sprintf("Runner %s claims no more: %s.", r.Name, why))
		case e.Verdict != allocation.Idle:
		case r.pool.agents.Len() == 0:
			e.Notes = append(e.Notes, fmt.Sprintf("Runner %s claims nothing. %s", r.Name, r.pool.emptySentence()))
		case len(r.waiters) > 0:
			own, err := d.shares.ExplainRunner(time.Now(), r.Name, r.pool.capacityLocked(d))
			if err != nil {
				d.mustShare(err)
			}
			if own.Verdict == allocation.Blocked {
				e.Notes = append(e.Notes, own.Sentence)
				continue
			}
			e.Notes = append(e.Notes, fmt.Sprintf("Runner %s waits for a slot before it asks GitLab for its next job. Which one that is GitLab decides, "+
				"as a rule the oldest; so jobs of others may stand before it (claim_ahead in the policy brings more of them into sight).", r.Name))
		}
	}
	return e, nil
}

// heardOfLocked says whether jobs of a project have had slots lately. It costs O(projects).
func (d *Dispatcher) heardOfLocked(gitlab, path string) bool {
	return slices.ContainsFunc(d.book.Report(time.Now()), func(r usage.Row) bool {
		return r.GitLab == gitlab && strings.EqualFold(r.Path, strings.Trim(path, "/"))
	})
}

// maxAskers is of how many runners an explanation of a project tells.
const maxAskers = 5

// askersLocked are the runners that may bring jobs of a project, by name: those of its GitLab, unless the policy says that
// they are bound to something else.
func (d *Dispatcher) askersLocked(gitlab, path string) []*runner {
	path = strings.ToLower(strings.Trim(path, "/")) + "/"
	var askers []*runner
	for _, r := range d.runners {
		if r.URL != gitlab {
			continue
		}
		if rules := d.policy.Runner(r.Name); rules.Project == "" && rules.Group == "" ||
			rules.Project != "" && path == rules.Project+"/" || rules.Group != "" && strings.HasPrefix(path, rules.Group+"/") {
			askers = append(askers, r)
		}
	}
	slices.SortFunc(askers, func(a, b *runner) int { return strings.Compare(a.Name, b.Name) })
	return askers
}

// capacityLocked is what the pool's agents have. It costs O(agents).
func (p *pool) capacityLocked(d *Dispatcher) allocation.Capacity {
	c := allocation.Capacity{Total: p.slots}
	others := make(map[string]bool)
	for _, a := range d.agents {
		if !slices.Contains(a.pools, p) {
			continue
		}
		if c.Free += max(a.free(), 0); !a.takesJobs() {
			c.Draining += max(a.slots-len(a.leases), 0)
		}
		for _, name := range a.poolNames {
			if name != p.name && !others[name] {
				others[name] = true
				c.Pools = append(c.Pools, name)
			}
		}
	}
	slices.Sort(c.Pools)
	return c
}

// UsageRow is what a project uses and may use.
type UsageRow struct {
	usage.Row
	Waiting int // jobs that are claimed and have no slot
	// Weight and the quotas are the project's own; a quota of 0: none. Share is its part of the fleet among those that run or wait.
	Weight, Share   float64
	Min, Soft, Hard int
	Paused          bool
}

// Usage returns a row for each project that uses the fleet, or has in the last 24 h, the one that used most in front.
func (d *Dispatcher) Usage() []UsageRow {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	nodes := make(map[string]allocation.NodeStatus)
	for _, n := range d.shares.Status(now) {
		if n.Kind == "project" {
			nodes[n.Name] = n
		}
	}
	rest := d.policy.Projects // of the projects that there is nothing else to say about
	var rows []UsageRow
	seen := make(map[string]bool)
	for _, r := range d.book.Report(now) {
		name := allocation.NodeName(r.GitLab, strings.ToLower(r.Path))
		seen[name] = true
		n, ok := nodes[name]
		if !ok {
			n = allocation.NodeStatus{Weight: float64(max(rest.Weight, 1)), Min: max(rest.Guaranteed, 0), Soft: max(rest.Soft, 0), Hard: max(rest.Hard, 0), Paused: rest.Paused}
		}
		rows = append(rows, UsageRow{
			Row: r, Waiting: n.Waiting, Weight: n.Weight, Share: n.Share, Min: n.Min, Soft: n.Soft, Hard: n.Hard, Paused: n.Paused,
		})
	}
	for _, j := range d.jobs { // projects that have got no slot yet
		name := allocation.NodeName(j.row.GitLabURL, strings.ToLower(j.row.Envelope.ProjectPath))
		if n, ok := nodes[name]; ok && !seen[name] && n.Waiting > 0 {
			seen[name] = true
			rows = append(rows, UsageRow{
				Row:     usage.Row{Project: usage.Project{GitLab: j.row.GitLabURL, ID: j.row.Envelope.ProjectID}, Path: j.row.Envelope.ProjectPath},
				Waiting: n.Waiting, Weight: n.Weight, Share: n.Share, Min: n.Min, Soft: n.Soft, Hard: n.Hard, Paused: n.Paused,
			})
		}
	}
	return rows
}

// UsageSnapshot returns what was used in a form for Config.Usage.
func (d *Dispatcher) UsageSnapshot() ([]byte, error) {
	d.mu.Lock()
	s := d.book.Snapshot(time.Now())
	d.mu.Unlock()
	return s.Encode() // takes its time where there are many projects
}
