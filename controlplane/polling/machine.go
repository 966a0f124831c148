package polling

import "time"

const (
	// maxWindow is the most claims of one token in flight, and the most jobs of it that wait for the disk.
	maxWindow = 8
	// keepAlive is how long a runner may go without a request that reached Rails: GitLab takes it for offline after 2 h.
	keepAlive = 20 * time.Minute
	// settled is the age from which a watch is certainly held: everything else GitLab answers at once. Only then is it
	// cancelled, because an answer on its way may carry a job.
	settled = 3 * time.Second
	// freeEmpties is how many empty claims in a row cost no delay where GitLab wakes the runner: others are woken by the
	// same change and one of them gets the job.
	freeEmpties = 3

	emptyDelay   = 100 * time.Millisecond // after the first empty claim that costs; doubles up to the check interval
	failureDelay = 200 * time.Millisecond // after the first failure; doubles
	maxFailure   = 30 * time.Second
	refusedDelay = 5 * time.Second // after the first 403; doubles
	maxRefused   = 5 * time.Minute
	waitJitter   = 0.1 // of a wait that GitLab asked for, on top
)

// kind is how a request ended.
type kind int

const (
	none      kind = iota // 204
	job                   // 201
	conflict              // 409
	refused               // 403: GitLab does not know the token
	throttled             // 429
	failed                // no answer, or one of trouble
	abandoned             // a watch that was cancelled here, or a request whose token has been replaced
)

// answer is a request's end as the machine sees it.
type answer struct {
	kind   kind
	sent   string        // the cursor that the request carried
	cursor string        // the cursor of the answer; "" if it had none
	held   time.Duration // from the request to the answer
	wait   time.Duration // how long GitLab wants to be left alone
	rails  bool          // Rails has seen the request, not only what is before it
	old    bool          // the request's token has been replaced: the cursor is not the present token's
}

// machine decides what a runner may ask GitLab next. It is pure: it learns the time, the dice and what happened from its
// caller and does nothing itself.
//
// GitLab's queue has a value, the cursor. A runner is clean while it holds a cursor at which the queue had nothing for it,
// else dirty. Dirty runners claim, clean ones watch (or, where GitLab does not hold watches, claim at a slow pace).
type machine struct {
	interval time.Duration  // the check interval
	dice     func() float64 // in [0, 1)

	paused, stopping bool
	// verified: GitLab answers and knows the token, as far as is known. While it is not, the only request is a
	// verification: it needs no slot, so that a GitLab in trouble holds none.
	verified  bool
	forbidden bool // not verified because GitLab refuses the token
	verifying bool
	reserving bool

	dirty  bool
	cursor string // of the last empty answer; only while !dirty

	inFlight int  // claims
	window   int  // how many may be
	streak   int  // claims in a row that brought a job
	draining bool // a claim came back empty while others were in flight: wait for those

	unsaved int // jobs that are being persisted
	failing int // those of them for which it failed already

	watching   bool
	watchSince time.Time
	outdated   bool     // the watch has a token that was replaced
	watchAfter struct { // the last watch that ended early, until a cursor tells whether something had changed
		cursor string
		held   time.Duration
	}
	hold holdTime

	empties   int
	lastEmpty time.Time
	claimAt   time.Time // no claim before

	failures       int       // of claims and watches, in a row
	verifyFailures int       // of verifications, in a row
	retryAt        time.Time // no request before
	troubled       bool      // something fails at the moment, for people

	verifyAt time.Time // a sign of life is due
	bucket   bucket
}

func newMachine(interval time.Duration, perMinute int, now time.Time, dice func() float64) *machine {
	return &machine{interval: interval, dice: dice, dirty: true, window: 1, bucket: newBucket(perMinute, now)}
}

