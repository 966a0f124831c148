package protocolmodel

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"hash/crc32"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/tracestream"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// agent is a host with an agent on it. What is decided about messages is the real ledger's and what is sent of traces is the
// real sender's; between them stands what the agent's loop does with effects, events and its lease, without its processes.
type agent struct {
	w     *world
	id    string
	host  string
	slots int
	boot  int

	full   bool // the host's disk: offers are refused
	up     bool // the agent's process
	ledger *ledger.Ledger
	traces *tracestream.Sender
	link   *link // nil: not connected
	span   time.Duration
	acked  time.Time // when the last message was sent that was answered

	offered map[ledger.Ref]*fleetv1.Offer
	disk    map[ledger.Ref]*process // the folders of jobs
	orphans []*process              // jobs on hosts that were cut off for good
}

// process is one attempt at a job on a host.
type process struct {
	ref    ledger.Ref
	gitlab int64
	// recorded: it is written down in its folder. launched: the start was ordered. begun: the fence stands, the script runs or has run. ended: it does not run any more.
	recorded, launched, begun, ended bool
	discarded                        bool
	cancel                           fleetv1.CancelMode
	span                             time.Duration // its own lease; 0: the agent's
	until                            time.Time     // what the job was told of it
	result                           *fleetv1.Result
	safe                             bool // the agent was told that the result is

	mu      sync.Mutex
	written int
}

// content is what a job has written after n bytes; no two attempts write the same.
func content(ref ledger.Ref, n int) []byte {
	line := fmt.Appendf(nil, "job %d, epoch %d, ", ref.Job, ref.Epoch)
	return bytes.Repeat(line, n/len(line)+1)[:n]
}

// ReadAt implements tracestream.Source.
func (p *process) ReadAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.NewReader(content(p.ref, p.written)).ReadAt(b, off)
}

func (p *process) length() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.written
}

func (p *process) runs() bool { return p.begun && !p.ended }

func (a *agent) String() string { return a.id }

// GoString is how a plan that failed names it.
func (a *agent) GoString() string { return "agent " + a.id }

// processes are what the host has, in a certain order.
func (a *agent) processes() []*process {
	return slices.SortedFunc(maps.Values(a.disk), func(p, q *process) int {
		return compare(p.ref, q.ref)
	})
}

func compare(a, b ledger.Ref) int {
	return cmp.Or(cmp.Compare(a.Job, b.Job), cmp.Compare(a.Epoch, b.Epoch))
}

// start starts the agent's process and takes up what is in the folders.
func (a *agent) start() {
	a.boot++
	a.up, a.ledger, a.traces, a.link = true, ledger.New(a.slots), tracestream.New(), nil
	a.span, a.acked, a.offered = 0, time.Time{}, make(map[ledger.Ref]*fleetv1.Offer)
	for _, p := range a.processes() {
		switch {
		case p.discarded:
			p.ended = true
			delete(a.disk, p.ref)
			continue
		case p.result != nil:
			a.ledger.Restore(p.ref, ledger.Finished, p.begun)
		case p.launched:
			a.ledger.Restore(p.ref, ledger.Started, p.begun)
		default:
			a.ledger.Restore(p.ref, ledger.Accepted, false)
			continue
		}
		a.traces.Add(p.ref, p)
		if p.ended {
			a.traces.Finish(p.ref)
		}
	}
}

// crash ends the agent's process. What was not written down is gone; of a job that was about to begin the process may have
// been started or not; jobs that run go on.
func (a *agent) crash(spawned func() bool) {
	a.disconnect()
	a.up = false
	for _, p := range a.processes() {
		if p.begun || p.result != nil {
			continue
		}
		switch {
		case !p.recorded:
			delete(a.disk, p.ref)
		case p.launched && !spawned():
			p.launched = false
		}
	}
}

// lose takes the host away with all that it has; dies: its jobs end, too, else it is cut off for good and they go on until
// their leases are over. The agent comes back without them, on the same host or on another.
func (a *agent) lose(dies, otherHost bool) {
	a.disconnect()
	a.up = false
	for _, p := range a.processes() {
		if dies {
			p.ended = true
		} else {
			a.orphans = append(a.orphans, p)
		}
	}
	clear(a.disk)
	if otherHost {
		a.host = fmt.Sprintf("%s-%d", a.id, a.boot)
	}
}

func (a *agent) connect() {
	a.link = a.w.plane.open(a)
	l := a.link
	l.session.sendUp(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Hello{Hello: a.hello()}})
}

