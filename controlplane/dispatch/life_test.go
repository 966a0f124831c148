package dispatch

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

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

func noDice() float64 { return 0 }

// claimedWithSlot is a job as Claimed makes it: the claim came with a slot on agent "a".
func claimedWithSlot() *life {
	return &life{phase: placing, epoch: 1, agent: "a", online: true, slot: true, fresh: true, payload: true, dice: noDice}
}

func TestTheStraightWay(t *testing.T) {
	l := claimedWithSlot()
	require.Equal(t, []actionKind{actOffer}, kinds(l.step(t0, event{kind: evBegin})))
	require.Equal(t, []actionKind{actRun}, kinds(l.step(t0, event{kind: evReply, agent: "a", epoch: 1, ok: true})))
	require.Equal(t, []actionKind{actStart}, kinds(l.step(t0, event{kind: evRunning, verdict: verdictOK})))
	require.Equal(t, []actionKind{actSendStart}, kinds(l.step(t0, event{kind: evStarted})))
	require.Equal(t, []actionKind{actAck, actDropPayload}, kinds(l.step(t0, event{kind: evReport, agent: "a", epoch: 1, state: store.JobStarted})))
	ok := &store.Result{State: runnerapi.StateSuccess}
	require.Equal(t, []actionKind{actFinish}, kinds(l.step(t0, event{kind: evReport, agent: "a", epoch: 1, state: store.JobFinished, result: ok})))
	require.Equal(t, []actionKind{actReport, actAck}, kinds(l.step(t0, event{kind: evFinished, ok: true})))
	require.Equal(t, []actionKind{actDelete, actForget}, kinds(l.step(t0, event{kind: evReported})))
	require.Equal(t, ended, l.phase)
}

func TestARefusedOfferGoesElsewhereWithANewEpoch(t *testing.T) {
	l := claimedWithSlot()
	l.step(t0, event{kind: evBegin})
	require.Empty(t, l.step(t0, event{kind: evReply, agent: "a", epoch: 1, reason: "disk full"}))
	require.False(t, l.slot)
	require.Equal(t, t0.Add(refusalPause), l.wakeAt)
	require.Empty(t, l.step(l.wakeAt, event{kind: evTick}))
	require.True(t, l.asked)
	require.True(t, l.avoided["a"])
	require.Equal(t, []actionKind{actReoffer}, kinds(l.step(t0, event{kind: evPlaced, agent: "b"})))
	require.Equal(t, []actionKind{actOffer}, kinds(l.step(t0, event{kind: evEpoch, epoch: 2})))
	require.Empty(t, l.step(t0, event{kind: evReply, agent: "a", epoch: 1, ok: true}), "the first agent changes its mind too late")
	require.Equal(t, []actionKind{actRun}, kinds(l.step(t0, event{kind: evReply, agent: "b", epoch: 2, ok: true})))
}

func TestGitLabTakesTheJobBackBeforeItStarts(t *testing.T) {
	l := claimedWithSlot()
	l.step(t0, event{kind: evBegin})
	l.step(t0, event{kind: evReply, agent: "a", epoch: 1, ok: true})
	require.Equal(t, []actionKind{actWithdraw, actDelete}, kinds(l.step(t0, event{kind: evRunning, verdict: verdictGone})))
	require.Equal(t, ended, l.phase)
}

func TestAJobCanceledBeforeItStartsGetsAResult(t *testing.T) {
	l := claimedWithSlot()
	l.step(t0, event{kind: evBegin})
	l.step(t0, event{kind: evReply, agent: "a", epoch: 1, ok: true})
	acts := l.step(t0, event{kind: evRunning, verdict: verdictOK, cancel: cancelGraceful})
	require.Equal(t, []actionKind{actWithdraw, actFinish}, kinds(acts))
	require.Equal(t, string(runnerapi.ReasonCanceled), acts[1].result.FailureReason)
}

func TestGitLabIsAskedAgainUntilItAnswers(t *testing.T) {
	l := claimedWithSlot()
	l.step(t0, event{kind: evBegin})
	l.step(t0, event{kind: evReply, agent: "a", epoch: 1, ok: true})
	now := t0
	var last time.Duration
	for range 7 {
		require.Empty(t, l.step(now, event{kind: evRunning, verdict: verdictRetry}))
		wait := l.wakeAt.Sub(now)
		require.GreaterOrEqual(t, wait, last)
		require.LessOrEqual(t, wait, retryMost)
		last, now = wait, l.wakeAt
		require.Equal(t, []actionKind{actRun}, kinds(l.step(now, event{kind: evTick})))
	}
	l.step(now, event{kind: evRunning, verdict: verdictRetry, retry: time.Minute})
	require.Equal(t, now.Add(75*time.Second), l.wakeAt, "GitLab's own wait counts if it is longer; none comes sooner")
	l.step(l.wakeAt, event{kind: evTick})
	require.Equal(t, []actionKind{actStart}, kinds(l.step(now, event{kind: evRunning, verdict: verdictOK})))
}

