package fakefleet

import (
	"context"
	"crypto/tls"
	"errors"
	"hash/crc32"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/internal/fleettls"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

// Patience is how long the fleet waits for what a test expects.
const Patience = 20 * time.Second

// Fleet is the control plane. Fields may be changed while nothing runs.
type Fleet struct {
	fleetv1.UnimplementedFleetServiceServer
	fleetv1.UnimplementedEnrollmentServiceServer

	Authority *Authority
	Address   string
	Token     jointoken.Token
	// OnEnroll and OnRenew replace the answers; nil: every request is granted for an hour.
	OnEnroll func(*fleetv1.EnrollRequest) (*fleetv1.EnrollResponse, error)
	OnRenew  func(*fleetv1.RenewRequest) (*fleetv1.RenewResponse, error)
	// OnSession may refuse a session.
	OnSession func() error
	// OnSign answers SignCache; nil: the control plane is of before there was such a call.
	OnSign func(*fleetv1.SignCacheRequest) (*fleetv1.SignCacheResponse, error)
	// Discard: traces are counted, not kept.
	Discard bool
	// Window is how much of a trace the agent may send ahead of what was received; 0: 1 MiB.
	Window int64

	t        testing.TB
	server   *grpc.Server
	serving  sync.WaitGroup
	sessions chan *Session

	mu       sync.Mutex
	payloads map[int64][]byte
	settings map[int64]*fleetv1.JobSettings
	traces   map[int64]*Trace
	enrolled int
	fetched  int
}

// Trace is what was received of a job's trace.
type Trace struct {
	Data   []byte
	Length int64
	Grown  chan struct{} // closed when there is more
}

// New makes a fleet that listens nowhere yet.
func New(t testing.TB) *Fleet {
	t.Helper()
	authority := NewAuthority(t)
	return &Fleet{
		Authority: authority, Token: jointoken.New(authority.Certificate), t: t,
		sessions: make(chan *Session, 16), payloads: make(map[int64][]byte), settings: make(map[int64]*fleetv1.JobSettings), traces: make(map[int64]*Trace),
	}
}

// Start makes a fleet that serves until the test ends.
func Start(t testing.TB) *Fleet {
	t.Helper()
	f := New(t)
	f.Serve(f.Authority.Server(t, fleettls.ServerName, time.Now().Add(-time.Minute), time.Now().Add(time.Hour)))
	return f
}

// Serve listens, on the same address as before if there was one.
func (f *Fleet) Serve(certificate tls.Certificate) {
	f.t.Helper()
	address := f.Address
	if address == "" {
		address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", address)
	require.NoError(f.t, err)
	f.Address = listener.Addr().String()
	f.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(f.Authority.tlsConfig(certificate))))
	fleetv1.RegisterFleetServiceServer(f.server, f)
	fleetv1.RegisterEnrollmentServiceServer(f.server, f)
	server := f.server
	f.serving.Go(func() { _ = server.Serve(listener) })
	f.t.Cleanup(f.Stop)
}

// Stop ends the server as a crash would: connections break.
func (f *Fleet) Stop() {
	f.server.Stop()
	f.serving.Wait()
}

// Restart is a crash and a new start on the same address; what was received stays.
func (f *Fleet) Restart() {
	f.Stop()
	f.Serve(f.Authority.Server(f.t, fleettls.ServerName, time.Now().Add(-time.Minute), time.Now().Add(time.Hour)))
}

// Enrolled is how often Enroll was called.
func (f *Fleet) Enrolled() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.enrolled
}

// Fetched is how often GetJob was called.
func (f *Fleet) Fetched() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fetched
}

// Enroll implements EnrollmentService.
func (f *Fleet) Enroll(_ context.Context, r *fleetv1.EnrollRequest) (*fleetv1.EnrollResponse, error) {
	f.mu.Lock()
	f.enrolled++
	f.mu.Unlock()
	if f.OnEnroll != nil {
		return f.OnEnroll(r)
	}
	return f.Grant(r, time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
}

// Grant answers an enrolment if the token is the fleet's.
func (f *Fleet) Grant(r *fleetv1.EnrollRequest, from, until time.Time) (*fleetv1.EnrollResponse, error) {
	if token, err := jointoken.Parse(r.GetToken()); err != nil || token != f.Token {
		return nil, status.Error(codes.Unauthenticated, "the join token is not known")
	}
	id := f.AgentID(r.GetName())
	return &fleetv1.EnrollResponse{
		AgentId: id, Name: r.GetName(), CertificateChain: f.Authority.Agent(f.t, id, r.GetCsr(), from, until),
	}, nil
}

// AgentID is the id of the agent of that name.
func (f *Fleet) AgentID(name string) string { return uuid.NewSHA1(uuid.Nil, []byte(name)).String() }

// Renew implements EnrollmentService.
func (f *Fleet) Renew(_ context.Context, r *fleetv1.RenewRequest) (*fleetv1.RenewResponse, error) {
	if f.OnRenew != nil {
		return f.OnRenew(r)
	}
	return nil, status.Error(codes.Unavailable, "not now")
}

// SetPayload sets what GetJob answers for a job.
func (f *Fleet) SetPayload(job int64, payload []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.payloads[job] = payload
}

// SetSettings sets what GetJob answers besides.
func (f *Fleet) SetSettings(job int64, settings *fleetv1.JobSettings) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settings[job] = settings
}

