package tracestream_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/agent/tracestream"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// cutter is a control plane that writes what it gets, syncs none of it, and breaks the stream after each so many bytes. It
// counts what it has had to read.
type cutter struct {
	*sink
	after int64
	read  atomic.Int64
	cuts  atomic.Int64
}

func (c *cutter) trace(t testing.TB) func(grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]) error {
	say := func(stream grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse], written int64) error {
		return stream.Send(&fleetv1.TraceResponse{Ref: one.Proto(), Written: written, Limit: written + 4<<20})
	}
	return func(stream grpc.BidiStreamingServer[fleetv1.TraceRequest, fleetv1.TraceResponse]) error {
		if err := say(stream, c.length(1)); err != nil {
			return err
		}
		var got int64
		for {
			r, err := stream.Recv()
			if err != nil {
				return err
			}
			c.read.Add(int64(len(r.GetData())))
			got += int64(len(r.GetData()))
			if err := say(stream, c.take(t, r)); err != nil {
				return err
			}
			if got >= c.after {
				c.cuts.Add(1)
				return status.Error(codes.Unavailable, "cut")
			}
		}
	}
}

func TestWhatWasWrittenIsNotSentAgainThoughItIsNotSynced(t *testing.T) {
	c := &cutter{sink: newSink(), after: 8 << 20}
	client := serve(t, c.trace(t))
	want := noise(40 << 20)
	s := tracestream.New()
	s.Add(one, &memory{b: want})
	s.Finish(one)
	run(t, s, client)
	c.wait(t, 1, want)
	cuts := c.cuts.Load()
	require.GreaterOrEqual(t, cuts, int64(4))
	require.LessOrEqual(t, c.read.Load()-int64(len(want)), (cuts+1)*(4<<10), "at most what is sent before the control plane has spoken")
	require.False(t, s.Delivered(one, 1), "nothing was synced")
}

// BenchmarkCut says how many bytes come twice for each broken stream of a flooding job.
func BenchmarkCut(b *testing.B) {
	c := &cutter{sink: newSink(), after: 8 << 20}
	client := serve(b, c.trace(b))
	want := noise(40 << 20)
	s := tracestream.New()
	run(b, s, client)
	for b.Loop() {
		c.mu.Lock()
		c.traces[1] = nil
		c.mu.Unlock()
		s.Add(one, &memory{b: want})
		s.Finish(one)
		require.Eventually(b, func() bool { return c.length(1) == int64(len(want)) }, time.Minute, time.Millisecond)
		s.Remove(one)
	}
	b.ReportMetric(float64(c.read.Load()-int64(b.N*len(want)))/float64(c.cuts.Load())/1024, "KiB-again/cut")
	b.ReportMetric(0, "ns/op")
}
