package ledger_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

const (
	graceful = fleetv1.CancelMode_CANCEL_MODE_GRACEFUL
	kill     = fleetv1.CancelMode_CANCEL_MODE_KILL
	started  = fleetv1.JobState_JOB_STATE_STARTED
	finished = fleetv1.JobState_JOB_STATE_FINISHED
)

var (
	ref   = ledger.Ref{Job: 7, Epoch: 2}
	newer = ledger.Ref{Job: 7, Epoch: 3}
	older = ledger.Ref{Job: 7, Epoch: 1}
	other = ledger.Ref{Job: 8, Epoch: 1}
	now   = time.Unix(1000, 0)
)

// at returns a ledger with two slots in which ref has come to phase (0: it is not held).
func at(t *testing.T, phase ledger.Phase) *ledger.Ledger {
	t.Helper()
	l := ledger.New(2)
	if phase == ledger.Waiting {
		for job := range int64(2) {
			l.Restore(ledger.Ref{Job: 100 + job, Epoch: 1}, ledger.Discarding, true)
		}
	}
	if phase == 0 {
		return l
	}
	l.Offer(now, ref, "")
	l.Written(ref)
	if phase >= ledger.Started {
		l.Start(ref)
		l.Fenced(ref)
	}
	if phase >= ledger.Finished {
		l.Finished(ref)
	}
	if phase == ledger.Discarding {
		l.Forget(ref)
	}
	require.Equal(t, phase, l.Phase(ref))
	return l
}

func TestMessagesInEachPhase(t *testing.T) {
	type want struct {
		effects string
		after   ledger.Phase
	}
	const none = ""
	phases := []ledger.Phase{0, ledger.Waiting, ledger.Accepted, ledger.Started, ledger.Finished, ledger.Discarding}
	for name, tc := range map[string]struct {
		message func(l *ledger.Ledger) []ledger.Effect
		want    [6]want // by phases
	}{
		"offer": {
			func(l *ledger.Ledger) []ledger.Effect { return l.Offer(now, ref, "") },
			[6]want{
				{"hold", ledger.Accepted},
				{none, ledger.Waiting},
				{"reply", ledger.Accepted},
				{"reply", ledger.Started},
				{"reply", ledger.Finished},
				{"refuse", ledger.Discarding},
			},
		},
		"newer offer": {
			func(l *ledger.Ledger) []ledger.Effect { return l.Offer(now, newer, "") },
			[6]want{
				{"hold", 0},
				{none, 0},
				{"discard hold", ledger.Discarding},
				{"refuse", ledger.Started},
				{"refuse", ledger.Finished},
				{"refuse", ledger.Discarding},
			},
		},
		"stale offer": {
			func(l *ledger.Ledger) []ledger.Effect { return l.Offer(now, older, "") },
			[6]want{
				{"hold", 0},
				{none, ledger.Waiting},
				{none, ledger.Accepted},
				{none, ledger.Started},
				{none, ledger.Finished},
				{none, ledger.Discarding},
			},
		},
		"withdraw": {
			func(l *ledger.Ledger) []ledger.Effect { return l.Withdraw(ref) },
			[6]want{
				{none, 0},
				{none, 0},
				{"discard", ledger.Discarding},
				{none, ledger.Started},
				{none, ledger.Finished},
				{none, ledger.Discarding},
			},
		},
		"start": {
			func(l *ledger.Ledger) []ledger.Effect { return l.Start(ref) },
			[6]want{
				{"refuse", 0},
				{none, ledger.Waiting},
				{"launch", ledger.Started},
				{none, ledger.Started},
				{none, ledger.Finished},
				{none, ledger.Discarding},
			},
		},
		"cancel": {
			func(l *ledger.Ledger) []ledger.Effect { return l.Cancel(ref, graceful) },
			[6]want{
				{none, 0},
				{none, ledger.Waiting},
				{none, ledger.Accepted},
				{"cancel", ledger.Started},
				{none, ledger.Finished},
				{none, ledger.Discarding},
			},
		},
		"forget": {
			func(l *ledger.Ledger) []ledger.Effect { return l.Forget(ref) },
			[6]want{
				{none, 0},
				{none, 0},
				{"discard", ledger.Discarding},
				{"discard", ledger.Discarding},
				{"discard", ledger.Discarding},
				{none, ledger.Discarding},
			},
		},
		"kept": {
			func(l *ledger.Ledger) []ledger.Effect {
				return l.Welcome(ref, fleetv1.Verdict_VERDICT_KEEP, kill)
			},
			[6]want{
				{none, 0},
				{none, ledger.Waiting},
				{none, ledger.Accepted},
				{"report cancel", ledger.Started},
				{"report", ledger.Finished},
				{none, ledger.Discarding},
			},
		},
		"unknown verdict": {
			func(l *ledger.Ledger) []ledger.Effect { return l.Welcome(ref, 99, 0) },
			[6]want{
				{none, 0},
				{none, ledger.Waiting},
				{none, ledger.Accepted},
				{"report", ledger.Started},
				{"report", ledger.Finished},
				{none, ledger.Discarding},
			},
		},
		"killed": {
			func(l *ledger.Ledger) []ledger.Effect {
				return l.Welcome(ref, fleetv1.Verdict_VERDICT_KILL, 0)
			},
			[6]want{
				{none, 0},
				{none, 0},
				{"discard", ledger.Discarding},
				{"discard", ledger.Discarding},
				{"discard", ledger.Discarding},
				{none, ledger.Discarding},
			},
		},
		"cancel all": {
			func(l *ledger.Ledger) []ledger.Effect { return l.CancelAll(kill) },
			[6]want{
				{none, 0},
				{none, ledger.Waiting},
				{none, ledger.Accepted},
				{"cancel", ledger.Started},
				{none, ledger.Finished},
				{none, ledger.Discarding},
			},
		},
	} {
		for i, phase := range phases {
			t.Run(fmt.Sprintf("%s/%d", name, phase), func(t *testing.T) {
				l := at(t, phase)
				require.Equal(t, tc.want[i].effects, words(tc.message(l)))
				require.Equal(t, tc.want[i].after, l.Phase(ref))
			})
		}
	}
}

