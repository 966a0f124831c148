package dispatch

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func kinds(acts []action) []actionKind {
	ks := make([]actionKind, 0, len(acts))
	for _, a := range acts {
		ks = append(ks, a.kind)
	}
	return ks
}

// claimedWithSlot is a job as Claimed makes it: the claim came with a slot on agent "a".
func claimedWithSlot() *life {
	return &life{phase: placing, epoch: 1, agent: "a", online: true, slot: true, bound: true, payload: true}
}

func TestTheStraightWay(t *testing.T) {
	l := claimedWithSlot()
	require.Equal(t, []actionKind{actOffer}, kinds(l.step(t0, event{kind: evBegin})))
	require.Equal(t, []actionKind{actRun}, kinds(l.step(t0, event{kind: evReply, agent: "a", epoch: 1, ok: true})))
	require.Equal(t, []actionKind{actStart}, kinds(l.step(t0, event{kind: evRunning, verdict: verdictOK})))
	require.Equal(t, []actionKind{actSendStart}, kinds(l.step(t0, event{kind: evStarted})))
	require.Equal(t, []actionKind{actAck, actDropPayload}, kinds(l.step(t0, event{kind: evReport, agent: "a", epoch: 1, state: store.JobStarted})))
	ok := &store.Result{State: runnerapi.StateSuccess}
	require.Equal(t, []actionKind{actRelease, actFinish}, kinds(l.step(t0, event{kind: evReport, agent: "a", epoch: 1, state: store.JobFinished, result: ok})))
	require.Equal(t, []actionKind{actAck, actReport}, kinds(l.step(t0, event{kind: evFinished})))
	require.Equal(t, []actionKind{actDelete, actForget}, kinds(l.step(t0, event{kind: evReported})))
	require.Equal(t, ended, l.phase)
}

func TestARefusedOfferGoesElsewhereWithANewEpoch(t *testing.T) {
	l := claimedWithSlot()
	l.step(t0, event{kind: evBegin})
	require.Equal(t, []actionKind{actRelease}, kinds(l.step(t0, event{kind: evReply, agent: "a", epoch: 1, reason: "disk full"})))
	require.Equal(t, t0.Add(refusalPause), l.wakeAt)
	require.Equal(t, []actionKind{actPlace}, kinds(l.step(l.wakeAt, event{kind: evTick})))
	require.Equal(t, []actionKind{actReoffer}, kinds(l.step(t0, event{kind: evPlaced, agent: "b"})))
	require.Equal(t, []actionKind{actOffer}, kinds(l.step(t0, event{kind: evEpoch, epoch: 2})))
	require.Empty(t, l.step(t0, event{kind: evReply, agent: "a", epoch: 1, ok: true}), "the first agent changes its mind too late")
	require.Equal(t, []actionKind{actRun}, kinds(l.step(t0, event{kind: evReply, agent: "b", epoch: 2, ok: true})))
}

func TestGitLabTakesTheJobBackBeforeItStarts(t *testing.T) {
	l := claimedWithSlot()
	l.step(t0, event{kind: evBegin})
	l.step(t0, event{kind: evReply, agent: "a", epoch: 1, ok: true})
	require.Equal(t, []actionKind{actWithdraw, actRelease, actDelete}, kinds(l.step(t0, event{kind: evRunning, verdict: verdictGone})))
	require.Equal(t, ended, l.phase)
}

func TestAJobCanceledBeforeItStartsGetsAResult(t *testing.T) {
	l := claimedWithSlot()
	l.step(t0, event{kind: evBegin})
	l.step(t0, event{kind: evReply, agent: "a", epoch: 1, ok: true})
	acts := l.step(t0, event{kind: evRunning, verdict: verdictOK, cancel: cancelGraceful})
	require.Equal(t, []actionKind{actWithdraw, actRelease, actFinish}, kinds(acts))
	require.Equal(t, string(runnerapi.ReasonCanceled), acts[2].result.FailureReason)
}

func TestGitLabIsAskedAgainUntilItAnswers(t *testing.T) {
	l := claimedWithSlot()
	l.step(t0, event{kind: evBegin})
	l.step(t0, event{kind: evReply, agent: "a", epoch: 1, ok: true})
	now := t0
	var last time.Duration
	for range 10 {
		require.Empty(t, l.step(now, event{kind: evRunning, verdict: verdictRetry}))
		wait := l.wakeAt.Sub(now)
		require.GreaterOrEqual(t, wait, last)
		require.LessOrEqual(t, wait, retryMost)
		last, now = wait, l.wakeAt
		require.Equal(t, []actionKind{actRun}, kinds(l.step(now, event{kind: evTick})))
	}
	l.step(now, event{kind: evRunning, verdict: verdictRetry, retry: time.Minute})
	require.Equal(t, now.Add(time.Minute), l.wakeAt, "GitLab's own wait counts if it is longer")
	l.step(l.wakeAt, event{kind: evTick})
	require.Equal(t, []actionKind{actStart}, kinds(l.step(now, event{kind: evRunning, verdict: verdictOK})))
}

