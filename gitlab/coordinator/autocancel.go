package coordinator

import (
	"cmp"
	"slices"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator/pipeline"
)

// The values of workflow:auto_cancel.
const (
	cancelNone          = "none"
	cancelInterruptible = "interruptible"
	cancelAll           = "all"
)

// cancelMaxAge is how old a pipeline may be to be cancelled by a newer one.
const cancelMaxAge = 7 * 24 * time.Hour

// cancelRedundant cancels what a newer pipeline of the same ref makes useless
// (Ci::PipelineCreation::CancelRedundantPipelinesService). head is the commit of the ref: pipelines of it and of the new
// pipeline's commit stay. mu is held.
func (c *Coordinator) cancelRedundant(newer *pipelineRun, head string, now time.Time) {
	p := newer.project
	if p.NoAutoCancel {
		return
	}
	older := make([]*pipelineRun, 0, len(p.alive[newer.opts.Ref]))
	for run := range p.alive[newer.opts.Ref] {
		older = append(older, run)
	}
	slices.SortFunc(older, func(a, b *pipelineRun) int { return cmp.Compare(a.id, b.id) })
	for _, run := range older {
		if run.id >= newer.id || run.commit.SHA == newer.commit.SHA || run.commit.SHA == head || now.Sub(run.createdAt) > cancelMaxAge {
			continue
		}
		switch run.def.AutoCancel.OnNewCommit {
		case cancelNone:
		case cancelInterruptible:
			c.cancelJobs(run, func(j *job) bool { return j.def.Interruptible }, now)
		default: // conservative
			if !slices.ContainsFunc(run.current, func(j *job) bool { return !j.def.Interruptible && begun(j.status) }) {
				c.cancelJobs(run, func(*job) bool { return true }, now)
			}
		}
	}
}

// begun says that a job has done something that cannot be taken back.
func begun(s pipeline.Status) bool {
	return s == pipeline.Running || s == pipeline.Success || s == pipeline.Failed || s == pipeline.Canceling
}

// cancelJobs cancels jobs of a pipeline that have not ended, manual ones excepted. mu is held.
func (c *Coordinator) cancelJobs(run *pipelineRun, which func(*job) bool, now time.Time) {
	var changes []pipeline.Change
	for _, j := range run.current {
		if !j.status.Cancelable() || !which(j) {
			continue
		}
		ch, err := run.graph.Fire(j.index, pipeline.EventCancel, pipeline.Guards{CancelGracefully: j.cancelGracefully})
		if err == nil {
			changes = append(changes, ch)
		}
	}
	c.apply(run, changes, now)
	c.advance(run, now)
}

// setAlive keeps the list of a ref's pipelines that have not ended. mu is held.
func (run *pipelineRun) setAlive(alive bool) {
	runs := run.project.alive[run.opts.Ref]
	if !alive {
		delete(runs, run)
		if len(runs) == 0 {
			delete(run.project.alive, run.opts.Ref)
		}
		return
	}
	if runs == nil {
		runs = map[*pipelineRun]struct{}{}
		run.project.alive[run.opts.Ref] = runs
	}
	runs[run] = struct{}{}
}
