package tracestream_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	randv2 "math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/tracestream"
	"github.com/switchyard-ci/switchyard/agent/uplink"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/internal/fleettls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	one = ledger.Ref{Job: 1, Epoch: 1}
	two = ledger.Ref{Job: 2, Epoch: 1}
)

// memory is a trace in memory.
type memory struct {
	mu sync.Mutex
	b  []byte
}

func (m *memory) ReadAt(b []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.NewReader(m.b).ReadAt(b, off)
}

func (m *memory) add(b []byte) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.b = append(m.b, b...)
	return int64(len(m.b))
}

// server is a control plane of which there is only Trace.
type server struct {
	fleetv1.UnimplementedFleetServiceServer
	trace func(grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]) error
}

func (s *server) Trace(stream grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]) error {
	return s.trace(stream)
}

// serve starts a control plane on a TCP port with TLS and returns a connection to it.
func serve(t testing.TB, trace func(grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]) error) fleetv1.FleetServiceClient {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{fleettls.ServerName}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, &x509.Certificate{}, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: fleettls.MinVersion})))
	fleetv1.RegisterFleetServiceServer(s, &server{trace: trace})
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(listener) })
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	conn, err := uplink.Dial(uplink.Target{Address: listener.Addr().String()},
		&tls.Config{RootCAs: roots, ServerName: fleettls.ServerName, MinVersion: fleettls.MinVersion})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		s.Stop()
		serving.Wait()
	})
	return fleetv1.NewFleetServiceClient(conn)
}

// run runs the sender until the test ends, opening the stream again whenever it breaks.
func run(t testing.TB, s *tracestream.Sender, client fleetv1.FleetServiceClient) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			_ = s.Run(ctx, client.Trace, slog.New(slog.DiscardHandler), func() {})
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// sink collects traces and checks that there is neither a gap nor another content in what overlaps.
type sink struct {
	mu     sync.Mutex
	traces map[int64][]byte
	order  []int64 // the jobs of the frames, in their order
	grown  chan struct{}
}

func newSink() *sink {
	return &sink{traces: map[int64][]byte{}, grown: make(chan struct{}, 1)}
}

func (k *sink) take(t testing.TB, r *fleetv1.TraceRequest) int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := r.GetRef().GetJob()
	have := k.traces[id]
	if r.GetOffset() > int64(len(have)) {
		t.Errorf("job %d: a gap, offset %d after %d", id, r.GetOffset(), len(have))
		return int64(len(have))
	}
	overlap := have[r.GetOffset():]
	n := min(len(overlap), len(r.GetData()))
	if !bytes.Equal(overlap[:n], r.GetData()[:n]) {
		t.Errorf("job %d: what is sent again at %d is not the same", id, r.GetOffset())
	}
	k.traces[id] = append(have, r.GetData()[n:]...)
	k.order = append(k.order, id)
	select {
	case k.grown <- struct{}{}:
	default:
	}
	return int64(len(k.traces[id]))
}

func (k *sink) length(job int64) int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return int64(len(k.traces[job]))
}

func (k *sink) wait(t testing.TB, job int64, want []byte) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		k.mu.Lock()
		done := len(k.traces[job]) >= len(want)
		k.mu.Unlock()
		if done {
			break
		}
		select {
		case <-k.grown:
		case <-deadline:
			t.Fatalf("job %d has %d of %d bytes", job, len(k.traces[job]), len(want))
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	require.True(t, bytes.Equal(want, k.traces[job]), "job %d arrived changed", job)
}

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(randv2.Uint32())
	}
	return b
}

