package dispatch

import (
	"context"
	"fmt"
	"hash/crc32"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// ref is a JobRef that can be a key.
type ref struct{ job, epoch int64 }

func refOf(r *fleetv1.JobRef) ref    { return ref{r.GetJob(), r.GetEpoch()} }
func (r ref) proto() *fleetv1.JobRef { return &fleetv1.JobRef{Job: r.job, Epoch: r.epoch} }

// chaosAgent does what an agent does with each message (agent/ledger says what that is), repeats and delays some of its
// own, and is cut off, restarted and lost now and then. What it holds is its own goroutine's.
type chaosAgent struct {
	c     *chaos
	id    string
	slots int
	held  map[ref]*chaosHeld
	boot  int
	heard time.Time // the last pong

	late []*fleetv1.SessionRequest // delayed messages
	log  []string                  // what was heard and said, for people
}

func (a *chaosAgent) note(format string, args ...any) {
	a.log = append(a.log, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// about returns what was noted of a job.
func (a *chaosAgent) about(r ref) string {
	about := fmt.Sprintf("job:%d epoch:%d", r.job, r.epoch)
	var lines []string
	for _, line := range a.log {
		if strings.Contains(strings.ReplaceAll(line, "  ", " "), about) || strings.Contains(line, "connection") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-60):], "\n")
}

type chaosHeld struct {
	gitlab int64
	state  fleetv1.JobState
	cancel fleetv1.CancelMode
	trace  string
	length int // what was produced of it so far
	end    time.Time
	result *fleetv1.Result
	acked  fleetv1.JobState

	sent, received, limit int64
	stopped               bool
}

// run lives until the chaos is over.
func (a *chaosAgent) run(ctx context.Context) {
	for ctx.Err() == nil {
		a.connect(ctx)
		switch {
		case a.c.calm():
		case a.c.dice.in(4): // the process is restarted: promises are forgotten
			a.boot++
			for r, h := range a.held {
				if h.state == fleetv1.JobState_JOB_STATE_ACCEPTED {
					delete(a.held, r)
				}
			}
		case a.c.dice.in(20): // the host is lost, and replaced
			a.boot++
			clear(a.held)
		case a.c.dice.in(12): // it is cut off for longer than the lease
			a.away(ctx, chaosLost+a.c.dice.wait(time.Minute))
		}
		a.away(ctx, a.c.dice.wait(5*time.Second))
	}
}

// away lets time pass without a connection.
func (a *chaosAgent) away(ctx context.Context, d time.Duration) {
	until := time.Now().Add(d)
	for time.Now().Before(until) && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(min(time.Until(until), time.Second)):
		}
		a.work(nil)
	}
}

// connect is one connection.
func (a *chaosAgent) connect(ctx context.Context) {
	listener := a.c.listener()
	conn, err := grpc.NewClient("passthrough:///fleet", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithIdleTimeout(0),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		a.c.t.Errorf("dial: %v", err)
		return
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "agent", a.id))
	var receivers sync.WaitGroup
	defer receivers.Wait()
	defer cancel()
	client := fleetv1.NewFleetServiceClient(conn)
	stream, err := client.Session(ctx)
	if err != nil || stream.Send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Hello{Hello: a.hello()}}) != nil {
		return
	}
	traces, err := client.Trace(ctx)
	if err != nil {
		return
	}
	in, answers := make(chan *fleetv1.SessionResponse), make(chan *fleetv1.TraceResponse)
	receivers.Go(func() { receive(ctx, stream.Recv, in) })
	receivers.Go(func() { receive(ctx, traces.Recv, answers) })
	began := time.Now()
	a.note("connection begins")
	defer a.note("connection ends")
	a.serve(ctx, &chaosLink{a, stream, traces, began}, in, answers)
}

func receive[M any](ctx context.Context, recv func() (*M, error), to chan<- *M) {
	defer close(to)
	for {
		m, err := recv()
		if err != nil {
			return
		}
		select {
		case to <- m:
		case <-ctx.Done():
			return
		}
	}
}

// chaosLink is what an agent sends on.
type chaosLink struct {
	a      *chaosAgent
	stream grpc.BidiStreamingClient[fleetv1.SessionRequest, fleetv1.SessionResponse]
	traces grpc.BidiStreamingClient[fleetv1.TraceRequest, fleetv1.TraceResponse]
	began  time.Time
}

