package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/pipeline"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/trace"
)

// Pipeline returns a pipeline with its jobs.
func (c *Coordinator) Pipeline(id int64) (Pipeline, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	run := c.pipelines[id]
	if run == nil {
		return Pipeline{}, fmt.Errorf("pipeline %d: %w", id, ErrNotFound)
	}
	return run.snapshot(), nil
}

// Wait returns the pipeline when it has ended, or when nothing goes on without a person: a manual job blocks it
// ([Pipeline.Blocked]).
func (c *Coordinator) Wait(ctx context.Context, pipelineID int64) (Pipeline, error) {
	for {
		c.mu.Lock()
		run := c.pipelines[pipelineID]
		if run == nil {
			c.mu.Unlock()
			return Pipeline{}, fmt.Errorf("pipeline %d: %w", pipelineID, ErrNotFound)
		}
		if run.status.Completed() || run.status == pipeline.Manual {
			s := run.snapshot()
			c.mu.Unlock()
			return s, nil
		}
		changed := run.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return Pipeline{}, fmt.Errorf("wait for pipeline %d: %w", pipelineID, ctx.Err())
		case <-c.ctx.Done():
			return Pipeline{}, ErrClosed
		}
	}
}

// Play starts a manual or delayed job now. variables are given to this job alone and win over all others.
func (c *Coordinator) Play(jobID int64, variables ...ciconfig.Variable) (Job, error) {
	return c.act(jobID, func(j *job, now time.Time) error {
		changes, err := j.pipe.graph.Play(j.index)
		if err != nil {
			return err
		}
		j.extra = variables
		c.apply(j.pipe, changes, now)
		c.advance(j.pipe, now)
		return nil
	})
}

// Retry makes a new attempt of a job that has ended and returns it.
func (c *Coordinator) Retry(jobID int64) (Job, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j, err := c.latest(jobID)
	if err != nil {
		return Job{}, err
	}
	changes, err := j.pipe.graph.Retry(j.index)
	if err != nil {
		return Job{}, err
	}
	now := time.Now()
	c.apply(j.pipe, changes, now)
	c.advance(j.pipe, now)
	return j.pipe.current[j.index].snapshot(), nil
}

// RetryPipeline makes new attempts of all failed and canceled jobs of a pipeline.
func (c *Coordinator) RetryPipeline(pipelineID int64) (Pipeline, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	run := c.pipelines[pipelineID]
	if run == nil {
		return Pipeline{}, fmt.Errorf("pipeline %d: %w", pipelineID, ErrNotFound)
	}
	now := time.Now()
	c.apply(run, run.graph.RetryAll(), now)
	c.advance(run, now)
	return run.snapshot(), nil
}

// Cancel cancels a job. If it runs on a runner that can (cancel_gracefully), it becomes canceling: after_script runs and
// the runner ends it. Otherwise, or with force, it is canceled at once.
func (c *Coordinator) Cancel(jobID int64, force bool) (Job, error) {
	return c.act(jobID, func(j *job, now time.Time) error {
		if force && (j.status == pipeline.Running || j.status == pipeline.Canceling) {
			j.cancelGracefully = false
		}
		event := pipeline.EventCancel
		if j.status == pipeline.Canceling {
			if !force {
				return nil
			}
			event = pipeline.EventForceCancel
		}
		if !c.fire(j, event, now) {
			return fmt.Errorf("job %q cannot be canceled: its status is %s", j.def.Name, j.status)
		}
		return nil
	})
}

// CancelPipeline cancels all jobs of a pipeline that have not ended, manual ones excepted.
func (c *Coordinator) CancelPipeline(pipelineID int64) (Pipeline, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	run := c.pipelines[pipelineID]
	if run == nil {
		return Pipeline{}, fmt.Errorf("pipeline %d: %w", pipelineID, ErrNotFound)
	}
	c.cancelJobs(run, func(*job) bool { return true }, time.Now())
	return run.snapshot(), nil
}

// Erase deletes the trace and the artifacts of a job that has ended; its runner is refused from now on.
func (c *Coordinator) Erase(jobID int64) error {
	c.mu.Lock()
	j := c.jobs[jobID]
	if j == nil {
		c.mu.Unlock()
		return fmt.Errorf("job %d: %w", jobID, ErrNotFound)
	}
	if !j.status.Completed() {
		c.mu.Unlock()
		return fmt.Errorf("job %q cannot be erased: its status is %s", j.def.Name, j.status)
	}
	j.erased = true
	log, gone := j.trace, j.uploads.list
	j.uploads = uploads{}
	c.mu.Unlock()
	errs := []error{log.Discard()}
	for _, a := range gone {
		errs = append(errs, c.store.Remove(a.Path))
	}
	return errors.Join(errs...)
}

// LoseTrace drops what has been received of a job's trace, as a GitLab that has lost it; the runner is told by 416 and
// sends all of it again.
func (c *Coordinator) LoseTrace(jobID int64) error {
	log, err := c.traceLog(jobID)
	if err != nil {
		return err
	}
	return log.Lose()
}

// Trace returns the trace as it is now, from an offset on.
func (c *Coordinator) Trace(jobID, offset int64) (*io.SectionReader, error) {
	log, err := c.traceLog(jobID)
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(log, offset, max(0, log.Size()-offset)), nil
}

// WaitTrace returns when a trace has more than offset bytes or has ended. It returns its size and whether it has ended.
func (c *Coordinator) WaitTrace(ctx context.Context, jobID, offset int64) (size int64, ended bool, err error) {
	log, err := c.traceLog(jobID)
	if err != nil {
		return 0, false, err
	}
	return log.Wait(ctx, offset)
}

// watchTTL is how long one WatchTrace lasts.
const watchTTL = 10 * time.Second

// WatchTrace says that someone looks at the trace: for 10 s runners are told to send it every few seconds.
func (c *Coordinator) WatchTrace(jobID int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs[jobID]
	if j == nil {
		return fmt.Errorf("job %d: %w", jobID, ErrNotFound)
	}
	j.watched = time.Now().Add(watchTTL)
	return nil
}

func (c *Coordinator) traceLog(jobID int64) (*trace.Log, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs[jobID]
	if j == nil {
		return nil, fmt.Errorf("job %d: %w", jobID, ErrNotFound)
	}
	return j.trace, nil
}

// latest returns a job that has not been retried. mu is held.
func (c *Coordinator) latest(jobID int64) (*job, error) {
	j := c.jobs[jobID]
	if j == nil {
		return nil, fmt.Errorf("job %d: %w", jobID, ErrNotFound)
	}
	if j.retried {
		return nil, fmt.Errorf("job %d has been retried: its present attempt is job %d", jobID, j.pipe.current[j.index].id)
	}
	return j, nil
}

func (c *Coordinator) act(jobID int64, do func(j *job, now time.Time) error) (Job, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j, err := c.latest(jobID)
	if err != nil {
		return Job{}, err
	}
	if err := do(j, time.Now()); err != nil {
		return Job{}, err
	}
	return j.snapshot(), nil
}
