package dispatch

import (
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// An event is something that happened to a job; the fields of the others are zero.
type event struct {
	kind    eventKind
	epoch   int64  // reply, report: what the agent said
	agent   string // placed, reply, report, up, down
	ok      bool   // reply: accepted; finished: the result is persisted
	state   store.JobState
	result  *store.Result
	verdict gitlabVerdict
	cancel  cancelMode
	reason  string
	retry   time.Duration // running, pending: GitLab asked for this wait
}

type eventKind int

const (
	evBegin    eventKind = iota // the driver starts
	evTick                      // wakeAt has come
	evPlaced                    // agent has a slot for the job
	evEpoch                     // epoch was persisted for agent
	evReply                     // the agent answered the offer, or the start of a job that it does not hold
	evReport                    // the agent says STARTED or FINISHED
	evUp                        // the agent's session is back; state is what it holds ("" if it does not know the job)
	evDown                      // the agent's session ended
	evLost                      // the agent did not come back within the lease
	evPending                   // answer to PUT state=pending
	evRunning                   // answer to PUT state=running
	evStarted                   // the start is persisted and the trace is open
	evBegun                     // agent has begun the job in an epoch of which the store knows no start; see adopt.go
	evReturned                  // the agent is back that the job waited for
	evFinished                  // the result is persisted, or cannot be
	evCancel                    // GitLab wants the job stopped
	evReported                  // GitLab has the result, or wants nothing more
	evHopeless                  // nobody will ever run the job
)

// gitlabVerdict is what an answer of GitLab's to PUT means for a job that has not started.
type gitlabVerdict int

const (
	verdictOK      gitlabVerdict = iota // 200
	verdictRunning                      // 400 to pending: the job already runs, there is no two-phase commit
	verdictGone                         // 403, 404, 400 to running, canceled: not ours any more
	verdictRetry                        // 409, 429, 5xx, no answer
)
