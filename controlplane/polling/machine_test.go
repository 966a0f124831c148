package polling

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return epoch.Add(time.Duration(seconds * float64(time.Second))) }

// verified returns a machine whose token GitLab knows, with dice that always show 0: every random wait is its longest.
func verified(t *testing.T) *machine {
	t.Helper()
	m := newMachine(3*time.Second, -1, epoch, func() float64 { return 0 })
	require.Equal(t, plan{verify: true}, m.plan(epoch, 8), "the first request of all")
	m.verifySent()
	require.Equal(t, plan{}, m.plan(epoch, 8))
	m.verifyAnswered(epoch, answer{kind: none, rails: true})
	return m
}

// claim sends a claim, which the machine must want.
func claim(t *testing.T, m *machine, now time.Time) (cursor string) {
	t.Helper()
	require.True(t, m.plan(now, 8).reserve, "wants to claim at %s", now.Sub(epoch))
	m.reserveStarted()
	require.True(t, m.reserveEnded(now, 8, true))
	return m.claimSent(now)
}

func watch(t *testing.T, m *machine, now time.Time) (cursor string, limit time.Duration) {
	t.Helper()
	require.True(t, m.plan(now, 8).watch, "wants to watch at %s", now.Sub(epoch))
	return m.watchSent(now)
}

// cleaned returns a machine that knows the cursor "a".
func cleaned(t *testing.T) *machine {
	t.Helper()
	m := verified(t)
	require.Empty(t, claim(t, m, at(0)), "a dirty claim carries no cursor")
	m.claimAnswered(at(0), answer{kind: none, cursor: "a", rails: true})
	return m
}

// holding returns a clean machine that has learned that GitLab holds watches for 50 s; the time is 50.
func holding(t *testing.T) *machine {
	t.Helper()
	m := cleaned(t)
	cursor, limit := watch(t, m, at(0))
	require.Equal(t, "a", cursor)
	require.Equal(t, maxWatch, limit)
	m.watchAnswered(at(50), answer{kind: none, sent: "a", held: 50 * time.Second})
	require.True(t, m.dirty, "the first answer of a watch may be a change")
	require.Empty(t, claim(t, m, at(50)))
	m.claimAnswered(at(50), answer{kind: none, cursor: "a", rails: true})
	require.Equal(t, 50*time.Second, m.hold.known, "the cursor is the same: nothing changed, the time was the hold time")
	return m
}

func TestDirtySendsNothingWithoutSlot(t *testing.T) {
	m := verified(t)
	require.True(t, m.plan(at(0), 8).reserve)
	m.reserveStarted()
	p := m.plan(at(1), 8)
	require.False(t, p.reserve || p.watch || p.verify || p.dropReserve, "it waits for the one slot")
	require.True(t, m.plan(at(20*60), 8).verify, "but shows a sign of life in time")
}

func TestCleanWatchesWithoutSlot(t *testing.T) {
	m := cleaned(t)
	p := m.plan(at(0), 8)
	require.True(t, p.watch)
	require.False(t, p.reserve)
	m.watchSent(at(0))
	p = m.plan(at(0), 8)
	require.False(t, p.watch || p.reserve, "one watch, no claim beside it")
}

func TestWatchAnswers(t *testing.T) {
	for _, test := range []struct {
		name   string
		a      answer
		dirty  bool
		cursor string
	}{
		{name: "long before the hold time: a change", a: answer{held: 12 * time.Second}, dirty: true},
		{name: "at the hold time: nothing", a: answer{held: 50*time.Second + 90*time.Millisecond}, cursor: "a"},
		{name: "just before the hold time: nothing", a: answer{held: 50*time.Second - 90*time.Millisecond}, cursor: "a"},
		{name: "long after the hold time: who knows", a: answer{held: 55 * time.Second}, dirty: true},
		{name: "Rails: changed, nothing for this runner", a: answer{cursor: "b", rails: true}, cursor: "b"},
		{name: "Rails: not changed", a: answer{cursor: "a", rails: true}, cursor: "a"},
		{name: "a job", a: answer{kind: job, rails: true}, dirty: true},
		{name: "a conflict", a: answer{kind: conflict, rails: true}, dirty: true},
		{name: "no answer", a: answer{kind: failed}, dirty: true},
		{name: "cancelled", a: answer{kind: abandoned}, dirty: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := holding(t)
			watch(t, m, at(50))
			test.a.sent = "a"
			m.watchAnswered(at(100), test.a)
			require.Equal(t, test.dirty, m.dirty)
			require.Equal(t, test.cursor, m.cursor)
		})
	}
}

