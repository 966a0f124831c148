package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// maxInterval caps what GitLab may ask for as the pause between two reports of a job.
const maxInterval = 15 * time.Minute

// Report is what the answers to UpdateJob and PatchTrace have in common.
type Report struct {
	Code      int    // HTTP status
	JobStatus string // GitLab's state of the job, one of the runnerapi.State values or another; "" if it did not say
	// Interval is how long to wait before the next report of this job; at most 15 minutes, 0 if GitLab did not say.
	Interval time.Duration
	// RetryAfter is how long GitLab wants to be left alone; at most 5 minutes, 0 if it did not say.
	RetryAfter time.Duration
	// Message is the answer's own text, one line of at most 500 bytes; only if the call did not succeed.
	Message string
}

// CancelRequested says that the job is to be cancelled gracefully. It holds besides any outcome.
func (r *Report) CancelRequested() bool { return r.JobStatus == runnerapi.StateCanceling }

// ended says that GitLab wants to hear no more of the job.
func (r *Report) ended() bool {
	return r.JobStatus == runnerapi.StateCanceled || r.JobStatus == runnerapi.StateFailed || r.Code == http.StatusForbidden
}

// UpdateOutcome is what an UpdateResult means for a job that runs or has ended.
type UpdateOutcome int

const (
	// UpdateFailed (400, 409, 429, 5xx, …): try again later.
	UpdateFailed UpdateOutcome = iota
	// UpdateSucceeded (200).
	UpdateSucceeded
	// UpdateNotCompleted (202): GitLab still works on it; send the same again after Interval.
	UpdateNotCompleted
	// UpdateTraceInvalid (412): send the whole trace again, from byte 0, then this update.
	UpdateTraceInvalid
	// UpdateAbort (403, 404, or the job was canceled or failed by GitLab): stop the job and report nothing more.
	UpdateAbort
)

// UpdateResult is GitLab's answer to a job's new state.
type UpdateResult struct{ Report }

// Outcome applies gitlab-runner's precedence: an ended job outranks the status. Before the job was accepted (state
// pending or running under two-phase commit) Code says more: 400 and 409 are answers then, not failures.
func (r *UpdateResult) Outcome() UpdateOutcome {
	switch {
	case r.ended():
		return UpdateAbort
	case r.Code == http.StatusOK:
		return UpdateSucceeded
	case r.Code == http.StatusAccepted:
		return UpdateNotCompleted
	case r.Code == http.StatusPreconditionFailed:
		return UpdateTraceInvalid
	case r.Code == http.StatusNotFound:
		return UpdateAbort
	default:
		return UpdateFailed
	}
}

// UpdateJob reports a job's state (PUT /jobs/:id). u.Token is the job's. Every status is a result. The error is a
// *TransportError, or a *StatusError for a page made for people with a status that only GitLab can give.
func (c *Client) UpdateJob(ctx context.Context, jobID int64, u runnerapi.UpdateRequest) (*UpdateResult, error) {
	res, err := c.sendJSON(ctx, &request{
		lane: laneReport, timeout: reportTimeout, method: http.MethodPut, path: "jobs/" + strconv.FormatInt(jobID, 10),
		tokenHeader: runnerapi.HeaderJobToken, token: u.Token,
	}, u)
	if err != nil {
		return nil, err
	}
	defer res.close()
	report, err := c.report(res, res.StatusCode == http.StatusOK || res.StatusCode == http.StatusAccepted)
	if err != nil {
		return nil, err
	}
	return &UpdateResult{Report: report}, nil
}

// PatchOutcome is what a PatchResult means.
type PatchOutcome int

const (
	// PatchFailed (400, 409, 429, 5xx, …): send the same bytes again later.
	PatchFailed PatchOutcome = iota
	// PatchSucceeded (202): GitLab has the bytes.
	PatchSucceeded
	// PatchRangeMismatch (416): GitLab's trace ends at Range; go on from there.
	PatchRangeMismatch
	// PatchNotFound (404): gitlab-runner ignores it while the job runs and gives up at its end.
	PatchNotFound
	// PatchAbort (403, or the job was canceled or failed by GitLab): stop the job and send nothing more.
	PatchAbort
)

