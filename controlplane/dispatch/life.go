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
	confirming phase = iota // is the job still ours? Asked after a restart, and when GitLab did not answer for long
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
	// refusalPause keeps a job from being offered in a circle to agents that refuse it. It doubles up to retryMost.
	refusalPause = time.Second
	// pendingKeepAlive is how often a job that waits for an agent is confirmed: GitLab's key lives for 120 s
	// (RUNNER_ACK_QUEUE_EXPIRY_TIME in Gitlab::Ci::Build::RunnerAckQueue).
	pendingKeepAlive = 45 * time.Second
	// retryFirst and retryMost bound the wait before GitLab is asked again.
	retryFirst = 250 * time.Millisecond
	retryMost  = 30 * time.Second
	// slotPatience is how long an accepted job keeps its slot while GitLab does not answer: others could use it.
	slotPatience = time.Minute
	// probePatience is how long a job's start may wait for GitLab's word about two-phase commit.
	probePatience = 5 * time.Second
)

// lastLine and canceledLine begin the line with which the control plane ends the trace of a job that has no result of its
// own; a user's cancel is no failure of the system.
const (
	lastLine     = "ERROR: Job failed (system failure): "
	canceledLine = "ERROR: Job failed: "
)

// life is the state machine of one job's dispatch, without clocks, locks and I/O: step takes what happened and says what
// to do. Besides its actions it says by asked, slot and agent what the job needs; the driver sees to it that this is so.
// It is not safe for concurrent use.
//
// Its promises: actStart is ordered at most once, and only after GitLab's 200 for the epoch that the agent accepted;
// after actStart the epoch never changes; actFinish is ordered at most once; a job always ends if its agent and GitLab
// answer or are given up.
type life struct {
	phase phase
	epoch int64
	asked bool   // a slot is wanted: answered by evPlaced
	slot  bool   // a slot is held on agent
	agent string // who the epoch is for; "" for nobody
	// online: the session is up in which the agent was or will be asked. A promise does not outlive its session.
	online  bool
	avoided map[string]bool // agents that refused the job: asked again only if nobody else has room

	cancel cancelMode
	result *store.Result

	probe      bool   // the job is to find out whether GitLab has two-phase commit, before it starts
	probing    bool   // that PUT state=pending is under way
	ran        bool   // PUT state=running may have been sent: from then on 400 to pending says nothing of two-phase commit
	confirmed  bool   // GitLab says that the job is running, so keep-alives are touches
	fresh      bool   // the epoch was persisted with the claim and for agent: it can be offered as it is
	unreported bool   // GitLab wants nothing more of the job
	payload    bool   // the payload may still be needed
	truncated  bool   // nobody will send more of the trace
	found      bool   // it was in the store, unstarted, when the control plane was started
	awaits     bool   // the agent that it was meant for then has not been heard of
	adopting   bool   // that an agent has begun it is being written down
	adopted    bool   // an agent had begun it, so it needs nothing more for that
	unsaved    bool   // the store has no room for the result; the agent is not told that it is safe
	hopeless   string // nobody will ever run the job: why; it is accepted in GitLab and then failed

	wakeAt   time.Time      // next evTick; zero for none
	resumeAt time.Time      // placing: no slot is asked for before
	keepAt   time.Time      // placing: GitLab is to hear of the job
	giveUpAt time.Time      // accepted: GitLab is no longer waited for with a slot
	retries  int            // of requests to GitLab
	refusals int            // of offers
	dice     func() float64 // in [0, 1)
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
		return l.placed(ev)
	case evEpoch:
		l.epoch = ev.epoch
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
	case evBegun:
		return l.adopt(ev)
	case evReturned:
		return l.returned(now)
	case evFinished:
		return l.done(ev)
	case evCancel:
		return l.stop(ev.cancel, ev.reason)
	case evReported:
		return l.gone()
	case evHopeless:
		return l.despair(ev.reason)
	}
	panic(fmt.Sprintf("dispatch: unknown event %d", ev.kind))
}

func (l *life) tick(now time.Time) []action {
	l.wakeAt = time.Time{}
	switch l.phase {
	case confirming:
		return []action{l.confirm()}
	case placing:
		return l.wait(now)
	case offered:
		withdraw := action{kind: actWithdraw, agent: l.agent, reason: "the offer was not answered in time"}
		return append([]action{withdraw}, l.refused(now)...)
	case accepted:
		return []action{l.run()}
	}
	return nil
}

