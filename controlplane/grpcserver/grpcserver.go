// Package grpcserver makes the control plane's gRPC servers: limits, keepalive and the interceptors that every call
// passes.
package grpcserver

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"time"

	"buf.build/go/protovalidate"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	validation "github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/protovalidate"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/selector"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

const (
	// maxReceived is the size of the largest message that a peer may send, in bytes: a Hello that lists 20 000 jobs. What
	// the control plane sends (a payload of up to 32 MiB) is limited by the agent.
	maxReceived = 8 << 20
	// maxHeaders is the size of a call's metadata, in bytes. There is none of our own.
	maxHeaders = 16 << 10
	// maxStreams is how many calls one connection may have open: a session, a trace stream, and a GetJob for each job
	// that starts; further ones wait at the agent.
	maxStreams = 256
	// handshakeLimit is how long a new connection may take for TLS and HTTP/2.
	handshakeLimit = 20 * time.Second

	// Flow control, in bytes: room for a few trace frames (256 KiB) on their way, on lines with a long round trip too.
	streamWindow     = 2 << 20
	connectionWindow = 8 << 20
	// bufferSize is that of a connection's socket buffers, in bytes; idle connections hold none for writing.
	bufferSize = 64 << 10

	// shortestPing is how often an agent may send HTTP/2 pings; they keep its way through NAT open.
	shortestPing = 5 * time.Second
	// idlePing and pingTimeout find connections whose other end is gone without a word. A session has its own pings
	// besides, which see further.
	idlePing    = time.Minute
	pingTimeout = 20 * time.Second
)

// Options are what servers differ in.
type Options struct {
	// TLS is nil for a server on a socket that only its owner can open.
	TLS *tls.Config
	Log *slog.Logger
	// Unvalidated are full method names ("/package.Service/Method") whose messages are not checked against the rules in
	// their contract: for streams that carry bulk data and are checked by hand.
	Unvalidated []string
}

// New makes a server. Each message received is checked against the protovalidate rules of its type: one that breaks
// them ends its call with INVALID_ARGUMENT and the field's name. A handler's panic is logged with its stack and ends the
// call with INTERNAL.
func New(o Options, more ...grpc.ServerOption) (*grpc.Server, error) {
	validator, err := protovalidate.New()
	if err != nil {
		return nil, fmt.Errorf("make the message validator: %w", err)
	}
	validated := selector.MatchFunc(func(_ context.Context, call interceptors.CallMeta) bool {
		return !slices.Contains(o.Unvalidated, call.FullMethod())
	})
	logger, logged := callLogger(o.Log), []logging.Option{
		logging.WithLogOnEvents(logging.FinishCall),
		logging.WithLevels(level),
		logging.WithDisableLoggingFields(logging.SystemTag[0], logging.ComponentFieldKey, logging.MethodTypeFieldKey),
	}
	recovered := recovery.WithRecoveryHandlerContext(func(ctx context.Context, p any) error {
		o.Log.ErrorContext(ctx, "a call panicked", slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
		return status.Error(codes.Internal, "the control plane failed; its log says where")
	})

	options := []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(maxReceived),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeLimit),
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connectionWindow),
		grpc.ReadBufferSize(bufferSize),
		grpc.WriteBufferSize(bufferSize),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: shortestPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: idlePing, Timeout: pingTimeout}),
		grpc.ChainUnaryInterceptor(
			logging.UnaryServerInterceptor(logger, logged...),
			recovery.UnaryServerInterceptor(recovered),
			selector.UnaryServerInterceptor(validation.UnaryServerInterceptor(validator), validated),
		),
		grpc.ChainStreamInterceptor(
			logging.StreamServerInterceptor(logger, logged...),
			recovery.StreamServerInterceptor(recovered),
			selector.StreamServerInterceptor(validation.StreamServerInterceptor(validator), validated),
		),
	}
	if o.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(o.TLS)))
	}
	return grpc.NewServer(append(options, more...)...), nil
}

// callLogger writes one line per finished call. Messages are never logged: they carry tokens.
func callLogger(log *slog.Logger) logging.Logger {
	return logging.LoggerFunc(func(ctx context.Context, level logging.Level, _ string, fields ...any) {
		log.Log(ctx, slog.Level(level), "call", fields...)
	})
}

// level says which ends of a call are worth a line at the usual level: those that point to a fault here, and those that
// somebody has to do something about at the other end. A call that ends because its agent went is daily life.
func level(code codes.Code) logging.Level {
	switch code {
	case codes.Internal, codes.Unknown, codes.DataLoss, codes.Unimplemented:
		return logging.LevelError
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument, codes.FailedPrecondition, codes.ResourceExhausted,
		codes.AlreadyExists, codes.OutOfRange:
		return logging.LevelWarn
	default:
		return logging.LevelDebug
	}
}
