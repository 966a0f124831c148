package grpcserver_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/controlplane/grpcserver"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fleet answers what it is asked and panics at job 666.
type fleet struct {
	fleetv1.UnimplementedFleetServiceServer
}

func (fleet) GetJob(_ context.Context, req *fleetv1.GetJobRequest) (*fleetv1.GetJobResponse, error) {
	if req.GetRef().GetJob() == 666 {
		panic("the number of the beast")
	}
	return &fleetv1.GetJobResponse{Payload: bytes.Repeat([]byte("x"), int(req.GetRef().GetEpoch()))}, nil
}

func (fleet) Session(stream grpc.BidiStreamingServer[fleetv1.SessionRequest, fleetv1.SessionResponse]) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return end(err)
		}
		if err := stream.Send(&fleetv1.SessionResponse{Message: &fleetv1.SessionResponse_Pong{Pong: &fleetv1.Pong{Seq: m.GetPing().GetSeq()}}}); err != nil {
			return err
		}
	}
}

func (fleet) Trace(stream grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return end(err)
		}
		if m.GetRef().GetJob() == 666 {
			panic("the number of the beast")
		}
		if err := stream.Send(&fleetv1.TraceResponse{Ref: m.GetRef(), Received: int64(len(m.GetData()))}); err != nil {
			return err
		}
	}
}

func end(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// journal is a log that may be written and read at once.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// serve serves the fleet until stop; the log is complete then.
func serve(t *testing.T) (client fleetv1.FleetServiceClient, log *journal, stop func()) {
	t.Helper()
	log = new(journal)
	server, err := grpcserver.New(grpcserver.Options{
		Log: slog.New(slog.NewTextHandler(log, nil)), Unvalidated: []string{fleetv1.FleetService_Trace_FullMethodName},
	})
	require.NoError(t, err)
	fleetv1.RegisterFleetServiceServer(server, fleet{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	require.NoError(t, err)
	stop = sync.OnceFunc(func() {
		require.NoError(t, conn.Close())
		server.GracefulStop()
		require.NoError(t, <-served)
	})
	t.Cleanup(stop)
	return fleetv1.NewFleetServiceClient(conn), log, stop
}

func requireStatus(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	require.Equal(t, code.String(), status.Code(err).String(), "%v", err)
	require.ErrorContains(t, err, text)
}

func ref(job, epoch int64) *fleetv1.JobRef { return &fleetv1.JobRef{Job: job, Epoch: epoch} }

func TestMessagesAreChecked(t *testing.T) {
	client, _, _ := serve(t)
	_, err := client.GetJob(t.Context(), &fleetv1.GetJobRequest{Ref: ref(1, 1)})
	require.NoError(t, err)
	_, err = client.GetJob(t.Context(), &fleetv1.GetJobRequest{})
	requireStatus(t, err, codes.InvalidArgument, "ref: value is required")
	_, err = client.GetJob(t.Context(), &fleetv1.GetJobRequest{Ref: ref(-1, 1)})
	requireStatus(t, err, codes.InvalidArgument, "ref.job: must be greater than 0")

	session, err := client.Session(t.Context())
	require.NoError(t, err)
	require.NoError(t, session.Send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Ping{Ping: &fleetv1.Ping{Seq: 7}}}))
	pong, err := session.Recv()
	require.NoError(t, err)
	require.EqualValues(t, 7, pong.GetPong().GetSeq())
	require.NoError(t, session.Send(&fleetv1.SessionRequest{}))
	_, err = session.Recv()
	requireStatus(t, err, codes.InvalidArgument, "message: exactly one field is required in oneof")
}

// The stream of bulk data is checked by its handler alone.
func TestWhatIsNotChecked(t *testing.T) {
	client, _, _ := serve(t)
	trace, err := client.Trace(t.Context())
	require.NoError(t, err)
	require.NoError(t, trace.Send(&fleetv1.TraceRequest{Offset: -1, Data: make([]byte, 300<<10)}))
	answer, err := trace.Recv()
	require.NoError(t, err)
	require.EqualValues(t, 300<<10, answer.GetReceived())
	require.NoError(t, trace.CloseSend())
	_, err = trace.Recv()
	require.ErrorIs(t, err, io.EOF)
}

func TestSizes(t *testing.T) {
	client, _, _ := serve(t)
	job, err := client.GetJob(t.Context(), &fleetv1.GetJobRequest{Ref: ref(1, 33<<20)})
	require.NoError(t, err, "the largest payload can be sent")
	require.Len(t, job.GetPayload(), 33<<20)

	trace, err := client.Trace(t.Context())
	require.NoError(t, err)
	require.NoError(t, trace.Send(&fleetv1.TraceRequest{Data: make([]byte, 9<<20)}))
	_, err = trace.Recv()
	requireStatus(t, err, codes.ResourceExhausted, "larger than max")
}

func TestAPanicEndsOneCall(t *testing.T) {
	client, log, stop := serve(t)
	_, err := client.GetJob(t.Context(), &fleetv1.GetJobRequest{Ref: ref(666, 1)})
	requireStatus(t, err, codes.Internal, "the control plane failed; its log says where")
	trace, err := client.Trace(t.Context())
	require.NoError(t, err)
	require.NoError(t, trace.Send(&fleetv1.TraceRequest{Ref: ref(666, 1)}))
	_, err = trace.Recv()
	requireStatus(t, err, codes.Internal, "the control plane failed")
	_, err = client.GetJob(t.Context(), &fleetv1.GetJobRequest{Ref: ref(1, 1)})
	require.NoError(t, err)

	stop()
	require.Equal(t, 2, strings.Count(log.String(), `msg="a call panicked" panic="the number of the beast"`))
	require.Contains(t, log.String(), "grpcserver_test.go", "the stack")
}

func TestCallsAreLogged(t *testing.T) {
	client, log, stop := serve(t)
	_, err := client.GetJob(t.Context(), &fleetv1.GetJobRequest{Ref: ref(1, 1)})
	require.NoError(t, err)
	_, err = client.GetJob(t.Context(), &fleetv1.GetJobRequest{})
	require.Error(t, err)
	stop()
	require.Equal(t, 1, strings.Count(log.String(), "msg=call"), "%s", log)
	for _, part := range []string{
		"level=WARN", "grpc.service=switchyard.fleet.v1.FleetService", "grpc.method=GetJob", "grpc.code=InvalidArgument",
		"value is required", "peer.address=127.0.0.1:",
	} {
		require.Contains(t, log.String(), part)
	}
}
