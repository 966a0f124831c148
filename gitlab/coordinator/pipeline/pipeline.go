package pipeline

import (
	"container/heap"
	"fmt"
	"slices"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
)

// Job describes one job of a pipeline; a Job never changes.
type Job struct {
	Name  string
	Stage int // position of the stage, from 0
	// DAG: the job declares `needs` and waits for Needs instead of all earlier stages.
	DAG   bool
	Needs []int // positions in the list of jobs; of the same or an earlier stage

	When         ciconfig.When
	StartIn      time.Duration // with Delayed
	AllowFailure bool
	// AllowFailureExitCodes and Retry say what becomes of failures, see Drop.
	AllowFailureExitCodes []int
	Retry                 *ciconfig.Retry

	ResourceGroup bool // see [Guards]
	Prerequisites bool
}

// Change says that a job went from one status to another.
type Change struct {
	Job      int // position in the list of jobs
	From, To Status
}

// Pipeline is the processing state of one pipeline. It is not safe for concurrent use.
//
// Its cost is that of what changes: an event on one job touches the job, the jobs that need it, and one counter per
// stage, however many jobs there are.
type Pipeline struct {
	jobs   []node
	stages []stage
	status Status
}

type node struct {
	Job
	status       Status
	allowFailure bool
	dependents   []int
	rank         int // stage order, in a stage topological order by needs
	scheduledAt  time.Time
	retries      int  // attempts before the present one
	queued       bool // in its stage's ready heap
	waiting      bool // in its stage's waiting list
}

type stage struct {
	status  Status
	counts  [numClasses]int
	present set
	// waiting are created jobs that wait for all earlier stages; ready are created jobs that processing must look at.
	waiting []int
	ready   rankHeap
}

// New makes the pipeline of jobs, all of them created. stages is the number of stages; a stage may be empty. It refuses
// a job of an unknown stage, a need of a later stage and circles of needs.
func New(stages int, jobs []Job) (*Pipeline, error) {
	p := &Pipeline{jobs: make([]node, len(jobs)), stages: make([]stage, stages)}
	for i, j := range jobs {
		if j.Stage < 0 || j.Stage >= stages {
			return nil, fmt.Errorf("job %q is in stage %d of %d", j.Name, j.Stage, stages)
		}
		p.jobs[i] = node{Job: j, allowFailure: j.AllowFailure}
	}
	for i, j := range jobs {
		for _, n := range j.Needs {
			if n < 0 || n >= len(jobs) {
				return nil, fmt.Errorf("job %q needs job %d of %d", j.Name, n, len(jobs))
			}
			if jobs[n].Stage > j.Stage {
				return nil, fmt.Errorf("job %q needs %q, which is in a later stage", j.Name, jobs[n].Name)
			}
			p.jobs[n].dependents = append(p.jobs[n].dependents, i)
		}
	}
	if err := p.order(); err != nil {
		return nil, err
	}
	for i := range p.jobs {
		n := &p.jobs[i]
		p.stages[n.Stage].add(n.class(), 1)
		p.look(i)
	}
	return p, nil
}

// order gives each job its rank.
func (p *Pipeline) order() error {
	byStage := make([][]int, len(p.stages))
	open := make([]int, len(p.jobs)) // needs in the same stage that have no rank yet
	for i := range p.jobs {
		n := &p.jobs[i]
		byStage[n.Stage] = append(byStage[n.Stage], i)
		for _, need := range n.Needs {
			if p.jobs[need].Stage == n.Stage {
				open[i]++
			}
		}
	}
	rank := 0
	for _, members := range byStage {
		var free []int
		for _, i := range members {
			if open[i] == 0 {
				free = append(free, i)
			}
		}
		done := 0
		for ; done < len(free); done++ {
			i := free[done]
			p.jobs[i].rank = rank
			rank++
			for _, d := range p.jobs[i].dependents {
				if p.jobs[d].Stage != p.jobs[i].Stage {
					continue
				}
				if open[d]--; open[d] == 0 {
					free = append(free, d)
				}
			}
		}
		if done != len(members) {
			at := slices.IndexFunc(members, func(i int) bool { return open[i] > 0 })
			return fmt.Errorf("the needs of job %q go in a circle", p.jobs[members[at]].Name)
		}
	}
	return nil
}

