package dispatch

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/switchyard-ci/switchyard/controlplane/relay"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// maxFrame is the greatest length of TraceRequest.data in bytes; see fleet.proto. The rule is checked here by hand: the
// general validation would cost more than the transport of a frame.
const maxFrame = 256 << 10

// maxTold is how many jobs may have something to be told on a Trace stream: more than an agent can hold.
const maxTold = 32 << 10

// traceStream is one agent's Trace stream: what is to be told to the agent, the latest word for each job only.
type traceStream struct {
	*stream
	mu    sync.Mutex
	tell  map[int64]relay.Progress
	ready chan struct{} // capacity 1
}

func (t *traceStream) put(job int64, p relay.Progress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tell[job] = p
	if len(t.tell) > maxTold {
		t.end(status.Error(codes.ResourceExhausted, "the agent does not read its trace stream: too many answers wait"))
	}
	select {
	case t.ready <- struct{}{}:
	default:
	}
}

// take returns all that is to be told.
func (t *traceStream) take() map[int64]relay.Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	tell := t.tell
	t.tell = make(map[int64]relay.Progress)
	return tell
}

type traceServer = grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]

// Trace takes the bytes of an agent's traces; see fleet.proto for the contract.
func (d *Dispatcher) Trace(stream traceServer) error {
	id, name, err := d.cfg.Identity(stream.Context())
	if err != nil {
		return err
	}
	opened, err := d.open(stream.Context())
	if err != nil {
		return err
	}
	defer opened.close()
	t := &traceStream{stream: opened, tell: make(map[int64]relay.Progress), ready: make(chan struct{}, 1)}

	d.mu.Lock()
	a := d.agentLocked(id, name)
	a.trace = t
	for job, j := range a.jobs {
		if j.life.phase >= started {
			t.put(job, d.relay.Progress(job, j.life.epoch))
		}
	}
	d.mu.Unlock()
	t.run(func() error { return d.receiveTrace(stream, id, t) }, func() error { return t.answer(stream) })
	err = t.wait(nil, nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	if a.trace == t {
		a.trace = nil
	}
	d.forgetLocked(a)
	return err
}

func (d *Dispatcher) receiveTrace(stream traceServer, agent string, t *traceStream) error {
	m := &frame{}
	defer m.release()
	for t.ctx.Err() == nil {
		m.release()
		if err := stream.RecvMsg(m); err != nil {
			return err
		}
		ref := m.GetRef()
		if ref.GetJob() <= 0 || ref.GetEpoch() <= 0 || m.GetOffset() < 0 || len(m.GetData()) > maxFrame {
			return status.Errorf(codes.InvalidArgument, "trace frame of job %d, epoch %d: offset %d, %d bytes (at most %d)",
				ref.GetJob(), ref.GetEpoch(), m.GetOffset(), len(m.GetData()), maxFrame)
		}
		if !d.holds(agent, ref) {
			t.put(ref.GetJob(), relay.Progress{Epoch: ref.GetEpoch(), Verdict: relay.Stop})
			continue
		}
		if p := d.relay.Append(ref.GetJob(), ref.GetEpoch(), m.GetOffset(), m.GetData()); p.Tell || p.Verdict != relay.Continue {
			t.put(ref.GetJob(), p)
		}
	}
	return t.ctx.Err()
}

// holds says whether a job was started on this agent in this epoch.
func (d *Dispatcher) holds(agent string, ref *fleetv1.JobRef) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	j := d.heldByLocked(agent, ref)
	return j != nil && j.life.phase >= started
}

func (t *traceStream) answer(stream traceServer) error {
	for {
		select {
		case <-t.ctx.Done():
			return nil
		case <-t.ready:
		}
		for job, p := range t.take() {
			if err := stream.Send(&fleetv1.TraceResponse{
				Ref:      &fleetv1.JobRef{Job: job, Epoch: p.Epoch},
				Received: p.Received, Reported: p.Reported, Limit: p.Limit, Outcome: outcome(p.Verdict), Written: p.Written,
			}); err != nil {
				return fmt.Errorf("acknowledge trace: %w", err)
			}
		}
	}
}

func outcome(v relay.Verdict) fleetv1.TraceOutcome {
	switch v {
	case relay.Resend:
		return fleetv1.TraceOutcome_TRACE_OUTCOME_RESEND
	case relay.Stop:
		return fleetv1.TraceOutcome_TRACE_OUTCOME_STOP
	default:
		return fleetv1.TraceOutcome_TRACE_OUTCOME_CONTINUE
	}
}

// Received implements relay.Events.
func (d *Dispatcher) Received(id int64, p relay.Progress) {
	if !p.Tell {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if j := d.jobs[id]; j != nil && j.holder != nil && j.holder.trace != nil {
		j.holder.trace.put(id, p)
	}
}

// GetJob gives a payload to the agent that accepted the job. One that is still being asked gets it too: its yes travels
// on another stream and may be overtaken by this call.
func (d *Dispatcher) GetJob(ctx context.Context, req *fleetv1.GetJobRequest) (*fleetv1.GetJobResponse, error) {
	id, _, err := d.cfg.Identity(ctx)
	if err != nil {
		return nil, err
	}
	ref := req.GetRef()
	d.mu.Lock()
	j := d.heldByLocked(id, ref)
	mine := j != nil && j.life.phase >= offered && j.life.phase <= started && !j.life.adopted
	d.mu.Unlock()
	if !mine {
		return nil, status.Errorf(codes.NotFound, "job %d, epoch %d is not held by this agent", ref.GetJob(), ref.GetEpoch())
	}
	payload, err := d.cfg.Store.Payload(ctx, ref.GetJob(), ref.GetEpoch())
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrStale):
		return nil, status.Errorf(codes.NotFound, "the payload of job %d is gone: %v", ref.GetJob(), err)
	case err != nil:
		return nil, status.Errorf(codes.Internal, "read the payload of job %d: %v", ref.GetJob(), err)
	}
	return &fleetv1.GetJobResponse{Payload: payload, ClaimedAt: timestamppb.New(j.row.ClaimedAt), Settings: j.settings()}, nil
}
