package dispatch

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// pieces are b in pieces of n bytes.
func pieces(b []byte, n int) (list mem.BufferSlice) {
	for ; len(b) > n; b = b[n:] {
		list = append(list, mem.SliceBuffer(b[:n:n]))
	}
	return append(list, mem.SliceBuffer(b))
}

func TestAFrameIsReadAsTheMessageThatItIs(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), maxFrame/16)
	f := &frame{}
	for _, want := range []*fleetv1.TraceRequest{
		{Ref: &fleetv1.JobRef{Job: 1 << 40, Epoch: 7}, Offset: 1 << 50, Data: data},
		{Ref: &fleetv1.JobRef{Job: 1, Epoch: 1}, Data: data[:1]},
		{Offset: -1},
		{},
	} {
		b, err := proto.Marshal(want)
		require.NoError(t, err)
		for _, n := range []int{1 << 20, 16 << 10, 1000, 7} {
			require.NoError(t, f.UnmarshalBuffers(pieces(b, n)))
			require.True(t, proto.Equal(want, &f.TraceRequest), "%d", n)
		}
	}
	f.release()
	require.Nil(t, f.Data)

	b := protowire.AppendTag(nil, 99, protowire.BytesType)
	b = protowire.AppendString(b, "of a later version")
	b = protowire.AppendTag(b, 98, protowire.VarintType)
	b = protowire.AppendVarint(b, 1)
	b = protowire.AppendTag(b, 97, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, 1)
	b = protowire.AppendTag(b, 3, protowire.BytesType)
	b = protowire.AppendString(b, "first")
	b = protowire.AppendTag(b, 3, protowire.BytesType)
	b = protowire.AppendString(b, "the last one counts")
	require.NoError(t, f.UnmarshalBuffers(pieces(b, 5)))
	require.Equal(t, "the last one counts", string(f.Data))
	f.release()
}

// FuzzFrames: what is taken for a frame is the message that proto.Unmarshal reads, whatever pieces it comes in, and what
// is refused is no frame of an agent's.
func FuzzFrames(f *testing.F) {
	for _, m := range []*fleetv1.TraceRequest{
		{}, {Ref: &fleetv1.JobRef{Job: 3, Epoch: 2}, Offset: 12, Data: []byte("hello")}, {Offset: -5, Data: []byte{0}},
	} {
		b, err := proto.Marshal(m)
		require.NoError(f, err)
		f.Add(b, 3)
	}
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		m := &frame{}
		defer m.release()
		err := m.UnmarshalBuffers(pieces(b, max(n, 1)))
		var want fleetv1.TraceRequest
		wantErr := proto.Unmarshal(b, &want)
		if err != nil {
			require.ErrorIs(t, err, errFrame)
			return
		}
		require.NoError(t, wantErr)
		want.ProtoReflect().SetUnknown(nil)
		if want.Ref != nil {
			want.Ref.ProtoReflect().SetUnknown(nil)
			m.Ref.ProtoReflect().SetUnknown(nil)
		}
		require.True(t, proto.Equal(&want, &m.TraceRequest))
		again, err := proto.Marshal(&m.TraceRequest)
		require.NoError(t, err)
		require.NoError(t, m.UnmarshalBuffers(pieces(again, 4)), "what was taken is taken again")
	})
}
