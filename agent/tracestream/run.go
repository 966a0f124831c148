package tracestream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// Opener opens the stream; fleetv1.FleetServiceClient.Trace is one.
type Opener func(ctx context.Context, opts ...grpc.CallOption) (grpc.BidiStreamingClient[fleetv1.TraceRequest, fleetv1.TraceResponse], error)

// Run opens one stream and sends on it until it breaks or ctx ends; it always returns an error. heard is called for each
// message of the control plane: it is a sign of life. One Run at a time.
func (s *Sender) Run(ctx context.Context, open Opener, log *slog.Logger, heard func()) error {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := open(ctx)
	if err != nil {
		cancel()
		return fmt.Errorf("open the trace stream: %w", err)
	}
	s.restart()

	var receiver sync.WaitGroup
	received := make(chan error, 1)
	receiver.Go(func() { received <- s.receive(stream, heard) })
	defer receiver.Wait()
	defer cancel()

	buffer := make([]byte, frameSize)
	message := &fleetv1.TraceRequest{Ref: &fleetv1.JobRef{}}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		j, offset, most, wait := s.next()
		if j == nil {
			var due <-chan time.Time
			if wait > 0 {
				timer.Reset(wait)
				due = timer.C
			}
			select {
			case <-s.wake:
			case <-due:
			case err := <-received:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		n, err := j.source.ReadAt(buffer[:most], offset)
		if err != nil && !errors.Is(err, io.EOF) && s.known(j) {
			log.Warn("cannot read a trace; what was not sent of it is missing", "job", j.ref, "offset", offset, "err", err)
		}
		if n > 0 {
			message.Ref.Job, message.Ref.Epoch = j.ref.Job, j.ref.Epoch
			message.Offset, message.Data = offset, buffer[:n]
			if err := stream.Send(message); err != nil {
				return sendError(err, received)
			}
		}
		s.wrote(j, offset, n, most)
	}
}

// sendError returns why the stream broke: Send itself only says io.EOF.
func sendError(err error, received <-chan error) error {
	if errors.Is(err, io.EOF) {
		return <-received
	}
	return fmt.Errorf("send trace: %w", err)
}

func (s *Sender) receive(stream grpc.BidiStreamingClient[fleetv1.TraceRequest, fleetv1.TraceResponse], heard func()) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("trace stream: %w", err)
		}
		heard()
		s.answered(r)
	}
}
