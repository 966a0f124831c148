// Package pipeline is GitLab's pipeline processing without I/O: the state machine of jobs, the composite status of a
// set of jobs, and the step that decides which created jobs go on.
//
// The rules are those of GitLab's app/models/concerns/ci/has_status.rb, app/models/commit_status.rb, processable.rb,
// build.rb, Ci::PipelineProcessing::AtomicProcessingService, Ci::ProcessBuildService, Ci::ResetSkippedJobsService and
// Gitlab::Ci::Status::Composite.
package pipeline

import "slices"

// Status is the state of a job, a stage or a pipeline. The numbers are GitLab's.
type Status uint8

// The states of Ci::HasStatus.
const (
	Created Status = iota
	Pending
	Running
	Success
	Failed
	Canceled
	Skipped
	Manual
	Scheduled
	Preparing
	WaitingForResource
	WaitingForCallback
	Canceling
	numStatuses
)

var statusNames = [numStatuses]string{
	"created", "pending", "running", "success", "failed", "canceled", "skipped", "manual", "scheduled", "preparing",
	"waiting_for_resource", "waiting_for_callback", "canceling",
}

// String returns GitLab's name of the status.
func (s Status) String() string {
	if s < numStatuses {
		return statusNames[s]
	}
	return "invalid"
}

// Statuses returns all states, in the order of their numbers.
func Statuses() []Status {
	all := make([]Status, numStatuses)
	for i := range all {
		all[i] = Status(i)
	}
	return all
}

// set is a set of states, one bit each, with the two more that only Composite knows.
type set uint32

const (
	successWithWarnings = numStatuses
	ignored             = numStatuses + 1
	numClasses          = numStatuses + 2
)

func setOf(statuses ...Status) set {
	var s set
	for _, st := range statuses {
		s |= 1 << st
	}
	return s
}

func (s set) has(st Status) bool  { return s&(1<<st) != 0 }
func (s set) within(o set) bool   { return s != 0 && s&^o == 0 }
func (s set) overlaps(o set) bool { return s&o != 0 }

var (
	completed = setOf(Success, Failed, Canceled, Skipped)
	// cancelable are Ci::HasStatus::CANCELABLE_STATUSES: what cancelling a whole pipeline reaches.
	cancelable = setOf(Created, WaitingForResource, Preparing, WaitingForCallback, Pending, Running, Scheduled)
	active     = setOf(WaitingForResource, Preparing, WaitingForCallback, Pending, Running)
)

// Completed says that a job or pipeline of this status has ended: success, failed, canceled or skipped.
func (s Status) Completed() bool { return completed.has(s) }

// Active says that something is under way: waiting for a resource, preparing, pending, running.
func (s Status) Active() bool { return active.has(s) }

// Cancelable says that cancelling the pipeline cancels a job of this status.
func (s Status) Cancelable() bool { return cancelable.has(s) }

// Outcome is what Composite looks at in one job.
type Outcome struct {
	Status       Status
	AllowFailure bool
}

// class is the status under which a job counts in a composite.
func (o Outcome) class() Status {
	switch {
	case o.AllowFailure && (o.Status == Failed || o.Status == Canceled):
		return successWithWarnings
	case o.AllowFailure && o.Status == Manual:
		return ignored
	default:
		return o.Status
	}
}

// Composite is the status of a set of jobs: of a stage, of a pipeline, of everything before a job. An empty set is a
// success. dag is for the jobs that another one names in `needs`: it counts as skipped if one of them was not run.
func Composite(jobs []Outcome, dag bool) Status {
	var s set
	for _, j := range jobs {
		s |= 1 << j.class()
	}
	return composite(s, dag)
}

// What a composite may contain besides the status that it stands for.
var (
	quiet        = setOf(successWithWarnings, ignored)
	onlySkipped  = setOf(Skipped, ignored)
	onlySuccess  = setOf(Success, Skipped) | quiet
	onlyCreated  = setOf(Created) | quiet
	onlyPrepare  = setOf(Preparing) | quiet
	onlyCanceled = setOf(Canceled, Success, Skipped) | quiet
	onlyPending  = setOf(Pending, Created, Skipped) | quiet
	anyRunning   = setOf(Running, Pending)
)