// SignCache implements FleetService.
func (f *Fleet) SignCache(ctx context.Context, r *fleetv1.SignCacheRequest) (*fleetv1.SignCacheResponse, error) {
	if f.OnSign == nil {
		return f.UnimplementedFleetServiceServer.SignCache(ctx, r)
	}
	return f.OnSign(r)
}

// GetJob implements FleetService.
func (f *Fleet) GetJob(_ context.Context, r *fleetv1.GetJobRequest) (*fleetv1.GetJobResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fetched++
	payload, ok := f.payloads[r.GetRef().GetJob()]
	if !ok {
		return nil, status.Error(codes.NotFound, "no such payload")
	}
	return &fleetv1.GetJobResponse{Payload: payload, Settings: f.settings[r.GetRef().GetJob()]}, nil
}

// Trace implements FleetService: it takes every trace and acknowledges each frame.
func (f *Fleet) Trace(stream grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]) error {
	window := f.Window
	if window == 0 {
		window = 1 << 20
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		n := f.take(r)
		if err := stream.Send(&fleetv1.TraceResponse{
			Ref: r.GetRef(), Received: n, Limit: n + window, Outcome: fleetv1.TraceOutcome_TRACE_OUTCOME_CONTINUE,
		}); err != nil {
			return err
		}
	}
}

func (f *Fleet) take(r *fleetv1.TraceRequest) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.trace(r.GetRef().GetJob())
	if have := t.Length; r.GetOffset() <= have && r.GetOffset()+int64(len(r.GetData())) > have {
		if !f.Discard {
			t.Data = append(t.Data, r.GetData()[have-r.GetOffset():]...)
		}
		t.Length = r.GetOffset() + int64(len(r.GetData()))
		close(t.Grown)
		t.Grown = make(chan struct{})
	} else if r.GetOffset() > have {
		f.t.Errorf("job %d: a gap in the trace, %d after %d", r.GetRef().GetJob(), r.GetOffset(), have)
	}
	return t.Length
}

func (f *Fleet) trace(job int64) *Trace {
	t := f.traces[job]
	if t == nil {
		t = &Trace{Grown: make(chan struct{})}
		f.traces[job] = t
	}
	return t
}

// Received is how much of a trace is here.
func (f *Fleet) Received(job int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.trace(job).Length
}

// WaitReceived waits until so much of a trace is here.
func (f *Fleet) WaitReceived(job, length int64) {
	f.t.Helper()
	f.WaitTrace(job, func(string) bool { return f.Received(job) >= length })
}

// WaitTrace waits until enough says that there is enough of a trace, and returns it.
func (f *Fleet) WaitTrace(job int64, enough func(trace string) bool) string {
	f.t.Helper()
	deadline := time.After(Patience)
	for {
		f.mu.Lock()
		t := f.trace(job)
		text, grown := string(t.Data), t.Grown
		f.mu.Unlock()
		if enough(text) {
			return text
		}
		select {
		case <-grown:
		case <-deadline:
			f.t.Fatalf("job %d: what was waited for does not come; the trace is %q", job, text)
		}
	}
}

// WholeTrace waits for a finished job's whole trace and checks it against the result.
func (f *Fleet) WholeTrace(job int64, r *fleetv1.Result) string {
	f.t.Helper()
	text := f.WaitTrace(job, func(trace string) bool { return int64(len(trace)) >= r.GetTraceLength() })
	require.Len(f.t, text, int(r.GetTraceLength()))
	require.Equal(f.t, r.GetTraceCrc32(), crc32.ChecksumIEEE([]byte(text)), "the checksum of %q", text)
	return text
}

// Session implements FleetService: the test gets the session and says when it ends.
func (f *Fleet) Session(stream grpc.BidiStreamingServer[fleetv1.SessionRequest, fleetv1.SessionResponse]) error {
	if f.OnSession != nil {
		if err := f.OnSession(); err != nil {
			return err
		}
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetHello() == nil {
		return status.Error(codes.FailedPrecondition, "the first message must be Hello")
	}
	s := &Session{
		Hello: first.GetHello(), fleet: f, stream: stream, in: make(chan *fleetv1.SessionRequest, 1024),
		end: make(chan error, 1), ended: make(chan struct{}),
	}
	defer close(s.ended)
	f.sessions <- s
	broken := make(chan error, 1)
	go func() { broken <- s.receive() }()
	select {
	case err := <-s.end:
		return err
	case err := <-broken:
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}
}

// Next waits for an agent's next session.
func (f *Fleet) Next() *Session {
	f.t.Helper()
	select {
	case s := <-f.sessions:
		return s
	case <-time.After(Patience):
		f.t.Fatal("no agent comes")
		return nil
	}
}

// NoSession checks that no agent comes within d.
func (f *Fleet) NoSession(d time.Duration) {
	f.t.Helper()
	select {
	case <-f.sessions:
		f.t.Fatal("an agent came too early")
	case <-time.After(d):
	}
}
