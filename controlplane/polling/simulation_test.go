package polling

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// simulation plays one machine against a model of GitLab and of a dispatcher, in virtual time and without goroutines.
type simulation struct {
	t    *rapid.T
	rand *rand.Rand
	now  time.Time
	m    *machine

	queue  events
	serial int
	wakeAt time.Time

	// GitLab
	value   int
	pending []time.Time // when each job was pushed
	hold    time.Duration
	held    []func()    // each ends a request that is held, if it still is
	faults  []kind      // for the next requests
	rails   []time.Time // requests that reached Rails

	// The dispatcher
	slots   int
	running int
	over    int    // jobs of watches that wait for a slot
	grant   func() // gives the reservation that is waited for
	jobTime func() time.Duration

	got     int
	slowest time.Duration // from push to claim
	cancel  func()        // of the watch that is out
}

type event struct {
	at     time.Time
	serial int
	do     func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].serial < e[j].serial
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func (s *simulation) after(d time.Duration, do func()) {
	s.serial++
	heap.Push(&s.queue, event{s.now.Add(d), s.serial, do})
}

// trip is how long a message takes.
func (s *simulation) trip() time.Duration {
	return time.Duration(1+s.rand.IntN(2000)) * 5 * time.Microsecond
}

// run plays events until the end, or until nothing more happens.
func (s *simulation) run(end time.Time) {
	for steps := 0; len(s.queue) > 0 && !s.queue[0].at.After(end); steps++ {
		if steps > 1_000_000 {
			s.t.Fatalf("a million events without an end: a busy loop at %s", s.now.Sub(epoch))
		}
		e := heap.Pop(&s.queue).(event)
		s.now = e.at
		e.do()
		s.act()
	}
	s.now = end
}

// act carries out what the machine plans, as the poller does.
func (s *simulation) act() {
	m := s.m
	p := m.plan(s.now, s.slots)
	if p.dropReserve {
		s.grant = nil
		m.reserveEnded(s.now, s.slots, false)
		s.act()
		return
	}
	if p.cancelWatch {
		s.cancel()
		s.act()
		return
	}
	if p.verify {
		m.verifySent()
		s.after(s.trip(), func() {
			a := answer{kind: none, rails: true}
			if len(s.faults) > 0 && s.faults[0] != conflict {
				a = answer{kind: s.faults[0]}
				s.faults = s.faults[1:]
			}
			m.verifyAnswered(s.now, a)
		})
	}
	if p.reserve {
		m.reserveStarted()
		s.grant = func() {
			if !m.reserveEnded(s.now, s.slots, true) {
				return
			}
			s.running++
			s.claim()
		}
		s.after(s.trip()/10, s.serve)
	}
	if p.watch {
		s.watch()
	}
	if !p.wake.IsZero() && (s.wakeAt.IsZero() || p.wake.Before(s.wakeAt) || !s.wakeAt.After(s.now)) {
		if !p.wake.After(s.now) {
			s.t.Fatalf("wants to be woken in the past")
		}
		s.wakeAt = p.wake
		s.after(p.wake.Sub(s.now), func() {})
	}
}

// serve gives free slots: to jobs that have none first.
func (s *simulation) serve() {
	for s.running < s.slots && s.over > 0 {
		s.over--
		s.start()
	}
	if s.running < s.slots && s.grant != nil {
		grant := s.grant
		s.grant = nil
		grant()
	}
}

// start runs a job in a slot that is not counted yet.
func (s *simulation) start() {
	s.running++
	s.after(s.jobTime(), s.free)
}

func (s *simulation) free() {
	s.running--
	s.serve()
}

