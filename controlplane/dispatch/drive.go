package dispatch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/switchyard-ci/switchyard/controlplane/relay"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// job is one job that is here. All but row, runner and wake is guarded by the dispatcher's lock.
type job struct {
	d      *Dispatcher
	row    store.Job // as it was stored first; life has the current epoch
	runner *runner
	wake   chan struct{} // capacity 1

	life  life
	lease *lease
	todo  []action // what the driver still has to do; the first is being done
	timer *time.Timer
	begun time.Time // when the agent said that it runs
}

// maxTodo bounds what repeated reports of an agent can queue.
const maxTodo = 64

func (d *Dispatcher) newJob(row store.Job, r *runner) *job {
	return &job{d: d, row: row, runner: r, wake: make(chan struct{}, 1)}
}

// beginLocked starts a job's driver and its state machine.
func (d *Dispatcher) beginLocked(j *job) {
	if d.closed {
		return
	}
	d.drivers.Go(func() { d.drive(d.stopping, j) })
	d.applyLocked(j, event{kind: evBegin})
}

// applyLocked lets a job's state machine take an event and does what it asks for: at once what only concerns memory,
// by the driver what takes time and whatever stands behind that.
func (d *Dispatcher) applyLocked(j *job, ev event) {
	if d.closed {
		return
	}
	for _, a := range j.life.step(time.Now(), ev) {
		if len(j.todo) == 0 && !a.kind.takesTime() {
			d.doLocked(j, a)
		} else if len(j.todo) < maxTodo || a.kind != actAck {
			j.todo = append(j.todo, a)
		}
	}
	j.rearm()
	if len(j.todo) > 0 || j.life.phase == ended {
		select {
		case j.wake <- struct{}{}:
		default:
		}
	}
}

// rearm sets the timer to life.wakeAt.
func (j *job) rearm() {
	if j.timer != nil {
		j.timer.Stop()
		j.timer = nil
	}
	if at := j.life.wakeAt; !at.IsZero() {
		j.timer = time.AfterFunc(time.Until(at), func() {
			j.d.mu.Lock()
			defer j.d.mu.Unlock()
			if j.life.wakeAt.Equal(at) {
				j.d.applyLocked(j, event{kind: evTick})
			}
		})
	}
}

// drive does a job's slow work, one action after the other, until the job has ended.
func (d *Dispatcher) drive(ctx context.Context, j *job) {
	for {
		d.mu.Lock()
		if len(j.todo) == 0 {
			over := j.life.phase == ended
			if over {
				d.removeLocked(j)
			}
			d.mu.Unlock()
			if over {
				return
			}
			select {
			case <-j.wake:
			case <-ctx.Done():
				return
			}
			continue
		}
		a := j.todo[0]
		if !a.kind.takesTime() {
			d.doLocked(j, a)
			j.todo = slices.Delete(j.todo, 0, 1)
			d.mu.Unlock()
			continue
		}
		epoch := j.life.epoch
		d.mu.Unlock()
		ev, ok := d.perform(ctx, j, epoch, a)
		if ctx.Err() != nil {
			return
		}
		d.mu.Lock()
		j.todo = slices.Delete(j.todo, 0, 1)
		if ok {
			d.applyLocked(j, ev)
		}
		d.mu.Unlock()
	}
}

// removeLocked forgets a job that has ended.
func (d *Dispatcher) removeLocked(j *job) {
	if j.timer != nil {
		j.timer.Stop()
	}
	d.stopPlacingLocked(j)
	d.releaseJobLocked(j)
	delete(d.jobs, j.row.ID)
	if a := d.agents[j.life.agent]; a != nil {
		d.unbindLocked(j, a)
	}
	if _, ok := j.runner.jobs[j.row.ID]; ok {
		delete(j.runner.jobs, j.row.ID)
		d.queueLocked(j.runner)
	}
}

func (k actionKind) takesTime() bool {
	switch k {
	case actReoffer, actPending, actRun, actStart, actFinish, actReport, actLoss, actAbandon, actDelete:
		return true
	}
	return false
}

// doLocked does what only concerns memory.
func (d *Dispatcher) doLocked(j *job, a action) {
	ref := &fleetv1.JobRef{Job: j.row.ID, Epoch: j.life.epoch}
	to := d.agents[a.agent]
	switch a.kind {
	case actPlace:
		j.runner.pool.jobs = append(j.runner.pool.jobs, j)
		d.serveLocked(j.runner.pool)
	case actStopPlace:
		d.stopPlacingLocked(j)
	case actRelease:
		d.releaseJobLocked(j)
		if j.life.phase == placing && to != nil {
			d.unbindLocked(j, to)
		}
		if j.life.phase == finished {
			delete(j.runner.jobs, j.row.ID)
			d.queueLocked(j.runner)
		}
	case actOffer:
		to.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Offer{Offer: j.offer(ref)}})
	case actWithdraw:
		to.sendWithdraw(ref, a.reason)
	case actSendStart:
		to.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Start{Start: &fleetv1.Start{Ref: ref}}})
	case actSendCancel:
		to.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Cancel{
			Cancel: &fleetv1.Cancel{Ref: ref, Mode: a.cancel.proto(), Reason: a.reason},
		}})
	case actAck:
		if a.state == store.JobStarted && j.begun.IsZero() {
			j.begun = time.Now()
		}
		to.sendAck(ref, a.state)
	case actForget:
		to.sendForget(ref)
	case actDropPayload:
		d.cfg.Store.DropPayload(j.row.ID)
	}
}