func TestALostAgentEndsItsJob(t *testing.T) {
	l := &life{phase: started, epoch: 3, agent: "a", slot: true}
	acts := l.step(t0, event{kind: evLost, reason: "agent a was lost"})
	require.Equal(t, []actionKind{actRelease, actFinish}, kinds(acts))
	require.Equal(t, string(runnerapi.ReasonRunnerSystem), acts[1].result.FailureReason)
	require.Equal(t, []actionKind{actAck, actLoss}, kinds(l.step(t0, event{kind: evFinished})))
}

func TestALostAgentEndsATraceThatIsNotComplete(t *testing.T) {
	l := &life{phase: finished, epoch: 3, agent: "a", result: &store.Result{State: runnerapi.StateSuccess}}
	require.Equal(t, []actionKind{actReport}, kinds(l.step(t0, event{kind: evBegin})))
	acts := l.step(t0, event{kind: evLost, reason: "agent a was lost"})
	require.Equal(t, []actionKind{actLoss}, kinds(acts))
	require.Contains(t, acts[0].reason, "the rest of this trace is lost")
	require.Equal(t, runnerapi.StateSuccess, l.result.State, "the result stands")
	require.Empty(t, l.step(t0, event{kind: evLost, reason: "agent a was lost"}))
	require.Equal(t, []actionKind{actDelete, actForget}, kinds(l.step(t0, event{kind: evReported})))
}

func TestAStartThatDidNotReachTheAgentIsSentAgain(t *testing.T) {
	l := &life{phase: started, epoch: 1, agent: "a", slot: true}
	require.Equal(t, []actionKind{actSendStart}, kinds(l.step(t0, event{kind: evUp, agent: "a", state: store.JobClaimed})))
	require.Empty(t, l.step(t0, event{kind: evUp, agent: "a", state: store.JobStarted}))
	require.Equal(t, []actionKind{actRelease, actFinish}, kinds(l.step(t0, event{kind: evUp, agent: "a"})), "an agent that does not know its job has lost it")
}

func TestAWaitingJobIsKeptAliveInGitLab(t *testing.T) {
	l := &life{phase: placing, epoch: 1}
	require.Equal(t, []actionKind{actPlace}, kinds(l.step(t0, event{kind: evBegin})))
	now := l.wakeAt
	require.Equal(t, t0.Add(pendingKeepAlive), now)
	require.Equal(t, []actionKind{actPending}, kinds(l.step(now, event{kind: evTick})))
	l.step(now, event{kind: evPending, verdict: verdictRunning})
	require.Equal(t, []actionKind{actRun}, kinds(l.step(l.wakeAt, event{kind: evTick})), "a job that GitLab has as running is touched")
	l.step(now, event{kind: evRunning, verdict: verdictOK})
	require.Equal(t, placing, l.phase)
}

// Whatever agents, GitLab and the network do, and in whatever order: a job starts at most once and under the epoch that
// GitLab said yes to, has one result, gives back every slot, and ends as soon as agents and GitLab are well.
func TestLifeKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := claimedWithSlot()
		if rapid.Bool().Draw(t, "recovered") {
			l = &life{phase: confirming, epoch: 1, offers: 1, payload: true}
		}
		w := &world{t: t, l: l, now: t0, slots: 0}
		if l.slot {
			w.slots = 1
		}
		w.do(event{kind: evBegin})
		agents := rapid.SampledFrom([]string{"a", "b"})
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 8).Draw(t, "what") {
			case 0:
				w.now = w.now.Add(time.Second)
				if !l.wakeAt.IsZero() && rapid.Bool().Draw(t, "wake") {
					w.now = l.wakeAt
					w.do(event{kind: evTick})
				}
			case 1:
				w.answer(rapid.SampledFrom([]gitlabVerdict{verdictOK, verdictRetry, verdictRunning, verdictGone}).Draw(t, "verdict"), true)
			case 2, 3:
				w.answer(verdictOK, false)
			case 4:
				w.do(event{kind: evReply, agent: agents.Draw(t, "who"), epoch: rapid.Int64Range(max(1, l.epoch-1), l.epoch).Draw(t, "epoch"), ok: rapid.Bool().Draw(t, "ok")})
			case 5:
				w.do(event{
					kind: evReport, agent: agents.Draw(t, "who"), epoch: rapid.Int64Range(max(1, l.epoch-1), l.epoch).Draw(t, "epoch"),
					state: rapid.SampledFrom([]store.JobState{store.JobStarted, store.JobFinished}).Draw(t, "state"), result: &store.Result{State: runnerapi.StateSuccess},
				})
			case 6:
				w.do(event{kind: evDown, agent: agents.Draw(t, "who")})
			case 7:
				w.do(event{kind: evUp, agent: agents.Draw(t, "who"), state: rapid.SampledFrom([]store.JobState{"", store.JobClaimed, store.JobStarted}).Draw(t, "held")})
			case 8:
				w.do(event{kind: evCancel, cancel: rapid.SampledFrom([]cancelMode{cancelGraceful, cancelKill}).Draw(t, "cancel")})
			}
		}
		// From here on everybody is well.
		for i := 0; l.phase != ended; i++ {
			if i > 200 {
				t.Fatalf("the job does not end: %+v", *l)
			}
			w.answer(verdictOK, false)
			switch l.phase {
			case offered:
				w.do(event{kind: evReply, agent: l.agent, epoch: l.epoch, ok: true})
			case started:
				if len(w.pending) == 0 {
					w.do(event{kind: evUp, agent: l.agent, state: store.JobStarted})
					w.do(event{kind: evReport, agent: l.agent, epoch: l.epoch, state: store.JobFinished, result: &store.Result{State: runnerapi.StateSuccess}})
				}
			}
			if len(w.pending) == 0 && !l.wakeAt.IsZero() {
				w.now = l.wakeAt
				w.do(event{kind: evTick})
			}
		}
		if w.slots != 0 {
			t.Fatalf("%d slots are still held", w.slots)
		}
	})
}

