package agent

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/supervisor"
	"github.com/switchyard-ci/switchyard/agent/uplink"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// fetch gets an accepted job's payload and settings. What may be for a while only is tried again, without end: the job is discarded
// (and ctx with it) when the control plane gives up.
func (a *Agent) fetch(ctx context.Context, ref ledger.Ref) (supervisor.Fetched, error) {
	backoff := uplink.Backoff{First: 100 * time.Millisecond, Most: 10 * time.Second}
	for {
		conn, err := a.current.get(ctx)
		if err != nil {
			return supervisor.Fetched{}, err
		}
		answer, err := fleetv1.NewFleetServiceClient(conn).GetJob(ctx, &fleetv1.GetJobRequest{Ref: ref.Proto()},
			grpc.MaxCallRecvMsgSize(uplink.MaxPayload+uplink.MaxSettings))
		switch status.Code(err) {
		case codes.OK:
			return supervisor.Fetched{Payload: answer.GetPayload(), Settings: supervisor.SettingsOf(answer.GetSettings())}, nil
		case codes.NotFound, codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.FailedPrecondition,
			codes.ResourceExhausted, codes.Unimplemented, codes.OutOfRange, codes.DataLoss:
			return supervisor.Fetched{}, fmt.Errorf("get the job's payload: %s", status.Convert(err).Message())
		default:
		}
		select {
		case <-time.After(backoff.Next()):
		case <-ctx.Done():
			return supervisor.Fetched{}, ctx.Err()
		}
	}
}
