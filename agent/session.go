package agent

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"time"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/supervisor"
	"github.com/switchyard-ci/switchyard/agent/uplink"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/internal/buildinfo"
)

// protocol is the only version that this agent speaks.
const protocol = 1

// Periods that a control plane may choose; others are brought into this range.
const (
	leastPeriod = 10 * time.Millisecond
	mostPeriod  = 10 * time.Minute
	// maxResults is how many jobs' results Hello has: there is a limit to the length of messages.
	maxResults = 500
	// maxPings is how many unanswered pings are remembered.
	maxPings = 16
)

// session is what is known of the session on the current link.
type session struct {
	began    time.Time // when Hello was sent
	welcomed bool
	period   time.Duration
	seq      uint64
	pings    map[uint64]time.Time // unanswered; when they were sent
	offers   map[ledger.Ref]supervisor.Intent
}

// told is what the log was last told about the connection, so that a state is told once.
type told struct {
	down bool
	kind uplink.Kind
}

// maxHeld is how many jobs an agent of that many slots holds, those included that are finished and not reported yet. The
// contract's limit is 20000.
func maxHeld(slots int) int { return min(2*slots, 15000) + 1000 }

// connect dials in a goroutine of its own; the loop goes on.
func (l *loop) connect() {
	l.tasks.Go(func() {
		link, err := l.dial(l.ctx)
		select {
		case l.connected <- dialed{link, err}:
		case <-l.ctx.Done():
			if link != nil {
				_ = link.close()
			}
		}
	})
}

// opened introduces the agent.
func (l *loop) opened(d dialed) {
	if d.err != nil {
		l.again(d.err, false)
		return
	}
	l.link = d.link
	l.drained = "" // a Drain holds for its session
	l.session = &session{began: time.Now(), pings: make(map[uint64]time.Time), offers: make(map[ledger.Ref]supervisor.Intent)}
	l.tick.Reset(welcomePatience)
	l.link.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Hello{Hello: l.hello()}})
}

func (l *loop) hello() *fleetv1.Hello {
	hostname, _ := os.Hostname() // for people only
	h := &fleetv1.Hello{
		BootId: l.bootID, HostId: hostID(l.dir), ProtocolMin: protocol, ProtocolMax: protocol,
		Capabilities: []string{"drain", "attach"}, Version: buildinfo.Version(), Os: runtime.GOOS, Arch: runtime.GOARCH,
		Hostname: valid(hostname, 255), Labels: l.config.Labels, Slots: uint32(l.config.Slots), //nolint:gosec // checked
		Draining: l.refusing() != "", ProtectedOnly: l.config.ProtectedOnly,
	}
	for _, x := range l.config.Executors {
		f := x.Features()
		h.Executors = append(h.Executors, &fleetv1.Executor{
			Name: x.Name(), Features: features(f.Runner).Names(), Shell: f.Shell, SurvivesAgent: f.SurvivesAgent,
			Gpus: valid(f.GPUs, 256),
		})
	}
	// Results follow as reports; here they are left out when there are so many that the message could become too long.
	few := l.ledger.Len() <= maxResults
	l.ledger.Held(func(ref ledger.Ref, phase ledger.Phase) {
		job := l.jobs[ref]
		held := &fleetv1.HeldJob{Ref: ref.Proto(), State: phase.State(), TraceLength: job.TraceLength()}
		if phase == ledger.Finished && few {
			held.Result = job.Result()
		}
		h.Jobs = append(h.Jobs, held)
	})
	return h
}

// features is what GitLab is told of jobs in an executor: what switchyard-job can do in every one, and of what the
// executor says that which is its to say. What nobody can do here - secrets of a vault, inputs, steps in GitLab's own
// runner, terminals - stays false whatever an executor says: GitLab then gives such jobs to others, or tells their authors.
func features(executor runnerapi.Features) runnerapi.Features {
	return runnerapi.Features{
		Artifacts: true, UploadMultipleArtifacts: true, UploadRawArtifacts: true, ArtifactsExclude: true,
		Cache: true, FallbackCacheKeys: true,
		Refspecs: true, Masking: true, RawVariables: true, MultiBuildSteps: true, ReturnExitCode: true,
		Cancelable: true, CancelGracefully: true,
	}.Union(executor.Intersection(runnerapi.Features{
		Variables: true, Shared: true, Image: true, Services: true, ServiceVariables: true, ServiceMultipleAliases: true,
		ImageExecutorOpts: true, ServiceExecutorOpts: true,
	}))
}

