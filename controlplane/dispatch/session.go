package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

const (
	// protocolVersion is the only one so far.
	protocolVersion = 1
	// helloPatience is how long a new stream may take to introduce itself.
	helloPatience = 10 * time.Second
	// outgoing bounds the messages that wait for a slow agent; one that falls behind by more is disconnected and says
	// what it holds when it is back.
	outgoing = 1024
)

// session is one agent's stream.
type session struct {
	id    string
	agent *agent
	out   chan *fleetv1.SessionResponse
	heard atomic.Int64 // when the last frame came, in Unix nanoseconds
	end   context.CancelCauseFunc
}

func (s *session) lastHeard() time.Time { return time.Unix(0, s.heard.Load()) }

// send queues a message. An agent that does not read loses its session instead of blocking anyone.
func (s *session) send(m *fleetv1.SessionResponse) {
	select {
	case s.out <- m:
	default:
		s.end(status.Errorf(codes.ResourceExhausted, "the agent does not read its session: %d messages wait", outgoing))
	}
}

func (s *session) welcome(w *fleetv1.Welcome) {
	s.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Welcome{Welcome: w}})
}

// Session serves one agent; see fleet.proto for the contract.
func (d *Dispatcher) Session(stream grpc.BidiStreamingServer[fleetv1.SessionRequest, fleetv1.SessionResponse]) error {
	id, name, err := d.cfg.Identity(stream.Context())
	if err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(stream.Context())
	defer end(nil)
	s := &session{id: uuid.NewString(), out: make(chan *fleetv1.SessionResponse, outgoing), end: end}
	s.heard.Store(time.Now().UnixNano())

	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return errStopping
	}
	d.sessions.Add(1)
	d.mu.Unlock()
	defer d.sessions.Done()
	stop := context.AfterFunc(d.stopping, func() { end(errStopping) })
	defer stop()

	// It ends with the stream, that is soon after this function returns.
	d.receivers.Go(func() { end(d.receive(stream, s, id, name)) })
	err = d.transmit(ctx, stream, s)
	if s.agent != nil {
		d.mu.Lock()
		d.detachLocked(s.agent, s)
		d.mu.Unlock()
		d.log.Info("agent left", "agent", name, "session", s.id, "why", err)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// transmit writes what is queued and a ping per period, until the session ends.
func (d *Dispatcher) transmit(ctx context.Context, stream grpc.BidiStreamingServer[fleetv1.SessionRequest, fleetv1.SessionResponse], s *session) error {
	ticker := time.NewTicker(d.cfg.PingPeriod)
	defer ticker.Stop()
	began := time.Now()
	var seq uint64
	welcomed := false
	for {
		select {
		case <-ctx.Done():
			err := context.Cause(ctx)
			if errors.Is(err, errStopping) && welcomed {
				// A best effort: an agent that does not read it comes back by its own back-off.
				_ = stream.Send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_ComeBack{
					ComeBack: &fleetv1.ComeBack{After: durationpb.New(d.cfg.ComeBack)},
				}})
			}
			return err
		case m := <-s.out:
			welcomed = true
			if err := stream.Send(m); err != nil {
				return fmt.Errorf("send to the agent: %w", err)
			}
		case now := <-ticker.C:
			if !welcomed {
				if now.Sub(began) > helloPatience {
					return status.Error(codes.DeadlineExceeded, "no Hello came")
				}
				continue
			}
			if silent := now.Sub(s.lastHeard()); silent >= 2*d.cfg.PingPeriod {
				return status.Errorf(codes.DeadlineExceeded, "nothing was heard of the agent for %s", silent.Round(time.Second))
			}
			seq++
			if err := stream.Send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Ping{Ping: &fleetv1.Ping{Seq: seq}}}); err != nil {
				return fmt.Errorf("ping the agent: %w", err)
			}
		}
	}
}

// receive reads the agent's messages until the stream ends.
func (d *Dispatcher) receive(stream grpc.BidiStreamingServer[fleetv1.SessionRequest, fleetv1.SessionResponse], s *session, id, name string) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		s.heard.Store(time.Now().UnixNano())
		if hello := m.GetHello(); hello != nil {
			if err := d.hello(s, id, name, hello); err != nil {
				return err
			}
			continue
		}
		if s.agent == nil {
			return status.Error(codes.FailedPrecondition, "the first message must be Hello")
		}
		d.message(s, m)
	}
}