func (d *Dispatcher) stopPlacingLocked(j *job) {
	if i := slices.Index(j.runner.pool.jobs, j); i >= 0 {
		j.runner.pool.jobs = slices.Delete(j.runner.pool.jobs, i, i+1)
	}
}

func (d *Dispatcher) releaseJobLocked(j *job) {
	if l := j.lease; l != nil {
		j.lease = nil
		d.releaseLocked(l)
	}
}

func (d *Dispatcher) bindLocked(j *job, a *agent) { a.jobs[j.row.ID] = j }

func (d *Dispatcher) unbindLocked(j *job, a *agent) {
	if a.jobs[j.row.ID] == j {
		delete(a.jobs, j.row.ID)
		d.forgetLocked(a)
	}
}

// perform does what takes time. It returns the event that the action is answered by, if it has one.
func (d *Dispatcher) perform(ctx context.Context, j *job, epoch int64, a action) (event, bool) {
	id := j.row.ID
	switch a.kind {
	case actReoffer:
		next, err := insist(ctx, d, j, "persist the next offer", func() (int64, error) {
			return d.cfg.Store.Reoffer(ctx, id, epoch, a.agent)
		})
		if err != nil {
			return event{kind: evReported}, true
		}
		return event{kind: evEpoch, epoch: next}, true
	case actPending:
		return d.askGitLab(ctx, j, runnerapi.StatePending), true
	case actRun:
		return d.askGitLab(ctx, j, runnerapi.StateRunning), true
	case actStart:
		if _, err := insist(ctx, d, j, "persist the start", func() (struct{}, error) {
			return struct{}{}, d.cfg.Store.StartJob(ctx, id, epoch, time.Now())
		}); err != nil {
			return event{kind: evLost, reason: err.Error()}, true
		}
		if _, err := insist(ctx, d, j, "open the trace", func() (relay.Progress, error) {
			return d.relay.Open(id, epoch, j.target())
		}); err != nil {
			return event{kind: evLost, reason: err.Error()}, true
		}
		return event{kind: evStarted}, true
	case actFinish:
		// A result that cannot be stored is still reported: GitLab is the better place for it anyway.
		_, _ = insist(ctx, d, j, "persist the result", func() (struct{}, error) {
			return struct{}{}, d.cfg.Store.FinishJob(ctx, id, epoch, a.result)
		})
		return event{kind: evFinished}, true
	case actReport:
		d.report(ctx, j, epoch, func() error { return d.relay.Finish(id, epoch, *j.result()) })
	case actLoss:
		d.report(ctx, j, epoch, func() error {
			return d.relay.Fail(id, epoch, *j.result(), a.reason)
		})
	case actAbandon:
		d.relay.Forget(id)
	case actDelete:
		d.relay.Forget(id)
		if _, err := insist(ctx, d, j, "forget the job", func() (struct{}, error) {
			return struct{}{}, d.cfg.Store.DeleteJob(ctx, id)
		}); err == nil {
			d.log.Debug("job done", "job", id, "gitlab_job", j.row.GitLabJobID, "runner", j.runner.Name, "why", a.reason)
		}
	}
	return event{}, false
}

func (j *job) result() *store.Result {
	j.d.mu.Lock()
	defer j.d.mu.Unlock()
	return j.life.result
}

// report hands a result to the relay, which answers by Reported. The trace is opened first: a job that failed before its
// start has none yet.
func (d *Dispatcher) report(ctx context.Context, j *job, epoch int64, finish func() error) {
	_, err := insist(ctx, d, j, "report the result", func() (struct{}, error) {
		if _, err := d.relay.Open(j.row.ID, epoch, j.target()); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, finish()
	})
	if err != nil && ctx.Err() == nil {
		d.Reported(j.row.ID, relay.OutcomeRefused)
	}
}