// PatchResult is GitLab's answer to trace bytes.
type PatchResult struct {
	Report
	// Range is the number of bytes that GitLab has: the offset for the next patch. -1 if it did not say; 0 for a 416 that
	// did not.
	Range int64
}

// Outcome applies gitlab-runner's precedence: an ended job outranks the status.
func (r *PatchResult) Outcome() PatchOutcome {
	switch {
	case r.ended():
		return PatchAbort
	case r.Code == http.StatusAccepted:
		return PatchSucceeded
	case r.Code == http.StatusNotFound:
		return PatchNotFound
	case r.Code == http.StatusRequestedRangeNotSatisfiable:
		return PatchRangeMismatch
	default:
		return PatchFailed
	}
}

// TraceBody is a piece of a trace. *bytes.Reader and *io.SectionReader are such; neither is copied as a whole. Its bytes
// must not change before PatchTrace returns.
type TraceBody interface {
	io.ReaderAt
	// Size is the number of bytes.
	Size() int64
}

// PatchTrace appends bytes to a job's trace (PATCH /jobs/:id/trace). start is the offset of the first byte, 0-based.
// debug says that the trace may carry secrets (CI_DEBUG_TRACE). The body must not be empty. Results and errors are as those
// of UpdateJob.
func (c *Client) PatchTrace(ctx context.Context, jobID int64, token string, start int64, body TraceBody, debug bool) (*PatchResult, error) {
	size := body.Size()
	path := "jobs/" + strconv.FormatInt(jobID, 10) + "/trace"
	if size == 0 {
		return nil, &TransportError{Method: http.MethodPatch, URL: path, Err: errEmptyPatch}
	}
	res, err := c.send(ctx, &request{
		lane: laneReport, timeout: reportTimeout, method: http.MethodPatch, path: path,
		query:       "debug_trace=" + strconv.FormatBool(debug),
		tokenHeader: runnerapi.HeaderJobToken, token: token,
		contentType: "text/plain",
		header:      http.Header{"Content-Range": {strconv.FormatInt(start, 10) + "-" + strconv.FormatInt(start+size-1, 10)}},
		length:      size,
		rewind:      func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(body, 0, size)), nil },
	})
	if err != nil {
		return nil, err
	}
	defer res.close()
	report, err := c.report(res, res.StatusCode == http.StatusAccepted)
	if err != nil {
		return nil, err
	}
	result := &PatchResult{Report: report, Range: traceRange(res.Header.Get("Range"))}
	if res.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		result.Range = max(result.Range, 0)
	}
	return result, nil
}

var errEmptyPatch = errors.New("there are no bytes to send")

// traceRange reads "0-<size>".
func traceRange(v string) int64 {
	_, end, found := strings.Cut(v, "-")
	n, err := strconv.ParseInt(end, 10, 64)
	if !found || err != nil || n < 0 {
		return -1
	}
	return n
}

// report reads what an answer says. A page made for people is a *StatusError: a proxy's 403 must not end a job, nor its
// 200 be taken for GitLab's. Where it means the same whoever says it (413, 429, 5xx) it is a result.
func (c *Client) report(res *response, ok bool) (Report, error) {
	e := new(StatusError)
	if !ok || res.isPage() {
		e = res.statusError(c.now())
	}
	if e.HTML && e.Code < http.StatusInternalServerError && !meantByProxy(e.Code) {
		return Report{}, e
	}
	r := Report{
		Code:      res.StatusCode,
		JobStatus: limited(res.Header.Get(runnerapi.HeaderJobStatus), 64),
		Interval:  seconds(res.Header.Get(runnerapi.HeaderTraceUpdateInterval), maxInterval),
	}
	if !ok {
		r.Message, r.RetryAfter = e.Message, e.RetryAfter
	}
	return r, nil
}
