package dispatch

import (
	"fmt"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// phase is where a job stands in its way through the fleet. Claimed, offered, accepted, started, finished and reported
// are the states of the protocol; the others are steps between them that only the control plane sees.
type phase int

const (
	confirming phase = iota // after a restart: is the job still ours?
	placing                 // claimed, waits for an agent
	offered                 // an agent was asked
	accepted                // the agent waits for the start; GitLab is being asked
	started                 // the start is durable: nobody else ever gets the job
	finished                // the result is durable, GitLab is being told
	ended                   // nothing is left to do
)

func (p phase) String() string {
	return [...]string{"confirming", "claimed", "offered", "accepted", "started", "finished", "ended"}[p]
}

// cancelMode is how much of a job GitLab wants stopped. It only grows.
type cancelMode int

const (
	cancelNone cancelMode = iota
	cancelGraceful
	cancelKill
)

// Times of a job's life that are nobody's to configure.
const (
	// offerPatience is how long an agent that is online may take to answer an offer.
	offerPatience = 30 * time.Second
	// refusalPause keeps a job from being offered in a circle to agents that refuse it.
	refusalPause = time.Second
	// pendingKeepAlive is how often a job that waits for an agent is confirmed: GitLab's key lives for 120 s
	// (RUNNER_ACK_QUEUE_EXPIRY_TIME in Gitlab::Ci::Build::RunnerAckQueue).
	pendingKeepAlive = 45 * time.Second
	// retryFirst and retryMost bound the wait before GitLab is asked again.
	retryFirst = 250 * time.Millisecond
	retryMost  = 30 * time.Second
)

// lastLine begins the line with which the control plane ends the trace of a job that has no result of its own.
const lastLine = "ERROR: Job failed (system failure): "

// An event is something that happened to a job; the fields of the others are zero.
type event struct {
	kind    eventKind
	epoch   int64  // reply, report: what the agent said
	agent   string // placed, reply, report, up, down
	ok      bool   // reply: accepted
	state   store.JobState
	result  *store.Result
	verdict gitlabVerdict
	cancel  cancelMode
	reason  string
	retry   time.Duration // running, pending: GitLab asked for this wait
}

type eventKind int

const (
	evBegin    eventKind = iota // the driver starts
	evTick                      // wakeAt has come
	evPlaced                    // agent has a slot for the job
	evEpoch                     // epoch was persisted for agent
	evReply                     // the agent answered the offer
	evReport                    // the agent says STARTED or FINISHED
	evUp                        // the agent's session is back; state is what it holds ("" if it does not know the job)
	evDown                      // the agent's session ended
	evLost                      // the agent did not come back within the lease
	evPending                   // answer to PUT state=pending
	evRunning                   // answer to PUT state=running
	evStarted                   // the start is persisted and the trace is open
	evFinished                  // the result is persisted
	evCancel                    // GitLab wants the job stopped
	evReported                  // GitLab has the result, or wants nothing more
)

// gitlabVerdict is what an answer of GitLab's to PUT means for a job that has not started.
type gitlabVerdict int

const (
	verdictOK      gitlabVerdict = iota // 200
	verdictRunning                      // 400 to pending: the job already runs, there is no two-phase commit
	verdictGone                         // 403, 404, 400 to running, canceled: not ours any more
	verdictRetry                        // 409, 429, 5xx, no answer
)

// An action is something that the driver does, in order, before the next event.
type action struct {
	kind   actionKind
	agent  string
	state  store.JobState
	result store.Result
	cancel cancelMode
	reason string
}

type actionKind int

const (
	actPlace       actionKind = iota // ask for a slot; answered by evPlaced
	actStopPlace                     // the slot is not wanted any more
	actReoffer                       // persist the next epoch for agent; answered by evEpoch
	actOffer                         // send the offer
	actWithdraw                      // tell agent that the offer or the accepted job is off
	actRelease                       // give the slot back
	actPending                       // PUT state=pending; answered by evPending
	actRun                           // PUT state=running; answered by evRunning
	actStart                         // persist the start, open the trace; answered by evStarted
	actSendStart                     // tell the agent to begin
	actSendCancel                    // tell the agent to stop
	actAck                           // tell the agent that its report is durable
	actDropPayload                   // nobody needs the payload any more
	actFinish                        // persist the result; answered by evFinished
	actReport                        // let the relay report the result; answered by evReported
	actLoss                          // like actReport, with what is here of the trace and a last line that says why
	actAbandon                       // the relay is to stop: GitLab wants nothing more
	actDelete                        // forget the job
	actForget                        // tell the agent to delete what it holds
)

// life is the state machine of one job's dispatch, without clocks, locks and I/O: step takes what happened and says what
// to do. The driver owns it; it is not safe for concurrent use.
//
// Its promises: actStart is ordered at most once, and only after GitLab's 200 for the epoch that the agent accepted;
// after actStart the epoch never changes; actFinish is ordered at most once; a job always ends if its agent and GitLab
// answer or are given up.
type life struct {
	phase  phase
	epoch  int64
	agent  string // holder of the epoch and of a slot
	online bool
	offers int // how many epochs were offered

	cancel cancelMode
	result *store.Result

	asked      bool // a slot was asked for
	confirmed  bool // GitLab says that the job is running, so keep-alives are touches
	bound      bool // epoch is persisted for agent already
	unreported bool // GitLab wants nothing more of the job
	payload    bool // the payload may still be needed

	wakeAt    time.Time // next evTick; zero for none
	retries   int
	lostText  string // the trace's last line if the job ended without a result of the agent's
	truncated bool   // nobody will send more of the trace
	slot      bool   // a slot is held on agent
}

// step applies an event. now is the time of the event.
func (l *life) step(now time.Time, ev event) []action {
	if l.phase == ended {
		return nil
	}
	switch ev.kind {
	case evBegin:
		return l.begin(now)
	case evTick:
		return l.tick(now)
	case evPlaced:
		return l.placed(now, ev)
	case evEpoch:
		l.epoch, l.bound = ev.epoch, true
		return l.offer(now)
	case evReply:
		return l.reply(now, ev)
	case evReport:
		return l.report(ev)
	case evUp:
		return l.up(ev)
	case evDown:
		return l.down(now, ev)
	case evLost:
		return l.lost(ev)
	case evPending:
		return l.pending(now, ev)
	case evRunning:
		return l.running(now, ev)
	case evStarted:
		return l.begun()
	case evFinished:
		return l.done()
	case evCancel:
		return l.stop(ev.cancel, ev.reason)
	case evReported:
		return l.gone()
	}
	panic(fmt.Sprintf("dispatch: unknown event %d", ev.kind))
}

func (l *life) begin(now time.Time) []action {
	switch l.phase {
	case confirming:
		return []action{{kind: actPending}}
	case placing:
		if l.slot { // the claim came with a slot
			return l.offer(now)
		}
		return l.place(now)
	case finished:
		return []action{{kind: actReport}}
	}
	return nil
}

// place asks for an agent and keeps GitLab's patience up meanwhile.
func (l *life) place(now time.Time) []action {
	l.phase, l.agent, l.bound = placing, "", false
	l.asked = true
	l.wakeAt = now.Add(pendingKeepAlive)
	return []action{{kind: actPlace}}
}

// replace gives the slot back and looks for another agent after a pause.
func (l *life) replace(now time.Time, pause time.Duration) []action {
	acts := l.release()
	l.phase, l.agent, l.bound, l.asked = placing, "", false, false
	if pause > 0 {
		l.wakeAt = now.Add(pause)
		return acts
	}
	return append(acts, l.place(now)...)
}

func (l *life) placed(now time.Time, ev event) []action {
	l.asked = false
	if l.phase != placing || l.slot {
		return []action{{kind: actRelease, agent: ev.agent}}
	}
	l.slot, l.agent, l.online = true, ev.agent, true
	if l.bound && l.offers == 0 {
		return l.offer(now)
	}
	return []action{{kind: actReoffer, agent: ev.agent}}
}

func (l *life) offer(now time.Time) []action {
	if l.phase != placing {
		return nil
	}
	if !l.online {
		return l.replace(now, 0)
	}
	l.phase = offered
	l.offers++
	l.wakeAt = now.Add(offerPatience)
	return []action{{kind: actOffer, agent: l.agent}}
}

func (l *life) reply(now time.Time, ev event) []action {
	if l.phase != offered || ev.epoch != l.epoch || ev.agent != l.agent {
		return nil // late, repeated or of another attempt
	}
	if !ev.ok {
		return l.replace(now, refusalPause)
	}
	l.phase = accepted
	l.retries = 0
	l.wakeAt = time.Time{}
	return []action{{kind: actRun}}
}

func (l *life) tick(now time.Time) []action {
	l.wakeAt = time.Time{}
	switch l.phase {
	case confirming:
		return []action{{kind: actPending}}
	case placing:
		if !l.asked && !l.slot {
			return l.place(now)
		}
		l.wakeAt = now.Add(pendingKeepAlive)
		if l.confirmed {
			return []action{{kind: actRun}}
		}
		return []action{{kind: actPending}}
	case offered:
		acts := []action{{kind: actWithdraw, agent: l.agent, reason: "the offer was not answered in time"}}
		return append(acts, l.replace(now, refusalPause)...)
	case accepted:
		return []action{{kind: actRun}}
	}
	return nil
}

func (l *life) pending(now time.Time, ev event) []action {
	switch ev.verdict {
	case verdictGone:
		return l.drop(ev.reason)
	case verdictRunning:
		l.confirmed = true
	case verdictRetry:
		if l.phase == confirming {
			l.wakeAt = now.Add(l.backoff(ev.retry))
		}
		return nil
	}
	l.retries = 0
	if l.phase == confirming {
		return l.place(now)
	}
	return nil
}

func (l *life) running(now time.Time, ev event) []action {
	if ev.verdict == verdictGone {
		return l.drop(ev.reason)
	}
	if ev.cancel > l.cancel {
		l.cancel = ev.cancel
	}
	if ev.verdict == verdictOK {
		l.confirmed = true
		l.retries = 0
	}
	if l.phase != accepted {
		return nil // a touch while the job waits for another agent
	}
	if ev.verdict != verdictOK {
		l.wakeAt = now.Add(l.backoff(ev.retry))
		return nil
	}
	if l.cancel != cancelNone {
		return l.refuse("the job was canceled before it started", runnerapi.ReasonCanceled)
	}
	if !l.online {
		return l.replace(now, 0)
	}
	l.phase = started
	l.wakeAt = time.Time{}
	return []action{{kind: actStart}}
}

// refuse finishes a job that no agent has begun: GitLab has it as running, so it needs a result.
func (l *life) refuse(why string, reason runnerapi.FailureReason) []action {
	var acts []action
	if l.asked {
		l.asked = false
		acts = append(acts, action{kind: actStopPlace})
	}
	if l.agent != "" {
		acts = append(acts, action{kind: actWithdraw, agent: l.agent, reason: why})
	}
	acts = append(acts, l.release()...)
	l.phase, l.truncated = finished, true
	l.lostText = lastLine + why
	l.wakeAt = time.Time{}
	r := store.Result{State: runnerapi.StateFailed, FailureReason: string(reason), Message: why}
	l.result = &r
	return append(acts, action{kind: actFinish, result: r})
}

// drop forgets a job that is not ours any more and that never started.
func (l *life) drop(reason string) []action {
	var acts []action
	if l.asked {
		l.asked = false
		acts = append(acts, action{kind: actStopPlace})
	}
	if l.agent != "" && (l.phase == offered || l.phase == accepted) {
		acts = append(acts, action{kind: actWithdraw, agent: l.agent, reason: reason})
	}
	acts = append(acts, l.release()...)
	l.phase = ended
	l.wakeAt = time.Time{}
	return append(acts, action{kind: actDelete, reason: reason})
}

func (l *life) begun() []action {
	if l.phase != started {
		return nil
	}
	if l.cancel == cancelKill {
		// GitLab took the job back while the start was written: the agent has not begun.
		acts := []action{{kind: actWithdraw, agent: l.agent, reason: "GitLab wants nothing more of the job"}}
		acts = append(acts, l.release()...)
		l.phase = ended
		return append(acts, action{kind: actAbandon}, action{kind: actDelete, reason: "canceled before it began"})
	}
	if !l.online {
		return nil // sent when the agent is back
	}
	acts := []action{{kind: actSendStart, agent: l.agent}}
	if l.cancel != cancelNone {
		acts = append(acts, action{kind: actSendCancel, agent: l.agent, cancel: l.cancel})
	}
	return acts
}

func (l *life) report(ev event) []action {
	if ev.epoch != l.epoch || ev.agent != l.agent && l.phase != finished {
		return nil
	}
	switch {
	case ev.state == store.JobStarted && (l.phase == started || l.phase == finished):
		acts := []action{{kind: actAck, agent: ev.agent, state: store.JobStarted}}
		if l.payload {
			l.payload = false
			acts = append(acts, action{kind: actDropPayload})
		}
		return acts
	case ev.state == store.JobFinished && l.phase == started:
		l.phase = finished
		l.result = ev.result
		acts := l.release()
		return append(acts, action{kind: actFinish, result: *ev.result})
	case ev.state == store.JobFinished && l.phase == finished:
		return []action{{kind: actAck, agent: ev.agent, state: store.JobFinished}}
	}
	return nil
}

func (l *life) done() []action {
	if l.phase != finished {
		return nil
	}
	var acts []action
	if l.agent != "" {
		acts = append(acts, action{kind: actAck, agent: l.agent, state: store.JobFinished})
	}
	if l.unreported {
		return append(acts, l.bury()...)
	}
	if l.lostText != "" {
		return append(acts, action{kind: actLoss, reason: l.lostText})
	}
	return append(acts, action{kind: actReport})
}

// gone: the relay is done with the job, in good or in bad.
func (l *life) gone() []action {
	if l.phase == finished {
		return l.bury()
	}
	// GitLab refused the job while it runs: stop it, there is nobody to report to.
	l.unreported = true
	return l.stop(cancelKill, "GitLab wants nothing more of the job")
}

func (l *life) bury() []action {
	l.phase = ended
	l.wakeAt = time.Time{}
	acts := []action{{kind: actDelete, reason: "reported"}}
	if l.agent != "" {
		acts = append(acts, action{kind: actForget, agent: l.agent})
	}
	return acts
}

func (l *life) stop(mode cancelMode, reason string) []action {
	if mode <= l.cancel {
		return nil
	}
	l.cancel = mode
	switch l.phase {
	case confirming, placing, offered:
		if mode == cancelKill {
			return l.drop(reason)
		}
	case started:
		if l.online {
			return []action{{kind: actSendCancel, agent: l.agent, cancel: mode, reason: reason}}
		}
	}
	return nil // accepted: the answer to PUT running decides; finished: too late
}

// up: the agent's session is (back) here and says what it holds of the job.
func (l *life) up(ev event) []action {
	if ev.agent != l.agent {
		return nil
	}
	l.online = true
	if ev.state == "" {
		return l.lost(event{reason: ev.reason})
	}
	if l.phase != started {
		return nil
	}
	var acts []action
	if ev.state == store.JobClaimed { // accepted there, the start did not reach it
		acts = append(acts, action{kind: actSendStart, agent: l.agent})
	}
	if l.cancel != cancelNone {
		acts = append(acts, action{kind: actSendCancel, agent: l.agent, cancel: l.cancel})
	}
	return acts
}

func (l *life) down(now time.Time, ev event) []action {
	if ev.agent != l.agent {
		return nil
	}
	l.online = false
	switch l.phase {
	case offered:
		return l.replace(now, 0)
	case accepted:
		if l.wakeAt.IsZero() {
			return nil // PUT running is under way; its answer finds the agent gone
		}
		return l.replace(now, 0)
	}
	return nil
}

// lost: the agent will not be heard of again, or has lost what it held.
func (l *life) lost(ev event) []action {
	if l.phase == finished && !l.truncated {
		// The result stands; only the relay knows whether bytes of the trace are still missing.
		l.truncated = true
		return []action{{kind: actLoss, reason: "WARNING: the rest of this trace is lost: " + ev.reason}}
	}
	if l.phase != started {
		return nil
	}
	l.phase, l.truncated = finished, true
	l.lostText = lastLine + ev.reason
	r := store.Result{State: runnerapi.StateFailed, FailureReason: string(runnerapi.ReasonRunnerSystem), Message: ev.reason}
	l.result = &r
	acts := l.release()
	return append(acts, action{kind: actFinish, result: r})
}

func (l *life) release() []action {
	if !l.slot {
		return nil
	}
	l.slot = false
	return []action{{kind: actRelease, agent: l.agent}}
}

func (l *life) backoff(asked time.Duration) time.Duration {
	wait := min(retryFirst<<min(l.retries, 10), retryMost)
	l.retries++
	return max(wait, asked)
}