func (a *agent) hello() *fleetv1.Hello {
	h := &fleetv1.Hello{
		BootId: fmt.Sprintf("%s-%d", a.id, a.boot), HostId: a.host, ProtocolMin: 1, ProtocolMax: 1,
		Slots:     uint32(a.slots), //nolint:gosec // small
		Executors: []*fleetv1.Executor{{Name: "shell"}},
	}
	a.ledger.Held(func(ref ledger.Ref, phase ledger.Phase) {
		p := a.disk[ref]
		h.Jobs = append(h.Jobs, &fleetv1.HeldJob{Ref: ref.Proto(), State: phase.State(), TraceLength: int64(p.length()), Result: p.result})
	})
	slices.SortFunc(h.Jobs, func(i, j *fleetv1.HeldJob) int { return compare(refOf(i.GetRef()), refOf(j.GetRef())) })
	return h
}

// disconnect is what the agent does when its link is broken; the control plane may not know yet.
func (a *agent) disconnect() {
	l := a.link
	if l == nil {
		return
	}
	l.closed = true
	l.cancel()
	l.sender.Wait()
	a.link = nil
	a.ledger.Disconnected()
}

func (a *agent) send(m *fleetv1.SessionRequest) {
	if a.link != nil && a.link.welcomed {
		a.link.session.sendUp(m)
	}
}

// receive is what the agent does with a message of the control plane.
func (a *agent) receive(m *fleetv1.SessionResponse) {
	l := a.link
	l.heard = time.Now()
	if w := m.GetWelcome(); w != nil {
		if !l.welcomed {
			a.welcome(w)
		}
		return
	}
	if !l.welcomed {
		return
	}
	switch m := m.GetMessage().(type) {
	case *fleetv1.SessionResponse_Ping:
		a.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Pong{Pong: &fleetv1.Pong{Seq: m.Ping.GetSeq()}}})
	case *fleetv1.SessionResponse_Pong:
		if at, ok := l.pings[m.Pong.GetSeq()]; ok {
			delete(l.pings, m.Pong.GetSeq())
			a.extend(at)
		}
	case *fleetv1.SessionResponse_Offer:
		a.offer(m.Offer)
	case *fleetv1.SessionResponse_Withdraw:
		a.apply(a.ledger.Withdraw(refOf(m.Withdraw.GetRef())))
	case *fleetv1.SessionResponse_Start:
		a.apply(a.ledger.Start(refOf(m.Start.GetRef())))
	case *fleetv1.SessionResponse_Cancel:
		a.apply(a.ledger.Cancel(refOf(m.Cancel.GetRef()), m.Cancel.GetMode()))
	case *fleetv1.SessionResponse_ReportAck:
		if p := a.disk[refOf(m.ReportAck.GetRef())]; p != nil && p.result != nil && m.ReportAck.GetState() == fleetv1.JobState_JOB_STATE_FINISHED {
			p.safe = true
		}
		a.ledger.Acknowledged(refOf(m.ReportAck.GetRef()), m.ReportAck.GetState())
	case *fleetv1.SessionResponse_Forget:
		a.apply(a.ledger.Forget(refOf(m.Forget.GetRef())))
	}
}

func refOf(r *fleetv1.JobRef) ledger.Ref { return ledger.Ref{Job: r.GetJob(), Epoch: r.GetEpoch()} }

func (a *agent) welcome(w *fleetv1.Welcome) {
	l := a.link
	l.welcomed = true
	a.span = w.GetStopAfter().AsDuration()
	a.extend(l.began)
	for _, v := range w.GetJobs() {
		ref := refOf(v.GetRef())
		a.traces.Resume(ref, v.GetReceived())
		a.apply(a.ledger.Welcome(ref, v.GetVerdict(), v.GetCancel().GetMode()))
	}
	l.openTrace()
	client := &traceClient{l: l, answer: l.answers}
	traces := a.traces
	l.sender.Go(func() {
		_ = traces.Run(l.ctx, func(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[fleetv1.TraceRequest, fleetv1.TraceResponse], error) {
			return client, nil
		}, slog.New(slog.DiscardHandler), func() {})
	})
}

func (a *agent) offer(o *fleetv1.Offer) {
	ref := refOf(o.GetRef())
	if a.disk[ref] == nil {
		a.offered[ref] = o
	}
	refusal := ""
	if a.full {
		refusal = "the disk is full"
	}
	a.apply(a.ledger.Offer(time.Now(), ref, refusal))
}

