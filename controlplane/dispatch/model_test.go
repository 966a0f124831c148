package dispatch

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Whatever agents, GitLab and the network do, and in whatever order: a job starts at most once and under the epoch that
// GitLab said yes to, no start goes to an agent that does not hold the job, a job has one result, gives back every slot,
// never waits for nothing, and ends as soon as agents and GitLab are well.
func TestLifeKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := claimedWithSlot()
		if rapid.Bool().Draw(t, "recovered") {
			l = &life{phase: confirming, epoch: 1, payload: true, ran: true, dice: noDice}
		} else {
			l.probe = rapid.Bool().Draw(t, "probe")
		}
		w := &world{t: t, l: l, now: t0, agents: map[string]*worldAgent{"a": {up: true}, "b": {up: true}}}
		w.do(event{kind: evBegin})
		for range rapid.IntRange(0, 80).Draw(t, "steps") {
			w.chance()
		}
		// From here on everybody is well.
		for i := 0; l.phase != ended; i++ {
			if i > 300 {
				t.Fatalf("the job does not end: %+v, to do %v", *l, w.todo)
			}
			w.recover()
		}
	})
}

// world is a driver, GitLab and two agents. It answers what a life asks for and checks its promises.
type world struct {
	t      *rapid.T
	l      *life
	now    time.Time
	todo   []action // in order; the first takes time and is under way
	agents map[string]*worldAgent

	starts, finishes int
	saidYes          int64          // the epoch that was current when GitLab said 200 to running
	begun            map[int64]bool // the epochs that agents started
}

// worldAgent is an agent's ledger, as far as this job is concerned.
type worldAgent struct {
	up      bool
	offered int64 // the epoch that it was asked about, on this session
	epoch   int64 // what it holds; 0: nothing
	state   store.JobState
}

func (w *world) chance() {
	t, l := w.t, w.l
	name := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "agent")
	a := w.agents[name]
	stale := rapid.Int64Range(max(1, l.epoch-1), l.epoch)
	switch rapid.SampledFrom([]string{
		"time", "gitlab", "gitlab is well", "gitlab is well", "reply", "strange reply", "report", "strange report",
		"down", "up", "up", "restart", "cancel", "lease over", "placed", "placed",
	}).Draw(t, "what") {
	case "time":
		w.now = w.now.Add(time.Second)
		if !l.wakeAt.IsZero() && rapid.Bool().Draw(t, "wake") {
			w.tick()
		}
	case "gitlab":
		w.answer(rapid.SampledFrom([]gitlabVerdict{verdictOK, verdictRetry, verdictRunning, verdictGone}).Draw(t, "verdict"), rapid.Bool().Draw(t, "canceling"))
	case "gitlab is well":
		w.answer(verdictOK, false)
	case "reply":
		w.reply(name, rapid.Bool().Draw(t, "ok"))
	case "strange reply":
		if e := stale.Draw(t, "epoch"); e != l.epoch || name != l.agent { // the agent that is asked says nothing that is not so
			w.do(event{kind: evReply, agent: name, epoch: e, ok: rapid.Bool().Draw(t, "ok")})
		}
	case "report":
		if a.up && a.epoch != 0 && a.state != store.JobClaimed {
			w.report(name)
		}
	case "strange report":
		w.do(event{
			kind: evReport, agent: name, epoch: stale.Draw(t, "epoch"), state: rapid.SampledFrom([]store.JobState{store.JobStarted, store.JobFinished}).Draw(t, "state"),
			result: &store.Result{State: runnerapi.StateSuccess},
		})
	case "down":
		w.down(name)
	case "up":
		w.down(name)
		w.up(name)
	case "restart":
		w.down(name)
		if a.state == store.JobClaimed {
			a.epoch = 0
		}
	case "cancel":
		w.do(event{kind: evCancel, cancel: rapid.SampledFrom([]cancelMode{cancelGraceful, cancelKill}).Draw(t, "cancel")})
	case "lease over":
		if !a.up && name == l.agent {
			w.do(event{kind: evLost, reason: "lease"})
		}
	case "placed":
		w.place(name)
	}
}

// recover does what happens next in a world without trouble.
func (w *world) recover() {
	w.answer(verdictOK, false)
	for _, name := range []string{"a", "b"} {
		a := w.agents[name]
		if !a.up {
			w.up(name)
		}
		w.reply(name, true)
		if a.epoch != 0 && a.state == store.JobStarted {
			a.state = store.JobFinished
			w.report(name)
		}
	}
	w.place("b")
	if len(w.todo) == 0 && !w.l.wakeAt.IsZero() {
		w.tick()
	}
}

func (w *world) tick() {
	w.now = w.l.wakeAt
	w.do(event{kind: evTick})
}

func (w *world) place(name string) {
	if w.l.asked && w.agents[name].up {
		w.do(event{kind: evPlaced, agent: name})
	}
}

func (w *world) reply(name string, ok bool) {
	a := w.agents[name]
	if !a.up || a.offered == 0 {
		return
	}
	e := a.offered
	a.offered = 0
	if ok {
		a.epoch, a.state = e, store.JobClaimed
	}
	w.do(event{kind: evReply, agent: name, epoch: e, ok: ok})
}

