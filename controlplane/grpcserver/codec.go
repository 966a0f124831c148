package grpcserver

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// Buffered is a message that reads itself from the pieces in which it came, instead of being given a copy of all of them
// in one piece and making another one of what it keeps. It is for messages that carry bulk data.
type Buffered interface {
	// UnmarshalBuffers reads the message. The pieces are not its own when it has returned.
	UnmarshalBuffers(pieces mem.BufferSlice) error
}

// codec is that of Protocol Buffers, but for Buffered messages.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(Buffered); ok {
		return m.UnmarshalBuffers(data)
	}
	return c.CodecV2.Unmarshal(data, v)
}
