// Package tracestream sends the traces of all of an agent's jobs over one gRPC stream. It reads them from where they are
// kept, by absolute offset and only when somebody said that there is more, and it holds nothing but offsets: after a
// broken stream it begins again where the control plane says.
package tracestream

import (
	"context"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

const (
	// frameSize is the greatest number of trace bytes in one message: a little less than the 256 KiB that the contract
	// allows, so that a message is no longer than that with all that is around them, which is a size that gRPC has
	// buffers of. It is also what may be sent of a job on a new stream before the control plane has said how much it takes.
	frameSize = 256<<10 - 256
	// probeSize is what is sent instead on a new stream if the control plane may have it already.
	probeSize = 4 << 10
	// gather is how long a job's next frame waits for more bytes after its last one, unless it is full.
	gather = 25 * time.Millisecond
)

// Source is one job's trace. ReadAt follows io.ReaderAt; io.EOF says only that this is all for now. It is called by one
// goroutine at a time.
type Source interface {
	// ReadAt reads from the absolute offset off.
	ReadAt(b []byte, off int64) (int, error)
}

// Sender knows every trace that is to be sent. Its methods may be called concurrently; only Run blocks.
type Sender struct {
	mu      sync.Mutex
	jobs    map[ledger.Ref]*job
	ready   []*job // to be served, in this order
	delayed []*job // gathering, in the order of due
	wake    chan struct{}
}

type job struct {
	ref    ledger.Ref
	source Source

	hint  int64 // the trace has about so many bytes
	more  bool  // there may be bytes beyond sent
	final bool  // the trace is complete

	received int64         // by the control plane, for good
	has      int64         // the most that it has said to have
	resumed  bool          // it has welcomed the job
	spoken   bool          // and said on a stream how much it has
	change   chan struct{} // not nil: somebody waits for a change of these
	sent     int64         // on this stream; the next frame's offset
	limit    int64         // bytes below it may be sent
	stopped  bool          // the control plane wants no more of it

	queue    queue
	lastSent time.Time
	due      time.Time // when inDelayed
}

// queue is where a job waits.
type queue int

const (
	nowhere queue = iota
	inDelayed
	inReady
)

// New returns a Sender without jobs.
func New() *Sender {
	return &Sender{jobs: make(map[ledger.Ref]*job), wake: make(chan struct{}, 1)}
}

// Add begins to send a trace. A ref that is known already gets the new source. What source has now is sent soon.
func (s *Sender) Add(ref ledger.Ref, source Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[ref]
	if j == nil {
		j = &job{ref: ref, limit: frameSize, lastSent: time.Now()}
		s.jobs[ref] = j
	}
	j.source = source
	j.more = true
	s.schedule(j)
}

// Grow says that the trace has grown, to about length bytes.
func (s *Sender) Grow(ref ledger.Ref, length int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[ref]; j != nil {
		j.hint, j.more = max(j.hint, length), true
		s.schedule(j)
	}
}

// Finish says that the trace is complete.
func (s *Sender) Finish(ref ledger.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[ref]; j != nil {
		j.final, j.more = true, true
		s.schedule(j)
	}
}

// Resume sets what the control plane has of a trace; it may be less than was acknowledged before.
func (s *Sender) Resume(ref ledger.Ref, received int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[ref]; j != nil {
		j.received, j.stopped = received, false
		j.has, j.resumed = max(j.has, received), true
		j.changed()
		j.rewind(received)
		s.schedule(j)
	}
}

// wordPatience is how long Await waits after Resume for what the control plane says on a stream about a trace.
const wordPatience = 10 * time.Second

// Await returns how many bytes of a trace the control plane has, synced or not, when that is known: it has said so on a
// stream since Add, or it has resumed the trace and says no more about it. If ctx ends before, or the trace is not known, it
// returns what is known until then.
func (s *Sender) Await(ctx context.Context, ref ledger.Ref) int64 {
	var patience <-chan time.Time
	for {
		s.mu.Lock()
		j := s.jobs[ref]
		if j == nil {
			s.mu.Unlock()
			return 0
		}
		has := j.has
		if j.spoken {
			s.mu.Unlock()
			return has
		}
		if j.change == nil {
			j.change = make(chan struct{})
		}
		change, resumed := j.change, j.resumed
		s.mu.Unlock()
		if resumed && patience == nil {
			patience = time.After(wordPatience)
		}
		select {
		case <-change:
		case <-patience:
			return has
		case <-ctx.Done():
			return has
		}
	}
}

// changed wakes who waits. The caller holds mu.
func (j *job) changed() {
	if j.change != nil {
		close(j.change)
		j.change = nil
	}
}

// Delivered says whether the control plane has length bytes of the trace for good, or wants no more of it. What is not
// known is delivered.
func (s *Sender) Delivered(ref ledger.Ref, length int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[ref]
	return j == nil || j.stopped || j.received >= length
}

// Remove sends no more of a trace. When it returns, its source is not used any more unless a read is under way; the
// source must then answer with an error or with bytes, not with a crash.
func (s *Sender) Remove(ref ledger.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[ref]; j != nil {
		j.stopped, j.queue = true, nowhere
		j.changed()
		delete(s.jobs, ref)
	}
}

func (j *job) rewind(to int64) {
	j.sent, j.more = to, true
	j.limit = to + frameSize
}

// restart prepares every job for a new stream.
func (s *Sender) restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.jobs {
		outstanding := j.sent > j.received
		j.rewind(j.received)
		if outstanding { // the control plane may have more than it has synced, and is about to say so
			j.limit = j.received + probeSize
		}
		s.schedule(j)
	}
}

