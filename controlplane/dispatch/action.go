package dispatch

import (
	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// An action is something that the driver does, in order, before the next event.
type action struct {
	kind   actionKind
	agent  string
	state  store.JobState
	result store.Result
	cancel cancelMode
	reason string
	probe  bool  // actPending: the start waits for it
	epoch  int64 // actAdopt: what the store knows
}

type actionKind int

const (
	actReoffer     actionKind = iota // persist the next epoch for agent; answered by evEpoch
	actOffer                         // send the offer
	actWithdraw                      // tell agent that the offer or the accepted job is off
	actPending                       // PUT state=pending; answered by evPending
	actRun                           // PUT state=running; answered by evRunning
	actStart                         // persist the start, open the trace; answered by evStarted
	actAdopt                         // persist that agent has begun the job, epoch being what the store knows; answered by evStarted
	actSendStart                     // tell the agent to begin
	actSendCancel                    // tell the agent to stop
	actAck                           // tell the agent that its report is durable
	actDropPayload                   // nobody needs the payload any more
	actFinish                        // persist the result; answered by evFinished
	actReport                        // let the relay report the result, wait a little until its trace is synced; answered by evReported
	actLoss                          // like actReport, with what is here of the trace and a last line that says why
	actDelete                        // stop reporting and forget the job
	actForget                        // tell the agent to delete what it holds
)
