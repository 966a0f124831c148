package protocolmodel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// ackExpiry is how long GitLab waits for the confirmation of a job that it handed out by two-phase commit.
const ackExpiry = 2 * time.Minute

// gitlab is what GitLab knows of jobs. It answers nothing by itself: a request waits in calls until the plan says what
// becomes of it.
type gitlab struct {
	w        *world
	twoPhase bool

	mu    sync.Mutex
	jobs  []*gitlabJob // number n has id n+1
	calls []*call
}

type gitlabJob struct {
	id      int64
	status  string
	waiting time.Time // handed out by two-phase commit, last confirmed then; zero: not waiting
	trace   []byte
	lost    bool // handed out to a control plane that died before it could write it down, without two-phase commit
	finals  []runnerapi.UpdateRequest
	results int
	// forgotten: GitLab has lost what it had of the trace.
	forgotten bool
}

// call is a request that was sent. The caller may have stopped waiting for the answer; the request may arrive all the same.
type call struct {
	job      int64
	patch    bool
	update   runnerapi.UpdateRequest
	start    int64
	data     []byte
	answer   chan answer // capacity 1
	deserted bool        // nobody waits for the answer any more
}

type answer struct {
	report client.Report
	have   int64
	err    error
}

var errNoAnswer = errors.New("no answer came")

func (c *call) String() string {
	if c.patch {
		return fmt.Sprintf("PATCH of job %d from %d, %d bytes", c.job, c.start, len(c.data))
	}
	return fmt.Sprintf("PUT of job %d, %s %s", c.job, c.update.State, c.update.FailureReason)
}

func (j *gitlabJob) over() bool {
	switch j.status {
	case runnerapi.StateSuccess, runnerapi.StateFailed, runnerapi.StateCanceled:
		return true
	}
	return j.lost
}

func (j *gitlabJob) waits() bool { return !j.waiting.IsZero() && time.Since(j.waiting) < ackExpiry }

func (j *gitlabJob) runs() bool {
	return j.status == runnerapi.StateRunning || j.status == runnerapi.StateCanceling
}

// next hands a job out; 0: there is none.
func (g *gitlab) next() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, j := range g.jobs {
		if j.status != runnerapi.StatePending || j.lost || j.waits() {
			continue
		}
		if g.twoPhase {
			j.waiting = time.Now()
		} else {
			j.status = runnerapi.StateRunning
		}
		return j.id
	}
	return 0
}

// abandon is for a job whose claim nobody could write down.
func (g *gitlab) abandon(id int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.twoPhase {
		g.jobs[id-1].lost = true
	}
}

func (g *gitlab) cancel(id int64, force bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch j := g.jobs[id-1]; {
	case j.over():
	case j.status == runnerapi.StatePending, force:
		j.status, j.waiting = runnerapi.StateCanceled, time.Time{}
	default:
		j.status = runnerapi.StateCanceling
	}
}

// send is a request on its way; it ends with the plan's answer or with ctx.
func (g *gitlab) send(ctx context.Context, c *call) answer {
	c.answer = make(chan answer, 1)
	g.mu.Lock()
	if ctx.Err() == nil {
		g.calls = append(g.calls, c)
		slices.SortStableFunc(g.calls, func(a, b *call) int { return cmp.Compare(a.job, b.job) })
	}
	g.mu.Unlock()
	select {
	case a := <-c.answer:
		return a
	case <-ctx.Done():
		g.mu.Lock()
		defer g.mu.Unlock()
		c.deserted = true
		return answer{err: ctx.Err()}
	}
}

func (g *gitlab) UpdateJob(ctx context.Context, id int64, u runnerapi.UpdateRequest) (*client.UpdateResult, error) {
	if u.State == runnerapi.StateSuccess || u.State == runnerapi.StateFailed {
		g.w.reported(id, u)
	}
	a := g.send(ctx, &call{job: id, update: u})
	return &client.UpdateResult{Report: a.report}, a.err
}

func (g *gitlab) PatchTrace(ctx context.Context, id int64, _ string, start int64, body client.TraceBody, _ bool) (*client.PatchResult, error) {
	data, err := io.ReadAll(io.NewSectionReader(body, 0, body.Size()))
	if err != nil {
		return nil, err
	}
	a := g.send(ctx, &call{job: id, patch: true, start: start, data: data})
	return &client.PatchResult{Report: a.report, Range: a.have}, a.err
}

// take removes a call; n counts those that wait.
func (g *gitlab) take(n int) *call {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.calls[n]
	g.calls = slices.Delete(g.calls, n, n+1)
	return c
}

func (g *gitlab) pending() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.calls)
}

// serve lets a request take effect and returns the answer.
func (g *gitlab) serve(c *call) answer {
	g.mu.Lock()
	defer g.mu.Unlock()
	j := g.jobs[c.job-1]
	if !c.patch {
		code := g.update(j, c.update)
		return answer{report: client.Report{Code: code, JobStatus: j.status}}
	}
	code := http.StatusAccepted
	switch {
	case !j.runs():
		code = http.StatusForbidden
	case c.start != int64(len(j.trace)):
		code = http.StatusRequestedRangeNotSatisfiable
	default:
		j.trace = append(j.trace, c.data...)
	}
	return answer{report: client.Report{Code: code, JobStatus: j.status}, have: int64(len(j.trace))}
}

func (g *gitlab) update(j *gitlabJob, u runnerapi.UpdateRequest) int {
	waits := j.waits()
	switch {
	case !waits && !j.runs():
		return http.StatusForbidden
	case waits && u.State == runnerapi.StatePending:
		j.waiting = time.Now()
	case waits && u.State == runnerapi.StateRunning:
		j.status, j.waiting = runnerapi.StateRunning, time.Time{}
	case waits || u.State == runnerapi.StatePending:
		return http.StatusBadRequest
	case u.State == runnerapi.StateRunning: // a touch
	default:
		if u.Output.Checksum != "" && !matches(u.Output, j.trace) {
			return http.StatusPreconditionFailed
		}
		j.results++
		if j.status == runnerapi.StateCanceling {
			j.status = runnerapi.StateCanceled
		} else {
			j.status = u.State
		}
	}
	return http.StatusOK
}

func matches(o runnerapi.Output, trace []byte) bool {
	return o.Bytesize == int64(len(trace)) && o.Checksum == fmt.Sprintf("crc32:%08x", crc32.ChecksumIEEE(trace))
}
