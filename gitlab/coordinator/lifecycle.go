package coordinator

import (
	"slices"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator/pipeline"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/queue"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/trace"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Reasons that GitLab itself gives for a failure, besides those that a runner reports.
const (
	reasonScheduler           runnerapi.FailureReason = "scheduler_failure"
	reasonProvisioningTimeout runnerapi.FailureReason = "runner_provisioning_timeout"
	reasonStuckOrTimeout      runnerapi.FailureReason = "stuck_or_timeout_failure"
	reasonTraceSize           runnerapi.FailureReason = "trace_size_exceeded"
	reasonRunnerUnsupported   runnerapi.FailureReason = "runner_unsupported"
	reasonMissingDependency   runnerapi.FailureReason = "missing_dependency_failure"
	reasonUnknown             runnerapi.FailureReason = "unknown_failure"
)

// advance processes a pipeline after something has happened to it. mu is held.
func (c *Coordinator) advance(p *pipelineRun, now time.Time) {
	c.apply(p, p.graph.Process(now), now)
	status := p.graph.Status()
	if status == p.status {
		return
	}
	p.status = status
	if status == pipeline.Running && p.startedAt.IsZero() {
		p.startedAt = now
	}
	p.setAlive(!status.Completed())
	if status.Completed() {
		p.finishedAt = now
	} else {
		p.finishedAt = time.Time{}
	}
	if status == pipeline.Success {
		c.unlockOlder(p, now)
	}
	close(p.changed)
	p.changed = make(chan struct{})
	c.publish(Event{Kind: PipelineChanged, ProjectID: p.project.id, PipelineID: p.id})
}

// apply lets changes of the graph take effect on jobs, queue and runners. mu is held.
func (c *Coordinator) apply(p *pipelineRun, changes []pipeline.Change, now time.Time) {
	for _, ch := range changes {
		j := p.current[ch.Job]
		if ch.To == pipeline.Created && ch.From.Completed() && ch.From != pipeline.Skipped {
			c.newAttempt(j, now)
			continue
		}
		c.enter(j, ch.From, ch.To, now)
	}
}

// newAttempt puts a new job in the place of one that has ended (Ci::RetryJobService). mu is held.
func (c *Coordinator) newAttempt(old *job, now time.Time) {
	old.retried = true
	j := &job{
		id: c.id("job"), pipe: old.pipe, index: old.index, def: old.def, attempt: old.attempt + 1,
		allowFailure: old.def.AllowFailure, createdAt: now, updatedAt: now, extra: old.extra,
	}
	j.trace = trace.New(c.tracePath(j.id), c.opts.TraceMemory)
	c.jobs[j.id] = j
	old.pipe.current[old.index] = j
	old.pipe.jobs = append(old.pipe.jobs, j)
	c.publishJob(old)
	c.publishJob(j)
}

// enter lets a job leave one status and enter another. mu is held.
func (c *Coordinator) enter(j *job, from, to pipeline.Status, now time.Time) {
	j.status, j.updatedAt = to, now
	onRunner := from == pipeline.Running || from == pipeline.Canceling
	if from == pipeline.Pending {
		c.queue.Remove(j.id)
		j.ackUntil = time.Time{}
	}
	if onRunner && !j.processing() {
		c.countRunning(j, -1)
	}
	j.scheduledAt = time.Time{}
	switch to {
	case pipeline.Pending:
		j.queuedAt = now
		j.token = token("glcbt-")
		c.enqueue(j, now)
	case pipeline.Running:
		j.startedAt = now
		c.countRunning(j, 1)
		c.watchTimeout(j)
	case pipeline.Scheduled:
		j.scheduledAt = j.pipe.graph.ScheduledAt(j.index)
		c.at(j.scheduledAt, func(now time.Time) {
			if j.retried {
				return // the new attempt has a timer of its own
			}
			if ch, ok := j.pipe.graph.RunScheduled(j.index, now); ok {
				c.apply(j.pipe, []pipeline.Change{ch}, now)
				c.advance(j.pipe, now)
			}
		})
	case pipeline.Success, pipeline.Failed, pipeline.Canceled, pipeline.Skipped:
		j.finishedAt = now
		delete(c.jobTokens, j.token)
		j.trace.Finish()
	}
	c.publishJob(j)
}

// countRunning keeps the number of jobs that run on instance runners, which the fair order goes by. mu is held.
func (c *Coordinator) countRunning(j *job, n int) {
	if j.runner != nil && j.runner.Type == InstanceRunner {
		c.queue.AddRunning(j.pipe.project.id, n)
	}
}

// enqueue offers a pending job to the runners and tells those that it matches (Ci::UpdateBuildQueueService). mu is held.
func (c *Coordinator) enqueue(j *job, now time.Time) {
	p := j.pipe.project
	e := queue.Entry{
		Job: j.id, Project: p.id, Instance: !p.NoSharedRunners, Protected: j.pipe.protected, Tags: j.def.Tags,
	}
	if !p.NoGroupRunners {
		e.Namespaces = p.namespaces
	}
	c.queue.Push(e)
	for _, r := range c.runners {
		if r.observed && c.serves(r, p) && r.match.Matches(e.Tags, e.Protected) {
			r.tick(now)
		}
	}
}

// serves says whether a runner works for a project (Project#all_available_runners).
func (c *Coordinator) serves(r *runner, p *project) bool {
	switch r.Type {
	case InstanceRunner:
		return !p.NoSharedRunners
	case GroupRunner:
		return !p.NoGroupRunners && slices.Contains(p.namespaces, r.match.Namespaces[0])
	default:
		return slices.Contains(r.match.Projects, p.id)
	}
}

// fire sends an event to a job and processes its pipeline; an event that is not possible changes nothing and returns
// false. mu is held.
func (c *Coordinator) fire(j *job, e pipeline.Event, now time.Time) bool {
	if j.retried {
		return false
	}
	ch, err := j.pipe.graph.Fire(j.index, e, pipeline.Guards{CancelGracefully: j.cancelGracefully})
	if err != nil {
		return false
	}
	c.apply(j.pipe, []pipeline.Change{ch}, now)
	c.advance(j.pipe, now)
	return true
}

// drop fails a job, or cancels it if it is being cancelled, and retries it if `retry` or its reason says so. mu is held.
func (c *Coordinator) drop(j *job, reason runnerapi.FailureReason, exitCode int, now time.Time) bool {
	if j.retried {
		return false
	}
	d, err := j.pipe.graph.Drop(j.index, string(reason), exitCode)
	if err != nil {
		return false
	}
	j.exitCode = exitCode
	if d.Failed {
		j.failureReason, j.allowFailure = reason, d.AllowFailure
	}
	c.apply(j.pipe, d.Changes, now)
	c.advance(j.pipe, now)
	if d.Failed && !d.AllowFailure && !d.Retried && j.pipe.def.AutoCancel.OnJobFailure == cancelAll {
		c.cancelJobs(j.pipe, func(*job) bool { return true }, now)
	}
	return true
}

// The limits of jobs that no longer report (Ci::StuckBuilds): a running job is dropped when it outlives its timeout by
// timeoutGrace, or has had no request for silenceLimit.
const (
	timeoutGrace = 15 * time.Minute
	silenceLimit = time.Hour
)

// watchTimeout drops a running job that outlives its timeout or that its runner forgets. mu is held.
func (c *Coordinator) watchTimeout(j *job) {
	var check func(now time.Time)
	check = func(now time.Time) {
		if !j.processing() {
			return
		}
		next := j.updatedAt.Add(silenceLimit)
		if end := j.startedAt.Add(j.timeout + timeoutGrace); end.Before(next) {
			next = end
		}
		if now.Before(next) {
			c.at(next, check)
			return
		}
		c.stats.stuck.Add(1)
		c.drop(j, reasonStuckOrTimeout, 0, now)
	}
	check(j.startedAt)
}
