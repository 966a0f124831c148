package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/supervisor"
	"github.com/switchyard-ci/switchyard/agent/uplink"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

const (
	// welcomePatience is how long the control plane may take to answer Hello.
	welcomePatience = 30 * time.Second
	// slowRetry is the pace of attempts that only a person's doing can make succeed.
	slowRetry = time.Minute
	// steady is how long a session must have lasted for the next attempt to come quickly.
	steady = 10 * time.Second
	// goodbye is how long a leaving agent waits for its last messages to be sent.
	goodbye = time.Second
	// idlePeriod is how often the agent looks after itself while there is no session.
	idlePeriod = 10 * time.Second
	// remind is how often a draining agent says what it waits for.
	remind = time.Minute
)

// loop is the agent's one goroutine of decisions. It owns all that is below; others send it events.
type loop struct {
	*Agent
	ctx    context.Context // of Run
	ledger *ledger.Ledger
	jobs   map[ledger.Ref]*supervisor.Job

	link      *link // nil: no session
	session   *session
	connected chan dialed
	retry     *time.Timer
	backoff   uplink.Backoff
	comeBack  time.Duration
	told      told

	lease    lease
	tick     *time.Ticker
	silence  *time.Timer // of the control plane
	patience *time.Timer // with offers that wait for a slot

	full     error // the disk's; nil while there is room
	leaving  bool  // Drain
	hurrying bool  // CancelJobs
	swept    bool  // the executors were told to remove what jobs of earlier runs left
	drained  string
	reminder *time.Ticker
	renewal  renewal
}

type dialed struct {
	link *link
	err  error
}

func newLoop(ctx context.Context, a *Agent) *loop {
	return &loop{
		Agent: a, ctx: ctx, ledger: ledger.New(a.config.Slots), jobs: make(map[ledger.Ref]*supervisor.Job),
		connected: make(chan dialed), retry: time.NewTimer(0),
		backoff:  uplink.Backoff{First: 100 * time.Millisecond, Most: 30 * time.Second},
		reminder: stopped(), lease: newLease(), renewal: newRenewal(a.identity.RenewAt()),
		tick: time.NewTicker(idlePeriod), silence: stoppedTimer(), patience: stoppedTimer(),
	}
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

func stopped() *time.Ticker {
	t := time.NewTicker(time.Hour)
	t.Stop()
	return t
}

// run serves until the agent is drained or ctx ends.
func (l *loop) run() {
	defer l.stop()
	l.checkRoom()
	draining, cancelling := l.draining, l.cancelling
	for {
		var (
			in   <-chan *fleetv1.SessionResponse
			done <-chan error
		)
		if l.link != nil {
			in, done = l.link.in, l.link.done
		}
		select {
		case <-l.ctx.Done():
			return
		case e := <-l.events:
			l.happened(e)
		case m := <-in:
			l.message(m)
		case err := <-done:
			l.lastMessages()
			l.disconnect(err)
		case <-l.retry.C:
			l.connect()
		case d := <-l.connected:
			l.opened(d)
		case <-l.tick.C:
			l.ticked()
		case <-l.silence.C:
			l.listen()
		case now := <-l.patience.C:
			l.apply(l.ledger.Tick(now))
			l.watchOffers()
		case <-l.lease.timer.C:
			l.lapsed()
		case <-l.renewal.timer.C:
			l.renew()
		case err := <-l.renewal.done:
			l.renewed(err)
		case <-draining:
			draining = nil
			l.drain()
		case <-cancelling:
			cancelling = nil
			l.hurry()
		case <-l.reminder.C:
			l.remind()
		}
		if l.mayLeave() {
			l.log.Info("leaving: nothing is left to do")
			return
		}
	}
}

// lastMessages handles what came before the link broke: it may say when to come back.
func (l *loop) lastMessages() {
	for {
		select {
		case m := <-l.link.in:
			l.message(m)
		default:
			return
		}
	}
}

// stop ends what the loop has started.
func (l *loop) stop() {
	l.retry.Stop()
	l.tick.Stop()
	l.silence.Stop()
	l.patience.Stop()
	l.reminder.Stop()
	l.lease.timer.Stop()
	l.renewal.timer.Stop()
	if l.link != nil {
		if l.leaving {
			l.log.Debug("left the session", "how", l.link.finish(goodbye))
		}
		l.closeLink()
	}
}

// closeLink ends the connection and all that depends on it.
func (l *loop) closeLink() {
	l.silence.Stop()
	l.current.set(nil)
	if err := l.link.close(); err != nil {
		l.log.Debug("closing", "err", err)
	}
	l.link, l.session = nil, nil
	l.ledger.Disconnected()
}

// happened handles what a job says about itself.
func (l *loop) happened(e supervisor.Event) {
	job := l.jobs[e.Ref]
	if job == nil {
		return
	}
	switch e.Kind {
	case supervisor.Held:
		l.apply(l.ledger.Written(e.Ref))
	case supervisor.Fenced:
		l.log.Info("job started", "job", e.Ref.Job, "epoch", e.Ref.Epoch)
		l.apply(l.ledger.Fenced(e.Ref))
	case supervisor.Finished:
		r := job.Result()
		l.log.Info("job finished", "job", e.Ref.Job, "epoch", e.Ref.Epoch, "state", r.GetState(),
			"reason", r.GetFailureReason(), "exit_code", r.GetExitCode(), "trace", r.GetTraceLength())
		l.apply(l.ledger.Finished(e.Ref))
	case supervisor.Freed:
		l.apply(l.ledger.Freed(e.Ref))
	case supervisor.Gone:
		delete(l.jobs, e.Ref)
		l.apply(l.ledger.Gone(e.Ref))
	}
}

// apply carries out what the ledger decided.
func (l *loop) apply(effects []ledger.Effect) {
	for _, e := range effects {
		switch e.Verb {
		case ledger.Reply:
			l.send(offerReply(e.Ref, true, ""))
		case ledger.Refuse:
			l.log.Info("refused a job", "job", e.Ref.Job, "epoch", e.Ref.Epoch, "reason", e.Reason)
			if l.session != nil {
				delete(l.session.offers, e.Ref)
			}
			l.send(offerReply(e.Ref, false, e.Reason))
		case ledger.Hold:
			l.jobs[e.Ref] = supervisor.Accept(l.ctx, l.Agent.jobs, l.session.offers[e.Ref], l.tasks.Go)
			delete(l.session.offers, e.Ref)
		case ledger.Launch:
			job := l.jobs[e.Ref]
			l.renewLeases()
			job.Launch(l.concurrentIDs(job))
		case ledger.Cancel:
			l.log.Info("cancelling a job", "job", e.Ref.Job, "epoch", e.Ref.Epoch, "mode", e.Mode)
			l.jobs[e.Ref].Cancel(e.Mode)
		case ledger.Discard:
			l.jobs[e.Ref].Discard()
		case ledger.Report:
			l.report(e.Ref, e.State)
		}
	}
}

func (l *loop) report(ref ledger.Ref, state fleetv1.JobState) {
	m := &fleetv1.JobReport{Ref: ref.Proto(), State: state}
	if state == fleetv1.JobState_JOB_STATE_FINISHED {
		m.Result = l.jobs[ref].Result()
	}
	l.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_JobReport{JobReport: m}})
}