// schedule puts a job into the queue where it belongs. The caller holds mu.
func (s *Sender) schedule(j *job) {
	if j.stopped || !j.more || j.sent >= j.limit || j.queue == inReady {
		return
	}
	now := time.Now()
	switch {
	case j.final || j.hint-j.sent >= frameSize || now.Sub(j.lastSent) >= gather:
		s.ready = append(s.ready, j)
		j.queue = inReady
	case j.queue == nowhere:
		j.due = now.Add(gather)
		s.delayed = append(s.delayed, j)
		j.queue = inDelayed
	default:
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// next returns the job to serve, what to send of it and from where; or nil and how long to wait if nothing is said
// meanwhile (0: for as long as that takes).
func (s *Sender) next() (j *job, offset int64, most int, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for len(s.delayed) > 0 {
		j := s.delayed[0]
		if j.queue == inDelayed && now.Before(j.due) {
			wait = j.due.Sub(now)
			break
		}
		s.delayed[0] = nil
		s.delayed = s.delayed[1:]
		if j.queue == inDelayed { // otherwise it went ahead, or is gone
			j.queue = inReady
			s.ready = append(s.ready, j)
		}
	}
	for len(s.ready) > 0 {
		j := s.ready[0]
		s.ready[0] = nil
		s.ready = s.ready[1:]
		if j.queue != inReady {
			continue
		}
		j.queue = nowhere
		if j.stopped || j.sent >= j.limit {
			continue
		}
		j.more = false // Grow may say otherwise from here on
		return j, j.sent, int(min(frameSize, j.limit-j.sent)), 0
	}
	return nil, 0, 0, wait
}

// known says whether the trace is still to be sent.
func (s *Sender) known(j *job) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.jobs[j.ref] == j
}

// wrote notes that n of at most most bytes at offset are on their way.
func (s *Sender) wrote(j *job, offset int64, n, most int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.sent == offset { // otherwise it was rewound meanwhile
		j.sent += int64(n)
	}
	if n == most {
		j.more = true
	}
	if n > 0 {
		j.lastSent = time.Now()
	}
	s.schedule(j)
}

// answered applies what the control plane says about a trace.
func (s *Sender) answered(r *fleetv1.TraceResponse) {
	ref, ok := ledger.RefOf(r.GetRef())
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[ref]
	if j == nil {
		return
	}
	j.received = max(j.received, r.GetReceived())
	j.has, j.spoken = max(j.has, r.GetReceived(), r.GetWritten()), true
	j.changed()
	switch r.GetOutcome() {
	case fleetv1.TraceOutcome_TRACE_OUTCOME_STOP:
		j.stopped = true
		return
	case fleetv1.TraceOutcome_TRACE_OUTCOME_RESEND:
		j.received = r.GetReceived()
		j.rewind(max(j.received, r.GetWritten()))
	case fleetv1.TraceOutcome_TRACE_OUTCOME_CONTINUE, fleetv1.TraceOutcome_TRACE_OUTCOME_UNSPECIFIED:
		// What an earlier stream brought and was not synced yet need not be sent again.
		j.sent = max(j.sent, r.GetWritten())
	}
	j.limit = max(j.limit, r.GetLimit())
	s.schedule(j)
}
