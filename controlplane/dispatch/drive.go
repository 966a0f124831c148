package dispatch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/switchyard-ci/switchyard/controlplane/allocation"
	"github.com/switchyard-ci/switchyard/controlplane/policy"
	"github.com/switchyard-ci/switchyard/controlplane/relay"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// askPatience is how long one PUT of a job that has not started may take.
const askPatience = time.Minute

// tracePatience is how long the acknowledgement of a result waits for the end of the job's trace.
const tracePatience = 10 * time.Second

// job is one job that is here. All but row and runner is guarded by the dispatcher's lock.
type job struct {
	d      *Dispatcher
	row    store.Job // as it was stored first; life has the current epoch
	runner *runner

	life   life
	lease  *lease
	holder *agent // the agent of life

	rank     policy.Ranking // what the policy's rules say
	class    int            // as allocation counts it
	standing standing       // what allocation knows
	told     allocation.Job // the same
	parked   string         // why no agent can have it now; empty if that is not so

	todo    []action // what is still to be done; the first is being done
	driving bool     // somebody is at todo
	timer   *time.Timer
	begun   time.Time // when the agent said that it runs
	whereabouts
	signing *rate.Limiter // of URLs for its caches; nil before the first
}

func (d *Dispatcher) newJob(row store.Job, r *runner, l life) *job {
	l.epoch, l.dice = row.Epoch, rand.Float64
	return &job{d: d, row: row, runner: r, life: l, begun: row.StartedAt}
}

// enterLocked takes a job in.
func (d *Dispatcher) enterLocked(j *job) {
	d.jobs[j.row.ID] = j
	d.known[j.key()] = j
	if j.life.phase < finished {
		j.runner.jobs[j.row.ID] = j
	}
}

// applyLocked lets a job's state machine take an event and does what it asks for: at once what only concerns memory, by
// the driver what takes time and whatever stands behind that.
func (d *Dispatcher) applyLocked(j *job, ev event) {
	if d.closed {
		return
	}
	for _, a := range j.life.step(time.Now(), ev) {
		if len(j.todo) == 0 && !a.kind.takesTime() {
			d.doLocked(j, a)
		} else if len(j.todo) == 0 || !slices.Contains(j.todo[1:], a) { // messages that an agent repeats are queued once
			j.todo = append(j.todo, a)
		}
	}
	if len(j.todo) > 0 && !j.driving {
		j.driving = true
		d.drivers.Go(func() { d.drive(j) })
	}
	j.rearm()
	d.settleLocked(j)
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

// settleLocked sees to it that a job has what its life says that it needs: its agent, its slot, its place among those that
// wait for one.
func (d *Dispatcher) settleLocked(j *job) {
	r := j.runner
	j.bindLocked(d.agents[j.life.agent])
	l := j.lease
	if l != nil && !j.life.slot {
		j.lease = nil
	} else {
		l = nil
	}
	over := false
	if _, ok := r.jobs[j.row.ID]; ok && j.life.phase >= finished {
		delete(r.jobs, j.row.ID)
		over = true
	}
	if j.parked != "" && !j.life.asked {
		j.parked = ""
		delete(r.pool.parked, j)
	}
	was := j.standing
	d.accountLocked(j)
	switch {
	case l != nil:
		d.releaseLocked(l)
	case over, j.standing == queued && was != queued, j.standing == absent && was != absent:
		d.serveRunnerLocked(r)
	}
}

// bindLocked makes a the agent that the job's epoch is for; nil for nobody.
func (j *job) bindLocked(a *agent) {
	old := j.holder
	if old == a {
		return
	}
	j.holder, j.whereabouts = a, whereabouts{}
	if a != nil {
		a.jobs[j.row.ID] = j
		if a.session != nil {
			j.hereLocked(a)
		} else {
			j.awayAt = a.lastSeen
		}
	}
	if old != nil {
		delete(old.jobs, j.row.ID)
		j.d.forgetLocked(old)
	}
}

// drive does a job's slow work, one action after the other, until there is none.
func (d *Dispatcher) drive(j *job) {
	ctx := d.stopping
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(j.todo) > 0 {
		a := j.todo[0]
		if !a.kind.takesTime() {
			d.doLocked(j, a)
			j.todo = j.todo[1:]
			continue
		}
		epoch := j.life.epoch
		d.mu.Unlock()
		ev, ok := d.perform(ctx, j, epoch, a)
		d.mu.Lock()
		if ctx.Err() != nil {
			return
		}
		j.todo = j.todo[1:]
		was := j.runner.twoPhase.state
		if a.kind == actPending {
			j.runner.twoPhase.learn(time.Now(), a, ev.verdict, j.life.ran)
		}
		if ok {
			d.applyLocked(j, ev)
		}
		if j.runner.twoPhase.state != was {
			d.learnedLocked(j.runner)
		}
	}
	j.todo, j.driving = nil, false
	if j.life.phase == ended {
		j.bindLocked(nil)
		delete(d.jobs, j.row.ID)
		if d.known[j.key()] == j {
			delete(d.known, j.key())
		}
	}
}

func (k actionKind) takesTime() bool {
	switch k {
	case actReoffer, actPending, actRun, actStart, actAdopt, actFinish, actReport, actLoss, actDelete:
		return true
	}
	return false
}

// doLocked does what only concerns memory.
func (d *Dispatcher) doLocked(j *job, a action) {
	ref := &fleetv1.JobRef{Job: j.row.ID, Epoch: j.life.epoch}
	to := d.agents[a.agent]
	switch a.kind {
	case actOffer:
		to.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Offer{Offer: j.offer(ref)}})
	case actWithdraw:
		to.sendWithdraw(ref, a.reason)
	case actSendStart:
		if j.life.phase == started { // it may have stood behind a start that failed
			to.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Start{Start: &fleetv1.Start{Ref: ref}}})
		}
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