func TestAnOfferIsAcceptedOnceTheJobIsWrittenDown(t *testing.T) {
	l := ledger.New(1)
	require.Empty(t, l.Written(ref), "nobody holds it")
	require.Equal(t, "hold", words(l.Offer(now, ref, "")))
	require.Empty(t, l.Offer(now, ref, ""), "the answer is to come")
	require.Equal(t, "reply", words(l.Written(ref)))
	require.Empty(t, l.Written(ref))
	require.Equal(t, "reply", words(l.Offer(now, ref, "")))

	l = ledger.New(1)
	l.Offer(now, ref, "")
	require.Equal(t, "discard", words(l.Withdraw(ref)))
	require.Empty(t, l.Written(ref), "it is given up already")
}

func TestSlots(t *testing.T) {
	l := ledger.New(1)
	require.Equal(t, "hold", words(l.Offer(now, ref, "")))
	require.Equal(t, "refuse", words(l.Offer(now, other, "")), "the slot is held by a promise")
	l.Start(ref)
	require.Equal(t, "refuse", words(l.Offer(now, other, "")))
	require.Equal(t, []ledger.Effect{{Verb: ledger.Report, Ref: ref, State: finished}}, l.Finished(ref),
		"nothing ran, so there is no STARTED to report")
}

func TestAnOfferWaitsForASlotThatIsAboutToBeFree(t *testing.T) {
	third := ledger.Ref{Job: 9, Epoch: 1}
	l := ledger.New(1)
	l.Offer(now, ref, "")
	l.Start(ref)
	require.Equal(t, "report", words(l.Finished(ref)))
	require.Equal(t, "", words(l.Offer(now, other, "")))
	require.Equal(t, "refuse", words(l.Offer(now, third, "")), "there is but one slot to wait for")
	require.Equal(t, "hold", words(l.Freed(ref)))
	require.Equal(t, ledger.Accepted, l.Phase(other))
	require.Equal(t, ledger.Finished, l.Phase(ref))
	require.Zero(t, l.Free())

	l.Start(other)
	l.Finished(other)
	l.Offer(now, third, "")
	require.Empty(t, l.Tick(now.Add(ledger.OfferPatience-1)))
	require.Equal(t, "refuse", words(l.Tick(now.Add(ledger.OfferPatience))))
	require.Zero(t, l.Phase(third))

	l.Offer(now, third, "")
	require.Equal(t, "refuse", words(l.Drain("stopping")))
	require.Equal(t, "refuse", words(l.Offer(now, third, "")))
	l.Drain("")
	l.Offer(now, third, "")
	l.Disconnected()
	require.Zero(t, l.Phase(third), "an unanswered offer does not outlive its session")
	require.Empty(t, l.Gone(ref))
	require.Empty(t, l.Gone(other))
	require.Equal(t, 1, l.Free())
	require.Zero(t, l.Len())
}

