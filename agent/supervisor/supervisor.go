// Package supervisor takes one job from the accepted offer to the removed folder: it fetches the payload, has an executor
// prepare the environment, starts switchyard-job there, follows it, forwards orders to it and says how it ended. Each job
// is one goroutine. Where the agent stops, jobs go on; another process of the agent recovers them.
//
// A job's folder jobs/<name>/ holds intent.json (before anything else is made), the job folder job/, and outcome.json if
// it was the agent that ended the job.
package supervisor

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/tracestream"
	"github.com/switchyard-ci/switchyard/executors"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// Config is what all jobs of an agent share.
type Config struct {
	// Jobs is the folder of all jobs' folders.
	Jobs string
	// CopyOf is where the agent's data folder was copied from, if that is still there; see datadir. What is in Jobs at the
	// start, and what the executors have of it, is then the original's.
	CopyOf string
	copied []string // names of the folders that were in Jobs
	// Fleet is part of the jobs' names: [a-z0-9], short, the same for the agent's life.
	Fleet string
	// JobBinary is the path of switchyard-job.
	JobBinary string
	Executors map[string]executors.Executor
	// Fetch gets a payload and its runner's settings. It repeats what a broken connection may explain, and returns when
	// ctx ends or the control plane refuses.
	Fetch func(ctx context.Context, ref ledger.Ref) (Fetched, error)
	// Sign asks the control plane for the URL of a cache archive, for a job that runs. It returns soon whatever happens:
	// without a URL the answer's Error says why, in words for the job's trace. The answer has the request's ID.
	Sign func(ctx context.Context, ref ledger.Ref, r folder.CacheRequest) folder.CacheAnswer
	// Traces sends them.
	Traces *tracestream.Sender
	// TraceShare is the most that one job's trace may have of this host's disk, in bytes, if that is less than its runner
	// allows; 0: there is no such limit.
	TraceShare int64
	// Events takes what happens. It must take it: jobs wait.
	Events chan<- Event
	Log    *slog.Logger
}

// Event is something that happened to a job.
type Event struct {
	Ref  ledger.Ref
	Kind Kind
}

// Kind is what happened.
type Kind int

// The kinds, in the order in which they come; Fenced and Finished may be missing, and Held of a recovered job is.
const (
	// Held: the job is written down; an agent that is killed from here on finds it again. If that was impossible it comes,
	// too: the job then fails when it is launched, and says why.
	Held Kind = iota + 1
	// Fenced: the job started and never starts again.
	Fenced
	// Finished: Result has the result.
	Finished
	// Freed: nothing of the job takes up a slot any more.
	Freed
	// Gone: a discarded job is removed.
	Gone
)

// Job is one job. Methods may be called concurrently and do not block.
type Job struct {
	Intent Intent

	config *Config
	log    *slog.Logger
	dir    string // jobs/<name>

	// life ends when the job is discarded or the agent leaves.
	life    context.Context
	discard context.CancelCauseFunc
	// preparing also ends when the job is cancelled.
	preparing     context.Context
	stopPreparing context.CancelCauseFunc

	result atomic.Pointer[fleetv1.Result]
	length atomic.Int64 // of the trace, roughly

	mu     sync.Mutex
	orders orders
	news   chan struct{} // capacity 1: orders has changed
}

// orders is what the job was told. Nothing is missed by looking late.
type orders struct {
	launched            bool
	concurrentID        int
	concurrentProjectID int
	cancel              fleetv1.CancelMode
	lease               time.Time // zero: none yet
}

var errDiscarded = errors.New("the job was discarded")

func newJob(leave context.Context, c *Config, i Intent) *Job {
	j := &Job{
		Intent: i, config: c, dir: filepath.Join(c.Jobs, Name(c.Fleet, i.Ref())), news: make(chan struct{}, 1),
		log: c.Log.With("job", i.Job, "epoch", i.Epoch),
	}
	j.life, j.discard = context.WithCancelCause(leave)
	j.preparing, j.stopPreparing = context.WithCancelCause(j.life)
	return j
}

// Accept takes a job whose offer is about to be accepted: it writes it down, tells so (Held) and begins to fetch its payload. run is called with the function that is
// the job's goroutine; it ends when the job is gone or leave ends.
func Accept(leave context.Context, c *Config, i Intent, run func(func())) *Job {
	w := &work{Job: newJob(leave, c, i), leave: leave}
	run(func() {
		w.run(func() {
			w.reserve()
			w.fresh()
		})
	})
	return w.Job
}

// Launch starts the job. Only the first call counts.
func (j *Job) Launch(concurrentID, concurrentProjectID int) {
	j.order(func(o *orders) {
		if !o.launched {
			o.launched, o.concurrentID, o.concurrentProjectID = true, concurrentID, concurrentProjectID
		}
	})
}

// ConcurrentIDs are the numbers that Launch gave the job, now or before the agent was restarted.
func (j *Job) ConcurrentIDs() (id, projectID int) {
	if o := j.current(); o.launched {
		return o.concurrentID, o.concurrentProjectID
	}
	return j.Intent.ConcurrentID, j.Intent.ConcurrentProjectID
}

// Cancel stops the job; it still ends with a result.
func (j *Job) Cancel(mode fleetv1.CancelMode) {
	if mode == fleetv1.CancelMode_CANCEL_MODE_UNSPECIFIED {
		return
	}
	j.order(func(o *orders) { o.cancel = max(o.cancel, mode) })
	j.stopPreparing(errCanceled)
}

// Lease sets when the job is to stop unless another time is set before.
func (j *Job) Lease(until time.Time) {
	j.order(func(o *orders) { o.lease = until })
}

// Discard kills what runs of the job and removes everything.
func (j *Job) Discard() { j.discard(errDiscarded) }

// Result is how the job ended; nil before Finished.
func (j *Job) Result() *fleetv1.Result { return j.result.Load() }

// TraceLength is how many bytes of the trace there are, as far as is known.
func (j *Job) TraceLength() int64 {
	if r := j.result.Load(); r != nil {
		return r.GetTraceLength()
	}
	return j.length.Load()
}

func (j *Job) order(change func(*orders)) {
	j.mu.Lock()
	change(&j.orders)
	j.mu.Unlock()
	select {
	case j.news <- struct{}{}:
	default:
	}
}

func (j *Job) current() orders {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.orders
}

// emit tells the agent, unless it leaves.
func (j *Job) emit(leave context.Context, k Kind) {
	select {
	case j.config.Events <- Event{j.Intent.Ref(), k}:
	case <-leave.Done():
	}
}

func (j *Job) grown(length int64) {
	j.length.Store(length)
	j.config.Traces.Grow(j.Intent.Ref(), length)
}
