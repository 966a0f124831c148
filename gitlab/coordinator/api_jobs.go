package coordinator

import (
	"cmp"
	"fmt"
	"math/bits"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator/pipeline"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// acceptTimeout is Ci::UpdateBuildStateService::ACCEPT_TIMEOUT: a final update is accepted after that in any case.
const acceptTimeout = 5 * time.Minute

// What a request needs of a job's status.
type needs uint8

const (
	onRunner       needs = iota // running or canceling
	onRunnerOrWait              // or handed out and not yet confirmed
)

// authenticateJob finds the job of a request; if it may not be used, it has answered. A job that does not exist is
// refused like one with another token, by 403: that makes the runner stop. mu is held when it returns a job.
func (c *Coordinator) authenticateJob(w http.ResponseWriter, r *http.Request, token string, need needs) *job {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		replyError(w, http.StatusBadRequest, "id is invalid")
		return nil
	}
	c.mu.Lock()
	j := c.jobs[id]
	var reason string
	switch {
	case j == nil || token == "" || token != j.token:
	case j.erased:
		reason = "Job has been erased!"
	case j.processing(), need == onRunnerOrWait && j.waitingForAck():
		return j
	default:
		c.refuseLate(w, j)
		return nil
	}
	c.mu.Unlock()
	c.forbidden(w, reason)
	return nil
}

// refuseLate answers a request for a job that is on no runner. mu is held, and released.
func (c *Coordinator) refuseLate(w http.ResponseWriter, j *job) {
	j.lateRequests++
	c.stats.late.Add(1)
	w.Header().Set(runnerapi.HeaderJobStatus, j.status.String())
	c.mu.Unlock()
	c.forbidden(w, "Job is not processing on runner")
}

// updateJob answers PUT /jobs/:id.
func (c *Coordinator) updateJob(w http.ResponseWriter, r *http.Request) {
	p, err := readParams(r, maxAPIBody)
	if err != nil {
		badParams(w, err)
		return
	}
	j := c.authenticateJob(w, r, cmp.Or(p.Token, r.Header.Get(runnerapi.HeaderJobToken)), onRunnerOrWait)
	if j == nil {
		return
	}
	now := time.Now()
	if j.runner != nil {
		j.runner.contactedAt = now
	}
	j.updates++
	status, backoff := c.updateState(j, &p.UpdateRequest, now)
	jobStatus := j.status.String()
	c.mu.Unlock()
	w.Header().Set(runnerapi.HeaderJobStatus, jobStatus)
	if status == http.StatusAccepted {
		w.Header().Set(runnerapi.HeaderTraceUpdateInterval, strconv.Itoa(backoff))
	}
	replyStatus(w, status)
}

// updateState is Ci::UpdateBuildStateService: it returns the HTTP status and, with 202, the seconds until the next try.
// mu is held.
func (c *Coordinator) updateState(j *job, u *runnerapi.UpdateRequest, now time.Time) (status, backoff int) {
	if j.waitingForAck() {
		if !c.acknowledge(j, u.State, now) {
			return http.StatusBadRequest, 0
		}
		if u.State == runnerapi.StatePending {
			return http.StatusOK, 0
		}
	}
	switch u.State {
	case runnerapi.StateRunning:
		j.updatedAt = now
		return http.StatusOK, 0
	case runnerapi.StateSuccess, runnerapi.StateFailed:
	default:
		return http.StatusBadRequest, 0
	}
	if checksum := cmp.Or(u.Output.Checksum, u.Checksum); checksum != "" {
		if j.final == nil {
			j.final = &finalUpdate{request: *u, at: now}
		}
		age := now.Sub(j.final.at)
		if j.trace.Busy() || age < min(c.opts.AcceptDelay, acceptTimeout) {
			c.stats.accepted.Add(1)
			return http.StatusAccepted, backoffSeconds(age)
		}
	}
	c.finish(j, u, now)
	return http.StatusOK, 0
}

// acknowledge handles the first word of the runner about a job that waits for it: it returns false for what is not
// possible yet. mu is held.
func (c *Coordinator) acknowledge(j *job, state string, now time.Time) bool {
	switch state {
	case runnerapi.StatePending:
		j.keepAlives++
		c.stats.keepAlives.Add(1)
		j.ackUntil = now.Add(c.opts.AckExpiry)
		return true
	case runnerapi.StateRunning:
		c.stats.acks.Add(1)
		c.run(j, now)
		return true
	default:
		return false
	}
}

// finish ends a job as its runner says. mu is held.
func (c *Coordinator) finish(j *job, u *runnerapi.UpdateRequest, now time.Time) {
	size, crc := j.trace.Sum()
	j.report = Report{State: u.State, Checksum: cmp.Or(u.Output.Checksum, u.Checksum), Bytesize: u.Output.Bytesize}
	if j.report.Checksum != "" {
		j.report.ChecksumOK = j.report.Checksum == fmt.Sprintf("crc32:%08x", crc)
		if !j.report.ChecksumOK {
			c.stats.badChecksums.Add(1)
		}
	}
	if j.report.Bytesize != 0 {
		j.report.SizeOK = j.report.Bytesize == size
		if !j.report.SizeOK {
			c.stats.badSizes.Add(1)
		}
	}
	c.stats.finished.Add(1)
	if u.State == runnerapi.StateSuccess {
		c.fire(j, pipeline.EventSucceed, now)
		return
	}
	reason := u.FailureReason
	if !slices.Contains(runnerReasons, reason) {
		reason = reasonUnknown
	}
	c.drop(j, reason, u.ExitCode, now)
}

// backoffSeconds is Gitlab::Ci::Runner::Backoff: the older the first final update, the longer the wait.
func backoffSeconds(age time.Duration) int {
	slot := 0
	if d := int(age / time.Second); d > 1 {
		slot = bits.Len(uint(d)) - 2 // floor(log2 d) - 1
	}
	return 1 << min(slot, 6)
}