func TestChangeWhileWatchingIsClaimedAtOnce(t *testing.T) {
	m := holding(t)
	now := at(50)
	for range 100 { // a job each 10 s, for ever
		watch(t, m, now)
		now = now.Add(10 * time.Second)
		m.watchAnswered(now, answer{kind: none, sent: m.cursor, held: 10 * time.Second})
		require.Empty(t, claim(t, m, now), "no delay, no cursor")
		m.claimAnswered(now, answer{kind: job, rails: true})
		m.saved(false)
		claim(t, m, now)
		m.claimAnswered(now, answer{kind: none, cursor: now.String(), rails: true})
		require.Equal(t, 50*time.Second, m.hold.known)
	}
}

func TestChangedHoldTimeIsLearned(t *testing.T) {
	m := holding(t)
	now := at(50)
	for _, hold := range []time.Duration{30 * time.Second, 70 * time.Second} {
		watch(t, m, now)
		now = now.Add(hold)
		m.watchAnswered(now, answer{kind: none, sent: "a", held: hold})
		claim(t, m, now)
		m.claimAnswered(now, answer{kind: none, cursor: "a", rails: true})
		require.Equal(t, hold, m.hold.known)
	}
}

func TestWatchLimit(t *testing.T) {
	m := holding(t)
	_, limit := watch(t, m, at(50))
	require.Equal(t, 62500*time.Millisecond, limit)

	m.watchAnswered(at(112.5), answer{kind: abandoned, sent: "a", held: limit})
	claim(t, m, at(112.5))
	m.claimAnswered(at(112.5), answer{kind: none, cursor: "a", rails: true})
	_, limit = watch(t, m, at(112.5))
	require.Equal(t, maxWatch, limit, "GitLab holds longer than it did, who knows how long")
}

func TestGitLabThatDoesNotHold(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer func(m *machine, now time.Time) // answers a watch at once
	}{
		{"answered by Rails", func(m *machine, now time.Time) {
			m.watchAnswered(now, answer{kind: none, sent: "a", cursor: "a", rails: true})
		}},
		{"answered by its front end", func(m *machine, now time.Time) {
			m.watchAnswered(now, answer{kind: none, sent: "a"})
			claim(t, m, now)
			m.claimAnswered(now, answer{kind: none, cursor: "a", rails: true})
		}},
		{"answered by a slow Rails", func(m *machine, now time.Time) {
			m.watchAnswered(now, answer{kind: none, sent: "a", cursor: "a", rails: true, held: 2 * time.Second})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := cleaned(t)
			now := at(0)
			for range shortSamples {
				require.False(t, m.hold.holdsNot)
				watch(t, m, now)
				test.answer(m, now)
			}
			require.True(t, m.hold.holdsNot)

			// From here on: claims that carry the cursor, slower and slower up to the check interval.
			var pauses []time.Duration
			for range 8 {
				p := m.plan(now, 8)
				require.False(t, p.watch)
				if !p.reserve {
					pauses = append(pauses, p.wake.Sub(now))
					now = p.wake
				}
				require.Equal(t, "a", claim(t, m, now))
				m.claimAnswered(now, answer{kind: none, sent: "a", cursor: "a", rails: true})
			}
			require.Equal(t, 3*time.Second, pauses[len(pauses)-1])
			for i := 1; i < len(pauses); i++ {
				require.Equal(t, min(2*pauses[i-1], 3*time.Second), pauses[i])
			}

			// A job ends the pause, and what follows it carries no cursor: there may be more.
			claim(t, m, m.claimAt)
			now = m.claimAt
			m.claimAnswered(now, answer{kind: job, sent: "a", rails: true})
			m.saved(false)
			require.Empty(t, claim(t, m, now))
			m.claimAnswered(now, answer{kind: none, cursor: "b", rails: true})

			// After a while it is asked again.
			now = m.hold.checkAt
			_, _ = watch(t, m, now)
			m.watchAnswered(now.Add(40*time.Second), answer{kind: none, sent: "b", held: 40 * time.Second})
			now = now.Add(40 * time.Second)
			claim(t, m, now)
			m.claimAnswered(now, answer{kind: none, cursor: "b", rails: true})
			require.False(t, m.hold.holdsNot)
			require.True(t, m.plan(now, 8).watch)
		})
	}
}

