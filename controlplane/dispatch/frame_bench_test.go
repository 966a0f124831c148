package dispatch

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// BenchmarkFrame reads full frames in the pieces in which HTTP/2 brings them, in the frame's own way and in gRPC's usual one.
func BenchmarkFrame(b *testing.B) {
	data, err := proto.Marshal(&fleetv1.TraceRequest{
		Ref: &fleetv1.JobRef{Job: 1, Epoch: 1}, Offset: 1 << 30, Data: make([]byte, maxFrame-256),
	})
	require.NoError(b, err)
	in := pieces(data, 16<<10)
	own := &frame{}
	usual := encoding.GetCodecV2(grpcproto.Name)
	for name, read := range map[string]func(mem.BufferSlice) error{
		"own":   func(in mem.BufferSlice) error { defer own.release(); return own.UnmarshalBuffers(in) },
		"usual": func(in mem.BufferSlice) error { return usual.Unmarshal(in, &fleetv1.TraceRequest{}) },
	} {
		b.Run(name, func(b *testing.B) {
			before := cpuTime(b)
			for b.Loop() {
				require.NoError(b, read(in))
			}
			b.ReportMetric(float64(cpuTime(b)-before)/1e6/(float64(b.N)*float64(len(data))/1e6), "cpu-ms/MB")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// cpuTime is what this process has used, in nanoseconds.
func cpuTime(b *testing.B) int64 {
	var u unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return u.Utime.Nano() + u.Stime.Nano()
}
