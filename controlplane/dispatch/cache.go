package dispatch

import (
	"context"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/controlplane/cachestore"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// A job may ask for so many URLs at once, and for more at this pace. With GitLab's limit of four caches with five
// fallback keys each, ten attempts at all of them stay below.
const (
	signBurst = 300
	signPace  = 500 * time.Millisecond
)

// SignCache signs a URL for a job that the agent holds; see fleet.proto for the contract.
func (d *Dispatcher) SignCache(ctx context.Context, req *fleetv1.SignCacheRequest) (*fleetv1.SignCacheResponse, error) {
	id, name, err := d.cfg.Identity(ctx)
	if err != nil {
		return nil, err
	}
	operation, err := cacheOperation(req.GetOperation())
	if err != nil {
		return nil, err
	}
	ref := req.GetRef()
	j, err := d.signs(id, ref)
	if err != nil {
		return nil, err
	}
	if j.runner.Caches == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "the runner %q keeps no caches in an object store", j.runner.Name)
	}
	signed, err := j.runner.Caches.Sign(ctx, cachestore.Request{
		Operation: operation, ProjectID: j.row.Envelope.ProjectID, Key: req.GetKey(), Age: j.row.Envelope.Timeout,
	})
	switch {
	case cachestore.IsKey(err):
		return nil, status.Error(codes.InvalidArgument, err.Error())
	case err != nil:
		d.log.Error("cannot sign the URL of a cache", "job", ref.GetJob(), "runner", j.runner.Name, "agent", name, "error", err)
		return nil, status.Error(codes.Internal, "the control plane cannot sign URLs of the object store at the moment; its log says why")
	}
	return &fleetv1.SignCacheResponse{Url: signed.URL, Headers: signed.Headers}, nil
}

// signs returns the job if the agent may have a URL for it now.
func (d *Dispatcher) signs(agent string, ref *fleetv1.JobRef) (*job, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	j := d.heldByLocked(agent, ref)
	if j == nil || j.life.phase != accepted && j.life.phase != started {
		return nil, status.Errorf(codes.NotFound, "job %d, epoch %d does not run on this agent", ref.GetJob(), ref.GetEpoch())
	}
	if j.signing == nil {
		j.signing = rate.NewLimiter(rate.Every(signPace), signBurst)
	}
	if !j.signing.Allow() {
		return nil, status.Errorf(codes.ResourceExhausted, "the job has asked for too many URLs of caches: one in %s is given now", signPace)
	}
	return j, nil
}

func cacheOperation(o fleetv1.CacheOperation) (cachestore.Operation, error) {
	switch o {
	case fleetv1.CacheOperation_CACHE_OPERATION_HEAD:
		return cachestore.Head, nil
	case fleetv1.CacheOperation_CACHE_OPERATION_GET:
		return cachestore.Get, nil
	case fleetv1.CacheOperation_CACHE_OPERATION_PUT:
		return cachestore.Put, nil
	case fleetv1.CacheOperation_CACHE_OPERATION_UNSPECIFIED:
	}
	return "", status.Errorf(codes.InvalidArgument, "cache operation %d is none that this control plane knows: HEAD, GET or PUT", o)
}