func TestClaimThatWasHeldTellsThatGitLabHolds(t *testing.T) {
	m := cleaned(t)
	m.hold = holdTime{holdsNot: true, checkAt: at(600)}
	require.Equal(t, "a", claim(t, m, at(0)))
	m.claimAnswered(at(50), answer{kind: none, sent: "a", held: 50 * time.Second})
	require.False(t, m.hold.holdsNot)
	require.True(t, m.dirty)
}

func TestGitLabWithoutCursors(t *testing.T) {
	m := verified(t)
	claim(t, m, at(0))
	m.claimAnswered(at(0), answer{kind: none, rails: true})
	p := m.plan(at(0), 8)
	require.Equal(t, plan{wake: at(0.1)}, p, "paced claims")
}

func TestWindowGrowsWithJobsAndShrinks(t *testing.T) {
	m := verified(t)
	for i := range 10 { // claims that all bring jobs
		claim(t, m, at(0))
		m.claimAnswered(at(0), answer{kind: job, rails: true})
		m.saved(false)
		require.Equal(t, min(i+1, maxWindow), m.window)
	}
	for range maxWindow {
		claim(t, m, at(1))
	}
	require.False(t, m.plan(at(1), 20).reserve, "the window is full")
	require.False(t, m.plan(at(1), 3).reserve)

	m.claimAnswered(at(1), answer{kind: none, cursor: "a", rails: true})
	require.Equal(t, 4, m.window)
	require.True(t, m.dirty, "others are in flight: not clean yet")
	for range 4 {
		m.claimAnswered(at(1), answer{kind: job, rails: true})
		m.saved(false)
		require.False(t, m.plan(at(1), 8).reserve, "nothing more before all are answered")
	}
	m.claimAnswered(at(1), answer{kind: conflict, rails: true})
	m.claimAnswered(at(1), answer{kind: throttled, rails: true})
	require.Equal(t, 1, m.window)
	m.claimAnswered(at(1), answer{kind: none, cursor: "b", rails: true})
	require.Equal(t, "b", m.cursor, "the last answer makes it clean")
	require.Equal(t, plan{wake: at(1.2)}, m.plan(at(1), 8), "the 429 holds")
}

func TestSingleJobsCostOneEmptyClaim(t *testing.T) {
	m := verified(t)
	for i := range 10 {
		claim(t, m, at(float64(10*i)))
		m.claimAnswered(at(float64(10*i)), answer{kind: job, rails: true})
		m.saved(false)
		claim(t, m, at(float64(10*i)))
		require.False(t, m.plan(at(float64(10*i)), 8).reserve)
		m.claimAnswered(at(float64(10*i)), answer{kind: none, rails: true})
	}
}

