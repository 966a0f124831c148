package dispatch

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"buf.build/go/protovalidate"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// A record of FuzzSession is a byte that says on whose session, a length and the bytes of a SessionRequest.
const (
	onB          = 1 << iota // agent b's, else a's
	onNewSession             // a session is opened first; the one before stays until it ends by itself
	passSecond               // time passes after the message
	passTwoPeriods
	passMore
	mostRecords = 64
	mostMessage = 1 << 20
)

func record(how byte, m *fleetv1.SessionRequest) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return append(binary.AppendUvarint([]byte{how}, uint64(len(b))), b...)
}

func records(all ...[]byte) []byte {
	var b []byte
	for _, r := range all {
		b = append(b, r...)
	}
	return b
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

func sayHello(h *fleetv1.Hello) *fleetv1.SessionRequest {
	return &fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Hello{Hello: h}}
}

func sayReply(job, epoch int64, ok bool) *fleetv1.SessionRequest {
	return &fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_OfferReply{
		OfferReply: &fleetv1.OfferReply{Ref: &fleetv1.JobRef{Job: job, Epoch: epoch}, Accepted: ok, Reason: "no"},
	}}
}

func sayReport(job, epoch int64, state fleetv1.JobState, r *fleetv1.Result) *fleetv1.SessionRequest {
	return &fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_JobReport{
		JobReport: &fleetv1.JobReport{Ref: &fleetv1.JobRef{Job: job, Epoch: epoch}, State: state, Result: r},
	}}
}

func sessionSeeds() [][]byte {
	const begun, done = fleetv1.JobState_JOB_STATE_STARTED, fleetv1.JobState_JOB_STATE_FINISHED
	success := &fleetv1.Result{State: runnerapi.StateSuccess}
	holds := helloWith("2", 2, &fleetv1.JobRef{Job: 1, Epoch: 2}, begun)
	many := hello("3", 10000)
	for job := range int64(2000) {
		many.Jobs = append(many.Jobs, &fleetv1.HeldJob{
			Ref: &fleetv1.JobRef{Job: 1 + job%1500, Epoch: 1 + job%3}, State: fleetv1.JobState(job % 7), TraceLength: 1 << 60, Result: success,
		})
	}
	wide := hello("4", 1)
	wide.Labels = make(map[string]string)
	for i := range 64 {
		wide.Labels[fmt.Sprintf("%060d", i)] = strings.Repeat("v", 63)
		wide.Capabilities = append(wide.Capabilities, strings.Repeat("c", 64))
	}
	for i := len(wide.Executors); i < 32; i++ {
		wide.Executors = append(wide.Executors, &fleetv1.Executor{Name: fmt.Sprint(i), Shell: strings.Repeat("s", 32)})
	}
	tooWide := proto.CloneOf(wide)
	tooWide.Executors = append(tooWide.Executors, &fleetv1.Executor{Name: "one more"})
	status := &fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_AgentStatus{AgentStatus: &fleetv1.AgentStatus{Draining: true}}}
	ping := &fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Ping{Ping: &fleetv1.Ping{Seq: 1 << 63}}}
	return [][]byte{
		{},
		records(record(onNewSession, sayHello(hello("1", 1))), record(0, sayReply(1, 2, true)), record(passSecond, sayReport(1, 2, begun, nil)),
			record(0, sayReport(1, 2, done, success)), record(passTwoPeriods, sayReport(1, 2, done, success))),
		records(record(onNewSession, sayHello(hello("1", 2))), record(onNewSession|onB, sayHello(hello("1", 1))), record(0, sayReply(1, 2, true)),
			record(onB, sayReply(1, 2, true)), record(onB, sayReply(2, 2, true)), record(0, sayReply(1, 2, false)), record(passMore, ping)),
		records(record(onNewSession, sayHello(hello("1", 1))), record(0, sayReply(1, 2, true)), record(onNewSession, sayHello(holds)),
			record(0, sayReply(1, 2, true)), record(passSecond, sayReport(1, 2, done, &fleetv1.Result{State: runnerapi.StateFailed, TraceLength: 1 << 40}))),
		records(record(onNewSession, sayHello(hello("1", 1))), record(0, sayReply(1, 2, false)), record(passSecond, status), record(passSecond, sayReply(1, 3, true))),
		records(record(onNewSession, sayHello(many)), record(onNewSession|onB, sayHello(wide)), record(0, ping)),
		records(record(onNewSession, sayHello(tooWide))),
		records(record(onNewSession, ping), record(onNewSession, sayHello(hello("1", 1))), record(0, sayHello(hello("1", 1)))),
		records(record(onNewSession, sayHello(hello("1", 1))), record(onNewSession, sayHello(hello("2", 1))), record(passMore, sayReport(1, 2, done, nil))),
	}
}