func (l *life) pending(now time.Time, ev event) []action {
	probed := l.probing
	l.probing = false
	if acts, over := l.answered(now, ev); over {
		return acts
	}
	switch {
	case l.phase == placing:
		return l.wait(now)
	case l.phase == accepted && probed && l.online:
		return []action{l.run()}
	case l.phase == accepted && probed:
		return l.place(now, 0)
	case l.phase != confirming:
	case ev.verdict == verdictRetry:
		l.wakeAt = now.Add(l.backoff(ev.retry))
	case l.hopeless != "": // that it is accepted is what is waited for
	default:
		return l.place(now, l.patience())
	}
	return nil
}

func (l *life) running(now time.Time, ev event) []action {
	if acts, over := l.answered(now, ev); over {
		return acts
	}
	switch {
	case l.phase == placing: // the job waits for another agent
		return l.wait(now)
	case l.phase == confirming && l.hopeless != "":
		l.wakeAt = now.Add(l.backoff(ev.retry))
		return nil
	case l.phase != accepted:
		return nil
	case !l.online:
		return l.place(now, 0)
	case ev.verdict == verdictOK:
		l.phase = started
		l.wakeAt = time.Time{}
		return []action{{kind: actStart}}
	}
	var acts []action
	if !now.Before(l.giveUpAt) {
		acts = l.withdraw("GitLab does not answer")
		l.phase, l.slot, l.agent = confirming, false, ""
	}
	l.wakeAt = now.Add(l.backoff(ev.retry))
	return acts
}

// answered takes in what any answer of GitLab's may say about a job that has not started. over: that was all.
func (l *life) answered(now time.Time, ev event) (acts []action, over bool) {
	if l.phase >= started {
		return nil, true
	}
	l.cancel = max(l.cancel, ev.cancel)
	switch ev.verdict {
	case verdictGone:
		return l.drop(ev.reason), true
	case verdictOK, verdictRunning:
		l.confirmed = l.confirmed || ev.kind == evRunning || ev.verdict == verdictRunning
		l.retries = 0
		l.keepAt = now.Add(pendingKeepAlive)
	case verdictRetry:
		if l.phase == placing {
			l.keepAt = now.Add(l.backoff(ev.retry))
		}
	}
	if l.confirmed && l.hopeless != "" {
		return l.refuse(l.hopeless, runnerapi.ReasonRunnerSystem), true
	}
	if l.confirmed && l.cancel != cancelNone {
		return l.refuse("the job was canceled before it started", runnerapi.ReasonCanceled), true
	}
	return nil, false
}

func (l *life) begun() []action {
	l.adopting = false
	if l.phase != started {
		return nil
	}
	if l.cancel == cancelKill {
		// GitLab took the job back while the start was written: the agent has not begun.
		withdraw := action{kind: actWithdraw, agent: l.agent, reason: "GitLab wants nothing more of the job"}
		return append([]action{withdraw}, l.end("canceled before it began")...)
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
	if ev.epoch != l.epoch || ev.agent != l.agent {
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
		l.phase, l.slot = finished, false
		l.result = ev.result
		return []action{{kind: actFinish, result: *ev.result}}
	case ev.state == store.JobFinished && l.phase == finished && !l.unsaved:
		return []action{{kind: actAck, agent: ev.agent, state: store.JobFinished}}
	}
	return nil
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
	if l.phase == accepted {
		return nil // what was promised on another session is void
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
		return l.place(now, 0)
	case accepted:
		if l.wakeAt.IsZero() {
			return nil // a PUT is under way; its answer finds the agent gone
		}
		return l.place(now, 0)
	}
	return nil
}

// lost: the agent will not be heard of again, or has lost what it held.
func (l *life) lost(ev event) []action {
	switch {
	case l.phase == started:
		return l.conclude(ev.reason, runnerapi.ReasonRunnerSystem)
	case l.phase == finished && !l.truncated:
		// The result stands; only the relay knows whether bytes of the trace are still missing.
		l.truncated = true
		return []action{{kind: actLoss, reason: "WARNING: the rest of this trace is lost: " + ev.reason}}
	}
	return nil
}

// backoff is the wait before the next request: what GitLab asked for, if that is longer than our own.
func (l *life) backoff(asked time.Duration) time.Duration {
	wait := min(retryFirst<<min(l.retries, 10), retryMost)
	l.retries++
	return max(l.spread(wait), l.spread(asked+asked/4))
}

// spread takes up to a fifth off, so that jobs that were turned away together do not come back together.
func (l *life) spread(wait time.Duration) time.Duration {
	return wait - time.Duration(l.dice()*float64(wait)/5)
}
