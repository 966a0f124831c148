// Package report decides what to send GitLab about one job, and when: it is told of bytes that arrived, of the job's end
// and of GitLab's answers, and says which request comes next. It does no I/O and reads no clock.
//
// While the job runs GitLab gets the trace in pieces of at most PatchSize, at the interval that it asks for; only a full
// piece, the time after a cancel and the end come sooner. When GitLab has acknowledged nothing for a while, a PUT of
// state running shows that the job lives. At the end comes the rest of the trace, then the result.
//
// # Answers
//
//	PATCH 202         the piece is there
//	PATCH 416         go on at Range (0 if it has none): GitLab has more or less than it was thought to have
//	PATCH 413         something on the way takes no request of this size: smaller pieces
//	PUT   200         final: the result is there
//	PUT   202         final: GitLab still moves the trace; PUT again after the interval
//	PUT   412         final: GitLab's trace differs; all of it is sent again, thrice at most, then no checksum is given
//	403, or a Job-Status of canceled or failed
//	                  GitLab wants nothing more of the job
//	no answer, 408, 429, 5xx
//	                  tried again with growing, jittered waits of at most BackoffMost, without an end: a job that GitLab
//	                  dropped in the meantime is answered 403. When the GitLab answers others again, Wake
//	404               the same, but GitLab wants nothing more of a job that nothing else is said of for MissingFor: GitLab
//	                  itself says 403 for what it does not know, a proxy says 404 while GitLab is being replaced
//	anything else (400, 409, …)
//	                  tried again in the same way, but a result that was refused for RefusedFor is given up. GitLab drops
//	                  a job that it hears nothing of after an hour, and then says 403: who says anything else for so long
//	                  is not a GitLab that could still take the result.
//
// If GitLab refuses the rest of the trace for FlushFor although it answers other requests about the job, the result is
// sent without that rest: a pipeline must not hang on a log.
package report

import "time"

// What the reporting is measured by.
const (
	// PatchSize is the most that one PATCH carries, in bytes, and what counts as a full piece.
	PatchSize = 1 << 20
	// ProbeSize is the size of the first PATCH if GitLab may have bytes already: a 416 to it costs little.
	ProbeSize = 4 << 10
	// minPatchSize is where 413 stops making pieces smaller.
	minPatchSize = 16 << 10

	// Gather is how long the first unsent bytes wait for more of them. A job that is over within that time needs one PATCH.
	Gather = 250 * time.Millisecond
	// Interval between PATCHes until GitLab names one, and during a cancel; MaxInterval is the longest that is obeyed.
	Interval    = 3 * time.Second
	MaxInterval = 15 * time.Minute

	// A touch comes when nothing was acknowledged for the interval, but at least TouchSoonest and at most TouchLatest.
	TouchSoonest = 30 * time.Second
	TouchLatest  = 5 * time.Minute
	// resumeSpread is the time over which the first requests after a restart are spread.
	resumeSpread = 5 * time.Second

	// BackoffFirst and BackoffMost bound the wait after a failure, before jitter takes up to half of it away.
	BackoffFirst = time.Second
	BackoffMost  = time.Minute

	// RefusedFor outlasts a weekend.
	RefusedFor = 72 * time.Hour
	FlushFor   = time.Hour
	MissingFor = time.Hour

	goneAfter404    = 10
	refusalsAtLeast = 10
	resendsAfter412 = 3
)

// Kind is what to do next.
type Kind int

const (
	// Idle: nothing until something changes.
	Idle Kind = iota
	// Wait: nothing before Until, unless something changes.
	Wait
	// Patch: send the bytes [From, To) of the trace.
	Patch
	// Touch: PUT state running.
	Touch
	// Put: PUT the result.
	Put
	// Done: the report has ended; see Outcome.
	Done
)

// Action is a decision.
type Action struct {
	Kind     Kind
	From, To int64     // Patch
	Until    time.Time // Wait
	// Checksum: the Put says length and CRC of the trace.
	Checksum bool
}

// Outcome is how a report ended.
type Outcome int

const (
	// Open: it has not.
	Open Outcome = iota
	// Accepted: GitLab has the result.
	Accepted
	// Gone: GitLab wants nothing more of the job.
	Gone
	// Refused: GitLab did not take the result for RefusedFor.
	Refused
)

// Report is the state of one job's report. Its methods must not be called concurrently.
type Report struct {
	rand func() float64

	length int64 // bytes that can be sent
	sent   int64 // where GitLab's trace ends, as far as known; may be beyond length
	probe  bool  // sent is a guess

	complete bool   // length is the whole trace
	final    string // the result's state, once complete

	patchSize int64
	interval  time.Duration
	pace      time.Duration // unsent bytes wait no longer, whatever the interval; 0: they do
	unsent    time.Time     // since when there are unsent bytes
	patched   time.Time     // when the last PATCH was answered or failed
	ack       time.Time     // when GitLab last acknowledged anything

	patch, put attempts
	mismatches int       // 416 in a row
	rejections int       // 412
	touched    bool      // the last touch was answered
	stuck      time.Time // since when PATCHes fail at the end while touches are answered
	skip       bool      // the rest of the trace is given up

	inFlight  Action
	canceling bool
	gone      bool
	succeeded bool // GitLab said that the job is successful when it said that
	outcome   Outcome
}