// Status is the pipeline's status as of the last Process.
func (p *Pipeline) Status() Status { return p.status }

// StageStatus is the status of a stage as of the last Process.
func (p *Pipeline) StageStatus(stage int) Status { return p.stages[stage].status }

// JobStatus is the status of a job.
func (p *Pipeline) JobStatus(job int) Status { return p.jobs[job].status }

// AllowFailure says whether the job may fail; see SetAllowFailure.
func (p *Pipeline) AllowFailure(job int) bool { return p.jobs[job].allowFailure }

// ScheduledAt is when a job of status scheduled is due.
func (p *Pipeline) ScheduledAt(job int) time.Time { return p.jobs[job].scheduledAt }

// SetAllowFailure changes whether the current attempt of a job may fail: an exit code of `allow_failure:exit_codes`
// decides it when the job has ended.
func (p *Pipeline) SetAllowFailure(job int, allow bool) {
	n := &p.jobs[job]
	p.stages[n.Stage].add(n.class(), -1)
	n.allowFailure = allow
	p.stages[n.Stage].add(n.class(), 1)
	p.wake(job)
}

// Fire sends an event to a job. The pipeline's other jobs and its status follow with the next Process.
func (p *Pipeline) Fire(job int, e Event, g Guards) (Change, error) {
	n := &p.jobs[job]
	g.ResourceGroup, g.Prerequisites = n.ResourceGroup, n.Prerequisites
	to, ok := Next(n.status, e, g)
	if !ok {
		return Change{}, fmt.Errorf("job %q: event %s is not possible in status %s", n.Name, e, n.status)
	}
	return p.set(job, to), nil
}

// Renew starts a new attempt of a job: its status is created again, whatever it was, and the attempt before it counts
// no more.
func (p *Pipeline) Renew(job int) Change {
	p.jobs[job].retries++
	p.SetAllowFailure(job, p.jobs[job].AllowFailure)
	return p.set(job, Created)
}

// ResetSkipped puts the skipped jobs that come after one of the given jobs back to created: those that need it,
// directly or not, and all of later stages than the earliest of them (Ci::ResetSkippedJobsService).
func (p *Pipeline) ResetSkipped(jobs ...int) []Change {
	if len(jobs) == 0 {
		return nil
	}
	after := make([]bool, len(p.jobs))
	first := p.jobs[jobs[0]].Stage
	todo := slices.Clone(jobs)
	for _, j := range jobs {
		first = min(first, p.jobs[j].Stage)
	}
	for len(todo) > 0 {
		j := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, d := range p.jobs[j].dependents {
			if !after[d] {
				after[d] = true
				todo = append(todo, d)
			}
		}
	}
	var changes []Change
	for i := range p.jobs {
		if p.jobs[i].status == Skipped && (after[i] || p.jobs[i].Stage > first) {
			changes = append(changes, p.set(i, Created))
		}
	}
	return changes
}

// Process decides about every created job whose turn it may be and brings the statuses of stages and pipeline up to
// date. What it returns is in the order in which it happened. A second call without an event between changes nothing.
//
// GitLab repeats its pass while a job changed; here one pass in order of stage and needs is enough, because a decision
// depends only on jobs that come earlier in that order.
func (p *Pipeline) Process(now time.Time) []Change {
	var changes []Change
	var before set // all jobs of the stages before
	for s := range p.stages {
		st := &p.stages[s]
		prior := composite(before, false)
		if len(st.waiting) > 0 && prior.Completed() {
			for _, j := range st.waiting {
				p.jobs[j].waiting = false
				p.ready(j)
			}
			st.waiting = st.waiting[:0]
		}
		for len(st.ready.jobs) > 0 {
			j := heap.Pop(&st.ready).(int)
			n := &p.jobs[j]
			n.queued = false
			if n.status != Created {
				continue
			}
			prev := prior
			if n.DAG {
				prev = p.needsStatus(n)
			}
			if !prev.Completed() {
				continue // looked at again when a need changes
			}
			changes = append(changes, p.decide(j, prev, now))
		}
		st.settle()
		before |= st.present
	}
	p.settle(composite(before, false))
	return changes
}

