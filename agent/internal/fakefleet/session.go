package fakefleet

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// Session is one agent's session, played by the test. Its methods fail the test if the agent does not do as expected.
type Session struct {
	Hello *fleetv1.Hello

	fleet   *Fleet
	stream  grpc.BidiStreamingServer[fleetv1.SessionRequest, fleetv1.SessionResponse]
	in      chan *fleetv1.SessionRequest
	end     chan error
	ended   chan struct{}
	sending sync.Mutex
	silent  atomic.Bool
	pings   atomic.Int64
}

// receive answers pings and keeps the rest for the test.
func (s *Session) receive() error {
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return err
		}
		if s.silent.Load() {
			continue
		}
		if p := m.GetPing(); p != nil {
			s.pings.Add(1)
			if err := s.put(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Pong{Pong: &fleetv1.Pong{Seq: p.GetSeq()}}}); err != nil {
				return err
			}
			continue
		}
		s.in <- m
	}
}

// Mute makes the control plane half dead: it neither answers nor reads what matters, but the connection stands.
func (s *Session) Mute() { s.silent.Store(true) }

// Pings is how many pings of the agent were answered.
func (s *Session) Pings() int64 { return s.pings.Load() }

// End ends the session with a status.
func (s *Session) End(err error) { s.end <- err }

// Ended is closed when the stream has ended, whoever ended it.
func (s *Session) Ended() <-chan struct{} { return s.ended }

func (s *Session) put(m *fleetv1.SessionResponse) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.stream.Send(m)
}

func (s *Session) send(m *fleetv1.SessionResponse) {
	s.fleet.t.Helper()
	require.NoError(s.fleet.t, s.put(m))
}

// Welcome welcomes the agent with these verdicts.
func (s *Session) Welcome(period, stopAfter time.Duration, verdicts ...*fleetv1.JobVerdict) {
	s.fleet.t.Helper()
	s.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Welcome{Welcome: &fleetv1.Welcome{
		SessionId: "test", Protocol: 1, AgentName: "agent", PingPeriod: durationpb.New(period), StopAfter: durationpb.New(stopAfter), Jobs: verdicts,
	}}})
}

// Keep is a verdict.
func (s *Session) Keep(ref ledger.Ref) *fleetv1.JobVerdict {
	return &fleetv1.JobVerdict{Ref: ref.Proto(), Verdict: fleetv1.Verdict_VERDICT_KEEP, Received: s.fleet.Received(ref.Job)}
}

// Offer offers a job to the executor "shell".
func (s *Session) Offer(ref ledger.Ref) {
	s.fleet.t.Helper()
	s.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Offer{Offer: &fleetv1.Offer{
		Ref: ref.Proto(), Executor: "shell", OutputLimit: 200 << 20,
		Envelope: &fleetv1.Envelope{GitlabJobId: ref.Job, ProjectId: 1, ProjectPath: "group/project", JobName: "job"},
		Runner:   &fleetv1.RunnerFacts{Name: "runner", ShortToken: "abcdefghi", SystemId: "s_0123456789ab", Id: 1},
	}}})
}

// Start starts a job.
func (s *Session) Start(ref ledger.Ref) {
	s.fleet.t.Helper()
	s.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Start{Start: &fleetv1.Start{Ref: ref.Proto()}}})
}

// Withdraw takes a job back.
func (s *Session) Withdraw(ref ledger.Ref) {
	s.fleet.t.Helper()
	s.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Withdraw{Withdraw: &fleetv1.Withdraw{Ref: ref.Proto()}}})
}

// Cancel cancels a job.
func (s *Session) Cancel(ref ledger.Ref, mode fleetv1.CancelMode) {
	s.fleet.t.Helper()
	s.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Cancel{Cancel: &fleetv1.Cancel{Ref: ref.Proto(), Mode: mode}}})
}

// Ack acknowledges a report.
func (s *Session) Ack(ref ledger.Ref, state fleetv1.JobState) {
	s.fleet.t.Helper()
	s.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_ReportAck{ReportAck: &fleetv1.ReportAck{Ref: ref.Proto(), State: state}}})
}