// send queues a message if there is a session; without one, Hello will say all that matters.
func (l *loop) send(m *fleetv1.SessionRequest) {
	if l.session != nil && l.session.welcomed {
		l.link.send(m)
	}
}

func offerReply(ref ledger.Ref, accepted bool, reason string) *fleetv1.SessionRequest {
	return &fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_OfferReply{
		OfferReply: &fleetv1.OfferReply{Ref: ref.Proto(), Accepted: accepted, Reason: valid(reason, 1024)},
	}}
}

// valid is at most n bytes of text as the contract takes it.
func valid(text string, n int) string {
	return strings.ToValidUTF8(text[:min(len(text), n)], "")
}

// checkRoom looks at the disk and at what traces take of it; while there is no room, no jobs are taken.
func (l *loop) checkRoom() {
	err := l.room()
	if err == nil {
		err = l.spoolRoom()
	}
	switch {
	case err != nil && l.full == nil:
		l.log.Warn("taking no jobs until there is room", "err", err)
	case err == nil && l.full != nil:
		l.log.Info("there is room again: taking jobs")
	default:
		l.full = err
		return
	}
	l.full = err
	l.sendStatus()
}

// refusing says whether and why the agent takes no jobs.
func (l *loop) refusing() string {
	switch {
	case l.leaving:
		return "the agent is being stopped"
	case l.drained != "":
		return "the control plane drains this agent: " + l.drained
	case l.full != nil:
		return l.full.Error()
	}
	return ""
}

func (l *loop) sendStatus() {
	l.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_AgentStatus{AgentStatus: &fleetv1.AgentStatus{
		Draining: l.refusing() != "", FreeSlots: uint32(max(0, l.ledger.Free())), //nolint:gosec // at most MaxSlots
	}}})
}

// concurrentIDs are the lowest numbers that no other job of the same runner, and of the same runner and project, has on
// this agent: build folders depend on them.
func (l *loop) concurrentIDs(job *supervisor.Job) (id, projectID int) {
	ids, projectIDs := make(map[int]bool), make(map[int]bool)
	for ref, other := range l.jobs {
		if other == job || l.ledger.Phase(ref) < ledger.Started || !l.ledger.Busy(ref) || other.Intent.Runner != job.Intent.Runner {
			continue
		}
		n, m := other.ConcurrentIDs()
		ids[n] = true
		if other.Intent.ProjectID == job.Intent.ProjectID {
			projectIDs[m] = true
		}
	}
	for ids[id] {
		id++
	}
	for projectIDs[projectID] {
		projectID++
	}
	return id, projectID
}

var (
	errSilent    = errors.New("the control plane has not been heard for two ping periods")
	errNoWelcome = errors.New("the control plane does not answer Hello")
)