func (p *Pipeline) needsStatus(n *node) Status {
	var s set
	for _, need := range n.Needs {
		s |= 1 << p.jobs[need].class()
	}
	return composite(s, true)
}

// decide is Ci::ProcessBuildService for one created job.
func (p *Pipeline) decide(job int, prev Status, now time.Time) Change {
	n := &p.jobs[job]
	if !valid(n.When, n.DAG).has(prev) {
		return p.set(job, Skipped)
	}
	switch {
	case n.When == ciconfig.Delayed && n.StartIn > 0:
		n.scheduledAt = now.Add(n.StartIn)
		return p.set(job, Scheduled)
	case n.When == ciconfig.Manual || n.When == ciconfig.Delayed:
		return p.set(job, Manual)
	}
	to, _ := Next(Created, EventEnqueue, Guards{ResourceGroup: n.ResourceGroup, Prerequisites: n.Prerequisites})
	return p.set(job, to)
}

// valid are the statuses of what comes before, with which a job is not skipped.
func valid(when ciconfig.When, dag bool) set {
	switch when {
	case ciconfig.OnFailure:
		return setOf(Failed)
	case ciconfig.Always:
		return setOf(Success, Failed, Skipped)
	default:
		if dag {
			return setOf(Success)
		}
		return setOf(Success, Skipped)
	}
}

// set changes a job's status and notes who must look at it.
func (p *Pipeline) set(job int, to Status) Change {
	n := &p.jobs[job]
	c := Change{Job: job, From: n.status, To: to}
	p.stages[n.Stage].add(n.class(), -1)
	n.status = to
	p.stages[n.Stage].add(n.class(), 1)
	if to == Created {
		p.look(job)
	}
	p.wake(job)
	return c
}

// wake lets the next Process look at the jobs that need this one. Those that wait for stages need no note: Process
// compares every stage with the stages before it.
func (p *Pipeline) wake(job int) {
	for _, d := range p.jobs[job].dependents {
		if p.jobs[d].status == Created && p.jobs[d].DAG {
			p.ready(d)
		}
	}
}

// look lets the next Process look at a created job.
func (p *Pipeline) look(job int) {
	n := &p.jobs[job]
	switch {
	case n.DAG:
		p.ready(job)
	case !n.waiting:
		n.waiting = true
		p.stages[n.Stage].waiting = append(p.stages[n.Stage].waiting, job)
	}
}

func (p *Pipeline) ready(job int) {
	n := &p.jobs[job]
	if n.queued {
		return
	}
	n.queued = true
	h := &p.stages[n.Stage].ready
	h.of = p.jobs
	heap.Push(h, job)
}

// settle is Ci::Pipeline#set_status.
func (p *Pipeline) settle(to Status) {
	switch to {
	case Created:
	case Pending:
		switch p.status {
		case Created, Manual, WaitingForResource, Preparing, Skipped, Scheduled, WaitingForCallback:
			p.status = Pending
		case Success, Failed, Canceling, Canceled:
			p.status = Running
		}
	default:
		p.status = to
	}
}

// settle is Ci::Stage#set_status.
func (s *stage) settle() {
	if to := composite(s.present, false); to != Created && s.present != 0 {
		s.status = to
	}
}

func (s *stage) add(class Status, n int) {
	s.counts[class] += n
	if s.counts[class] > 0 {
		s.present |= 1 << class
	} else {
		s.present &^= 1 << class
	}
}

func (n *node) class() Status { return Outcome{n.status, n.allowFailure}.class() }

// rankHeap is a heap of jobs with the lowest rank on top.
type rankHeap struct {
	jobs []int
	of   []node
}

func (h *rankHeap) Len() int           { return len(h.jobs) }
func (h *rankHeap) Less(a, b int) bool { return h.of[h.jobs[a]].rank < h.of[h.jobs[b]].rank }
func (h *rankHeap) Swap(a, b int)      { h.jobs[a], h.jobs[b] = h.jobs[b], h.jobs[a] }
func (h *rankHeap) Push(x any)         { h.jobs = append(h.jobs, x.(int)) }
func (h *rankHeap) Pop() any {
	last := h.jobs[len(h.jobs)-1]
	h.jobs = h.jobs[:len(h.jobs)-1]
	return last
}