// plan is what is to be done at a moment. What is not in it needs no change.
type plan struct {
	reserve     bool // begin to wait for a slot
	dropReserve bool // stop waiting for a slot
	watch       bool // send a watch
	cancelWatch bool
	verify      bool
	wake        time.Time // ask again then; zero: only after the next event
}

// plan says what to do now. slots is how many jobs the runner could be given at once, a hint.
func (m *machine) plan(now time.Time, slots int) plan {
	var p plan
	later := func(t time.Time) {
		if p.wake.IsZero() || t.Before(p.wake) {
			p.wake = t
		}
	}
	due := func(times ...time.Time) bool {
		at := now
		for _, t := range times {
			if t.After(at) {
				at = t
			}
		}
		if at.After(now) {
			later(at)
			return false
		}
		return true
	}

	open := !m.paused && !m.stopping && m.verified && m.failing == 0
	if m.watching && (!open || m.outdated) {
		p.cancelWatch = due(m.watchSince.Add(settled))
	}
	if m.reserving && (!open || !m.mayClaim() || now.Before(m.retryAt)) {
		p.dropReserve = true
	}
	if m.stopping {
		return p
	}
	if !m.verifying {
		if !m.verified {
			p.verify = due(m.retryAt)
		} else {
			p.verify = due(m.verifyAt, m.retryAt)
		}
	}
	if !open || m.watching {
		return p
	}
	if m.mayWatch(now) {
		if m.inFlight == 0 && !m.reserving {
			p.watch = due(m.retryAt, m.bucket.readyAt(now))
		}
		return p
	}
	if m.hold.holdsNot && m.cursor != "" {
		later(m.hold.checkAt)
	}
	if !m.reserving && m.mayClaim() && m.roomForClaim(slots) {
		p.reserve = due(m.retryAt, m.claimAt, m.bucket.readyAt(now))
	}
	return p
}

// mayClaim: the queue may have something, or there is no other way to find out.
func (m *machine) mayClaim() bool { return m.dirty || m.hold.holdsNot }

// mayWatch: nothing is there, and GitLab can tell when that changes (or is to be asked whether it can).
func (m *machine) mayWatch(now time.Time) bool {
	return !m.dirty && m.cursor != "" && (!m.hold.holdsNot || !now.Before(m.hold.checkAt))
}

func (m *machine) roomForClaim(slots int) bool {
	return !m.draining && m.inFlight < min(m.window, max(slots, 1)) && m.inFlight+m.unsaved < maxWindow
}

// reserveStarted: a slot is waited for.
func (m *machine) reserveStarted() { m.reserving = true }

// reserveEnded: a slot was given, or waiting for it was stopped. It says whether a claim may be sent with it now; if not,
// the slot is to be given back.
func (m *machine) reserveEnded(now time.Time, slots int, granted bool) (claim bool) {
	m.reserving = false
	return granted && !m.stopping && !m.paused && m.verified && m.failing == 0 && !m.watching &&
		m.mayClaim() && m.roomForClaim(slots) && !now.Before(m.retryAt) && !now.Before(m.claimAt)
}

// reserveFailed: the dispatcher could not even wait for a slot.
func (m *machine) reserveFailed(now time.Time) {
	m.reserving = false
	m.fail(now, &m.failures, failureDelay, maxFailure, 0)
}

// claimSent returns the cursor that the claim carries: none while dirty, so that it reaches Rails and is answered at once.
func (m *machine) claimSent(now time.Time) (cursor string) {
	m.bucket.take(now)
	m.inFlight++
	return m.cursor
}

