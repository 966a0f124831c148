package dispatch

import (
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func (l *life) begin(now time.Time) []action {
	switch l.phase {
	case confirming:
		return []action{l.confirm()}
	case placing:
		l.keepAt = now.Add(pendingKeepAlive)
		return append(l.beginPlacing(now), l.ask()...)
	case finished:
		return []action{{kind: actReport}}
	}
	return nil
}

func (l *life) beginPlacing(now time.Time) []action {
	switch {
	case !l.slot:
		return l.wait(now)
	case l.fresh:
		return l.offer(now)
	}
	return []action{{kind: actReoffer, agent: l.agent}}
}

// ask asks GitLab about two-phase commit while the agent is being asked for its part.
func (l *life) ask() []action {
	if !l.probe {
		return nil
	}
	l.probe, l.probing = false, true
	return []action{{kind: actPending, probe: true}}
}

// place gives the slot back and looks for an agent, after a pause if it says so.
func (l *life) place(now time.Time, pause time.Duration) []action {
	l.phase, l.slot, l.agent = placing, false, ""
	l.resumeAt = now.Add(pause)
	return l.wait(now)
}

// wait asks for an agent and keeps GitLab's patience up, each when its time has come.
func (l *life) wait(now time.Time) []action {
	searching := !l.slot && !l.asked
	if searching && !now.Before(l.resumeAt) {
		l.asked, searching = true, false
	}
	var acts []action
	if !now.Before(l.keepAt) {
		l.keepAt = now.Add(pendingKeepAlive)
		acts = append(acts, l.keepAlive())
	}
	l.wakeAt = l.keepAt
	if searching && l.resumeAt.Before(l.wakeAt) {
		l.wakeAt = l.resumeAt
	}
	return acts
}

// confirm asks whether the job is still ours. One that nobody will run is accepted: only then can it be failed.
func (l *life) confirm() action {
	if l.hopeless != "" {
		return l.run()
	}
	return action{kind: actPending}
}

// despair: nobody will ever run the job.
func (l *life) despair(why string) []action {
	if l.phase > placing || l.hopeless != "" {
		return nil
	}
	l.hopeless = why
	if l.confirmed {
		return l.refuse(why, runnerapi.ReasonRunnerSystem)
	}
	l.phase, l.asked, l.wakeAt = confirming, false, time.Time{}
	return []action{l.confirm()}
}

func (l *life) keepAlive() action {
	if l.confirmed {
		return l.run()
	}
	return action{kind: actPending}
}

func (l *life) run() action {
	l.ran = true
	return action{kind: actRun}
}

func (l *life) placed(ev event) []action {
	l.asked, l.slot, l.agent, l.online = false, true, ev.agent, true
	return []action{{kind: actReoffer, agent: ev.agent}}
}

func (l *life) offer(now time.Time) []action {
	if l.phase != placing || !l.slot {
		return nil
	}
	if !l.online {
		return l.place(now, 0)
	}
	l.phase = offered
	l.wakeAt = now.Add(offerPatience)
	return []action{{kind: actOffer, agent: l.agent}}
}

func (l *life) reply(now time.Time, ev event) []action {
	if ev.epoch != l.epoch || ev.agent != l.agent {
		return nil // late, or of another attempt
	}
	switch {
	case l.phase == offered && ev.ok:
		l.phase = accepted
		l.retries, l.refusals, l.avoided = 0, 0, nil
		l.wakeAt, l.giveUpAt = time.Time{}, now.Add(slotPatience)
		if l.probing {
			return nil // its answer comes first: to a job that runs, GitLab's answer is the same with and without two-phase commit
		}
		return []action{l.run()}
	case l.phase == offered:
		return l.refused(now)
	case l.phase == accepted && !ev.ok:
		return l.down(now, ev)
	case l.phase == started && !ev.ok:
		return l.lost(event{reason: ev.reason})
	}
	return nil // repeated
}

// refused looks for another agent.
func (l *life) refused(now time.Time) []action {
	if l.avoided == nil {
		l.avoided = make(map[string]bool)
	}
	l.avoided[l.agent] = true
	pause := l.spread(min(refusalPause<<min(l.refusals, 10), retryMost))
	l.refusals++
	return l.place(now, pause)
}