func (s *simulation) claim() {
	m := s.m
	sent := m.claimSent(s.now)
	if s.cancel != nil {
		s.t.Fatalf("a claim beside a watch")
	}
	if m.inFlight > min(maxWindow, max(s.slots, 1)) {
		s.t.Fatalf("%d claims in flight with %d slots", m.inFlight, s.slots)
	}
	answered := func(a answer) {
		if a.kind == job {
			s.after(s.jobTime(), s.free)
			s.after(s.trip(), func() { m.saved(false) })
		} else {
			s.after(0, s.free)
		}
		m.claimAnswered(s.now, a)
	}
	s.after(s.trip(), func() {
		if sent == strconv.Itoa(s.value) && s.hold > 0 {
			s.hang(sent, answered)
			return
		}
		s.askRails(sent, answered)
	})
}

func (s *simulation) watch() {
	m := s.m
	if m.inFlight > 0 || s.cancel != nil {
		s.t.Fatalf("a watch beside %d claims or another watch", m.inFlight)
	}
	sent, limit := m.watchSent(s.now)
	if sent == "" {
		s.t.Fatalf("a watch without a cursor")
	}
	start, over := s.now, false
	s.cancel = func() {
		over, s.cancel = true, nil
		m.watchAnswered(s.now, answer{kind: abandoned, sent: sent})
	}
	s.after(limit, func() {
		if !over {
			s.cancel()
		}
	})
	answered := func(a answer) {
		if over {
			if a.kind == job {
				s.t.Fatalf("a watch was cancelled that carried a job")
			}
			return
		}
		over, s.cancel = true, nil
		a.held = s.now.Sub(start)
		m.watchAnswered(s.now, a)
		if a.kind == job {
			s.over++
			if s.running < s.slots {
				s.after(0, s.serve)
			} else if s.over > 1 {
				s.t.Fatalf("%d jobs over the slots", s.over)
			}
			s.after(s.trip(), func() { m.saved(false) })
		}
	}
	s.after(s.trip(), func() {
		if sent == strconv.Itoa(s.value) && s.hold > 0 {
			s.hang(sent, answered)
			return
		}
		s.askRails(sent, answered)
	})
}

// hang is Workhorse: a bare 204 at the next change or at the end of the hold time.
func (s *simulation) hang(sent string, answered func(answer)) {
	over, start := false, s.now
	end := func() {
		if !over {
			over = true
			held := s.now.Sub(start)
			s.after(s.trip(), func() { answered(answer{kind: none, sent: sent, held: held}) })
		}
	}
	s.held = append(s.held, end)
	s.after(s.hold, end)
}

// askRails answers a request with the value as it was before the queue was looked at.
func (s *simulation) askRails(sent string, answered func(answer)) {
	s.rails = append(s.rails, s.now)
	if len(s.faults) > 0 {
		fault := s.faults[0]
		s.faults = s.faults[1:]
		s.after(s.trip(), func() { answered(answer{kind: fault, sent: sent}) })
		return
	}
	value := strconv.Itoa(s.value)
	if sent == value {
		s.after(s.trip(), func() { answered(answer{kind: none, sent: sent, cursor: value, rails: true}) })
		return
	}
	s.after(s.trip(), func() {
		a := answer{kind: none, sent: sent, cursor: value, rails: true}
		if len(s.pending) > 0 {
			s.slowest = max(s.slowest, s.now.Sub(s.pending[0]))
			s.pending = s.pending[1:]
			s.got++
			a = answer{kind: job, sent: sent, rails: true}
		}
		s.after(s.trip(), func() { answered(a) })
	})
}

func (s *simulation) tick() {
	s.value++
	for _, end := range s.held {
		end()
	}
	s.held = nil
}

func (s *simulation) push() {
	s.pending = append(s.pending, s.now)
	s.tick()
}

func newSimulation(t *rapid.T, perMinute int) *simulation {
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	s := &simulation{
		t: t, rand: r, now: epoch, value: 1,
		m:       newMachine(3*time.Second, perMinute, epoch, r.Float64),
		jobTime: func() time.Duration { return time.Duration(1+r.IntN(3000)) * time.Millisecond },
	}
	s.after(0, func() {})
	return s
}