func TestATraceArrivesWhole(t *testing.T) {
	k := newSink()
	client := serve(t, func(stream grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]) error {
		for {
			r, err := stream.Recv()
			if err != nil {
				return err
			}
			n := k.take(t, r)
			if err := stream.Send(&fleetv1.TraceResponse{Ref: r.GetRef(), Received: n, Limit: n + 1<<20}); err != nil {
				return err
			}
		}
	})
	s := tracestream.New()
	run(t, s, client)
	m := &memory{}
	m.add([]byte("prefix\n"))
	s.Add(one, m)
	want := noise(3<<20 + 7)
	for part := want; len(part) > 0; part = part[min(len(part), 100_000):] {
		s.Grow(one, m.add(part[:min(len(part), 100_000)]))
	}
	s.Finish(one)
	k.wait(t, 1, append([]byte("prefix\n"), want...))
	require.Eventually(t, func() bool { return s.Delivered(one, int64(len(want)+7)) }, 5*time.Second, time.Millisecond)
	require.False(t, s.Delivered(one, int64(len(want)+8)))
	s.Remove(one)
	require.True(t, s.Delivered(one, int64(len(want)+8)))
}

func TestAStreamThatBreaksIsResumedWhereTheControlPlaneSays(t *testing.T) {
	k := newSink()
	streams := 0
	client := serve(t, func(stream grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]) error {
		streams++
		for frames := 1; ; frames++ {
			r, err := stream.Recv()
			if err != nil {
				return err
			}
			n := k.take(t, r)
			if streams < 8 && frames == streams {
				return status.Error(codes.Unavailable, "cut") // the frame is kept, its acknowledgement is lost
			}
			if err := stream.Send(&fleetv1.TraceResponse{Ref: r.GetRef(), Received: n, Limit: n + 300_000}); err != nil {
				return err
			}
		}
	})
	s := tracestream.New()
	want := noise(5 << 20)
	m := &memory{b: want}
	s.Add(one, m)
	s.Finish(one)
	run(t, s, client)
	k.wait(t, 1, want)
	require.GreaterOrEqual(t, streams, 8)
}

func TestResumeFromAnyOffset(t *testing.T) {
	want := noise(1 << 20)
	for _, from := range []int64{0, 1, 255 << 10, 256 << 10, 777_777, 1<<20 - 1} {
		k := newSink()
		k.traces[1] = bytes.Clone(want[:from])
		client := serve(t, func(stream grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]) error {
			for first := true; ; first = false {
				r, err := stream.Recv()
				if err != nil {
					return err
				}
				if first && r.GetOffset() != from {
					t.Errorf("the first frame is at %d, not at %d", r.GetOffset(), from)
				}
				n := k.take(t, r)
				if err := stream.Send(&fleetv1.TraceResponse{Ref: r.GetRef(), Received: n, Limit: n + 1<<18}); err != nil {
					return err
				}
			}
		})
		s := tracestream.New()
		s.Add(one, &memory{b: want})
		s.Resume(one, from)
		s.Finish(one)
		run(t, s, client)
		k.wait(t, 1, want)
	}
}

func TestAGapIsSentAgainAndAStopStops(t *testing.T) {
	want := noise(600_000)
	k := newSink()
	frames := make(chan *fleetv1.TraceRequest, 100)
	client := serve(t, func(stream grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]) error {
		lost := false
		for {
			r, err := stream.Recv()
			if err != nil {
				return err
			}
			out := &fleetv1.TraceResponse{Ref: r.GetRef(), Limit: 1 << 20}
			switch {
			case r.GetRef().GetJob() == 2:
				frames <- r
				out.Outcome = fleetv1.TraceOutcome_TRACE_OUTCOME_STOP
			case r.GetOffset() > 0 && !lost:
				lost = true // as if the control plane had lost its disk
				k.mu.Lock()
				k.traces[1] = k.traces[1][:1000]
				k.mu.Unlock()
				out.Outcome, out.Received = fleetv1.TraceOutcome_TRACE_OUTCOME_RESEND, 1000
			case lost && r.GetOffset() > k.length(1): // was on its way already
				out.Outcome, out.Received = fleetv1.TraceOutcome_TRACE_OUTCOME_RESEND, k.length(1)
			default:
				out.Received = k.take(t, r)
			}
			if err := stream.Send(out); err != nil {
				return err
			}
		}
	})
	s := tracestream.New()
	run(t, s, client)
	s.Add(two, &memory{b: want})
	s.Finish(two)
	<-frames
	require.Eventually(t, func() bool { return s.Delivered(two, 600_000) }, 5*time.Second, time.Millisecond)
	s.Add(one, &memory{b: want})
	s.Finish(one)
	k.wait(t, 1, want)
	require.LessOrEqual(t, len(frames), 1, "a stopped trace is not sent on")
}

