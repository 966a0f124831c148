package dispatch

import (
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/relay"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// refuse finishes a job that no agent has begun: GitLab has it as running, so it needs a result.
func (l *life) refuse(why string, reason runnerapi.FailureReason) []action {
	acts := l.withdraw(why)
	return append(acts, l.conclude(why, reason)...)
}

// conclude ends a job with a result of the control plane's own.
func (l *life) conclude(why string, reason runnerapi.FailureReason) []action {
	l.phase, l.truncated, l.adopting = finished, true, false
	l.asked, l.slot, l.wakeAt = false, false, time.Time{}
	line := lastLine
	if reason == runnerapi.ReasonCanceled {
		line = canceledLine
	}
	l.result = &store.Result{
		State: runnerapi.StateFailed, FailureReason: string(reason), Message: line + why, TraceLength: relay.TraceUnknown,
	}
	return []action{{kind: actFinish, result: *l.result}}
}

// concluded says whether the result is the control plane's own.
func (l *life) concluded() bool { return l.result != nil && l.result.TraceLength == relay.TraceUnknown }

func (l *life) withdraw(why string) []action {
	if l.phase != offered && l.phase != accepted {
		return nil
	}
	return []action{{kind: actWithdraw, agent: l.agent, reason: why}}
}

// drop forgets a job that is not ours any more and that never started.
func (l *life) drop(reason string) []action {
	acts := l.withdraw(reason)
	return append(acts, l.end(reason)...)
}

func (l *life) end(why string) []action {
	l.phase = ended
	l.asked, l.slot, l.wakeAt = false, false, time.Time{}
	return []action{{kind: actDelete, reason: why}}
}

func (l *life) done(ev event) []action {
	if l.phase != finished {
		return nil
	}
	l.unsaved = !ev.ok
	var acts []action
	if !l.unreported {
		acts = append(acts, action{kind: actReport}) // before the agent hears of it its trace is to be safe
	}
	if l.agent != "" && !l.unsaved {
		acts = append(acts, action{kind: actAck, agent: l.agent, state: store.JobFinished})
	}
	if l.unreported {
		acts = append(acts, l.bury()...)
	}
	return acts
}

// gone: the relay is done with the job, in good or in bad.
func (l *life) gone() []action {
	if l.phase == finished {
		return l.bury()
	}
	if l.phase == started && !l.online {
		// The agent is away, or here without the job: nobody can be told to stop. Whoever has it still is told when he says so.
		return l.end("GitLab wants nothing more of the job")
	}
	// GitLab refused the job while it runs: stop it, there is nobody to report to.
	l.unreported = true
	return l.stop(cancelKill, "GitLab wants nothing more of the job")
}

func (l *life) bury() []action {
	acts := l.end("reported")
	if l.agent != "" {
		acts = append(acts, action{kind: actForget, agent: l.agent})
	}
	return acts
}
