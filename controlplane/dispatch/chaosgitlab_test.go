package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// dice are shared by all who take part in the chaos.
type dice struct {
	mu  sync.Mutex
	rng *rand.Rand
}

// in says yes once in n times.
func (d *dice) in(n int) bool { return d.n(n) == 0 }

func (d *dice) n(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.IntN(n)
}

func (d *dice) wait(most time.Duration) time.Duration { return time.Duration(d.n(int(most))) }

// ackExpiry is how long GitLab waits for the confirmation of a job that it handed out by two-phase commit.
const ackExpiry = 2 * time.Minute

// chaosGitLab hands out jobs and takes reports as GitLab does, unless it is in trouble.
type chaosGitLab struct {
	dice     *dice
	twoPhase bool

	mu      sync.Mutex
	jobs    []*chaosJob // number n has id n+1
	trouble bool        // some requests fail, others lose their answer
	down    bool
}

type chaosJob struct {
	id      int64
	status  string
	waiting time.Time // handed out by two-phase commit, last confirmed then; zero: not waiting
	trace   []byte
	results int
	last    runnerapi.UpdateRequest
	lost    bool // handed out without two-phase commit to a control plane that died before it could write it down
}

func (j *chaosJob) over() bool {
	switch j.status {
	case runnerapi.StateSuccess, runnerapi.StateFailed, runnerapi.StateCanceled:
		return true
	}
	return j.lost
}

func (g *chaosGitLab) add() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.jobs = append(g.jobs, &chaosJob{id: int64(len(g.jobs) + 1), status: runnerapi.StatePending})
}

// next hands a job out; 0: there is none.
func (g *chaosGitLab) next() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, j := range g.jobs {
		if j.status != runnerapi.StatePending || !j.waiting.IsZero() && time.Since(j.waiting) < ackExpiry {
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
func (g *chaosGitLab) abandon(id int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.twoPhase {
		g.jobs[id-1].lost = true
	}
}

func (g *chaosGitLab) cancel(id int64, force bool) {
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

func (g *chaosGitLab) set(trouble, down bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trouble, g.down = trouble, down
}

func (g *chaosGitLab) allOver() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, j := range g.jobs {
		if !j.over() {
			return false
		}
	}
	return true
}

var errNoAnswer = errors.New("no answer")

// request is a request's way to GitLab and back.
func (g *chaosGitLab) request(ctx context.Context, serve func() client.Report) (client.Report, error) {
	select {
	case <-time.After(g.dice.wait(200 * time.Millisecond)):
	case <-ctx.Done():
		return client.Report{}, ctx.Err()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.down && g.dice.in(2):
		return client.Report{}, errNoAnswer
	case g.down:
		return client.Report{Code: http.StatusBadGateway}, nil
	case g.trouble && g.dice.in(6):
		codes := []int{http.StatusInternalServerError, http.StatusTooManyRequests, http.StatusConflict, http.StatusUnauthorized}
		return client.Report{Code: codes[g.dice.n(len(codes))]}, nil
	}
	r := serve()
	if g.trouble && g.dice.in(6) {
		return client.Report{}, errNoAnswer
	}
	return r, nil
}

func (g *chaosGitLab) UpdateJob(ctx context.Context, id int64, u runnerapi.UpdateRequest) (*client.UpdateResult, error) {
	r, err := g.request(ctx, func() client.Report {
		j := g.jobs[id-1]
		code := j.update(u)
		return client.Report{Code: code, JobStatus: j.status}
	})
	return &client.UpdateResult{Report: r}, err
}

func (j *chaosJob) update(u runnerapi.UpdateRequest) int {
	waits := !j.waiting.IsZero() && time.Since(j.waiting) < ackExpiry
	runs := j.status == runnerapi.StateRunning || j.status == runnerapi.StateCanceling
	switch {
	case !waits && !runs:
		return http.StatusForbidden
	case waits && u.State == runnerapi.StatePending:
		j.waiting = time.Now()
	case waits && u.State == runnerapi.StateRunning:
		j.status, j.waiting = runnerapi.StateRunning, time.Time{}
	case waits || u.State == runnerapi.StatePending:
		return http.StatusBadRequest
	case u.State == runnerapi.StateRunning:
	default:
		j.results++
		j.last = u
		if j.status == runnerapi.StateCanceling {
			j.status = runnerapi.StateCanceled
		} else {
			j.status = u.State
		}
	}
	return http.StatusOK
}

func (g *chaosGitLab) PatchTrace(ctx context.Context, id int64, _ string, start int64, body client.TraceBody, _ bool) (*client.PatchResult, error) {
	have := int64(0)
	r, err := g.request(ctx, func() client.Report {
		j := g.jobs[id-1]
		have = int64(len(j.trace))
		report := client.Report{Code: http.StatusForbidden, JobStatus: j.status}
		switch {
		case j.status != runnerapi.StateRunning && j.status != runnerapi.StateCanceling:
		case start != have:
			report.Code = http.StatusRequestedRangeNotSatisfiable
		default:
			data, err := io.ReadAll(io.NewSectionReader(body, 0, body.Size()))
			if err != nil {
				return client.Report{Code: http.StatusInternalServerError}
			}
			j.trace = append(j.trace, data...)
			have = int64(len(j.trace))
			report.Code = http.StatusAccepted
		}
		return report
	})
	return &client.PatchResult{Report: r, Range: have}, err
}

func (j *chaosJob) String() string {
	return fmt.Sprintf("job %d: %s (%s), %d results, waiting since %s", j.id, j.status, j.last.FailureReason, j.results, j.waiting)
}