// Forget lets the agent delete a job.
func (s *Session) Forget(ref ledger.Ref) {
	s.fleet.t.Helper()
	s.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Forget{Forget: &fleetv1.Forget{Ref: ref.Proto()}}})
}

// Drain drains the agent.
func (s *Session) Drain(reason string) {
	s.fleet.t.Helper()
	s.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Drain{Drain: &fleetv1.Drain{Reason: reason}}})
}

// ComeBack tells the agent when to come back.
func (s *Session) ComeBack(after time.Duration) {
	s.fleet.t.Helper()
	s.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_ComeBack{ComeBack: &fleetv1.ComeBack{After: durationpb.New(after)}}})
}

// Reply waits for the answer to an offer.
func (s *Session) Reply() *fleetv1.OfferReply {
	s.fleet.t.Helper()
	r := s.next().GetOfferReply()
	require.NotNil(s.fleet.t, r, "expected the answer to an offer")
	return r
}

// Accepted checks that the agent accepts.
func (s *Session) Accepted(ref ledger.Ref) {
	s.fleet.t.Helper()
	r := s.Reply()
	require.Equal(s.fleet.t, ref.Job, r.GetRef().GetJob())
	require.Equal(s.fleet.t, ref.Epoch, r.GetRef().GetEpoch())
	require.True(s.fleet.t, r.GetAccepted(), "refused: %s", r.GetReason())
}

// Refused checks that the agent refuses, and returns why.
func (s *Session) Refused(ref ledger.Ref) string {
	s.fleet.t.Helper()
	r := s.Reply()
	require.Equal(s.fleet.t, ref.Job, r.GetRef().GetJob())
	require.False(s.fleet.t, r.GetAccepted())
	return r.GetReason()
}

// Started waits for the report that the job has started and acknowledges it.
func (s *Session) Started(ref ledger.Ref) {
	s.fleet.t.Helper()
	r := s.next().GetJobReport()
	require.Equal(s.fleet.t, ref.Job, r.GetRef().GetJob())
	require.Equal(s.fleet.t, fleetv1.JobState_JOB_STATE_STARTED, r.GetState(), "result: %v", r.GetResult())
	s.Ack(ref, fleetv1.JobState_JOB_STATE_STARTED)
}

// Finished waits for a job's result, whether or not the agent says before that it has started, and acknowledges it.
func (s *Session) Finished(ref ledger.Ref) *fleetv1.Result {
	s.fleet.t.Helper()
	for {
		r := s.next().GetJobReport()
		require.Equal(s.fleet.t, ref.Job, r.GetRef().GetJob())
		require.Equal(s.fleet.t, ref.Epoch, r.GetRef().GetEpoch())
		s.Ack(ref, r.GetState())
		if r.GetState() == fleetv1.JobState_JOB_STATE_FINISHED {
			return r.GetResult()
		}
	}
}

// Status waits for the agent's status.
func (s *Session) Status() *fleetv1.AgentStatus {
	s.fleet.t.Helper()
	st := s.next().GetAgentStatus()
	require.NotNil(s.fleet.t, st)
	return st
}

// Quiet checks that nothing but pings comes within d.
func (s *Session) Quiet(d time.Duration) {
	s.fleet.t.Helper()
	select {
	case m := <-s.in:
		s.fleet.t.Fatalf("unexpected: %v", m)
	case <-time.After(d):
	}
}

// Message waits for the agent's next message, whatever it is.
func (s *Session) Message() *fleetv1.SessionRequest {
	s.fleet.t.Helper()
	return s.next()
}

func (s *Session) next() *fleetv1.SessionRequest {
	s.fleet.t.Helper()
	select {
	case m := <-s.in:
		return m
	case <-s.ended:
		select {
		case m := <-s.in:
			return m
		default:
		}
		s.fleet.t.Fatal("the session has ended")
	case <-time.After(Patience):
		s.fleet.t.Fatal("the agent says nothing")
	}
	return nil
}