func (m *machine) claimAnswered(now time.Time, a answer) {
	m.inFlight--
	last := m.inFlight == 0
	if last {
		m.draining = false
	}
	m.seen(now, a)
	if a.kind != job {
		m.streak = 0
	}
	switch a.kind {
	case job:
		m.soil()
		m.watchAfter.cursor = ""
		m.empties, m.claimAt = 0, time.Time{}
		if m.streak++; m.streak > 1 { // after a single job, one claim finds out that there are no more
			m.window = min(m.window+1, maxWindow)
		}
		m.unsaved++
		m.recovered(now)
	case none:
		m.recovered(now)
		m.window = max(m.window/2, 1)
		if !last {
			m.draining = true
			return
		}
		if a.old {
			a.cursor, a.sent = "", ""
			m.soil()
		}
		m.learn(now, a)
		switch {
		case a.cursor != "":
			m.clean(a.cursor)
		case a.sent == "":
			// A GitLab that names no cursor cannot be watched.
		case a.held >= minHold:
			// GitLab held a claim that carried a cursor: it does hold requests by now.
			m.hold = holdTime{}
			m.soil()
		}
		free := freeEmpties
		if m.hold.holdsNot || m.dirty {
			free = 0
		}
		m.pace(now, free)
	case conflict:
		m.recovered(now)
		m.soil()
		m.window = max(m.window/2, 1)
		m.pace(now, 1)
	case abandoned:
		m.soil()
	default:
		m.window = max(m.window/2, 1)
		m.trouble(now, &m.failures, a)
	}
}

// watchSent returns the cursor that the watch carries and how long it may last.
func (m *machine) watchSent(now time.Time) (cursor string, limit time.Duration) {
	m.watching, m.watchSince = true, now
	return m.cursor, m.hold.limit()
}

func (m *machine) watchAnswered(now time.Time, a answer) {
	m.watching, m.outdated = false, false
	m.seen(now, a)
	if a.rails {
		m.bucket.take(now) // a held watch is not counted by GitLab's limits
	}
	switch a.kind {
	case job:
		m.recovered(now)
		m.soil()
		m.empties, m.claimAt = 0, time.Time{}
		m.unsaved++
	case none:
		m.recovered(now)
		switch {
		case a.old:
			m.soil()
		case a.cursor == a.sent:
			m.hold.sample(now, answeredByRails(a.held))
			m.clean(a.cursor)
		case a.cursor != "":
			// The value had changed before the watch came, and Rails found nothing for this runner at the new one.
			m.clean(a.cursor)
			m.pace(now, freeEmpties)
		case m.hold.timedOut(a.held):
		default:
			m.soil()
			m.watchAfter.cursor, m.watchAfter.held = a.sent, a.held
		}
	case conflict:
		m.recovered(now)
		m.soil()
		m.pace(now, 1)
	case abandoned:
		m.soil()
		if a.held >= m.hold.limit() {
			m.hold = holdTime{} // GitLab holds longer than it did
		}
	default:
		m.trouble(now, &m.failures, a)
	}
}

func (m *machine) verifySent() { m.verifying = true }

// verifyAnswered takes none for "GitLab knows the token" and for answers that leave it open.
func (m *machine) verifyAnswered(now time.Time, a answer) {
	m.verifying = false
	m.seen(now, a)
	switch a.kind {
	case none:
		m.verified, m.forbidden = true, false
		m.verifyAt = m.nextVerify(now)
		m.verifyFailures = 0
		// Claims that go on failing although verifications succeed are trouble all the same.
		m.troubled = m.failures > 1 || now.Before(m.retryAt)
	case abandoned:
	default:
		m.trouble(now, &m.verifyFailures, a)
	}
}

// saveFailed: a job could not be persisted, for the first time.
func (m *machine) saveFailed() { m.failing++ }

// saved: a job is durable (or given up). hadFailed repeats whether saveFailed was called for it.
func (m *machine) saved(hadFailed bool) {
	m.unsaved--
	if hadFailed {
		m.failing--
	}
}

func (m *machine) pause(on bool) {
	m.paused = on
	if on && !m.watching {
		m.soil()
	}
}

