//go:build unix

package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/switchyard-ci/switchyard/agent/datadir"
	"github.com/switchyard-ci/switchyard/agent/internal/fakejob"
	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/supervisor"
	"github.com/switchyard-ci/switchyard/agent/tracestream"
	"github.com/switchyard-ci/switchyard/agent/uplink"
	"github.com/switchyard-ci/switchyard/executors"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// A record of FuzzAgentSession is a byte, a length and the bytes of a SessionResponse.
const (
	onNewLink   = 1 << iota // the connection breaks, and this comes on the next
	thenTicks               // a ping period passes
	thenLapses              // the lease is looked at
	thenListens             // the silence is
	fuzzSlots   = 3
	mostRecords = 64
	mostMessage = 1 << 20
)

func hear(how byte, m *fleetv1.SessionResponse) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return append(binary.AppendUvarint([]byte{how}, uint64(len(b))), b...)
}

// nextRecord cuts the first record off.
func nextRecord(b []byte) (how byte, message, rest []byte, ok bool) {
	if len(b) < 2 {
		return 0, nil, nil, false
	}
	n, size := binary.Uvarint(b[1:])
	if size <= 0 || n > mostMessage || n > uint64(len(b)-1-size) {
		return 0, nil, nil, false
	}
	from := 1 + size
	return b[0], b[from : from+int(n)], b[from+int(n):], true //nolint:gosec // at most mostMessage
}

func agentSessionSeeds() [][]byte {
	ref := &fleetv1.JobRef{Job: 1, Epoch: 1}
	newer := &fleetv1.JobRef{Job: 1, Epoch: 2}
	welcome := func(verdicts ...*fleetv1.JobVerdict) *fleetv1.SessionResponse {
		return &fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Welcome{Welcome: &fleetv1.Welcome{
			Protocol: 1, PingPeriod: durationpb.New(time.Second), StopAfter: durationpb.New(time.Minute), Jobs: verdicts,
		}}}
	}
	offer := func(r *fleetv1.JobRef, text string) *fleetv1.SessionResponse {
		return &fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Offer{Offer: &fleetv1.Offer{
			Ref: r, Executor: "shell", OutputLimit: 1 << 20, StopAfter: durationpb.New(time.Hour),
			Envelope: &fleetv1.Envelope{ProjectPath: text, JobName: text, Timeout: durationpb.New(-1)},
		}}}
	}
	start := func(r *fleetv1.JobRef) *fleetv1.SessionResponse {
		return &fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Start{Start: &fleetv1.Start{Ref: r}}}
	}
	cancel := &fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Cancel{Cancel: &fleetv1.Cancel{Ref: ref, Mode: 99}}}
	forget := &fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Forget{Forget: &fleetv1.Forget{Ref: ref}}}
	withdraw := &fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Withdraw{Withdraw: &fleetv1.Withdraw{Ref: newer}}}
	ack := &fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_ReportAck{ReportAck: &fleetv1.ReportAck{Ref: ref, State: 5}}}
	drain := &fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Drain{Drain: &fleetv1.Drain{Reason: strings.Repeat("\xc3\xa9", 3000)}}}
	back := &fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_ComeBack{ComeBack: &fleetv1.ComeBack{After: durationpb.New(-time.Hour)}}}
	ping := &fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Ping{Ping: &fleetv1.Ping{Seq: 1 << 63}}}
	pong := &fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Pong{Pong: &fleetv1.Pong{Seq: 1}}}
	many := make([]*fleetv1.JobVerdict, 0, 3000)
	for job := range int64(3000) {
		many = append(many, &fleetv1.JobVerdict{
			Ref: &fleetv1.JobRef{Job: job - 1, Epoch: 1}, Verdict: fleetv1.Verdict(job % 5), Received: 1 << 62, //nolint:gosec // small
			Cancel: &fleetv1.Cancel{Mode: 2},
		})
	}
	extreme := &fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Welcome{Welcome: &fleetv1.Welcome{
		Protocol: 1, PingPeriod: &durationpb.Duration{Seconds: -1 << 63, Nanos: -1 << 31}, StopAfter: &durationpb.Duration{Seconds: 1 << 62},
		SessionId: strings.Repeat("x", 1<<16),
	}}}
	join := func(all ...[]byte) (b []byte) {
		for _, r := range all {
			b = append(b, r...)
		}
		return b
	}
	return [][]byte{
		{},
		join(hear(0, welcome()), hear(0, offer(ref, "group/project")), hear(0, start(ref)), hear(thenTicks, cancel), hear(0, ack), hear(0, forget)),
		join(hear(0, welcome()), hear(0, offer(ref, "")), hear(0, offer(ref, "")), hear(0, offer(newer, "")), hear(0, withdraw), hear(0, start(newer))),
		join(hear(0, welcome()), hear(0, offer(ref, "")), hear(0, start(ref)),
			hear(onNewLink, welcome(&fleetv1.JobVerdict{Ref: ref, Verdict: 2})), hear(0, start(ref)), hear(0, offer(ref, ""))),
		join(hear(0, welcome()), hear(0, drain), hear(0, offer(ref, strings.Repeat("/..", 2000))), hear(thenListens, back), hear(onNewLink, ping)),
		join(hear(0, extreme), hear(thenTicks, pong), hear(thenLapses, pong), hear(0, offer(&fleetv1.JobRef{Job: 1 << 62, Epoch: 1 << 62}, "\x00"))),
		join(hear(0, welcome(many...)), hear(0, start(&fleetv1.JobRef{Job: -1, Epoch: -1})), hear(0, start(&fleetv1.JobRef{}))),
		join(hear(0, start(ref)), hear(thenTicks, welcome())),
	}
}