func TestAFloodStarvesNobodyAndTheWindowIsRespected(t *testing.T) {
	k := newSink()
	const window = 512 << 10
	begin := make(chan struct{})
	client := serve(t, func(stream grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]) error {
		<-begin
		acked := map[int64]int64{}
		for {
			r, err := stream.Recv()
			if err != nil {
				return err
			}
			id := r.GetRef().GetJob()
			end := r.GetOffset() + int64(len(r.GetData()))
			if limit := acked[id] + window; end > max(limit, 256<<10) {
				t.Errorf("job %d: %d bytes are over the window's end %d", id, end, limit)
			}
			n := k.take(t, r)
			acked[id] = n
			if err := stream.Send(&fleetv1.TraceResponse{Ref: r.GetRef(), Received: n, Limit: n + window}); err != nil {
				return err
			}
		}
	})
	s := tracestream.New()
	flood, quiet := noise(20<<20), noise(2<<20)
	s.Add(one, &memory{b: flood})
	s.Add(two, &memory{b: quiet})
	s.Finish(one)
	s.Finish(two)
	run(t, s, client)
	close(begin)
	k.wait(t, 2, quiet)
	k.mu.Lock()
	frames := 0
	for i, id := range k.order {
		if id == 2 {
			frames++
		} else if i > 64 && frames < 4 {
			t.Errorf("after %d frames job 2 had only %d", i, frames)
			break
		}
	}
	got := len(k.traces[1])
	k.mu.Unlock()
	require.Less(t, got, len(flood)/2, "both got their turns")
	k.wait(t, 1, flood)
}

func TestSmallWritesAreGathered(t *testing.T) {
	k := newSink()
	client := serve(t, func(stream grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]) error {
		for {
			r, err := stream.Recv()
			if err != nil {
				return err
			}
			k.take(t, r)
		}
	})
	s := tracestream.New()
	run(t, s, client)
	m := &memory{}
	s.Add(one, m)
	var want []byte
	for range 1000 {
		want = append(want, "line\n"...)
		s.Grow(one, m.add([]byte("line\n")))
	}
	s.Finish(one)
	k.wait(t, 1, want)
	k.mu.Lock()
	defer k.mu.Unlock()
	require.Less(t, len(k.order), 50)
}

// zeros is an endless trace of no cost.
type zeros struct{ length int64 }

func (z zeros) ReadAt(b []byte, off int64) (int, error) {
	n := min(int64(len(b)), z.length-off)
	if n < int64(len(b)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// BenchmarkTrace sends 64 MB per operation over TLS on the loopback to a server in the same process that discards them:
// cpu-ms/MB is of both ends.
func BenchmarkTrace(b *testing.B) {
	const length = 64 << 20
	done := make(chan struct{}, 1)
	client := serve(b, func(stream grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]) error {
		for {
			r, err := stream.Recv()
			if err != nil {
				return err
			}
			end := r.GetOffset() + int64(len(r.GetData()))
			if err := stream.Send(&fleetv1.TraceResponse{Ref: r.GetRef(), Received: end, Limit: end + 4<<20}); err != nil {
				return err
			}
			if end == length {
				done <- struct{}{}
			}
		}
	})
	s := tracestream.New()
	run(b, s, client)
	b.SetBytes(length)
	before := cpu(b)
	for i := range b.N {
		ref := ledger.Ref{Job: int64(i) + 1, Epoch: 1}
		s.Add(ref, zeros{length})
		s.Finish(ref)
		<-done
		s.Remove(ref)
	}
	b.ReportMetric(float64(cpu(b)-before)/1e6/float64(b.N)/(length/1e6), "cpu-ms/MB")
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
