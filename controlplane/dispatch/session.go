package dispatch

import (
	"context"
	"errors"
	"fmt"
	"sync"
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
	// outgoing and outgoingPerJob bound the messages that wait for a slow agent; one that falls behind by more is
	// disconnected and says what it holds when it is back.
	outgoing       = 1024
	outgoingPerJob = 4
)

type sessionStream = grpc.BidiStreamingServer[fleetv1.SessionRequest, fleetv1.SessionResponse]

// session is one agent's stream.
type session struct {
	*stream
	id    string
	out   outbox
	began time.Time
	heard atomic.Int64 // when the last frame came, in nanoseconds after began
	pings atomic.Pointer[pinged]

	welcomed atomic.Bool
	agent    *agent // nil before Hello; guarded by the dispatcher's lock, as is over
	over     bool   // too late for Hello
}

// pinged is the last ping.
type pinged struct {
	seq uint64
	at  time.Time
}

func newSession(s *stream) *session {
	out := &session{stream: s, id: uuid.NewString(), out: newOutbox(outgoing), began: time.Now()}
	out.pings.Store(&pinged{})
	return out
}

// hear notes a sign of life. The clock that counts is the monotonic one: a step of the wall clock must not end leases.
func (s *session) hear() { s.heard.Store(int64(time.Since(s.began))) }

func (s *session) lastHeard() time.Time { return s.began.Add(time.Duration(s.heard.Load())) }

// send queues a message. An agent that does not read loses its session instead of blocking anyone.
func (s *session) send(m *fleetv1.SessionResponse) {
	if !s.out.put(m) {
		s.end(status.Error(codes.ResourceExhausted, "the agent does not read its session: too many messages wait"))
	}
}

// Session serves one agent; see fleet.proto for the contract.
func (d *Dispatcher) Session(stream sessionStream) error {
	id, name, err := d.cfg.Identity(stream.Context())
	if err != nil {
		return err
	}
	opened, err := d.open(stream.Context())
	if err != nil {
		return err
	}
	defer opened.close()
	s := newSession(opened)
	s.run(func() error { return d.receive(stream, s, id, name) }, func() error { return d.transmit(stream, s) })

	ticker := time.NewTicker(d.cfg.PingPeriod)
	defer ticker.Stop()
	deaf := d.listen(s)
	defer deaf()
	err = s.wait(ticker.C, func(now time.Time) error { return d.tick(s, now) })

	d.mu.Lock()
	s.over = true
	joined := s.agent != nil
	if joined {
		d.detachLocked(s.agent, s)
	}
	d.mu.Unlock()
	if joined {
		d.log.Info("agent left", "agent", name, "session", s.id, "why", err)
	}
	return err
}

// listen ends a session as soon as nothing was heard for two ping periods. It returns what ends the listening.
func (d *Dispatcher) listen(s *session) (stop func()) {
	most := 2 * d.cfg.PingPeriod
	var mu sync.Mutex
	var timer *time.Timer
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(most, func() {
		mu.Lock()
		defer mu.Unlock()
		silent := time.Since(s.lastHeard())
		if timer == nil {
			return
		}
		if s.welcomed.Load() && silent >= most {
			s.end(status.Errorf(codes.DeadlineExceeded, "nothing was heard of the agent for %s", silent.Round(time.Millisecond)))
			return
		}
		timer.Reset(max(most-silent, most/100))
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		timer.Stop()
		timer = nil
	}
}

// tick is once per ping period: it pings, and ends a session that does not begin or that is not read.
func (d *Dispatcher) tick(s *session, now time.Time) error {
	if !s.welcomed.Load() {
		if now.Sub(s.began) >= helloPatience {
			return status.Error(codes.DeadlineExceeded, "no Hello came")
		}
		return nil
	}
	if stuck := s.out.stuck(now); stuck >= 2*d.cfg.PingPeriod {
		return status.Errorf(codes.DeadlineExceeded, "the agent has not read its session for %s", stuck.Round(time.Second))
	}
	p := &pinged{seq: s.pings.Load().seq + 1, at: now}
	s.pings.Store(p)
	s.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Ping{Ping: &fleetv1.Ping{Seq: p.seq}}})
	return nil
}

// transmit writes what is queued until the session ends.
func (d *Dispatcher) transmit(stream sessionStream, s *session) error {
	for {
		messages, ok := s.out.take(s.ctx)
		if !ok {
			break
		}
		for _, m := range messages {
			if err := stream.Send(m); err != nil {
				return fmt.Errorf("send to the agent: %w", err)
			}
		}
	}
	if errors.Is(context.Cause(s.ctx), errRemoved) { // it is to hear what becomes of its jobs, if it reads
		for _, m := range s.out.rest() {
			if err := stream.Send(m); err != nil {
				return fmt.Errorf("send to the agent: %w", err)
			}
		}
	}
	if errors.Is(context.Cause(s.ctx), errStopping) && s.welcomed.Load() {
		// A best effort: an agent that does not read it comes back by its own back-off.
		_ = stream.Send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_ComeBack{
			ComeBack: &fleetv1.ComeBack{After: durationpb.New(d.cfg.ComeBack)},
		}})
	}
	return nil
}