func TestWindowKeepsToTheSlots(t *testing.T) {
	m := verified(t)
	m.window = maxWindow
	claim(t, m, at(0))
	claim(t, m, at(0))
	require.False(t, m.plan(at(0), 2).reserve)
	require.True(t, m.plan(at(0), 3).reserve)
}

func TestSlotThatComesTooLateIsGivenBack(t *testing.T) {
	for name, spoil := range map[string]func(m *machine){
		"paused":      func(m *machine) { m.pause(true) },
		"stopping":    func(m *machine) { m.stop() },
		"disk full":   func(m *machine) { m.unsaved++; m.saveFailed() },
		"429":         func(m *machine) { m.claimSent(at(0)); m.claimAnswered(at(0), answer{kind: throttled}) },
		"403":         func(m *machine) { m.claimSent(at(0)); m.claimAnswered(at(0), answer{kind: refused}) },
		"clean again": func(m *machine) { m.claimSent(at(0)); m.claimAnswered(at(0), answer{kind: none, cursor: "a"}) },
	} {
		t.Run(name, func(t *testing.T) {
			m := verified(t)
			m.reserveStarted()
			spoil(m)
			require.True(t, m.plan(at(0), 8).dropReserve)
			require.False(t, m.reserveEnded(at(0), 8, true))
		})
	}
}

func TestSlotThatComesDuringAPauseIsGivenBack(t *testing.T) {
	m := verified(t)
	m.window = 2
	for range 2 {
		claim(t, m, at(0))
	}
	m.claimAnswered(at(0), answer{kind: conflict, rails: true})
	m.claimAnswered(at(0), answer{kind: conflict, rails: true})
	require.Equal(t, plan{wake: at(0.1)}, m.plan(at(0), 8))
	m.reserveStarted() // as if it had been waited for all the time
	require.False(t, m.plan(at(0), 8).dropReserve, "its place in the row is kept")
	require.False(t, m.reserveEnded(at(0.05), 8, true))
	claim(t, m, at(0.1))
}

func TestWatchesThatFindOthersJobsCountAsEmpty(t *testing.T) {
	m := holding(t)
	for i := range freeEmpties + 2 {
		watch(t, m, at(50))
		m.watchAnswered(at(50), answer{kind: none, sent: m.cursor, cursor: string(rune('b' + i)), rails: true})
	}
	watch(t, m, at(50))
	m.watchAnswered(at(50.1), answer{kind: none, sent: m.cursor, held: 100 * time.Millisecond})
	require.Equal(t, plan{wake: at(50.4)}, m.plan(at(50.1), 8), "the next claim is delayed")
}

func TestEmptyClaimsInARowAreDelayed(t *testing.T) {
	m := holding(t)
	now := at(50)
	var waits []time.Duration
	for i := range 12 { // somebody else gets every job
		watch(t, m, now)
		now = now.Add(10 * time.Millisecond)
		m.watchAnswered(now, answer{kind: none, sent: m.cursor, held: 10 * time.Millisecond})
		p := m.plan(now, 8)
		if !p.reserve {
			waits = append(waits, p.wake.Sub(m.lastEmpty))
			now = p.wake
		} else {
			waits = append(waits, 0)
		}
		claim(t, m, now)
		m.claimAnswered(now, answer{kind: none, cursor: string(rune('b' + i)), rails: true})
	}
	ms := time.Millisecond
	require.Equal(t, []time.Duration{0, 0, 0, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3000 * ms, 3000 * ms, 3000 * ms, 3000 * ms}, waits[:12])

	watch(t, m, now)
	now = now.Add(20 * time.Second)
	m.watchAnswered(now, answer{kind: none, sent: m.cursor, held: 20 * time.Second})
	claim(t, m, now)
	m.claimAnswered(now, answer{kind: none, cursor: "z", rails: true})
	require.Equal(t, 1, m.empties, "a quiet time is forgiving")
}