// apply carries out what the ledger decided.
func (a *agent) apply(effects []ledger.Effect) {
	for _, e := range effects {
		p := a.disk[e.Ref]
		switch e.Verb {
		case ledger.Reply:
			a.send(reply(e.Ref, true, ""))
		case ledger.Refuse:
			a.send(reply(e.Ref, false, e.Reason))
		case ledger.Hold:
			o := a.offered[e.Ref]
			a.disk[e.Ref] = &process{ref: e.Ref, gitlab: o.GetEnvelope().GetGitlabJobId(), span: o.GetStopAfter().AsDuration()}
		case ledger.Launch:
			p.launched = true
			p.until = a.until(p)
			a.traces.Add(p.ref, p)
		case ledger.Cancel:
			p.cancel = max(p.cancel, e.Mode)
		case ledger.Discard:
			p.discarded = true
		case ledger.Report:
			r := &fleetv1.JobReport{Ref: e.Ref.Proto(), State: e.State}
			if e.State == fleetv1.JobState_JOB_STATE_FINISHED {
				r.Result = p.result
			}
			a.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_JobReport{JobReport: r}})
		}
	}
}

func reply(ref ledger.Ref, ok bool, reason string) *fleetv1.SessionRequest {
	return &fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_OfferReply{
		OfferReply: &fleetv1.OfferReply{Ref: ref.Proto(), Accepted: ok, Reason: reason},
	}}
}

// until is when a job's lease ends as far as the agent knows; zero: it does not.
func (a *agent) until(p *process) time.Time {
	span := a.span
	if p.span > 0 {
		span = p.span
	}
	if span == 0 || a.acked.IsZero() {
		return time.Time{}
	}
	return a.acked.Add(span)
}

// extend counts the leases anew from the sending of a message that was answered; jobs are told after a quarter.
func (a *agent) extend(sent time.Time) {
	if !sent.After(a.acked) {
		return
	}
	a.acked = sent
	for _, p := range a.processes() {
		if until := a.until(p); p.launched && !p.ended && until.Sub(p.until) >= until.Sub(a.acked)/4 {
			p.until = until
		}
	}
}

// pass is what an agent and its jobs do by themselves as time passes.
func (a *agent) pass() {
	now := time.Now()
	for _, p := range a.processes() {
		if p.runs() && !p.until.IsZero() && !now.Before(p.until) {
			a.end(p, true) // the dead man's limit of the job itself
		}
	}
	for _, p := range a.orphans {
		if p.runs() && !p.until.IsZero() && !now.Before(p.until) {
			p.ended = true
		}
	}
	if !a.up {
		return
	}
	if l := a.link; l != nil {
		switch {
		case now.Sub(l.heard) >= 2*pingPeriod:
			a.disconnect()
		case l.welcomed && now.Sub(l.pinged) >= pingPeriod:
			l.pinged = now
			l.seq++
			l.pings[l.seq] = now
			a.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Ping{Ping: &fleetv1.Ping{Seq: l.seq}}})
		}
	}
	a.apply(a.ledger.Tick(now))
	for _, p := range a.processes() {
		started := a.ledger.Phase(p.ref) == ledger.Started
		if until := a.until(p); started && !until.IsZero() && !now.Before(until) {
			a.apply(a.ledger.Cancel(p.ref, fleetv1.CancelMode_CANCEL_MODE_KILL))
		}
		switch {
		case !p.recorded && !p.discarded:
			p.recorded = true
			a.apply(a.ledger.Written(p.ref))
		case p.discarded:
			p.ended = true
			a.traces.Remove(p.ref)
			delete(a.disk, p.ref)
			a.apply(a.ledger.Gone(p.ref))
		case started && p.result == nil && p.cancel != 0:
			a.end(p, true)
		case started && p.result != nil: // it ended while the agent was away
			a.finished(p)
		}
	}
}

// begin is the moment from which a job is known to have been started: the fence.
func (a *agent) begin(p *process) {
	a.w.began(a, p)
	p.begun = true
	if a.up {
		a.apply(a.ledger.Fenced(p.ref))
	}
}

func (a *agent) write(p *process, n int) {
	p.mu.Lock()
	p.written += n
	p.mu.Unlock()
	if a.up {
		a.traces.Grow(p.ref, int64(p.length()))
	}
}

// end gives a job its result.
func (a *agent) end(p *process, canceled bool) {
	p.ended = true
	trace := content(p.ref, p.length())
	p.result = &fleetv1.Result{
		State: runnerapi.StateSuccess, TraceLength: int64(len(trace)), TraceCrc32: crc32.ChecksumIEEE(trace),
	}
	if canceled {
		p.result.State, p.result.FailureReason = runnerapi.StateFailed, string(runnerapi.ReasonCanceled)
	}
	if a.up {
		a.finished(p)
	}
}

func (a *agent) finished(p *process) {
	a.traces.Finish(p.ref)
	a.apply(a.ledger.Finished(p.ref))
	a.apply(a.ledger.Freed(p.ref))
}