// receive reads the agent's messages until the stream ends.
func (d *Dispatcher) receive(stream sessionStream, s *session, id, name string) error {
	for s.ctx.Err() == nil { // else an agent that only talks would be listened to for as long as it does
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		s.hear()
		if hello := m.GetHello(); hello != nil {
			if err := d.hello(s, id, name, hello); err != nil {
				return err
			}
			continue
		}
		if s.agent == nil {
			return status.Error(codes.FailedPrecondition, "the first message must be Hello")
		}
		if err := d.message(s, m); err != nil {
			return err
		}
	}
	return s.ctx.Err()
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
	if err := d.helloLocked(s, id, name, h); err != nil {
		return err
	}
	if _, _, err := d.cfg.Identity(s.ctx); err != nil {
		return err // it was removed while it came in
	}
	d.log.Info("agent joined", "agent", name, "host", h.GetHostname(), "slots", h.GetSlots(), "version", h.GetVersion(), "jobs", len(h.GetJobs()))
	return nil
}

func (d *Dispatcher) helloLocked(s *session, id, name string, h *fleetv1.Hello) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || s.over {
		return errStopping
	}
	a := d.agentLocked(id, name)
	if old := a.session; old != nil {
		sameProcess := a.bootID == h.GetBootId()
		sameHost := a.hostID != "" && a.hostID == h.GetHostId()
		silent := time.Since(old.lastHeard())
		if !sameProcess && !sameHost && silent < d.cfg.PingPeriod {
			return status.Errorf(codes.AlreadyExists,
				"agent %s is already here from host %s (boot %s), heard %s ago; this is host %s (boot %s): the data folder was copied, and one of the two has to enrol with a folder of its own",
				a.name, a.hostname, a.bootID, silent.Round(time.Millisecond), h.GetHostname(), h.GetBootId())
		}
		old.end(status.Error(codes.Aborted, "a newer session of the same agent took over"))
		d.detachLocked(a, old)
		a = d.agentLocked(id, name) // it was forgotten if it held nothing
	}
	if d.adoptLocked(a, h) {
		return status.Error(codes.Unavailable, "the control plane writes down a job that it finds begun on this agent; come back in a moment")
	}
	s.agent = a
	s.out.widen(outgoingPerJob * (int(h.GetSlots()) + len(h.GetJobs())))
	d.attachLocked(a, s, h)
	s.welcomed.Store(true)
	return nil
}

// message handles everything but Hello.
func (d *Dispatcher) message(s *session, m *fleetv1.SessionRequest) error {
	if p := m.GetPing(); p != nil {
		s.send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Pong{Pong: &fleetv1.Pong{Seq: p.GetSeq()}}})
		return nil
	}
	if p := m.GetPong(); p != nil {
		if last := s.pings.Load(); last.seq == p.GetSeq() {
			d.log.Debug("pong", "session", s.id, "round_trip", time.Since(last.at))
		}
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	a := s.agent
	if a.session != s {
		return nil // superseded: its words do not count any more
	}
	switch msg := m.GetMessage().(type) {
	case *fleetv1.SessionRequest_OfferReply:
		d.offerReplyLocked(a, msg.OfferReply)
	case *fleetv1.SessionRequest_JobReport:
		return d.jobReportLocked(a, msg.JobReport)
	case *fleetv1.SessionRequest_AgentStatus:
		a.draining = msg.AgentStatus.GetDraining()
		a.offerRoomLocked()
		d.roomLocked(a)
	}
	return nil
}

// heldByLocked returns the job if the agent holds this epoch of it.
func (d *Dispatcher) heldByLocked(agent string, ref *fleetv1.JobRef) *job {
	if j := d.jobs[ref.GetJob()]; j != nil && j.life.epoch == ref.GetEpoch() && j.life.agent == agent {
		return j
	}
	return nil
}

func (d *Dispatcher) offerReplyLocked(a *agent, r *fleetv1.OfferReply) {
	j := d.heldByLocked(a.id, r.GetRef())
	if !r.GetAccepted() {
		d.log.Info("offer refused", "job", r.GetRef().GetJob(), "agent", a.name, "reason", r.GetReason())
	}
	switch {
	case j != nil && (j.life.phase == offered || j.life.phase == accepted || j.life.phase == started && !r.GetAccepted()):
		d.applyLocked(j, event{
			kind: evReply, agent: a.id, epoch: r.GetRef().GetEpoch(), ok: r.GetAccepted(),
			reason: fmt.Sprintf("agent %s did not start the job: %s", a.name, r.GetReason()),
		})
	case r.GetAccepted():
		a.sendWithdraw(r.GetRef(), "the offer is no longer open")
	}
}

func (d *Dispatcher) jobReportLocked(a *agent, r *fleetv1.JobReport) error {
	ref := r.GetRef()
	ev := event{kind: evReport, agent: a.id, epoch: ref.GetEpoch(), state: store.JobStarted}
	if r.GetState() == fleetv1.JobState_JOB_STATE_FINISHED {
		if r.GetResult() == nil {
			return status.Errorf(codes.InvalidArgument, "job %d is reported as finished without a result", ref.GetJob())
		}
		ev.state, ev.result = store.JobFinished, storeResult(r.GetResult())
	}
	switch j := d.heldByLocked(a.id, ref); {
	case j != nil:
		d.applyLocked(j, ev)
	case ev.state == store.JobFinished: // reported long ago, or of a stale epoch: nothing of it is wanted
		a.sendAck(ref, ev.state)
		a.sendForget(ref)
	}
	return nil
}