// checkLimit: GitLab's own limit is never touched.
func (s *simulation) checkLimit(perMinute int) {
	for i := perMinute; i < len(s.rails); i++ {
		if d := s.rails[i].Sub(s.rails[i-perMinute]); d < time.Minute {
			s.t.Fatalf("%d requests in %s", perMinute+1, d)
		}
	}
}

// While slots are free and nothing fails, a job is picked up within a few messages, whatever it races with.
func TestNoPushIsMissed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSimulation(t, -1)
		s.slots = 1000
		s.hold = rapid.SampledFrom([]time.Duration{2 * time.Second, 10 * time.Second, 50 * time.Second}).Draw(t, "hold")
		pushes := rapid.SliceOfN(rapid.IntRange(0, 120_000), 1, 200).Draw(t, "pushes") // ms
		for _, ms := range pushes {
			s.after(time.Duration(ms)*time.Millisecond+s.trip(), s.push)
		}
		s.run(at(130))
		if s.got != len(pushes) {
			t.Fatalf("%d of %d jobs", s.got, len(pushes))
		}
		if s.slowest > 150*time.Millisecond { // at most 15 messages of 10 ms
			t.Fatalf("a job waited %s", s.slowest)
		}
	})
}

// Whatever happens, all jobs are fetched in the end, and no rule is broken on the way (see the checks in the simulation).
func TestEverythingIsFetchedInTheEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const perMinute = 120
		s := newSimulation(t, perMinute)
		s.slots = rapid.IntRange(0, 12).Draw(t, "slots")
		s.hold = rapid.SampledFrom([]time.Duration{0, 0, 2 * time.Second, 50 * time.Second}).Draw(t, "hold")
		jobs := 0
		for i := range rapid.IntRange(1, 60).Draw(t, "happenings") {
			when := time.Duration(rapid.IntRange(0, 300_000).Draw(t, fmt.Sprint("ms", i))) * time.Millisecond
			switch what := rapid.IntRange(0, 7).Draw(t, fmt.Sprint("what", i)); what {
			case 0, 1, 2:
				n := rapid.IntRange(1, 10).Draw(t, fmt.Sprint("jobs", i))
				jobs += n
				s.after(when, func() {
					for range n {
						s.push()
					}
				})
			case 3: // somebody else's job
				s.after(when, s.tick)
			case 4:
				faults := rapid.SliceOfN(rapid.SampledFrom([]kind{conflict, refused, throttled, failed}), 1, 5).Draw(t, fmt.Sprint("faults", i))
				s.after(when, func() { s.faults = append(s.faults, faults...) })
			case 5:
				n := rapid.IntRange(0, 12).Draw(t, fmt.Sprint("slots", i))
				s.after(when, func() { s.slots = n; s.serve() })
			case 6:
				hold := rapid.SampledFrom([]time.Duration{0, 5 * time.Second, 30 * time.Second}).Draw(t, fmt.Sprint("hold", i))
				s.after(when, func() { s.hold = hold })
			case 7:
				pause := time.Duration(rapid.IntRange(1, 20_000).Draw(t, fmt.Sprint("pause", i))) * time.Millisecond
				s.after(when, func() { s.m.pause(true) })
				s.after(when+pause, func() { s.m.pause(false) })
			}
		}
		s.run(at(300))
		s.faults = nil
		s.slots = 12
		s.after(0, s.serve)
		s.after(maxRefused, func() { s.m.pause(false) })
		s.run(at(300 + 1200))
		if s.got != jobs || s.over != 0 {
			t.Fatalf("%d of %d jobs, %d without a slot", s.got, jobs, s.over)
		}
		s.checkLimit(perMinute)
	})
}

// An idle runner costs one held watch and a sign of life now and then.
func TestIdleCosts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSimulation(t, DefaultRequestsPerMinute)
		s.slots, s.hold = 10, 50*time.Second
		s.run(at(3600))
		if len(s.rails) > 3 {
			t.Fatalf("%d requests to Rails in an idle hour", len(s.rails))
		}
	})
}