func (a *chaosAgent) serve(ctx context.Context, l *chaosLink, in <-chan *fleetv1.SessionResponse, answers <-chan *fleetv1.TraceResponse) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	welcomed, pinged := false, time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case m, ok := <-in:
			switch {
			case !ok:
				return
			case m.GetWelcome() != nil:
				welcomed, a.heard = true, l.began
				a.welcome(l, m.GetWelcome())
			case welcomed:
				a.message(l, m)
			}
		case r, ok := <-answers:
			if !ok {
				return
			}
			a.answered(r)
		case <-tick.C:
			if !welcomed {
				continue
			}
			a.work(l)
			if time.Since(pinged) >= chaosPeriod {
				pinged = time.Now()
				_ = l.stream.Send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Ping{Ping: &fleetv1.Ping{Seq: 1}}})
			}
			if !a.c.calm() && a.c.dice.in(80) {
				return // the connection breaks
			}
		}
	}
}

func (a *chaosAgent) hello() *fleetv1.Hello {
	h := hello(fmt.Sprintf("%s-%d", a.id, a.boot), uint32(a.slots)) //nolint:gosec // small
	h.HostId = a.id
	for r, j := range a.held {
		held := &fleetv1.HeldJob{Ref: r.proto(), State: j.state, TraceLength: int64(j.length), Result: j.result}
		h.Jobs = append(h.Jobs, held)
		if !a.c.calm() && a.c.dice.in(10) {
			h.Jobs = append(h.Jobs, held)
		}
	}
	return h
}

func (a *chaosAgent) welcome(l *chaosLink, w *fleetv1.Welcome) {
	for _, v := range w.GetJobs() {
		r := refOf(v.GetRef())
		j := a.held[r]
		a.note("welcome: %v", v)
		switch {
		case j == nil:
		case v.GetVerdict() == fleetv1.Verdict_VERDICT_KEEP:
			j.received, j.sent, j.limit, j.stopped = v.GetReceived(), v.GetReceived(), v.GetReceived()+256<<10, false
			if j.acked < j.state && j.state >= fleetv1.JobState_JOB_STATE_STARTED {
				l.report(r, j)
			}
			j.cancel = max(j.cancel, v.GetCancel().GetMode())
		default:
			delete(a.held, r)
		}
	}
}

func (a *chaosAgent) message(l *chaosLink, m *fleetv1.SessionResponse) {
	a.note("heard: %v", m)
	switch m := m.GetMessage().(type) {
	case *fleetv1.SessionResponse_Ping:
		l.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Pong{Pong: &fleetv1.Pong{Seq: m.Ping.GetSeq()}}})
	case *fleetv1.SessionResponse_Pong:
		a.heard = time.Now()
	case *fleetv1.SessionResponse_Offer:
		a.offer(l, m.Offer)
	case *fleetv1.SessionResponse_Withdraw:
		r := refOf(m.Withdraw.GetRef())
		if j := a.held[r]; j != nil && j.state == fleetv1.JobState_JOB_STATE_ACCEPTED {
			delete(a.held, r)
		}
	case *fleetv1.SessionResponse_Start:
		a.start(l, refOf(m.Start.GetRef()))
	case *fleetv1.SessionResponse_Cancel:
		if j := a.held[refOf(m.Cancel.GetRef())]; j != nil {
			j.cancel = max(j.cancel, m.Cancel.GetMode())
		}
	case *fleetv1.SessionResponse_ReportAck:
		if j := a.held[refOf(m.ReportAck.GetRef())]; j != nil {
			j.acked = max(j.acked, m.ReportAck.GetState())
		}
	case *fleetv1.SessionResponse_Forget:
		delete(a.held, refOf(m.Forget.GetRef()))
	}
}

func (a *chaosAgent) offer(l *chaosLink, o *fleetv1.Offer) {
	r := refOf(o.GetRef())
	if a.held[r] != nil {
		l.reply(r, true)
		return
	}
	for other, j := range a.held {
		switch {
		case other.job != r.job:
		case other.epoch > r.epoch:
			return
		case j.state >= fleetv1.JobState_JOB_STATE_STARTED:
			l.reply(r, false)
			return
		default:
			delete(a.held, other)
		}
	}
	if len(a.held) >= 2*a.slots || !a.c.calm() && a.c.dice.in(8) {
		l.reply(r, false)
		return
	}
	if !a.c.calm() && a.c.dice.in(20) {
		return // never answered
	}
	a.held[r] = &chaosHeld{gitlab: o.GetEnvelope().GetGitlabJobId(), state: fleetv1.JobState_JOB_STATE_ACCEPTED, limit: 256 << 10}
	l.reply(r, true)
}