// attempts is the recent past of one kind of request.
type attempts struct {
	failures  int
	notBefore time.Time
	missing   int       // 404 in a row
	missed    time.Time // since when
	outage    bool      // the last request was not answered, or not by a GitLab that works
	refused   time.Time // since when GitLab says no
	refusals  int
}

// New begins a report. length bytes of trace are there already; resumed says that GitLab may have some of them, so that
// its end of the trace must be learned first. rand yields jitter in [0, 1).
func New(now time.Time, length int64, resumed bool, rand func() float64) *Report {
	r := &Report{rand: rand, length: length, patchSize: PatchSize, interval: Interval, ack: now}
	if length > 0 {
		r.unsent = now
	}
	if resumed {
		// Nobody knows for how long GitLab has heard nothing: a sign of life soon, but not all jobs' at once.
		spread := time.Duration(rand() * float64(resumeSpread))
		r.probe = true
		r.unsent = now.Add(-Gather)
		r.ack = now.Add(spread - TouchSoonest)
		r.patch.notBefore = now.Add(spread)
	}
	return r
}

// Pace makes unsent bytes wait for at most d, also where GitLab asks for longer intervals: for a GitLab in the same
// process, whose user looks on.
func (r *Report) Pace(d time.Duration) { r.pace = d }

// Written says that the bytes [0, length) can be sent. It may be less than before: then what was taken back is not
// sent before it is there again.
func (r *Report) Written(now time.Time, length int64) {
	if length > r.sent && r.length <= r.sent {
		r.unsent = now
	}
	r.length = length
}

// Complete says that no bytes will follow and in which state (success or failed) the job ended.
func (r *Report) Complete(final string) {
	r.complete, r.final = true, final
}

// Sent returns how many bytes GitLab has, as far as known; never more than there are here.
func (r *Report) Sent() int64 { return min(r.sent, r.length) }

// Down says that the last request failed because GitLab is not there, or does not work: Wake ends the wait for the next.
func (r *Report) Down() bool {
	return r.outcome == Open && !r.gone && r.inFlight.Kind == Idle && (r.patch.outage || r.put.outage)
}

// Wake says that GitLab answers again: what waits because it did not is due now. A wait that GitLab asked for stays.
func (r *Report) Wake(now time.Time) {
	for _, t := range []*attempts{&r.patch, &r.put} {
		if t.outage && t.notBefore.After(now) {
			t.notBefore = now
		}
	}
}

// Gone says that GitLab wants nothing more of the job.
func (r *Report) Gone() bool { return r.gone }

// Outcome is Open until Next says Done.
func (r *Report) Outcome() Outcome { return r.outcome }

// Whole says that GitLab has got every byte of a complete trace.
func (r *Report) Whole() bool { return r.complete && r.sent >= r.length }

// Next decides. If it says Patch, Touch or Put, the caller makes that request and calls Answered; until then Next says
// Idle.
func (r *Report) Next(now time.Time) Action {
	a := r.plan(now)
	switch a.Kind {
	case Patch, Touch, Put:
		r.inFlight = a
	}
	return a
}

// Due returns when Next would say something other than Idle or Wait; ok is false if that takes a change.
func (r *Report) Due(now time.Time) (at time.Time, ok bool) {
	switch a := r.plan(now); a.Kind {
	case Idle:
		return time.Time{}, false
	case Wait:
		return a.Until, true
	default:
		return now, true
	}
}

func (r *Report) plan(now time.Time) Action {
	switch {
	case r.inFlight.Kind != Idle:
		return Action{}
	case r.outcome != Open:
		return Action{Kind: Done}
	case r.gone && r.complete:
		r.outcome = r.parting()
		return Action{Kind: Done}
	case r.gone:
		return Action{}
	}
	next, at := Action{Kind: Touch}, later(r.ack.Add(r.touchAfter()), r.put.notBefore)
	switch {
	case r.length > r.sent && !r.skip:
		if p := r.patchDue(); !p.After(at) {
			next, at = Action{Kind: Patch, From: r.sent, To: min(r.length, r.sent+r.piece())}, p
		}
	case r.complete:
		next, at = Action{Kind: Put, Checksum: r.rejections <= resendsAfter412}, r.put.notBefore
	}
	if at.After(now) {
		return Action{Kind: Wait, Until: at}
	}
	return next
}

// patchDue is when the unsent bytes go.
func (r *Report) patchDue() time.Time {
	if r.complete || r.length-r.sent >= r.piece() {
		return r.patch.notBefore
	}
	gather, interval := Gather, r.interval
	if r.pace > 0 {
		gather, interval = min(gather, r.pace), min(interval, r.pace)
	}
	due := r.unsent.Add(gather)
	if !r.patched.IsZero() {
		due = later(due, r.patched.Add(interval))
	}
	return later(due, r.patch.notBefore)
}

func (r *Report) piece() int64 {
	if r.probe {
		return min(ProbeSize, r.patchSize)
	}
	return r.patchSize
}

func (r *Report) touchAfter() time.Duration {
	if r.complete {
		return TouchSoonest
	}
	return min(max(r.interval, TouchSoonest), TouchLatest)
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Failures is how many requests of the kind that fails most have failed in a row.
func (r *Report) Failures() int { return max(r.patch.failures, r.put.failures) }