// Whatever a control plane says: the agent does not panic, says nothing that the contract does not allow, and runs no more
// jobs than it has slots.
func FuzzAgentSession(f *testing.F) {
	for _, seed := range agentSessionSeeds() {
		f.Add(seed)
	}
	validator, err := protovalidate.New()
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, data []byte) {
		x := fakejob.New(t)
		ctx, leave := context.WithCancel(context.Background())
		l := fuzzedLoop(t, ctx, x)
		defer func() {
			l.stop()
			leave()
			l.tasks.Wait()
			require.NoError(t, l.dir.Close())
		}()
		for range mostRecords {
			how, message, rest, ok := nextRecord(data)
			if !ok {
				break
			}
			data = rest
			if l.link == nil || how&onNewLink != 0 {
				if l.link != nil {
					l.disconnect(errors.New("the connection broke"))
				}
				l.opened(dialed{link: fuzzedLink(t, l)})
			}
			m := &fleetv1.SessionResponse{}
			if proto.Unmarshal(message, m) != nil {
				continue
			}
			l.message(m)
			if how&thenTicks != 0 {
				l.ticked()
			}
			if how&thenLapses != 0 {
				l.lapsed()
			}
			if how&thenListens != 0 {
				l.listen()
			}
			settle(t, l, validator)
			require.LessOrEqual(t, x.Running(), fuzzSlots)
		}
	})
}

// settle takes what has happened meanwhile, and looks at what the agent has said.
func settle(t *testing.T, l *loop, validator protovalidate.Validator) {
	for {
		select {
		case e := <-l.events:
			l.happened(e)
			continue
		default:
		}
		if l.link == nil {
			return
		}
		select {
		case m := <-l.link.out:
			require.NoError(t, validator.Validate(m), "%v", m)
		case err := <-l.link.done:
			l.disconnect(err)
		default:
			return
		}
	}
}

// fuzzedLoop is a loop that is not run: the test calls what the loop would.
func fuzzedLoop(t *testing.T, ctx context.Context, x executors.Executor) *loop {
	a, err := New(Config{
		Server: "fleet:1", Data: t.TempDir(), Name: "fuzzed", Slots: fuzzSlots, JobBinary: "/bin/false", Executors: []executors.Executor{x},
		Dialer: func(context.Context) (net.Conn, error) { return nil, errors.New("there is no network") },
	})
	require.NoError(t, err)
	a.room = func() error { return nil }
	a.dir, err = datadir.Open(ctx, a.config.Data)
	require.NoError(t, err)
	a.jobs = &supervisor.Config{
		Jobs: a.dir.Jobs(), Fleet: "fuzz", JobBinary: "/bin/false", Executors: map[string]executors.Executor{x.Name(): x},
		Fetch: func(_ context.Context, ref ledger.Ref) (supervisor.Fetched, error) {
			words := []string{"print hello", "wait", "exit 1"}
			return supervisor.Fetched{Payload: fakejob.Payload(ref.Job, words[uint64(ref.Job)%3])}, nil //nolint:gosec // any will do
		},
		Sign: a.sign, Traces: tracestream.New(), Events: a.events, Log: slog.New(slog.DiscardHandler),
	}
	return &loop{
		Agent: a, ctx: ctx, ledger: ledger.New(fuzzSlots), jobs: make(map[ledger.Ref]*supervisor.Job), connected: make(chan dialed),
		retry: stoppedTimer(), backoff: uplink.Backoff{First: time.Second, Most: time.Minute}, reminder: stopped(), lease: newLease(),
		renewal: renewal{timer: stoppedTimer()}, tick: stopped(), silence: stoppedTimer(), patience: stoppedTimer(),
	}
}

// fuzzedLink is a link that leads nowhere; what is said stays in it.
func fuzzedLink(t *testing.T, l *loop) *link {
	conn, err := uplink.Dial(l.target(), nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(l.ctx)
	return &link{
		conn: conn, ctx: ctx, cancel: cancel, done: make(chan error, 2), began: time.Now(),
		in: make(chan *fleetv1.SessionResponse, incoming), out: make(chan *fleetv1.SessionRequest, outgoing),
	}
}