func TestReportsAreRepeatedUntilAcknowledged(t *testing.T) {
	l := at(t, ledger.Started)
	keep := func() string { return words(l.Welcome(ref, fleetv1.Verdict_VERDICT_KEEP, 0)) }
	require.Equal(t, "report", keep())
	l.Acknowledged(ref, started)
	require.Equal(t, "", keep())
	require.Equal(t, "report", words(l.Finished(ref)))
	require.Equal(t, "report", keep())
	require.Equal(t, 1, l.Unacknowledged())
	l.Acknowledged(ref, started) // a late one
	require.Equal(t, "report", keep())
	l.Acknowledged(ref, finished)
	require.Equal(t, "", keep())
	require.Zero(t, l.Unacknowledged())
	require.Equal(t, 1, l.Len(), "it is kept until the control plane says forget")
}

func TestCancelBeforeTheStartIsNotLost(t *testing.T) {
	l := at(t, ledger.Accepted)
	require.Empty(t, l.Cancel(ref, kill))
	require.Empty(t, l.Cancel(ref, graceful), "a weaker one")
	effects := l.Start(ref)
	require.Equal(t, "cancel launch", words(effects), "in this order it ends without having begun")
	require.Equal(t, kill, effects[0].Mode)
}

func words(effects []ledger.Effect) string {
	names := map[ledger.Verb]string{
		ledger.Reply: "reply", ledger.Hold: "hold", ledger.Refuse: "refuse", ledger.Launch: "launch",
		ledger.Cancel: "cancel", ledger.Discard: "discard", ledger.Report: "report",
	}
	s := ""
	for i, e := range effects {
		if i > 0 {
			s += " "
		}
		s += names[e.Verb]
	}
	return s
}

