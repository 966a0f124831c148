package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/uplink"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// signPatience is how long a job waits for a URL: without one it goes on without its cache.
const signPatience = 15 * time.Second

const unreachable = "the control plane cannot be reached"

// sign asks the control plane for the URL of a cache archive, on behalf of a job. A connection that is down is waited
// for, but not for longer than signPatience.
func (a *Agent) sign(ctx context.Context, ref ledger.Ref, r folder.CacheRequest) folder.CacheAnswer {
	answer := folder.CacheAnswer{ID: r.ID}
	operation, ok := fleetv1.CacheOperation_value["CACHE_OPERATION_"+strings.ToUpper(r.Op)]
	if !ok || operation == 0 {
		answer.Error = fmt.Sprintf("%q is nothing that can be done with a cache: it must be head, get or put", valid(r.Op, 64))
		return answer
	}
	request := &fleetv1.SignCacheRequest{Ref: ref.Proto(), Operation: fleetv1.CacheOperation(operation), Key: r.Key}
	ctx, cancel := context.WithTimeout(ctx, signPatience)
	defer cancel()
	backoff := uplink.Backoff{First: 100 * time.Millisecond, Most: 2 * time.Second}
	answer.Error = unreachable
	for {
		signed, err := a.signOnce(ctx, request)
		switch status.Code(err) {
		case codes.OK:
			return folder.CacheAnswer{ID: r.ID, URL: signed.GetUrl(), Headers: signed.GetHeaders()}
		case codes.Unavailable:
			answer.Error = unreachable + ": " + valid(status.Convert(err).Message(), 512)
		case codes.DeadlineExceeded, codes.Canceled, codes.Aborted:
		case codes.Unimplemented:
			answer.Error = "the control plane is older than this agent and knows nothing of caches in an object store: upgrade it"
			return answer
		default:
			answer.Error = valid(status.Convert(err).Message(), 1024)
			return answer
		}
		select {
		case <-time.After(backoff.Next()):
		case <-ctx.Done():
			return answer
		}
	}
}

func (a *Agent) signOnce(ctx context.Context, r *fleetv1.SignCacheRequest) (*fleetv1.SignCacheResponse, error) {
	conn, err := a.current.get(ctx)
	if err != nil {
		return nil, status.FromContextError(err).Err()
	}
	return fleetv1.NewFleetServiceClient(conn).SignCache(ctx, r)
}
