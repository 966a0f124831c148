package relay

import (
	"errors"
	"fmt"

	"github.com/switchyard-ci/switchyard/controlplane/relay/report"
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
	// OutcomeRefused: GitLab refused the result for so long (report.RefusedFor) that it can no longer be expected to
	// take it.
	OutcomeRefused
)

func (o Outcome) String() string {
	switch o {
	case OutcomeAccepted:
		return "accepted"
	case OutcomeGone:
		return "gone"
	case OutcomeRefused:
		return "refused"
	default:
		return fmt.Sprintf("outcome %d", int(o))
	}
}

func outcomeOf(o report.Outcome) Outcome {
	switch o {
	case report.Accepted:
		return OutcomeAccepted
	case report.Refused:
		return OutcomeRefused
	default:
		return OutcomeGone
	}
}

// TraceUnknown as store.Result.TraceLength says that nobody will send more of the trace: what is here is all of it. See
// Relay.Fail.
const TraceUnknown = -1

// TraceAllowance is what a trace may have beyond the output limit, in bytes: the notice that says that the limit was
// reached, the job's last lines, the agent's last words.
const TraceAllowance = 64 << 10

// maxLine is the longest line of Fail, in bytes.
const maxLine = 8 << 10

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

func (t *Target) check() error {
	switch {
	case t.GitLab == nil || t.Info == nil:
		return errors.New("a job's report needs a GitLab and what to say about the runner")
	case t.JobID <= 0 || t.Token == "":
		return fmt.Errorf("a job's report needs GitLab's job id (%d) and the job's token", t.JobID)
	case t.OutputLimit <= 0:
		return fmt.Errorf("output limit %d: must be at least 1 byte", t.OutputLimit)
	}
	return nil
}

// Events tells the owner of the jobs what happened. The methods are called without any lock of the relay's held, possibly
// concurrently; they must not block, and may call the Relay, but not Close.
type Events interface {
	// JobStatus reports StatusCanceling (once) and StatusGone (once) at the moment when GitLab first says so.
	JobStatus(job int64, status string)
	// Received says that the job's progress moved without an Append of its own: bytes were synced, GitLab has more, the
	// window opened again, or the trace is wanted again. Calls for one job may overtake each other; Relay.Progress has the
	// latest.
	Received(job int64, p Progress)
	// Reported is called once after Finish or Fail: nothing more will be sent to GitLab. The spool stays until Forget.
	Reported(job int64, o Outcome)
}

// Verdict tells the agent what to do after an Append; it maps to fleetv1.TraceOutcome.
type Verdict int

const (
	// Continue: go on below Limit.
	Continue Verdict = iota + 1
	// Resend: send again from Received, below Limit. There was a gap, or there is room again for bytes that could not be
	// written, or the trace that is here has another CRC than the result says.
	Resend
	// Stop: the epoch is stale, the job is not open or its trace is complete, GitLab wants no more of it, or there is more
	// trace than there may be; send no more of it.
	Stop
)

// Progress is how far a job's trace has come. All offsets count bytes from the trace's beginning.
type Progress struct {
	Epoch int64
	// Received bytes are on disk, synced: they outlive a loss of power.
	Received int64
	// Written bytes are in the spool: they outlive this process. Received ≤ Written, but when the trace is being sent again
	// both begin at 0.
	Written int64
	// Reported bytes are in GitLab.
	Reported int64
	// Limit is the offset (exclusive) up to which the agent may send. It is Written while the disk is full; what comes
	// then is dropped, and asked for again by Resend when there is room.
	Limit   int64
	Verdict Verdict
	// Complete: the job is finished, and its whole trace is synced or GitLab has (or wants) all it will get.
	Complete bool
	// Tell: the agent should hear of this progress now. If it is not set there is nothing new for it, whatever the
	// Verdict.
	Tell bool
}