func (w *world) report(name string) {
	a := w.agents[name]
	w.do(event{kind: evReport, agent: name, epoch: a.epoch, state: a.state, result: &store.Result{State: runnerapi.StateSuccess}})
}

func (w *world) down(name string) {
	if a := w.agents[name]; a.up {
		a.up, a.offered = false, 0
		w.do(event{kind: evDown, agent: name})
	}
}

// up is Hello and Welcome: the verdicts are verdictLocked's.
func (w *world) up(name string) {
	a, l := w.agents[name], w.l
	a.up = true
	if a.epoch != l.epoch || l.agent != name || l.phase < started || l.phase == ended || l.concluded() {
		a.epoch = 0
	}
	ev := event{kind: evUp, agent: name}
	if a.epoch != 0 {
		ev.state = a.state
	}
	w.do(ev)
}

func (w *world) do(ev event) {
	w.t.Helper()
	l := w.l
	before := *l
	stale := ev.kind == evReport && (ev.epoch != l.epoch || ev.agent != l.agent) || ev.kind == evReply && (ev.epoch != l.epoch || ev.agent != l.agent)
	acts := l.step(w.now, ev)
	if len(acts) > 0 && (stale || before.phase == ended) {
		w.t.Fatalf("%+v has effects in %+v: %+v", ev, before, acts)
	}
	for _, a := range acts {
		switch a.kind {
		case actStart:
			w.starts++
			if w.saidYes != l.epoch || w.starts > 1 {
				w.t.Fatalf("epoch %d starts (%d times), GitLab said yes to %d", l.epoch, w.starts, w.saidYes)
			}
		case actReoffer:
			if w.starts > 0 {
				w.t.Fatalf("a job that was started is offered again")
			}
		case actFinish:
			if w.finishes++; w.finishes > 1 {
				w.t.Fatalf("a job has two results")
			}
		}
		if len(w.todo) == 0 || !slices.Contains(w.todo[1:], a) {
			w.todo = append(w.todo, a)
		}
	}
	w.drain()
	w.check()
}

// drain does what takes no time.
func (w *world) drain() {
	for len(w.todo) > 0 && !w.todo[0].kind.takesTime() {
		act := w.todo[0]
		w.todo = w.todo[1:]
		a := w.agents[act.agent]
		if a == nil || !a.up {
			continue
		}
		switch act.kind {
		case actOffer:
			a.offered = w.l.epoch
		case actWithdraw:
			a.offered = 0
			if a.state == store.JobClaimed {
				a.epoch = 0
			}
		case actForget:
			a.epoch = 0
		case actSendStart:
			w.start(act.agent, a)
		}
	}
}

func (w *world) start(name string, a *worldAgent) {
	if w.l.phase != started {
		return
	}
	if w.starts != 1 {
		w.t.Fatalf("a start is sent that is not durable")
	}
	if a.epoch != w.l.epoch {
		w.t.Fatalf("a start is sent to %s, which holds epoch %d and not %d", name, a.epoch, w.l.epoch)
	}
	if a.state == store.JobClaimed {
		a.state = store.JobStarted
	}
	if w.begun == nil {
		w.begun = make(map[int64]bool)
	}
	if w.begun[a.epoch] = true; len(w.begun) > 1 {
		w.t.Fatalf("more than one epoch was begun: %v", w.begun)
	}
}

func (w *world) check() {
	l := w.l
	underWay := func(kinds ...actionKind) bool {
		return slices.ContainsFunc(w.todo, func(a action) bool { return slices.Contains(kinds, a.kind) })
	}
	var ok bool
	switch l.phase {
	case confirming:
		ok = !l.slot && (underWay(actPending) || !l.wakeAt.IsZero())
	case placing:
		ok = !l.wakeAt.IsZero() && (l.slot == underWay(actReoffer))
	case offered:
		ok = l.slot && !l.wakeAt.IsZero()
	case accepted:
		ok = l.slot && (underWay(actRun) || l.probing && underWay(actPending)) == l.wakeAt.IsZero()
	case started:
		ok = l.slot && l.agent != ""
	case finished:
		ok = !l.slot // the relay answers
	case ended:
		ok = !l.slot && l.wakeAt.IsZero()
	}
	if !ok || l.slot && l.agent == "" || l.asked && (l.slot || l.phase != placing) {
		w.t.Fatalf("the job waits for nothing, or has what it does not need: %+v, to do %v", *l, w.todo)
	}
}

// answer completes the action that is under way.
func (w *world) answer(v gitlabVerdict, canceling bool) {
	if len(w.todo) == 0 {
		return
	}
	a := w.todo[0]
	w.todo = w.todo[1:]
	cancel := cancelNone
	if canceling {
		cancel = cancelGraceful
	}
	switch a.kind {
	case actReoffer:
		w.do(event{kind: evEpoch, epoch: w.l.epoch + 1})
	case actPending:
		w.do(event{kind: evPending, verdict: v, cancel: cancel})
	case actRun:
		if v == verdictRunning {
			v = verdictGone // 400 to running
		}
		if v == verdictOK {
			w.saidYes = w.l.epoch
		}
		w.do(event{kind: evRunning, verdict: v, cancel: cancel})
	case actStart:
		w.do(event{kind: evStarted})
	case actFinish:
		w.do(event{kind: evFinished, ok: true})
	case actReport, actLoss:
		w.do(event{kind: evReported})
	default:
		w.drain()
	}
}