func (a *chaosAgent) start(l *chaosLink, r ref) {
	j := a.held[r]
	if j == nil {
		l.reply(r, false)
		return
	}
	if j.state != fleetv1.JobState_JOB_STATE_ACCEPTED {
		return
	}
	a.c.begun(a.id, r, j.gitlab)
	j.state = fleetv1.JobState_JOB_STATE_STARTED
	j.trace = strings.Repeat(fmt.Sprintf("job %d, epoch %d on %s\n", r.job, r.epoch, a.id), 1+a.c.dice.n(200))
	j.end = time.Now().Add(a.c.dice.wait(time.Minute))
	l.report(r, j)
}

// work is what jobs do as time passes; l is nil without a connection.
func (a *chaosAgent) work(l *chaosLink) {
	kill := time.Since(a.heard) >= chaosStop // the lease is over
	for r, j := range a.held {
		if j.state == fleetv1.JobState_JOB_STATE_STARTED {
			j.length = min(j.length+1+a.c.dice.n(1000), len(j.trace))
			if canceled := kill || j.cancel != 0; canceled || !time.Now().Before(j.end) {
				a.finish(j, canceled)
				if l != nil {
					l.report(r, j)
				}
			}
		}
		if l != nil {
			l.sendTrace(r, j)
		}
	}
	if l != nil {
		l.flush()
	}
}

func (a *chaosAgent) finish(j *chaosHeld, canceled bool) {
	j.state = fleetv1.JobState_JOB_STATE_FINISHED
	if !canceled {
		j.length = len(j.trace)
	}
	j.result = &fleetv1.Result{
		State: runnerapi.StateSuccess, TraceLength: int64(j.length), TraceCrc32: crc32.ChecksumIEEE([]byte(j.trace[:j.length])),
	}
	if canceled {
		j.result.State, j.result.FailureReason = runnerapi.StateFailed, string(runnerapi.ReasonCanceled)
	}
}

func (a *chaosAgent) answered(t *fleetv1.TraceResponse) {
	j := a.held[refOf(t.GetRef())]
	if j == nil {
		return
	}
	j.received = max(j.received, t.GetReceived())
	switch t.GetOutcome() {
	case fleetv1.TraceOutcome_TRACE_OUTCOME_STOP:
		j.stopped = true
	case fleetv1.TraceOutcome_TRACE_OUTCOME_RESEND:
		j.received, j.sent = t.GetReceived(), t.GetReceived()
	}
	j.limit = max(j.limit, t.GetLimit())
}

func (l *chaosLink) sendTrace(r ref, j *chaosHeld) {
	from, to := j.sent, min(int64(j.length), j.limit)
	if j.state < fleetv1.JobState_JOB_STATE_STARTED || j.stopped || from >= to {
		return
	}
	if d := l.a.c.dice; !l.a.c.calm() && d.in(10) { // some of it again
		from = max(0, from-int64(d.n(100)))
	}
	j.sent = to
	_ = l.traces.Send(&fleetv1.TraceRequest{Ref: r.proto(), Offset: from, Data: []byte(j.trace[from:to])})
}

func (l *chaosLink) reply(r ref, ok bool) {
	l.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_OfferReply{OfferReply: &fleetv1.OfferReply{Ref: r.proto(), Accepted: ok, Reason: "chaos"}}})
}

func (l *chaosLink) report(r ref, j *chaosHeld) {
	l.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_JobReport{JobReport: &fleetv1.JobReport{Ref: r.proto(), State: j.state, Result: j.result}}})
}

// send sends a message, or does so twice, or later: even on another session. A refusal is never late: the control plane
// may take it for the word of an agent that has lost the job, which it is not.
func (l *chaosLink) send(m *fleetv1.SessionRequest) {
	reply := m.GetOfferReply()
	if !l.a.c.calm() && l.a.c.dice.in(10) && (reply == nil || reply.GetAccepted()) {
		l.a.late = append(l.a.late, m)
		if reply == nil || l.a.c.dice.in(2) {
			return
		}
	}
	l.a.note("said: %v", m)
	_ = l.stream.Send(m)
}

// flush sends what is late, in any order.
func (l *chaosLink) flush() {
	d := l.a.c.dice
	for len(l.a.late) > 0 && (l.a.c.calm() || d.in(3)) {
		i := d.n(len(l.a.late))
		l.a.note("said late: %v", l.a.late[i])
		_ = l.stream.Send(l.a.late[i])
		l.a.late = append(l.a.late[:i:i], l.a.late[i+1:]...)
	}
}