// world answers what a life asks for and checks its promises.
type world struct {
	t       *rapid.T
	l       *life
	now     time.Time
	pending []action // actions that take time and are not answered yet, in order
	slots   int

	starts, finishes int
	startEpoch       int64
	saidYes          int64 // the epoch that was current when GitLab said 200 to running
}

func (w *world) do(ev event) {
	w.t.Helper()
	if w.l.phase == ended && len(w.l.step(w.now, ev)) > 0 {
		w.t.Fatalf("a job that has ended does something")
	}
	stale := ev.kind == evReport && ev.epoch != w.l.epoch || ev.kind == evReply && (ev.epoch != w.l.epoch || ev.agent != w.l.agent)
	acts := w.l.step(w.now, ev)
	if stale && len(acts) > 0 {
		w.t.Fatalf("a stale message has effects: %+v -> %+v", ev, acts)
	}
	for _, a := range acts {
		switch a.kind {
		case actRelease:
			w.slots--
		case actStart:
			w.starts++
			w.startEpoch = w.l.epoch
			if w.saidYes != w.l.epoch {
				w.t.Fatalf("epoch %d starts, but GitLab said yes to %d", w.l.epoch, w.saidYes)
			}
		case actReoffer:
			if w.starts > 0 {
				w.t.Fatalf("a job that was started is offered again")
			}
		case actFinish:
			w.finishes++
		case actSendStart:
			if w.starts != 1 || w.l.epoch != w.startEpoch {
				w.t.Fatalf("a start is sent that is not durable (epoch %d, started %d)", w.l.epoch, w.startEpoch)
			}
		}
		if a.kind.takesTime() || a.kind == actPlace {
			w.pending = append(w.pending, a)
		}
		if a.kind == actStopPlace {
			for i, p := range w.pending {
				if p.kind == actPlace {
					w.pending = append(w.pending[:i:i], w.pending[i+1:]...)
					break
				}
			}
		}
	}
	if w.starts > 1 || w.finishes > 1 || w.slots < 0 || w.slots > 1 {
		w.t.Fatalf("%d starts, %d results, %d slots", w.starts, w.finishes, w.slots)
	}
}

// answer completes the action that has been waiting longest.
func (w *world) answer(v gitlabVerdict, canceling bool) {
	if len(w.pending) == 0 {
		return
	}
	a := w.pending[0]
	w.pending = w.pending[1:]
	switch a.kind {
	case actPlace:
		w.slots++
		w.do(event{kind: evPlaced, agent: "b"})
	case actReoffer:
		w.do(event{kind: evEpoch, epoch: w.l.epoch + 1})
	case actPending:
		w.do(event{kind: evPending, verdict: v})
	case actRun:
		if v == verdictRunning {
			v = verdictGone // 400 to running
		}
		if v == verdictOK {
			w.saidYes = w.l.epoch
		}
		c := cancelNone
		if canceling && v == verdictOK {
			c = cancelGraceful
		}
		w.do(event{kind: evRunning, verdict: v, cancel: c})
	case actStart:
		w.do(event{kind: evStarted})
	case actFinish:
		w.do(event{kind: evFinished})
	case actReport, actLoss:
		w.do(event{kind: evReported})
	}
}