// TestAnyOrderOfMessagesDoesNoHarm sends random messages, repeated and out of order, and lets the jobs progress at
// random; whatever happens, the ledger's promises hold.
func TestAnyOrderOfMessagesDoesNoHarm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slots := rapid.IntRange(1, 3).Draw(t, "slots")
		l := ledger.New(slots)
		now := now
		m := &model{t: t, l: l, slots: slots, launched: map[ledger.Ref]int{}, running: map[ledger.Ref]bool{}, held: map[ledger.Ref]bool{}}
		draw := rapid.Custom(func(t *rapid.T) ledger.Ref {
			return ledger.Ref{Job: rapid.Int64Range(1, 3).Draw(t, "job"), Epoch: rapid.Int64Range(1, 3).Draw(t, "epoch")}
		})
		on := func(f func(ledger.Ref) []ledger.Effect) func(*rapid.T) {
			return func(t *rapid.T) { m.apply(f(draw.Draw(t, "ref"))) }
		}
		t.Repeat(map[string]func(*rapid.T){
			"offer":    on(func(r ledger.Ref) []ledger.Effect { return l.Offer(now, r, "") }),
			"refusal":  on(func(r ledger.Ref) []ledger.Effect { return l.Offer(now, r, "no room") }),
			"withdraw": on(l.Withdraw),
			"start":    on(l.Start),
			"cancel":   on(func(r ledger.Ref) []ledger.Effect { return l.Cancel(r, graceful) }),
			"forget":   on(l.Forget),
			"keep":     on(func(r ledger.Ref) []ledger.Effect { return l.Welcome(r, fleetv1.Verdict_VERDICT_KEEP, 0) }),
			"kill":     on(func(r ledger.Ref) []ledger.Effect { return l.Welcome(r, fleetv1.Verdict_VERDICT_KILL, 0) }),
			"ack": on(func(r ledger.Ref) []ledger.Effect {
				if l.Phase(r) == ledger.Finished {
					l.Acknowledged(r, finished)
				}
				return nil
			}),
			"fenced": func(*rapid.T) { m.step(l.Fenced, ledger.Started) },
			"end":    func(*rapid.T) { m.step(l.Finished, ledger.Started) },
			"freed":  func(*rapid.T) { m.step(l.Freed, ledger.Finished) },
			"gone":   func(*rapid.T) { m.step(l.Gone, ledger.Discarding) },
			"written": func(*rapid.T) {
				for r := range m.held {
					m.apply(l.Written(r))
				}
			},
			"drop": func(*rapid.T) { l.Disconnected() },
			"time": func(*rapid.T) {
				now = now.Add(time.Second)
				m.apply(l.Tick(now))
			},
			"": func(*rapid.T) { m.check() },
		})
	})
}

type model struct {
	t        *rapid.T
	l        *ledger.Ledger
	slots    int
	launched map[ledger.Ref]int
	running  map[ledger.Ref]bool // launched and not yet gone
	held     map[ledger.Ref]bool // Hold seen, not yet gone
}

func (m *model) step(f func(ledger.Ref) []ledger.Effect, phase ledger.Phase) {
	for r := range m.held {
		if m.l.Phase(r) == phase {
			effects := f(r)
			if m.l.Phase(r) == 0 {
				delete(m.held, r)
				delete(m.running, r)
			}
			m.apply(effects)
			return
		}
	}
}

func (m *model) apply(effects []ledger.Effect) {
	for _, e := range effects {
		switch e.Verb {
		case ledger.Hold:
			if m.held[e.Ref] {
				m.t.Fatalf("%v is held twice", e.Ref)
			}
			m.held[e.Ref] = true
			for r := range m.running {
				if r.Job == e.Ref.Job {
					m.t.Fatalf("%v is accepted while %v runs", e.Ref, r)
				}
			}
		case ledger.Launch:
			m.launched[e.Ref]++
			if !m.held[e.Ref] || m.running[e.Ref] {
				m.t.Fatalf("%v is launched without being accepted, or twice", e.Ref)
			}
			m.running[e.Ref] = true
		case ledger.Cancel, ledger.Report:
			starting := e.Verb == ledger.Cancel && slices.ContainsFunc(effects, func(o ledger.Effect) bool { return o.Verb == ledger.Launch && o.Ref == e.Ref })
			if !m.running[e.Ref] && !starting {
				m.t.Fatalf("%+v for a job that does not run", e)
			}
		case ledger.Discard:
			if !m.held[e.Ref] {
				m.t.Fatalf("%v is discarded but not held", e.Ref)
			}
		case ledger.Reply:
			if !m.held[e.Ref] {
				m.t.Fatalf("%v is accepted before it is held", e.Ref)
			}
		case ledger.Refuse:
		}
	}
}

func (m *model) check() {
	if free := m.l.Free(); free < 0 || free > m.slots {
		m.t.Fatalf("%d of %d slots are free", free, m.slots)
	}
	for r := range m.held {
		if m.l.Phase(r) == 0 {
			m.t.Fatalf("%v was dropped without being discarded", r)
		}
	}
	seen := map[int64]ledger.Ref{}
	m.l.Held(func(r ledger.Ref, p ledger.Phase) {
		if p < ledger.Started {
			return
		}
		if other, twice := seen[r.Job]; twice {
			m.t.Fatalf("%v and %v both run", r, other)
		}
		seen[r.Job] = r
	})
}