// Whatever agents send, in messages that the contract allows or not: nothing panics, a job is started for one epoch on one
// agent, it has one result, and each session goes on or ends with a status.
func FuzzSession(f *testing.F) {
	for _, seed := range sessionSeeds() {
		f.Add(seed)
	}
	validator, err := protovalidate.New()
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) {
			g := newGitLab()
			fleet := start(t, t.TempDir(), g)
			fuzz := &sessionFuzz{fleet: fleet, validator: validator, starts: make(map[int64]string)}
			defer fuzz.end(t)
			fleet.claimed("any", nil)
			fleet.claimed("one", nil)
			var current [2]chan *fleetv1.SessionRequest
			for range mostRecords {
				how, message, rest, ok := nextRecord(data)
				if !ok {
					break
				}
				data = rest
				agent := how & onB
				if how&onNewSession != 0 || current[agent] == nil {
					current[agent] = fuzz.open([]string{"a", "b"}[agent])
				}
				fuzz.say(current[agent], message)
				pass := time.Duration(0)
				switch {
				case how&passMore != 0:
					pass = 2 * offerPatience
				case how&passTwoPeriods != 0:
					pass = 2*DefaultPingPeriod + time.Second
				case how&passSecond != 0:
					pass = time.Second
				}
				time.Sleep(pass)
				synctest.Wait()
			}
		})
	})
}

// sessionFuzz is a fleet whose agents say anything.
type sessionFuzz struct {
	fleet     *fleet
	validator protovalidate.Validator
	cancels   []context.CancelFunc
	calls     sync.WaitGroup

	mu     sync.Mutex
	starts map[int64]string // by job
	faults []string
}

// open begins a session; what is sent into the channel arrives as on the real server.
func (s *sessionFuzz) open(agent string) chan *fleetv1.SessionRequest {
	ctx, cancel := context.WithCancel(incoming(context.Background(), agent))
	s.cancels = append(s.cancels, cancel)
	in := make(chan *fleetv1.SessionRequest)
	stream := &fakeStream[fleetv1.SessionRequest, fleetv1.SessionResponse]{
		ctx: ctx,
		recv: func() (*fleetv1.SessionRequest, error) {
			select {
			case m := <-in:
				if m == nil {
					return nil, io.EOF
				}
				if err := s.validator.Validate(m); err != nil {
					return nil, status.Error(codes.InvalidArgument, err.Error())
				}
				return m, nil
			case <-ctx.Done():
				return nil, status.FromContextError(ctx.Err()).Err()
			}
		},
		send: func(m *fleetv1.SessionResponse) error {
			s.heard(agent, m)
			return ctx.Err()
		},
	}
	s.calls.Go(func() {
		defer cancel()
		if err := s.fleet.d.Session(stream); err != nil && status.Code(err) == codes.Unknown {
			s.fault("a session ends without a status: %v", err)
		}
	})
	return in
}

func (s *sessionFuzz) heard(agent string, m *fleetv1.SessionResponse) {
	ref := m.GetStart().GetRef()
	if ref == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := fmt.Sprintf("epoch %d on %s", ref.GetEpoch(), agent)
	if before, again := s.starts[ref.GetJob()]; again && before != now {
		s.faults = append(s.faults, fmt.Sprintf("job %d is started as %s and as %s", ref.GetJob(), before, now))
	}
	s.starts[ref.GetJob()] = now
}

func (s *sessionFuzz) fault(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, fmt.Sprintf(format, args...))
}

// say sends a message, if it is one and the session is still there.
func (s *sessionFuzz) say(to chan *fleetv1.SessionRequest, message []byte) {
	m := &fleetv1.SessionRequest{}
	if proto.Unmarshal(message, m) != nil {
		return
	}
	gone := time.NewTimer(0)
	defer gone.Stop()
	synctest.Wait()
	select {
	case to <- m:
		synctest.Wait()
	case <-gone.C:
	}
}

func (s *sessionFuzz) end(t *testing.T) {
	for _, cancel := range s.cancels {
		cancel()
	}
	s.calls.Wait()
	s.fleet.stop()
	require.Empty(t, s.faults)
	results := make(map[string]int)
	for _, put := range s.fleet.gitlab.puts {
		job, state, _ := strings.Cut(put, " ")
		if state == runnerapi.StateSuccess || state == runnerapi.StateFailed {
			results[job]++
			require.Equal(t, 1, results[job], "results of job %s: %v", job, s.fleet.gitlab.puts)
		}
	}
}