// insist repeats what must not fail - a full disk is waited for - until it works, the control plane stops, or the error
// is one that no repetition mends.
func insist[T any](ctx context.Context, d *Dispatcher, j *job, what string, do func() (T, error)) (T, error) {
	wait := retryFirst
	for {
		v, err := do()
		if err == nil || ctx.Err() != nil {
			return v, err
		}
		if errors.Is(err, store.ErrStale) || errors.Is(err, store.ErrNotFound) || errors.Is(err, relay.ErrClosed) || errors.Is(err, relay.ErrStale) {
			d.log.Error("a job is in an impossible state", "job", j.row.ID, "while", what, "error", err)
			return v, fmt.Errorf("%s: %w", what, err)
		}
		d.log.Error("cannot go on with a job, trying again", "job", j.row.ID, "while", what, "error", err, "wait", wait)
		pause := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return v, ctx.Err()
		}
		wait = min(2*wait, retryMost)
	}
}

// askGitLab sends a PUT for a job that has not started and says what the answer means.
func (d *Dispatcher) askGitLab(ctx context.Context, j *job, state string) event {
	ev := event{kind: evRunning}
	if state == runnerapi.StatePending {
		ev.kind = evPending
	}
	res, err := j.runner.GitLab.UpdateJob(ctx, j.row.GitLabJobID, runnerapi.UpdateRequest{
		Info: d.Info(j.runner.Name), Token: j.row.Token, State: state,
	})
	if err != nil {
		d.log.Warn("GitLab did not answer", "job", j.row.ID, "gitlab_job", j.row.GitLabJobID, "state", state, "error", err)
		ev.verdict = verdictRetry
		return ev
	}
	ev.retry = res.RetryAfter
	switch res.JobStatus {
	case runnerapi.StateCanceled, runnerapi.StateFailed:
		ev.verdict, ev.reason = verdictGone, fmt.Sprintf("GitLab says that the job is %s", res.JobStatus)
		return ev
	case runnerapi.StateCanceling:
		ev.cancel = cancelGraceful
	}
	switch {
	case res.Code == http.StatusOK:
		ev.verdict = verdictOK
	case res.Code == http.StatusBadRequest && state == runnerapi.StatePending:
		ev.verdict = verdictRunning
	case res.Code == http.StatusBadRequest, res.Code == http.StatusForbidden, res.Code == http.StatusNotFound:
		ev.verdict, ev.reason = verdictGone, fmt.Sprintf("GitLab answered %d to state=%s", res.Code, state)
	default:
		ev.verdict = verdictRetry
	}
	if ev.verdict == verdictGone {
		d.log.Info("a job is not ours any more", "job", j.row.ID, "gitlab_job", j.row.GitLabJobID, "why", ev.reason)
	}
	return ev
}

func (j *job) target() relay.Target {
	return relay.Target{
		Instance: j.runner.URL, GitLab: j.runner.GitLab, JobID: j.row.GitLabJobID, Token: j.row.Token,
		Info:        func() runnerapi.Info { return j.d.Info(j.runner.Name) },
		OutputLimit: j.runner.OutputLimit, Debug: j.row.Envelope.DebugTrace,
	}
}

func (j *job) offer(ref *fleetv1.JobRef) *fleetv1.Offer {
	e := j.row.Envelope
	facts := &fleetv1.RunnerFacts{Name: j.runner.Name, ShortToken: j.runner.ShortToken, SystemId: j.runner.SystemID}
	if j.runner.ID != nil {
		facts.Id = j.runner.ID()
	}
	return &fleetv1.Offer{
		Ref: ref, Executor: j.runner.Executor, OutputLimit: j.runner.OutputLimit, Runner: facts,
		Envelope: &fleetv1.Envelope{
			GitlabJobId: j.row.GitLabJobID, GitlabUrl: j.row.GitLabURL, ProjectId: e.ProjectID, ProjectPath: e.ProjectPath,
			JobName: e.JobName, Stage: e.Stage, Ref: e.Ref, Protected: e.Protected,
			Timeout: durationpb.New(e.Timeout), PipelineId: e.PipelineID,
		},
	}
}

// JobStatus implements relay.Events.
func (d *Dispatcher) JobStatus(id int64, status string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	j := d.jobs[id]
	if j == nil {
		return
	}
	switch status {
	case relay.StatusCanceling:
		d.applyLocked(j, event{kind: evCancel, cancel: cancelGraceful, reason: "canceled in GitLab"})
	case relay.StatusGone:
		d.applyLocked(j, event{kind: evCancel, cancel: cancelKill, reason: "GitLab wants nothing more of the job"})
	}
}

// Reported implements relay.Events.
func (d *Dispatcher) Reported(id int64, o relay.Outcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if j := d.jobs[id]; j != nil {
		if o != relay.OutcomeAccepted {
			d.log.Warn("GitLab did not take a job's result", "job", id, "gitlab_job", j.row.GitLabJobID, "gone", o == relay.OutcomeGone)
		}
		d.applyLocked(j, event{kind: evReported})
	}
}