func TestALostAgentEndsItsJob(t *testing.T) {
	l := &life{phase: started, epoch: 3, agent: "a", slot: true, dice: noDice}
	acts := l.step(t0, event{kind: evLost, reason: "agent a was lost"})
	require.Equal(t, []actionKind{actFinish}, kinds(acts))
	require.Equal(t, string(runnerapi.ReasonRunnerSystem), acts[0].result.FailureReason)
	require.Equal(t, lastLine+"agent a was lost", acts[0].result.Message)
	require.Equal(t, []actionKind{actReport, actAck}, kinds(l.step(t0, event{kind: evFinished, ok: true})))
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
	require.Equal(t, []actionKind{actFinish}, kinds(l.step(t0, event{kind: evUp, agent: "a"})), "an agent that does not know its job has lost it")
}

func TestAWaitingJobIsKeptAliveInGitLab(t *testing.T) {
	l := &life{phase: placing, epoch: 1, dice: noDice}
	require.Empty(t, l.step(t0, event{kind: evBegin}))
	require.True(t, l.asked)
	now := l.wakeAt
	require.Equal(t, t0.Add(pendingKeepAlive), now)
	require.Equal(t, []actionKind{actPending}, kinds(l.step(now, event{kind: evTick})))
	l.step(now, event{kind: evPending, verdict: verdictRunning})
	require.Equal(t, []actionKind{actRun}, kinds(l.step(l.wakeAt, event{kind: evTick})), "a job that GitLab has as running is touched")
	l.step(now, event{kind: evRunning, verdict: verdictOK})
	require.Equal(t, placing, l.phase)
}

func TestAPromiseDoesNotOutliveItsSession(t *testing.T) {
	l := claimedWithSlot()
	l.step(t0, event{kind: evBegin})
	l.step(t0, event{kind: evReply, agent: "a", epoch: 1, ok: true})
	require.Empty(t, l.step(t0, event{kind: evDown, agent: "a"}), "GitLab is being asked")
	require.Empty(t, l.step(t0, event{kind: evUp, agent: "a"}))
	require.Empty(t, l.step(t0, event{kind: evRunning, verdict: verdictOK}))
	require.Equal(t, placing, l.phase)
	require.True(t, l.asked && !l.slot)
}

func TestAGitLabThatDoesNotAnswerHoldsNoSlot(t *testing.T) {
	l := claimedWithSlot()
	l.step(t0, event{kind: evBegin})
	l.step(t0, event{kind: evReply, agent: "a", epoch: 1, ok: true})
	require.Equal(t, []actionKind{actWithdraw}, kinds(l.step(t0.Add(slotPatience), event{kind: evRunning, verdict: verdictRetry})))
	require.False(t, l.slot)
	require.Equal(t, []actionKind{actPending}, kinds(l.step(l.wakeAt, event{kind: evTick})))
	require.Empty(t, l.step(t0, event{kind: evPending, verdict: verdictRetry}))
	require.False(t, l.asked)
	require.Empty(t, l.step(l.wakeAt, event{kind: evPending, verdict: verdictOK}))
	require.True(t, l.asked, "it answers: an agent is looked for")
}

func TestPausesGrowWithRefusals(t *testing.T) {
	l := claimedWithSlot()
	l.step(t0, event{kind: evBegin})
	now := t0
	for _, seconds := range []int{1, 2, 4, 8, 16, 30, 30} {
		l.step(now, event{kind: evReply, agent: "a", epoch: l.epoch})
		require.Equal(t, now.Add(time.Duration(seconds)*time.Second), l.resumeAt)
		now = l.resumeAt
		l.step(now, event{kind: evTick})
		l.step(now, event{kind: evPlaced, agent: "a"})
		l.step(now, event{kind: evEpoch, epoch: l.epoch + 1})
		require.Equal(t, offered, l.phase)
	}
}

// A job that GitLab takes nothing more of does not keep its slot for an agent that is away, or that is here without it.
func TestAJobThatIsGoneWhileItsAgentIsAway(t *testing.T) {
	for _, online := range []bool{true, false} {
		l := life{phase: started, epoch: 1, agent: "one", slot: true, online: online}
		acts := l.step(t0, event{kind: evReported})
		if online {
			require.Equal(t, []actionKind{actSendCancel}, kinds(acts))
			require.True(t, l.slot)
			continue
		}
		require.Equal(t, []actionKind{actDelete}, kinds(acts))
		require.Equal(t, ended, l.phase)
		require.False(t, l.slot)
	}
}