func composite(s set, dag bool) Status {
	switch {
	case s == 0:
		return Success
	case dag && s.overlaps(onlySkipped):
		return Skipped
	case s.within(onlySkipped):
		return Skipped
	case s.within(onlySuccess):
		return Success
	case s.within(onlyCreated):
		return Created
	case s.within(onlyPrepare):
		return Preparing
	case s.within(onlyCanceled):
		return Canceled
	case s.within(onlyPending):
		return Pending
	case s.overlaps(anyRunning):
		return Running
	}
	for _, st := range []Status{WaitingForResource, WaitingForCallback, Manual, Scheduled, Preparing} {
		if s.has(st) {
			return st
		}
	}
	switch {
	case s.has(Created):
		return Running
	case s.has(Canceling):
		return Canceling
	default:
		return Failed
	}
}

// Event moves a job from one status to another.
type Event uint8

// The events of GitLab's job state machine.
const (
	// EventProcess puts a skipped or manual job back to created, so that processing looks at it again.
	EventProcess Event = iota
	EventEnqueue
	EventEnqueueScheduled
	EventEnqueueWaitingForResource
	EventEnqueuePreparing
	EventActionize
	EventSchedule
	EventUnschedule
	EventRun
	EventSkip
	EventDrop
	EventSucceed
	EventCancel
	EventForceCancel
	numEvents
)

var eventNames = [numEvents]string{
	"process", "enqueue", "enqueue_scheduled", "enqueue_waiting_for_resource", "enqueue_preparing", "actionize",
	"schedule", "unschedule", "run", "skip", "drop", "success", "cancel", "force_cancel",
}

// String returns GitLab's name of the event.
func (e Event) String() string {
	if e < numEvents {
		return eventNames[e]
	}
	return "invalid"
}

// Guards are the conditions on which an event's target depends.
type Guards struct {
	// ResourceGroup: the job is in a resource group, so it waits for the resource before it is pending.
	ResourceGroup bool
	// Prerequisites: something must be prepared on GitLab's side before the job is pending.
	Prerequisites bool
	// CancelGracefully: the runner that has the job can run after_script after a cancel.
	CancelGracefully bool
}

var sources = [numEvents][]Status{
	EventProcess:                   {Skipped, Manual},
	EventEnqueue:                   {Created, Skipped, Manual, Scheduled},
	EventEnqueueScheduled:          {Scheduled},
	EventEnqueueWaitingForResource: {WaitingForResource},
	EventEnqueuePreparing:          {Preparing},
	EventActionize:                 {Created},
	EventSchedule:                  {Created},
	EventUnschedule:                {Scheduled},
	EventRun:                       {Pending},
	EventSkip:                      {Created, WaitingForResource, Preparing, Pending},
	EventDrop:                      {Canceling, Created, WaitingForResource, Preparing, WaitingForCallback, Pending, Running, Manual, Scheduled},
	EventSucceed:                   {Canceling, Created, WaitingForResource, Preparing, WaitingForCallback, Pending, Running},
	EventCancel:                    {Created, WaitingForResource, Preparing, WaitingForCallback, Pending, Running, Manual, Scheduled},
	EventForceCancel:               {Canceling},
}

// Next returns the status that e leads to from a status, and false if the event is not possible there. Whether a
// scheduled job is due and a resource is free is the caller's to know.
func Next(from Status, e Event, g Guards) (Status, bool) {
	if e >= numEvents || !slices.Contains(sources[e], from) {
		return from, false
	}
	switch e {
	case EventProcess:
		return Created, true
	case EventEnqueue, EventEnqueueScheduled:
		switch {
		case g.ResourceGroup:
			return WaitingForResource, true
		case g.Prerequisites:
			return Preparing, true
		}
		return Pending, true
	case EventEnqueueWaitingForResource:
		if g.Prerequisites {
			return Preparing, true
		}
		return Pending, true
	case EventEnqueuePreparing:
		return Pending, true
	case EventActionize, EventUnschedule:
		return Manual, true
	case EventSchedule:
		return Scheduled, true
	case EventRun:
		return Running, true
	case EventSkip:
		return Skipped, true
	case EventDrop:
		if from == Canceling {
			return Canceled, true
		}
		return Failed, true
	case EventSucceed:
		if from == Canceling {
			return Canceled, true
		}
		return Success, true
	case EventCancel:
		if from == Running && g.CancelGracefully {
			return Canceling, true
		}
		return Canceled, true
	default: // EventForceCancel
		return Canceled, true
	}
}