// hello introduces a session, or refuses it.
func (d *Dispatcher) hello(s *session, id, name string, h *fleetv1.Hello) error {
	if s.agent != nil {
		return status.Error(codes.FailedPrecondition, "a session has one Hello")
	}
	if h.GetProtocolMin() > protocolVersion || h.GetProtocolMax() < protocolVersion {
		return status.Errorf(codes.FailedPrecondition,
			"the agent speaks protocol %d to %d, this control plane speaks %d: upgrade the older of the two (agent %s)",
			h.GetProtocolMin(), h.GetProtocolMax(), protocolVersion, h.GetVersion())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errStopping
	}
	a := d.agentLocked(id, name)
	if old := a.session; old != nil {
		sameProcess := a.bootID == h.GetBootId()
		sameHost := a.hostID != "" && a.hostID == h.GetHostId()
		silent := time.Since(old.lastHeard())
		if !sameProcess && !sameHost && silent < d.cfg.PingPeriod {
			return status.Errorf(codes.AlreadyExists,
				"agent %s is already here from host %s (boot %s), heard %s ago; this is host %s (boot %s): two agents share one data folder, give the copy a folder and a name of its own",
				a.name, a.hostname, a.bootID, silent.Round(time.Millisecond), h.GetHostname(), h.GetBootId())
		}
		old.end(status.Error(codes.Aborted, "a newer session of the same agent took over"))
		d.detachLocked(a, old)
	}
	s.agent = a
	d.attachLocked(a, s, h)
	d.log.Info("agent joined", "agent", a.name, "host", a.hostname, "slots", a.slots, "version", a.version, "jobs", len(h.GetJobs()))
	return nil
}

// message handles everything but Hello.
func (d *Dispatcher) message(s *session, m *fleetv1.SessionRequest) {
	if p := m.GetPing(); p != nil {
		s.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Pong{Pong: &fleetv1.Pong{Seq: p.GetSeq()}}})
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	a := s.agent
	if a.session != s {
		return // superseded: its words do not count any more
	}
	switch msg := m.GetMessage().(type) {
	case *fleetv1.SessionRequest_OfferReply:
		ref := msg.OfferReply.GetRef()
		if j := d.jobs[ref.GetJob()]; j != nil && j.life.epoch == ref.GetEpoch() && j.life.agent == a.id && j.life.phase <= accepted {
			if !msg.OfferReply.GetAccepted() {
				d.log.Info("offer refused", "job", ref.GetJob(), "agent", a.name, "reason", msg.OfferReply.GetReason())
			}
			d.applyLocked(j, event{kind: evReply, agent: a.id, epoch: ref.GetEpoch(), ok: msg.OfferReply.GetAccepted(), reason: msg.OfferReply.GetReason()})
		} else if msg.OfferReply.GetAccepted() {
			a.sendWithdraw(ref, "the offer is no longer open")
		}
	case *fleetv1.SessionRequest_JobReport:
		d.jobReportLocked(a, msg.JobReport)
	case *fleetv1.SessionRequest_AgentStatus:
		a.draining = msg.AgentStatus.GetDraining()
		a.offerRoomLocked()
		d.serveAgentLocked(a)
	}
}

func (d *Dispatcher) jobReportLocked(a *agent, r *fleetv1.JobReport) {
	ref := r.GetRef()
	state := store.JobStarted
	if r.GetState() == fleetv1.JobState_JOB_STATE_FINISHED {
		state = store.JobFinished
		if r.GetResult() == nil {
			a.session.end(status.Errorf(codes.InvalidArgument, "job %d is reported as finished without a result", ref.GetJob()))
			return
		}
	}
	j := d.jobs[ref.GetJob()]
	if j == nil || j.life.epoch != ref.GetEpoch() || j.life.agent != a.id {
		// Reported long ago, or of a stale epoch: nothing of it is wanted.
		if state == store.JobFinished {
			a.sendAck(ref, state)
			a.sendForget(ref)
		}
		return
	}
	ev := event{kind: evReport, agent: a.id, epoch: ref.GetEpoch(), state: state}
	if state == store.JobFinished {
		ev.result = storeResult(r.GetResult())
	}
	d.applyLocked(j, ev)
}

var errStopping = status.Error(codes.Unavailable, "the control plane is stopping")
