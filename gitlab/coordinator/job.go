package coordinator

import (
	"fmt"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/pipeline"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/trace"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Job is one attempt of a job of a pipeline.
type Job struct {
	ID         int64
	PipelineID int64
	ProjectID  int64
	Name       string
	Stage      string
	Group      string // the name without the suffix of `parallel`
	Attempt    int    // from 1
	Retried    bool   // a later attempt counts instead
	Status     string // GitLab's name

	AllowFailure  bool
	When          ciconfig.When
	Tags          []string
	Needs         []string
	Image         string                  // the name of the job's image, variables unexpanded; empty: it names none
	Services      []string                // those of its services
	NeedsDeclared bool                    // tells no needs from none declared, when the job waits for the earlier stages
	FailureReason runnerapi.FailureReason // of a failed job
	ExitCode      int

	CreatedAt, QueuedAt, StartedAt, FinishedAt time.Time // zero: not yet
	ScheduledAt                                time.Time // of a delayed job that waits for its time

	RunnerID int64  // 0: none yet
	SystemID string // of the runner's manager
	// WaitingForAck: handed out by two-phase commit, the runner has not confirmed it yet.
	WaitingForAck bool

	TraceSize int64  // bytes received
	TraceCRC  uint32 // CRC32 (IEEE) of them
	// Debug: the runner said that the trace shows variables (debug_trace).
	Debug bool
	// Report is what the runner said at the end.
	Report Report
	// Counts of what happened to this attempt.
	Patches, RangeErrors, Updates, KeepAlives, LateRequests int
}

// Report is the runner's own account of a job, from its final update.
type Report struct {
	State    string // success or failed; empty before the final update
	Checksum string // "crc32:%08x"; empty if none was sent
	Bytesize int64  // 0 if none was sent
	// ChecksumOK and SizeOK compare it with the trace that was received. They are false before the final update and
	// if the value was not sent.
	ChecksumOK, SizeOK bool
}

// Finished says that the attempt has ended.
func (j Job) Finished() bool {
	switch j.Status {
	case runnerapi.StateSuccess, runnerapi.StateFailed, runnerapi.StateCanceled, "skipped":
		return true
	}
	return false
}

type job struct {
	id      int64
	pipe    *pipelineRun
	index   int // in pipe.def.Jobs and pipe.graph
	def     *ciconfig.Job
	attempt int
	retried bool
	status  pipeline.Status
	token   string

	allowFailure  bool
	failureReason runnerapi.FailureReason
	exitCode      int

	createdAt, queuedAt, startedAt, finishedAt, updatedAt time.Time
	scheduledAt                                           time.Time

	runner           *runner
	systemID         string
	cancelGracefully bool
	locked           bool      // a request is making its payload
	ackUntil         time.Time // zero: not waiting for an acknowledgement
	timeout          time.Duration
	extra            []ciconfig.Variable // given when it was played

	trace   *trace.Log
	debug   bool
	watched time.Time // until when someone watches the trace
	erased  bool
	uploads uploads
	final   *finalUpdate
	report  Report

	patches, rangeErrors, updates, keepAlives, lateRequests int
}

// finalUpdate is the first final update of a job that is answered by 202 for a while (Ci::BuildPendingState).
type finalUpdate struct {
	request runnerapi.UpdateRequest
	at      time.Time
}

// processing says that the job is on a runner.
func (j *job) processing() bool {
	return j.status == pipeline.Running || j.status == pipeline.Canceling
}

// waitingForAck says that the job is handed out and its runner has not confirmed it.
func (j *job) waitingForAck() bool { return !j.ackUntil.IsZero() }

func (j *job) snapshot() Job {
	s := Job{
		ID: j.id, PipelineID: j.pipe.id, ProjectID: j.pipe.project.id, Name: j.def.Name, Stage: j.def.Stage, Group: j.def.Group,
		Attempt: j.attempt, Retried: j.retried, Status: j.status.String(), AllowFailure: j.allowFailure, When: j.def.When,
		Tags: j.def.Tags, NeedsDeclared: j.def.NeedsDeclared, FailureReason: j.failureReason, ExitCode: j.exitCode,
		CreatedAt: j.createdAt, QueuedAt: j.queuedAt, StartedAt: j.startedAt, FinishedAt: j.finishedAt, ScheduledAt: j.scheduledAt,
		SystemID: j.systemID, WaitingForAck: j.waitingForAck(), Debug: j.debug, Report: j.report,
		Patches: j.patches, RangeErrors: j.rangeErrors, Updates: j.updates, KeepAlives: j.keepAlives, LateRequests: j.lateRequests,
	}
	if j.def.Image != nil {
		s.Image = j.def.Image.Name
	}
	for i := range j.def.Services {
		s.Services = append(s.Services, j.def.Services[i].Name)
	}
	for _, n := range j.def.Needs {
		s.Needs = append(s.Needs, n.Job)
	}
	if j.runner != nil {
		s.RunnerID = j.runner.id
	}
	s.TraceSize, s.TraceCRC = j.trace.Sum()
	return s
}

// Job returns a job.
func (c *Coordinator) Job(id int64) (Job, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs[id]
	if j == nil {
		return Job{}, fmt.Errorf("job %d: %w", id, ErrNotFound)
	}
	return j.snapshot(), nil
}
