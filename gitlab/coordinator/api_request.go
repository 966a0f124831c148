package coordinator

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/pipeline"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// maxQueueDepth is Ci::RegisterJobService::MAX_QUEUE_DEPTH.
const maxQueueDepth = 45

// requestJob answers POST /jobs/request: first as Workhorse, which holds it while nothing changes, then as Rails.
func (c *Coordinator) requestJob(w http.ResponseWriter, r *http.Request) {
	limit := int64(maxAPIBody)
	hold := c.opts.Hold > 0
	if hold {
		limit = maxRequestBody
		w.Header().Set(runnerapi.HeaderBuildsPolling, "yes")
	}
	p, err := readParams(r, limit)
	if err != nil {
		badParams(w, err)
		return
	}
	// Workhorse looks only at a JSON body; the header of the token does not count for it.
	if hold && p.isJSON && p.Token != "" && p.LastUpdate != "" && c.holdRequest(r.Context(), p.Token, p.LastUpdate) {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	run := c.authenticate(w, r, p)
	if run == nil {
		return
	}
	c.stats.requests.Add(1)
	now := time.Now()
	if run.Paused {
		w.Header().Set(runnerapi.HeaderLastUpdate, run.queueValue(now))
		c.mu.Unlock()
		c.stats.noJob.Add(1)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	value := run.queueValue(now) // before the look at the queue, so that no job is missed
	if p.LastUpdate == value {
		c.mu.Unlock()
		c.stats.cached.Add(1)
		w.Header().Set(runnerapi.HeaderLastUpdate, value)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	body, valid := c.pick(run, p, requestBase(r.Host, r.TLS != nil))
	c.mu.Unlock()
	switch {
	case body != nil:
		c.stats.claims.Add(1)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(body) // without two-phase commit a client that has gone loses the job, as with GitLab
	case valid:
		c.stats.noJob.Add(1)
		w.Header().Set(runnerapi.HeaderLastUpdate, value)
		w.WriteHeader(http.StatusNoContent)
	default:
		c.stats.conflicts.Add(1)
		reply(w, http.StatusConflict, "409 Conflict")
	}
}

// holdRequest waits while the queue value of a token is still the one that the runner knows. It returns true if the
// request is to be answered by a bare 204: after a change that it saw, or when the time is over.
func (c *Coordinator) holdRequest(ctx context.Context, token, lastUpdate string) bool {
	c.mu.Lock()
	run := c.tokens[token]
	if run == nil || !run.isQueueValue(lastUpdate, time.Now()) {
		c.mu.Unlock()
		return false
	}
	changed := run.changed
	c.mu.Unlock()
	c.stats.held.Add(1)
	over := time.NewTimer(c.opts.Hold)
	defer over.Stop()
	select {
	case <-changed:
		c.stats.heldChanged.Add(1)
	case <-over.C:
		c.stats.heldTimeouts.Add(1)
	case <-ctx.Done():
	case <-c.ctx.Done():
	}
	return true
}

// pick finds a job for the runner, hands it out and returns its payload (Ci::RegisterJobService). Without a job, valid
// says whether that is certain. mu is held, and released while a payload is made.
func (c *Coordinator) pick(run *runner, p *params, base string) (body []byte, valid bool) {
	best, ok := c.queue.Best(run.match)
	if !ok {
		return nil, true
	}
	valid = true
	offer := func(j *job, depth int) []byte {
		switch {
		case j.locked, j.status != pipeline.Pending, j.waitingForAck():
			valid = false // another request has it, or it went while this one made a payload
			return nil
		}
		body, lost := c.assign(j, run, p, base, depth)
		valid = valid && !lost
		return body
	}
	newest := c.lastID["job"]
	if body := offer(c.jobs[best], 1); body != nil {
		return body, true // nearly every request ends here; only a conflict makes the others worth a list
	}
	depth := 1
	for _, id := range c.queue.Candidates(run.match, maxQueueDepth+1) {
		if id == best || id > newest { // a retry of what this request has dropped is not its business
			continue
		}
		if depth++; depth > maxQueueDepth {
			return nil, false
		}
		if body := offer(c.jobs[id], depth); body != nil {
			return body, true
		}
	}
	return nil, valid
}

// assign hands a pending job to a runner and returns its payload. Without one the job had to be dropped, or it was lost
// to someone else. mu is held, and released while the payload is made.
func (c *Coordinator) assign(j *job, run *runner, p *params, base string, depth int) (body []byte, lost bool) {
	now := time.Now()
	j.runner = run
	dependencies := j.dependencies()
	if reason := c.refuse(j, dependencies, &p.Info.Features, now); reason != "" {
		c.drop(j, reason, 0, now)
		return nil, false
	}
	j.timeout = j.pipe.project.Timeout
	if j.def.Timeout > 0 {
		j.timeout = j.def.Timeout
	}
	if run.MaximumTimeout > 0 {
		j.timeout = min(j.timeout, run.MaximumTimeout)
	}
	view := &payloadView{
		runner: run, token: j.token, timeout: j.timeout, now: now, queued: j.queuedAt, running: c.queue.Running(j.pipe.project.id),
		queueSize: c.queue.Size(run.match), depth: depth, base: cmp.Or(c.url, base, "http://localhost"),
		cacheIndex: j.pipe.project.cacheIndex, dependencies: dependenciesOf(dependencies, j.token, now),
	}
	for _, d := range dependencies {
		view.dotenv = append(view.dotenv, d.uploads.dotenv...)
	}
	j.locked = true
	c.mu.Unlock()
	body, err := c.buildPayload(j, view)
	if err != nil {
		c.log.Warn("a job could not be handed out", "job", j.id, "error", err)
	}
	c.mu.Lock()
	j.locked = false
	now = time.Now()
	switch {
	case j.status != pipeline.Pending: // cancelled meanwhile
		return nil, true
	case err != nil:
		c.drop(j, reasonScheduler, 0, now)
		return nil, false
	}
	j.systemID = p.SystemID
	j.cancelGracefully = p.Info.Features.CancelGracefully
	c.jobTokens[j.token] = j
	if p.Info.Features.TwoPhaseJobCommit && !c.opts.LegacyCommit {
		c.queue.Remove(j.id)
		j.ackUntil = now.Add(c.opts.AckExpiry)
		c.watchAck(j)
		c.publishJob(j)
		return body, false
	}
	c.run(j, now)
	return body, false
}

// run lets a job start. mu is held.
func (c *Coordinator) run(j *job, now time.Time) {
	c.stats.started.Add(1)
	c.fire(j, pipeline.EventRun, now)
}

// refuse says why a job fails instead of being given to a runner (the pre-assign checks, as far as jobs can have what
// they look at; the features are those of Ci::Build::RUNNER_FEATURES).
func (c *Coordinator) refuse(j *job, dependencies []*job, has *runnerapi.Features, now time.Time) runnerapi.FailureReason {
	for _, d := range dependencies {
		if !d.validDependency(now) {
			return reasonMissingDependency
		}
	}
	d := j.def
	exitCodes := len(d.AllowFailureExitCodes) > 0 || d.Retry != nil && len(d.Retry.ExitCodes) > 0
	fallbackKeys := slices.ContainsFunc(d.Caches, func(cache ciconfig.Cache) bool { return len(cache.FallbackKeys) > 0 })
	reports, exclude := d.Artifacts != nil && len(d.Artifacts.Reports) > 0, d.Artifacts != nil && len(d.Artifacts.Exclude) > 0
	if exitCodes && !has.ReturnExitCode || fallbackKeys && !has.FallbackCacheKeys ||
		reports && !has.UploadMultipleArtifacts || exclude && !has.ArtifactsExclude {
		return reasonRunnerUnsupported
	}
	return ""
}

// watchAck drops a job that was handed out and is never confirmed. mu is held.
func (c *Coordinator) watchAck(j *job) {
	var check func(now time.Time)
	check = func(now time.Time) {
		switch {
		case !j.waitingForAck():
		case now.Before(j.ackUntil):
			c.at(j.ackUntil, check)
		default:
			c.stats.ackExpired.Add(1)
			c.drop(j, reasonProvisioningTimeout, 0, now)
		}
	}
	c.at(j.ackUntil, check)
}
