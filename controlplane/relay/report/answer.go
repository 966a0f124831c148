package report

import (
	"net/http"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Answer is what GitLab said to a request.
type Answer struct {
	// Code is the HTTP status; 0 if there was no answer.
	Code int
	// JobStatus is the header of that name.
	JobStatus string
	// Interval is X-GitLab-Trace-Update-Interval, RetryAfter is Retry-After; 0 if missing.
	Interval, RetryAfter time.Duration
	// Range is the number after '-' in the Range header of an answer to a PATCH; 0 if missing.
	Range int64
}

// News is what an answer says about the job for the first time.
type News struct {
	Canceling bool
	Gone      bool
	// Rejected: GitLab's copy of the trace differs from what was sent (412).
	Rejected bool
	// Skipped: the rest of the trace was given up.
	Skipped bool
}

// Answered takes the answer to the request that Next asked for last.
func (r *Report) Answered(now time.Time, a Answer) News {
	req := r.inFlight
	r.inFlight = Action{}
	was := *r

	r.obey(a)
	switch {
	case req.Kind == Put && a.Code == http.StatusOK:
		r.outcome = Accepted
	case a.Code == http.StatusForbidden, a.JobStatus == runnerapi.StateCanceled, a.JobStatus == runnerapi.StateFailed:
		r.leave(a.JobStatus)
	case req.Kind == Patch:
		r.afterPatch(now, req, a)
	default:
		r.afterPut(now, req, a)
	}
	return News{
		Canceling: r.canceling && !was.canceling,
		Gone:      r.gone && !was.gone,
		Rejected:  r.rejections > was.rejections,
		Skipped:   r.skip && !was.skip,
	}
}

// obey takes what any answer may carry.
func (r *Report) obey(a Answer) {
	if a.Interval > 0 {
		r.interval = min(a.Interval, MaxInterval)
	}
	if a.JobStatus == runnerapi.StateCanceling {
		r.canceling = true
	}
	if r.canceling {
		// What after_script says, and a second cancel, should be seen soon.
		r.interval = min(r.interval, Interval)
	}
}

// leave ends the report because GitLab takes no more. If the job is in the state that was to be reported, then an
// earlier PUT has done it: its answer was lost, or it was made before a restart.
func (r *Report) leave(status string) {
	switch {
	case r.complete && status == r.final:
		r.outcome = Accepted
	case r.complete:
		r.gone, r.outcome = true, Gone
	default:
		// Only a runner's result makes a job successful; that it failed may have been GitLab's own decision.
		r.gone, r.succeeded = true, status == runnerapi.StateSuccess
	}
}

// parting is the outcome of a report that GitLab wanted no more of before it was complete.
func (r *Report) parting() Outcome {
	if r.succeeded && r.final == runnerapi.StateSuccess {
		return Accepted
	}
	return Gone
}

func (r *Report) afterPatch(now time.Time, req Action, a Answer) {
	r.patched = now
	switch a.Code {
	case http.StatusAccepted:
		r.sent = req.To
		r.ack = now
		r.moved(now)
		r.mismatches = 0
	case http.StatusRequestedRangeNotSatisfiable:
		r.mismatches++
		r.sent = a.Range
		if a.Range == req.From || r.mismatches > 1 {
			r.fail(now, &r.patch, a)
			r.probe = false
			return
		}
		r.moved(now)
	case http.StatusRequestEntityTooLarge:
		if r.patchSize > minPatchSize {
			r.patchSize /= 2
			return
		}
		r.fail(now, &r.patch, a)
	default:
		r.fail(now, &r.patch, a)
	}
}

// moved: a PATCH has brought GitLab's trace, or what is known of it, forward.
func (r *Report) moved(now time.Time) {
	r.patch = attempts{}
	r.probe = false
	r.stuck = time.Time{}
	if r.length > r.sent {
		r.unsent = now
	}
}

func (r *Report) afterPut(now time.Time, req Action, a Answer) {
	answered := a.Code == http.StatusOK || a.Code == http.StatusAccepted
	if req.Kind == Touch {
		r.touched = answered || isRefusal(a.Code)
		if !r.touched {
			r.stuck = time.Time{}
		}
	}
	switch {
	case req.Kind == Touch && answered:
		r.put = attempts{}
		r.ack = now
	case answered:
		wait := Interval
		if a.Interval > 0 {
			wait = min(a.Interval, MaxInterval)
		}
		r.put = attempts{notBefore: now.Add(max(wait, a.RetryAfter))}
		r.ack = now
	case req.Kind == Put && a.Code == http.StatusPreconditionFailed:
		r.rejections++
		if r.rejections <= resendsAfter412 {
			r.sent, r.skip = 0, false
		}
		r.fail(now, &r.put, a)
	default:
		r.fail(now, &r.put, a)
		if req.Kind == Put && r.put.refusals >= refusalsAtLeast && now.Sub(r.put.refused) >= RefusedFor {
			r.outcome = Refused
		}
	}
}

// fail counts a failure and says when to try again.
func (r *Report) fail(now time.Time, t *attempts, a Answer) {
	t.failures++
	wait := BackoffMost
	if t.failures <= 6 {
		wait = BackoffFirst << (t.failures - 1)
	}
	wait -= time.Duration(r.rand() * float64(wait) / 2)
	if ra := min(a.RetryAfter, MaxInterval); ra > 0 {
		wait = max(wait, ra+time.Duration(r.rand()*float64(ra)/8))
	}
	t.notBefore = now.Add(wait)
	t.outage = a.RetryAfter == 0 && (a.Code == 0 || a.Code >= http.StatusInternalServerError || a.Code == http.StatusNotFound)

	if a.Code != http.StatusNotFound {
		t.missing = 0
	} else if t.missing++; t.missing == 1 {
		t.missed = now
	} else if t.missing >= goneAfter404 && now.Sub(t.missed) >= MissingFor {
		r.leave("")
		return
	}
	if isRefusal(a.Code) {
		if t.refusals++; t.refusals == 1 {
			t.refused = now
		}
	} else {
		t.refusals, t.refused = 0, time.Time{}
	}
	if t != &r.patch || !r.complete || !r.touched {
		return
	}
	if r.stuck.IsZero() {
		r.stuck = now
	} else if now.Sub(r.stuck) >= FlushFor {
		r.skip = true
	}
}

// isRefusal: GitLab understood and said no, or something that is no answer of GitLab's to such a request.
func isRefusal(code int) bool {
	return code != 0 && code < http.StatusInternalServerError &&
		code != http.StatusRequestTimeout && code != http.StatusTooManyRequests
}
