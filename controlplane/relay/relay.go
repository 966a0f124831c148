// Package relay takes traces and results from the fleet to GitLab. Bytes that an agent sends are written to a spool on
// disk, one append-only file per job, and reported from there: PATCHes at the pace that GitLab asks for, signs of life
// while there is nothing to say, the rest and the result at the end, again and again until GitLab has them or wants
// nothing more of the job. Each job is reported independently of all others.
//
// A spool is never cut before GitLab has the job's result: GitLab may ask for any byte again.
package relay

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Statuses of Events.JobStatus.
const (
	// StatusCanceling: GitLab asks for a graceful cancel. Reporting goes on.
	StatusCanceling = runnerapi.StateCanceling
	// StatusGone: GitLab takes nothing more of the job (it is canceled, was dropped, or its token is no longer valid).
	// Nothing more is sent; what the agent still appends is dropped.
	StatusGone = "gone"
)

// Outcome is how a job's report ended.
type Outcome int

const (
	// OutcomeAccepted: GitLab has the result.
	OutcomeAccepted Outcome = iota + 1
	// OutcomeGone: GitLab wants nothing more of the job.
	OutcomeGone
	// OutcomeRefused: GitLab refused the result for so long that it can no longer be expected to take it.
	OutcomeRefused
)

// TraceUnknown as store.Result.TraceLength says that nobody will send more of the trace: what is here is all of it. See
// Relay.Fail.
const TraceUnknown = -1

// Target is where a job's report goes.
type Target struct {
	// Instance names the GitLab (its URL): at most Options.Concurrency requests run at once for equal names.
	Instance string
	GitLab   GitLab
	// JobID is GitLab's id of the job, Token the job's token.
	JobID int64
	Token string
	// Info is called for each PUT; it must not block.
	Info func() runnerapi.Info
	// OutputLimit is the greatest length of the trace in bytes, > 0. TraceAllowance comes on top. If a spool is found that
	// was begun with a greater limit, that one stays.
	OutputLimit int64
	// Debug marks the trace as one that only members with rights may read (debug_trace=true).
	Debug bool
}

// TraceAllowance is what a trace may have beyond the output limit, in bytes: the notice that says that the limit was
// reached, the job's last line, the agent's and the control plane's last words.
const TraceAllowance = 64 << 10

// Events tells the owner of the jobs what happened. The methods are called without any lock of the relay's held, possibly
// concurrently for different jobs; they must not block, and may call the Relay.
type Events interface {
	// JobStatus reports StatusCanceling (once) and StatusGone (once) at the moment when GitLab first says so.
	JobStatus(job int64, status string)
	// Received says that the job's progress moved without an Append of its own: bytes were synced, GitLab has more, or the
	// window opened again. Calls for one job may overtake each other; Relay.Progress has the latest.
	Received(job int64, p Progress)
	// Reported is called once after Finish or Fail: nothing more will be sent to GitLab. The spool stays until Forget.
	Reported(job int64, o Outcome)
}

// Verdict tells the agent what to do after an Append; it maps to fleetv1.TraceOutcome.
type Verdict int

const (
	// Continue: go on below Limit.
	Continue Verdict = iota + 1
	// Resend: send again from Received, below Limit. The appended bytes began after a gap or could not be written.
	Resend
	// Stop: the epoch is stale, the job is not open, is reported, or has more trace than it may; send no more of it.
	Stop
)

// Progress is how far a job's trace has come. All offsets count bytes from the trace's beginning.
type Progress struct {
	Epoch int64
	// Received bytes are on disk, synced: they outlive a loss of power.
	Received int64
	// Written bytes are in the spool: they outlive this process. Received ≤ Written.
	Written int64
	// Reported bytes are in GitLab.
	Reported int64
	// Limit is the offset (exclusive) up to which the agent may send. It is Written while the disk is full.
	Limit   int64
	Verdict Verdict
	// Complete: the job is finished, and its whole trace is synced or already in GitLab.
	Complete bool
	// Tell: the agent should hear of this progress now. If it is not set, telling can wait for the next.
	Tell bool
}

// Errors that callers branch on.
var (
	// ErrNotOpen: Open was not called for the job, or with another epoch, or Forget was.
	ErrNotOpen = errors.New("job is not open in the relay")
	// ErrClosed: the relay is closed.
	ErrClosed = errors.New("relay is closed")
	// ErrStale: the relay holds a later epoch of the job.
	ErrStale = errors.New("stale epoch")
)

// Options of New. Zero values take the defaults.
type Options struct {
	// Dir is the folder of the spool, made with mode 0700 if it is missing.
	Dir    string
	Events Events
	Logger *slog.Logger
	// SyncInterval is the longest time between a byte's arrival and the start of its sync; at most and by default 1 s.
	SyncInterval time.Duration
	// Window is how far beyond Written an agent may send, in bytes; default 4 MiB.
	Window int64
	// Concurrency is the number of requests at once per GitLab instance; default 64.
	Concurrency int
	// MaxBytes is the quota of the whole spool; 0 means none. MinFree is kept free on its file system; default 64 MiB.
	MaxBytes, MinFree int64
}

// Relay reports jobs to GitLab. All methods may be called concurrently.
type Relay struct{}

// New opens the spool. Nothing is sent before Open.
func New(o Options) (*Relay, error) { return nil, errors.New("not built yet") }

// Open begins or takes up the report of a job that GitLab knows as running. A spool of this epoch that is found is
// measured and read for its CRC; one of an earlier epoch is removed. It returns where the agent is to go on. Opening an
// open job again with the same epoch only returns its progress.
func (r *Relay) Open(job, epoch int64, t Target) (Progress, error) { return Progress{}, nil }

// Append takes bytes of a job's trace, the first of which has the given offset; data is not kept. What was received
// before is skipped.
func (r *Relay) Append(job, epoch, offset int64, data []byte) Progress { return Progress{} }

// Progress returns how far the job is; Verdict Stop if the job is not open with this epoch.
func (r *Relay) Progress(job, epoch int64) Progress { return Progress{} }

// Finish says how the job ended; the caller has persisted the result before and calls Finish again after a restart.
// When TraceLength bytes are here they are synced and compared with TraceCRC32, GitLab gets what it does not have yet,
// then the result; Events.Reported ends it. If the CRC differs the agent is asked once for the whole trace again.
// A TraceLength of TraceUnknown is what Fail does, with Result.Message as the line. A second call does nothing.
func (r *Relay) Finish(job, epoch int64, res store.Result) error { return nil }

// Fail ends a job whose agent will send no more: line is appended to the trace (on a line of its own, unless it is
// there already), and the job is reported with all that is here. TraceLength and TraceCRC32 of res are not used. It may
// follow a Finish that still waits for bytes; then it replaces its result.
func (r *Relay) Fail(job, epoch int64, res store.Result, line string) error { return nil }

// Forget ends the report of a job, wherever it is, and removes its spool. Forgetting what is not there is no error.
func (r *Relay) Forget(job int64) {}

// Sweep removes the spools that New found and that were not opened since; it returns their number. To be called once,
// after all jobs of the store were opened.
func (r *Relay) Sweep() (int, error) { return 0, nil }

// Err returns why the spool takes no bytes at the moment (disk full, quota), or nil.
func (r *Relay) Err() error { return nil }

// Close stops the reporting. Requests that are under way are awaited until ctx ends, then cut off; all bytes are synced.
func (r *Relay) Close(ctx context.Context) error { return nil }
