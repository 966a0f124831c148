package relay

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/relay/report"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

const (
	// How long one request may last: 1 MiB over a thin line; a PUT that waits for a lock in GitLab.
	patchTimeout = 2 * time.Minute
	putTimeout   = time.Minute
	// complainAfter is how many requests fail in a row before that is a warning.
	complainAfter = 4
)

// request is what step needs while the job is not locked.
type request struct {
	report.Action
	to     Target
	trace  io.ReaderAt
	length int64
	sum    uint32
	result *store.Result
}

// step makes the next request of a job, if one is due, and takes in the answer.
func (j *job) step() {
	j.mu.Lock()
	j.armed = time.Time{}
	now := time.Now()
	if !j.closed && !j.resend.IsZero() && !now.Before(j.resend) {
		j.mu.Unlock()
		j.overdue()
		j.mu.Lock()
	}
	if j.closed || j.reported {
		j.mu.Unlock()
		return
	}
	req := request{Action: j.report.Next(now)}
	switch req.Kind {
	case report.Idle, report.Wait:
		j.arm()
		j.mu.Unlock()
		return
	case report.Done:
		j.reported = true
		outcome := outcomeOf(j.report.Outcome())
		j.mu.Unlock()
		j.r.o.Events.Reported(j.id, outcome)
		return
	}
	timeout := putTimeout
	if req.Kind == report.Patch {
		timeout = patchTimeout
	}
	ctx, cancel := context.WithTimeout(j.r.ctx, timeout)
	defer cancel()
	j.cancel = cancel
	req.to, req.length, req.sum, req.result = j.to, j.length, j.sum, j.result
	if j.file != nil {
		req.trace = j.file
	}
	j.mu.Unlock()

	answer, err := req.send(ctx)
	j.answered(answer, err)
}

func (q *request) send(ctx context.Context) (client.PatchResult, error) {
	if q.Kind == report.Patch {
		body := io.NewSectionReader(q.trace, q.From, q.To-q.From)
		res, err := q.to.GitLab.PatchTrace(ctx, q.to.JobID, q.to.Token, q.From, body, q.to.Debug)
		if err != nil {
			return client.PatchResult{}, err
		}
		return *res, nil
	}
	u := runnerapi.UpdateRequest{Info: q.to.Info(), Token: q.to.Token, State: runnerapi.StateRunning}
	if q.Kind == report.Touch || q.Checksum {
		u.Checksum = fmt.Sprintf("crc32:%08x", q.sum)
		u.Output = runnerapi.Output{Checksum: u.Checksum, Bytesize: q.length}
	}
	if q.Kind == report.Put {
		u.State = q.result.State
		u.ExitCode = q.result.ExitCode
		if u.State != runnerapi.StateSuccess {
			u.FailureReason = runnerapi.FailureReason(q.result.FailureReason)
		}
	}
	res, err := q.to.GitLab.UpdateJob(ctx, q.to.JobID, u)
	if err != nil {
		return client.PatchResult{}, err
	}
	return client.PatchResult{Report: res.Report}, nil
}

// answered takes in an answer and tells what is new.
func (j *job) answered(a client.PatchResult, err error) {
	j.mu.Lock()
	j.cancel = nil
	if j.closed {
		j.mu.Unlock()
		return
	}
	before := j.report.Sent()
	news := j.report.Answered(time.Now(), report.Answer{
		Code: a.Code, JobStatus: a.JobStatus, Interval: a.Interval, RetryAfter: a.RetryAfter, Range: max(a.Range, 0),
	})
	j.explain(a, err, news)
	if news.Gone {
		j.settle()
	}
	tell := j.nowSafe() || !j.completed && j.report.Sent() > before
	var p Progress
	if tell {
		p = j.tell(j.verdict())
	}
	outcome := j.report.Outcome()
	if outcome != report.Open {
		j.reported = true
	}
	j.arm()
	waits := j.report.Down()
	j.mu.Unlock()
	j.lane.heard(j, a.Code, waits)

	events := j.r.o.Events
	if news.Canceling {
		events.JobStatus(j.id, StatusCanceling)
	}
	if news.Gone {
		events.JobStatus(j.id, StatusGone)
	}
	if tell {
		events.Received(j.id, p)
	}
	if outcome != report.Open {
		events.Reported(j.id, outcomeOf(outcome))
	}
}

// explain logs what people should know; mu must be held.
func (j *job) explain(a client.PatchResult, err error, news report.News) {
	failures := j.report.Failures()
	recovered := j.complains && failures == 0
	fails := !j.complains && failures >= complainAfter
	refused := j.report.Outcome() == report.Refused
	if !recovered && !fails && !refused && news == (report.News{}) {
		return
	}
	log := j.r.log.With("job", j.id, "gitlab", j.to.Instance, "gitlab_job", j.to.JobID, "code", a.Code)
	switch {
	case recovered:
		j.complains = false
		log.Info("GitLab takes the job's reports again")
	case fails:
		j.complains = true
		log.Warn("GitLab does not take a job's reports; it is tried again", "error", err, "message", a.Message)
	}
	if news.Gone {
		log.Info("GitLab takes nothing more of a job", "status", a.JobStatus, "message", a.Message)
	}
	if news.Rejected {
		log.Warn("GitLab has another trace than the one that was sent; all of it is sent again")
	}
	if news.Skipped {
		log.Error("GitLab does not take the rest of a trace; the result is reported without it",
			"message", a.Message, "reported", j.report.Sent(), "bytes", j.length)
	}
	if refused {
		log.Error("GitLab refuses the result of a job; it is given up", "message", a.Message)
	}
}