// again says why there is no session and plans the next attempt.
func (l *loop) again(err error, lasted bool) {
	kind := uplink.KindOf(err)
	if !l.told.down || l.told.kind != kind {
		switch kind {
		case uplink.Unavailable:
			l.log.Warn("not connected; trying again until it works", "err", err, "jobs", l.ledger.Len())
		default:
			l.log.Error("not connected; this needs somebody's help, trying again now and then", "err", err, "jobs", l.ledger.Len())
		}
		l.told = told{down: true, kind: kind}
	}
	if lasted {
		l.backoff.Reset()
	}
	wait := l.backoff.Next()
	if kind != uplink.Unavailable {
		wait = uplink.Jitter(slowRetry)
	}
	if l.comeBack > 0 {
		wait = l.comeBack + rand.N(l.comeBack/4+time.Millisecond)
		l.comeBack = 0
	}
	l.tick.Reset(idlePeriod)
	l.retry.Reset(wait)
}

// disconnect ends the session.
func (l *loop) disconnect(err error) {
	lasted := l.session.welcomed && time.Since(l.session.began) >= steady
	l.closeLink()
	l.renewLeases()
	l.again(err, lasted)
}

// message handles one message of the control plane.
func (l *loop) message(m *fleetv1.SessionResponse) {
	if w := m.GetWelcome(); w != nil {
		if !l.session.welcomed {
			l.welcome(w)
		}
		return
	}
	if !l.session.welcomed {
		return // nothing else counts before it
	}
	now := time.Now()
	switch m := m.GetMessage().(type) {
	case *fleetv1.SessionResponse_Ping:
		l.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Pong{Pong: &fleetv1.Pong{Seq: m.Ping.GetSeq()}}})
	case *fleetv1.SessionResponse_Pong:
		l.pong(m.Pong.GetSeq())
	case *fleetv1.SessionResponse_Offer:
		if ref, ok := ledger.RefOf(m.Offer.GetRef()); ok {
			l.offer(now, ref, m.Offer)
		}
	case *fleetv1.SessionResponse_Withdraw:
		if ref, ok := ledger.RefOf(m.Withdraw.GetRef()); ok {
			delete(l.session.offers, ref)
			l.apply(l.ledger.Withdraw(ref))
		}
	case *fleetv1.SessionResponse_Start:
		if ref, ok := ledger.RefOf(m.Start.GetRef()); ok {
			l.apply(l.ledger.Start(ref))
		}
	case *fleetv1.SessionResponse_Cancel:
		if ref, ok := ledger.RefOf(m.Cancel.GetRef()); ok {
			l.apply(l.ledger.Cancel(ref, m.Cancel.GetMode()))
		}
	case *fleetv1.SessionResponse_ReportAck:
		if ref, ok := ledger.RefOf(m.ReportAck.GetRef()); ok {
			l.ledger.Acknowledged(ref, m.ReportAck.GetState())
		}
	case *fleetv1.SessionResponse_Forget:
		if ref, ok := ledger.RefOf(m.Forget.GetRef()); ok {
			l.apply(l.ledger.Forget(ref))
		}
	case *fleetv1.SessionResponse_Drain:
		l.drained = m.Drain.GetReason()
		if l.drained == "" {
			l.drained = "no reason given"
		}
		l.log.Info("the control plane drains this agent", "reason", l.drained)
		l.apply(l.ledger.Drain(l.refusing()))
		l.sendStatus()
	case *fleetv1.SessionResponse_ComeBack:
		l.comeBack = min(max(m.ComeBack.GetAfter().AsDuration(), 0), mostPeriod)
		l.log.Info("the control plane is going away for a while", "back_after", l.comeBack)
	}
}

