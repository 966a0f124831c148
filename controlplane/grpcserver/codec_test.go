package grpcserver

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/mem"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

type bulk struct {
	fleetv1.JobRef
	pieces int
}

func (b *bulk) UnmarshalBuffers(pieces mem.BufferSlice) error {
	b.pieces = len(pieces)
	return nil
}

func TestBulkDataIsReadInTheMessagesOwnWay(t *testing.T) {
	c := newCodec()
	require.Equal(t, "proto", c.Name())
	data, err := c.Marshal(&fleetv1.JobRef{Job: 7, Epoch: 2})
	require.NoError(t, err)
	var plain fleetv1.JobRef
	require.NoError(t, c.Unmarshal(data, &plain))
	require.EqualValues(t, 7, plain.GetJob())
	var b bulk
	require.NoError(t, c.Unmarshal(append(data, mem.SliceBuffer("more")), &b))
	require.Equal(t, len(data)+1, b.pieces)
	require.Zero(t, b.GetJob())
}