// tokenChanged: the runner has a new token. The queue's value belongs to the token, and GitLab ends no watch of an old one.
// That GitLab has just given a token away shows that it works and knows the runner.
func (m *machine) tokenChanged() {
	m.soil()
	m.outdated = m.watching
	if !m.verified {
		m.retryAt = time.Time{}
		m.failures, m.verifyFailures = 0, 0
	}
}

// gitlabRecovered: GitLab works again after it did not for a while. Runners that wait for that come within a second.
func (m *machine) gitlabRecovered(now time.Time) {
	if at := now.Add(spread(time.Second, 1, m.dice)); !m.verified && !m.forbidden && at.Before(m.retryAt) {
		m.retryAt = at
	}
}

func (m *machine) stop() { m.stopping = true }

// idle: nothing is on its way.
func (m *machine) idle() bool {
	return m.inFlight == 0 && m.unsaved == 0 && !m.watching && !m.reserving && !m.verifying
}

// seen puts the next sign of life off if the request was one.
func (m *machine) seen(now time.Time, a answer) {
	if a.rails {
		m.verifyAt = m.nextVerify(now)
	}
}

func (m *machine) nextVerify(now time.Time) time.Time {
	return now.Add(spread(keepAlive, 0.1, m.dice))
}

// learn compares the cursor with that of the watch that ended early: if they are the same nothing had changed, and the
// watch lasted as long as GitLab holds one.
func (m *machine) learn(now time.Time, a answer) {
	if m.watchAfter.cursor != "" && a.cursor == m.watchAfter.cursor {
		m.hold.sample(now, m.watchAfter.held)
	}
	if a.cursor != "" {
		m.watchAfter.cursor = ""
	}
}

func (m *machine) clean(cursor string) { m.dirty, m.cursor = false, cursor }

func (m *machine) soil() { m.dirty, m.cursor = true, "" }

// pace delays the next claim after one that brought nothing, if there were more than free of them in a row.
func (m *machine) pace(now time.Time, free int) {
	if now.Sub(m.lastEmpty) > max(2*m.interval, time.Second) {
		m.empties = 0
	}
	m.empties++
	m.lastEmpty = now
	if n := m.empties - free; n > 0 {
		m.claimAt = now.Add(spread(doubled(emptyDelay, n, m.interval), 0.25, m.dice))
	}
}

func (m *machine) trouble(now time.Time, count *int, a answer) {
	m.soil()
	switch a.kind {
	case refused:
		m.verified, m.forbidden = false, true
		m.fail(now, count, refusedDelay, maxRefused, a.wait)
	case throttled:
		m.fail(now, count, failureDelay, maxFailure, a.wait)
	default:
		m.verified, m.forbidden = false, false
		m.fail(now, count, failureDelay, maxFailure, a.wait)
	}
}

// fail stops all requests for a while. Failures of requests that were sent before the last failure was known count once.
func (m *machine) fail(now time.Time, count *int, first, most, wait time.Duration) {
	m.troubled = true
	if !now.Before(m.retryAt) {
		*count++
	}
	delay := spread(doubled(first, max(m.failures, m.verifyFailures), most), 0.5, m.dice)
	if wait > 0 {
		delay = max(delay, wait+time.Duration(waitJitter*m.dice()*float64(wait)))
	}
	if at := now.Add(delay); at.After(m.retryAt) {
		m.retryAt = at
	}
}

// recovered ends a failure. Answers that come while requests are stopped belong to requests that were sent before.
func (m *machine) recovered(now time.Time) {
	if !now.Before(m.retryAt) {
		m.failures, m.troubled = 0, false
	}
}

// doubled returns first·2ⁿ⁻¹, at most most.
func doubled(first time.Duration, n int, most time.Duration) time.Duration {
	d := first
	for range n - 1 {
		if d >= most {
			break
		}
		d *= 2
	}
	return min(d, most)
}

// spread returns a random duration in (d·(1-part), d].
func spread(d time.Duration, part float64, dice func() float64) time.Duration {
	return d - time.Duration(part*dice()*float64(d))
}
