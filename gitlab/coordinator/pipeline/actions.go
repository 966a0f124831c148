package pipeline

import (
	"fmt"
	"time"
)

// Play starts a manual, delayed or skipped-and-manual job now; the skipped jobs that come after it get another chance
// (Ci::PlayBuildService).
func (p *Pipeline) Play(job int) ([]Change, error) {
	n := &p.jobs[job]
	if n.status != Manual && n.status != Scheduled {
		return nil, fmt.Errorf("job %q cannot be played: its status is %s, not manual or scheduled", n.Name, n.status)
	}
	c, err := p.Fire(job, EventEnqueue, Guards{})
	if err != nil {
		return nil, err
	}
	return append([]Change{c}, p.ResetSkipped(job)...), nil
}

// Retry starts a new attempt of a job that has ended (Ci::RetryJobService): the attempt is enqueued at once, and the
// skipped jobs that come after it get another chance. The first change is that of the job from its old status to
// created: the caller makes the new attempt at that point.
func (p *Pipeline) Retry(job int) ([]Change, error) {
	n := &p.jobs[job]
	switch n.status {
	case Success, Failed, Canceled:
	default:
		return nil, fmt.Errorf("job %q cannot be retried: its status is %s, not success, failed or canceled", n.Name, n.status)
	}
	changes := []Change{p.Renew(job)}
	c, err := p.Fire(job, EventEnqueue, Guards{})
	if err != nil {
		return nil, err
	}
	changes = append(changes, c)
	return append(changes, p.ResetSkipped(job)...), nil
}

// RetryAll starts new attempts of all failed and canceled jobs, which are then processed as at first: a manual one
// becomes manual again (Ci::RetryPipelineService). Skipped jobs are processed again too.
func (p *Pipeline) RetryAll() []Change {
	var changes []Change
	for i := range p.jobs {
		switch p.jobs[i].status {
		case Failed, Canceled:
			changes = append(changes, p.Renew(i))
		case Skipped:
			changes = append(changes, p.set(i, Created))
		}
	}
	return changes
}

// RunScheduled enqueues a delayed job that is due; before its time it does nothing and returns false.
func (p *Pipeline) RunScheduled(job int, now time.Time) (Change, bool) {
	n := &p.jobs[job]
	if n.status != Scheduled || now.Before(n.scheduledAt) {
		return Change{}, false
	}
	c, err := p.Fire(job, EventEnqueueScheduled, Guards{})
	return c, err == nil
}