// perform does what takes time. It returns the event that the action is answered by, if it has one.
func (d *Dispatcher) perform(ctx context.Context, j *job, epoch int64, a action) (event, bool) {
	id := j.row.ID
	switch a.kind {
	case actReoffer:
		next, err := insist(ctx, j, "persist the next offer", func() (int64, error) {
			return d.cfg.Store.Reoffer(ctx, id, epoch, a.agent)
		})
		if err != nil {
			return event{kind: evPending, verdict: verdictGone, reason: err.Error()}, true
		}
		return event{kind: evEpoch, epoch: next}, true
	case actPending:
		patience := askPatience
		if a.probe {
			patience = probePatience
		}
		return d.askGitLab(ctx, j, runnerapi.StatePending, patience), true
	case actRun:
		return d.askGitLab(ctx, j, runnerapi.StateRunning, askPatience), true
	case actStart:
		if err := d.start(ctx, j, epoch); err != nil {
			return event{kind: evLost, reason: err.Error()}, true
		}
		return event{kind: evStarted}, true
	case actAdopt:
		if err := d.adopt(ctx, j, a.epoch, epoch, a.agent); err != nil {
			return event{kind: evLost, reason: err.Error()}, true
		}
		return event{kind: evStarted}, true
	case actFinish:
		// A result that cannot be stored is still reported: GitLab is the better place for it anyway. A full disk is not
		// waited for, so the agent keeps the result until GitLab has it.
		saved, _ := insist(ctx, j, "persist the result", func() (bool, error) {
			err := d.stored(d.cfg.Store.FinishJob(ctx, id, epoch, a.result))
			if errors.Is(err, store.ErrFull) {
				return false, nil
			}
			return err == nil, err
		})
		return event{kind: evFinished, ok: saved}, true
	case actReport:
		d.report(ctx, j, epoch, func(r store.Result) error { return d.relay.Finish(id, epoch, r) })
		d.awaitTrace(ctx, j, epoch)
	case actLoss:
		// An agent that seems lost may be with another control plane by now: to write the result, which is there already, is to
		// ask whether this one still leads.
		d.mu.Lock()
		result := *j.life.result
		d.mu.Unlock()
		if err := d.cfg.Store.FinishJob(ctx, id, epoch, result); errors.Is(err, store.ErrFenced) {
			<-ctx.Done()
			return event{}, false
		}
		d.report(ctx, j, epoch, func(r store.Result) error { return d.relay.Fail(id, epoch, r, a.reason) })
	case actDelete:
		d.relay.Forget(id)
		if _, err := insist(ctx, j, "forget the job", func() (struct{}, error) {
			return struct{}{}, d.cfg.Store.DeleteJob(ctx, id)
		}); err == nil {
			d.log.Debug("job done", "job", id, "gitlab_job", j.row.GitLabJobID, "runner", j.runner.Name, "why", a.reason)
		}
	}
	return event{}, false
}