// welcome begins the steady state.
func (l *loop) welcome(w *fleetv1.Welcome) {
	s := l.session
	if chosen := w.GetProtocol(); chosen != protocol {
		l.link.fail(&uplink.Error{Kind: uplink.Incompatible, Text: fmt.Sprintf(
			"the control plane at %s chose protocol %d, this agent speaks %d: upgrade the older of the two", l.config.Server, chosen, protocol)})
		return
	}
	s.welcomed = true
	s.period = min(max(w.GetPingPeriod().AsDuration(), leastPeriod), mostPeriod)
	l.tick.Reset(s.period)
	l.silence.Reset(2 * s.period)
	l.log.Info("connected", "server", l.config.Server, "agent", w.GetAgentName(), "session", w.GetSessionId(), "jobs", l.ledger.Len())
	l.told = told{}
	if !l.leaving {
		l.ledger.Drain("")
	}
	l.setLease(w.GetStopAfter().AsDuration())
	l.extend(s.began)

	for _, v := range w.GetJobs() {
		ref, ok := ledger.RefOf(v.GetRef())
		if !ok {
			continue
		}
		if verdict := v.GetVerdict(); verdict == fleetv1.Verdict_VERDICT_KILL || verdict == fleetv1.Verdict_VERDICT_FORGET {
			l.log.Info("removing a job", "job", ref.Job, "epoch", ref.Epoch, "verdict", verdict)
		}
		l.traces.Resume(ref, v.GetReceived())
		l.apply(l.ledger.Welcome(ref, v.GetVerdict(), v.GetCancel().GetMode()))
	}
	l.current.set(l.link.conn)
	l.sendTraces(l.link)
	if !l.swept {
		l.swept = true
		l.tasks.Go(l.letIn)
	}
}

// letIn is called once, when the control plane has said that this process is the agent and no other.
func (l *loop) letIn() {
	supervisor.Sweep(l.ctx, l.Agent.jobs)
	if l.dir.CopyOf() == "" {
		return
	}
	if err := l.dir.Settle(); err != nil {
		l.log.Error("the data folder stays a copy", "err", err)
	}
}

// sendTraces keeps a trace stream open for as long as the link lives.
func (l *loop) sendTraces(link *link) {
	client := fleetv1.NewFleetServiceClient(link.conn)
	log := l.log
	link.tasks.Go(func() {
		backoff := uplink.Backoff{First: 100 * time.Millisecond, Most: 10 * time.Second}
		for told := false; ; told = true {
			began := time.Now()
			err := l.traces.Run(link.ctx, client.Trace, log, link.hear)
			if link.ctx.Err() != nil {
				return
			}
			if time.Since(began) > steady {
				backoff.Reset()
				told = false
			}
			select {
			case <-time.After(backoff.Next()):
			case <-link.ctx.Done():
				return // it broke with the session, which has said so
			}
			if !told {
				log.Warn("the trace stream broke; opening it again", "err", link.conn.Explain(err))
			}
		}
	})
}

// offer decides about a job.
func (l *loop) offer(now time.Time, ref ledger.Ref, o *fleetv1.Offer) {
	l.checkRoom()
	refusal := l.refusing()
	switch {
	case refusal != "":
	case l.Agent.jobs.Executors[o.GetExecutor()] == nil:
		refusal = "this agent has no executor " + o.GetExecutor()
	case l.config.ProtectedOnly && !o.GetEnvelope().GetProtected():
		refusal = "this agent takes jobs of protected branches and tags only"
	case l.ledger.Len() >= maxHeld(l.config.Slots):
		refusal = "too many finished jobs of this agent wait to be reported"
	}
	l.session.offers[ref] = supervisor.IntentOf(o)
	l.apply(l.ledger.Offer(now, ref, refusal))
	if l.ledger.Phase(ref) != ledger.Waiting {
		delete(l.session.offers, ref)
	}
	l.watchOffers()
}

// watchOffers sets the timer for the offers that wait for a slot.
func (l *loop) watchOffers() {
	if at := l.ledger.Deadline(); !at.IsZero() {
		l.patience.Reset(time.Until(at))
	}
}

// ticked is once per ping period.
func (l *loop) ticked() {
	l.checkRoom()
	if l.link == nil {
		return
	}
	s := l.session
	if !s.welcomed {
		l.disconnect(errNoWelcome)
		return
	}
	s.seq++
	if len(s.pings) >= maxPings {
		delete(s.pings, s.seq-maxPings)
	}
	s.pings[s.seq] = time.Now()
	l.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Ping{Ping: &fleetv1.Ping{Seq: s.seq}}})
}

// listen ends the session as soon as nothing was heard for two ping periods.
func (l *loop) listen() {
	if l.link == nil || !l.session.welcomed {
		return
	}
	rest := 2*l.session.period - l.link.silence()
	if rest <= 0 {
		l.disconnect(errSilent)
		return
	}
	l.silence.Reset(rest)
}

func (l *loop) pong(seq uint64) {
	if at, ok := l.session.pings[seq]; ok {
		l.log.Debug("pong", "round_trip", time.Since(at))
		delete(l.session.pings, seq)
		l.extend(at)
	}
}