func TestFailuresBackOff(t *testing.T) {
	for name, verifies := range map[string]answer{
		"all of GitLab":   {kind: failed},
		"only its claims": {kind: none, rails: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := verified(t)
			now := at(0)
			claim(t, m, now)
			m.claimAnswered(now, answer{kind: failed})
			var waits []time.Duration
			for range 10 {
				p := m.plan(now, 8)
				require.Equal(t, plan{wake: p.wake}, p)
				waits = append(waits, p.wake.Sub(now))
				now = p.wake
				require.Equal(t, plan{verify: true}, m.plan(now, 8), "what needs no slot comes first")
				m.verifySent()
				m.verifyAnswered(now, verifies)
				if verifies.kind == none {
					claim(t, m, now)
					m.claimAnswered(now, answer{kind: failed})
				}
				require.True(t, m.troubled)
			}
			require.Equal(t, failureDelay, waits[0])
			require.Equal(t, maxFailure, waits[9])

			now = m.retryAt
			m.verifySent()
			m.verifyAnswered(now, answer{kind: none, rails: true})
			claim(t, m, now)
			m.claimAnswered(now, answer{kind: none, cursor: "a", rails: true})
			require.False(t, m.troubled)
			require.Zero(t, m.failures+m.verifyFailures)
			require.True(t, m.plan(now, 8).watch, "all is forgotten")
		})
	}
}

func TestOneFailureIsOverWhenGitLabAnswers(t *testing.T) {
	m := verified(t)
	claim(t, m, at(0))
	m.claimAnswered(at(0), answer{kind: failed})
	require.True(t, m.troubled)
	m.verifySent()
	m.verifyAnswered(m.retryAt, answer{kind: none, rails: true})
	require.False(t, m.troubled, "the next slot may be hours away")
}

func TestFailuresOfOneMomentCountOnce(t *testing.T) {
	m := verified(t)
	m.window = maxWindow
	for range 5 {
		claim(t, m, at(0))
	}
	for range 4 {
		m.claimAnswered(at(0), answer{kind: failed})
	}
	require.Equal(t, 1, m.failures)
	m.claimAnswered(at(0), answer{kind: none, cursor: "a", rails: true})
	require.Equal(t, plan{wake: at(0.2)}, m.plan(at(0), 8), "an older answer does not end the pause")
}

func TestRetryAfterIsHonoured(t *testing.T) {
	for _, dice := range []float64{0, 0.999} {
		m := verified(t)
		m.dice = func() float64 { return dice }
		claim(t, m, at(0))
		m.claimAnswered(at(0), answer{kind: throttled, wait: time.Minute, rails: true})
		wait := m.plan(at(0), 8).wake.Sub(epoch)
		require.GreaterOrEqual(t, wait, time.Minute)
		require.Less(t, wait, 66*time.Second)
	}
}

func TestUnknownTokenIsVerifiedSlowly(t *testing.T) {
	m := verified(t)
	claim(t, m, at(0))
	m.claimAnswered(at(0), answer{kind: refused, rails: true})
	now := at(0)
	var waits []time.Duration
	for range 8 {
		p := m.plan(now, 8)
		require.Equal(t, plan{wake: p.wake}, p)
		waits = append(waits, p.wake.Sub(now))
		now = p.wake
		p = m.plan(now, 8)
		require.Equal(t, plan{verify: true}, p, "the token is asked for, not a job")
		m.verifySent()
		m.verifyAnswered(now, answer{kind: refused, rails: true})
	}
	require.Equal(t, 5*time.Second, waits[0])
	require.Equal(t, 5*time.Minute, waits[7])
	now = m.retryAt
	m.verifySent()
	m.verifyAnswered(now, answer{kind: none, rails: true})
	claim(t, m, now)
}