// start persists the start and opens the trace.
func (d *Dispatcher) start(ctx context.Context, j *job, epoch int64) error {
	if _, err := insist(ctx, j, "persist the start", func() (struct{}, error) {
		return struct{}{}, d.stored(d.cfg.Store.StartJob(ctx, j.row.ID, epoch, time.Now()))
	}); err != nil {
		return err
	}
	_, err := insist(ctx, j, "open the trace", func() (struct{}, error) { return struct{}{}, d.openTrace(j, epoch) })
	return err
}

// openTrace opens a job's trace in the relay. A spool of a later epoch than the store knows is not of this job: the store
// is a restored backup, which gives its ids out again.
func (d *Dispatcher) openTrace(j *job, epoch int64) error {
	_, err := d.relay.Open(j.row.ID, epoch, j.target())
	if errors.Is(err, relay.ErrStale) {
		d.log.Error("removing a trace that is not of this job", "job", j.row.ID, "error", err)
		d.relay.Forget(j.row.ID)
		_, err = d.relay.Open(j.row.ID, epoch, j.target())
	}
	return err
}

// report hands the result to the relay, which answers by Reported. The trace is opened first: a job that failed before
// its start has none yet.
func (d *Dispatcher) report(ctx context.Context, j *job, epoch int64, finish func(store.Result) error) {
	d.mu.Lock()
	result := *j.life.result
	d.mu.Unlock()
	_, _ = insist(ctx, j, "report the result", func() (struct{}, error) {
		if err := d.openTrace(j, epoch); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, finish(result)
	})
}

// awaitTrace waits until the whole trace of a finished job is synced, for tracePatience at most: the agent, whose slot is
// free already, keeps what is missing until the job is reported.
func (d *Dispatcher) awaitTrace(ctx context.Context, j *job, epoch int64) {
	patient, cancel := context.WithTimeout(ctx, tracePatience)
	defer cancel()
	if err := d.relay.Await(patient, j.row.ID, epoch); err != nil && ctx.Err() == nil {
		d.log.Info("the end of a finished job's trace is late", "job", j.row.ID, "gitlab_job", j.row.GitLabJobID)
	}
}

// insist repeats what must not fail - a full disk is waited for - until it works, the control plane stops, or the error
// is one that no repetition mends.
func insist[T any](ctx context.Context, j *job, what string, do func() (T, error)) (T, error) {
	wait := retryFirst
	for {
		v, err := do()
		if err == nil || ctx.Err() != nil {
			return v, err
		}
		if errors.Is(err, store.ErrFenced) {
			<-ctx.Done() // the job is another control plane's; this one is about to stop
			return v, ctx.Err()
		}
		log := j.d.log.With("job", j.row.ID, "while", what, "error", err)
		if errors.Is(err, store.ErrStale) || errors.Is(err, store.ErrNotFound) || errors.Is(err, relay.ErrClosed) {
			log.Error("a job is in an impossible state")
			return v, fmt.Errorf("%s: %w", what, err)
		}
		log.Error("cannot go on with a job, trying again", "wait", wait)
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
func (d *Dispatcher) askGitLab(ctx context.Context, j *job, state string, patience time.Duration) event {
	ev := event{kind: evRunning}
	if state == runnerapi.StatePending {
		ev.kind = evPending
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	res, err := j.runner.GitLab.UpdateJob(ctx, j.row.GitLabJobID, runnerapi.UpdateRequest{
		Info: j.info(), Token: j.row.Token, State: state,
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
		Info: j.info, OutputLimit: j.runner.OutputLimit, Debug: j.row.Envelope.DebugTrace,
	}
}

func (j *job) info() runnerapi.Info {
	j.d.mu.Lock()
	defer j.d.mu.Unlock()
	return j.runner.infoLocked()
}

func (j *job) offer(ref *fleetv1.JobRef) *fleetv1.Offer {
	e := j.row.Envelope
	facts := &fleetv1.RunnerFacts{Name: j.runner.Name, SystemId: j.runner.SystemID}
	if j.runner.ShortToken != nil {
		facts.ShortToken = j.runner.ShortToken()
	}
	if j.runner.ID != nil {
		facts.Id = j.runner.ID()
	}
	stopAfter, _ := j.terms()
	return &fleetv1.Offer{
		Ref: ref, Executor: j.runner.Executor, OutputLimit: j.runner.OutputLimit, Runner: facts, StopAfter: durationpb.New(stopAfter),
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
		if j.life.phase == started && !j.life.online {
			d.applyLocked(j, event{kind: evReported}) // there is nobody to wait for
		}
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