func TestSignOfLife(t *testing.T) {
	m := holding(t)
	now := at(50)
	watch(t, m, now)
	for range 3 { // watches that reach nobody but Workhorse
		m.watchAnswered(now.Add(50*time.Second), answer{kind: none, sent: "a", held: 50 * time.Second})
		now = now.Add(50 * time.Second)
		watch(t, m, now)
	}
	require.Equal(t, plan{wake: at(50 + 20*60)}, m.plan(now, 8))
	due := at(50 + 20*60)
	require.Equal(t, plan{verify: true}, m.plan(due, 8), "20 minutes after the last request that Rails saw")
	m.verifySent()
	m.verifyAnswered(due, answer{kind: none, rails: true})
	require.Equal(t, plan{wake: due.Add(20 * time.Minute)}, m.plan(due, 8))
	require.True(t, m.watching, "the watch goes on")

	m.watchAnswered(due.Add(time.Minute), answer{kind: none, sent: "a", cursor: "b", rails: true})
	require.Equal(t, due.Add(21*time.Minute), m.verifyAt, "a request that Rails saw is one too")
}

func TestPause(t *testing.T) {
	m := cleaned(t)
	watch(t, m, at(0))
	m.pause(true)
	require.Equal(t, plan{wake: at(3)}, m.plan(at(1), 8), "a young watch may be bringing a job")
	require.True(t, m.plan(at(3), 8).cancelWatch)
	m.watchAnswered(at(3), answer{kind: abandoned, sent: "a"})
	p := m.plan(at(3), 8)
	require.Equal(t, plan{wake: m.verifyAt}, p, "only signs of life")
	m.pause(false)
	claim(t, m, at(4))
}

func TestFullDiskStopsRequests(t *testing.T) {
	m := verified(t)
	claim(t, m, at(0))
	m.claimAnswered(at(0), answer{kind: job, rails: true})
	require.True(t, m.plan(at(0), 8).reserve, "the next claim does not wait for the disk")
	m.saveFailed()
	require.Equal(t, plan{wake: m.verifyAt}, m.plan(at(0), 8))
	m.saved(true)
	require.True(t, m.plan(at(0), 8).reserve)
}

func TestJobsThatWaitForTheDiskAreBounded(t *testing.T) {
	m := verified(t)
	for range maxWindow {
		claim(t, m, at(0))
		m.claimAnswered(at(0), answer{kind: job, rails: true})
	}
	require.False(t, m.plan(at(0), 100).reserve)
	m.saved(false)
	require.True(t, m.plan(at(0), 100).reserve)
}

func TestStop(t *testing.T) {
	m := verified(t)
	claim(t, m, at(0))
	m.stop()
	require.Equal(t, plan{}, m.plan(at(0), 8))
	require.False(t, m.idle(), "the claim is awaited")
	m.claimAnswered(at(1), answer{kind: job, rails: true})
	require.False(t, m.idle(), "its job is kept first")
	m.saved(false)
	require.True(t, m.idle())
}

func TestBucket(t *testing.T) {
	b := newBucket(1800, epoch)
	for range 900 {
		require.Equal(t, epoch, b.readyAt(epoch))
		b.take(epoch)
	}
	ready := b.readyAt(epoch)
	require.InDelta(t, time.Second/15, ready.Sub(epoch), float64(2*time.Millisecond))
	require.Equal(t, ready, b.readyAt(ready), "the time that it names is one at which there is a token")
	unlimited := newBucket(-1, epoch)
	for range 10000 {
		require.Equal(t, epoch, unlimited.readyAt(epoch))
		unlimited.take(epoch)
	}
}

func TestBucketLimitsClaims(t *testing.T) {
	m := newMachine(3*time.Second, 60, epoch, func() float64 { return 0 })
	m.verified, m.verifyAt = true, at(1e6)
	now, count := epoch, 0
	for now.Before(at(60)) {
		p := m.plan(now, 8)
		if !p.reserve {
			now = p.wake
			continue
		}
		claim(t, m, now)
		m.claimAnswered(now, answer{kind: job, rails: true})
		m.saved(false)
		count++
	}
	require.InDelta(t, 60, count, 1)
}
