package dispatch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// frame is a TraceRequest that is read without being copied more than once, into a buffer that is used again: see
// grpcserver.Buffered. By any other codec it is read as the message that it is.
type frame struct {
	fleetv1.TraceRequest
	buffer *[maxFrame]byte // what Data is in; nil if it is its own
}

// frames keeps buffers for the moments in which frames are received; streams that are silent hold none.
var frames = sync.Pool{New: func() any { return new([maxFrame]byte) }}

// release gives the buffer back; Data is void from then on.
func (f *frame) release() {
	if f.buffer != nil {
		frames.Put(f.buffer)
		f.buffer, f.Data = nil, nil
	}
}

// maxRef is more than a JobRef has, in bytes.
const maxRef = 64

var errFrame = errors.New("not a trace frame")

// UnmarshalBuffers reads the frame as proto.Unmarshal does, but for unknown fields, which are dropped.
func (f *frame) UnmarshalBuffers(pieces mem.BufferSlice) error {
	f.release()
	f.Reset()
	r := pieces.Reader()
	err := f.read(r)
	if err != nil {
		f.release()
	}
	return errors.Join(err, r.Close())
}

func (f *frame) read(r *mem.Reader) error {
	for r.Remaining() > 0 {
		tag, err := binary.ReadUvarint(r)
		if err != nil {
			return fmt.Errorf("%w: a field's tag: %w", errFrame, err)
		}
		number, kind := protowire.DecodeTag(tag)
		switch {
		case number == 1 && kind == protowire.BytesType:
			err = f.readRef(r)
		case number == 2 && kind == protowire.VarintType:
			var offset uint64
			offset, err = binary.ReadUvarint(r)
			f.Offset = int64(offset) //nolint:gosec // as proto.Unmarshal does; whoever takes the frame checks it
		case number == 3 && kind == protowire.BytesType:
			err = f.readData(r)
		default:
			err = skip(r, number, kind)
		}
		if err != nil {
			return fmt.Errorf("%w: field %d: %w", errFrame, number, err)
		}
	}
	return nil
}

// length reads a field's length, which must be there and at most limit.
func length(r *mem.Reader, limit uint64) (int, error) {
	n, err := binary.ReadUvarint(r)
	switch {
	case err != nil:
		return 0, err
	case n > limit:
		return 0, fmt.Errorf("it has %d bytes, at most %d are possible", n, limit)
	case n > uint64(r.Remaining()): //nolint:gosec // not negative
		return 0, io.ErrUnexpectedEOF
	}
	return int(n), nil //nolint:gosec // see above
}

func (f *frame) readRef(r *mem.Reader) error {
	n, err := length(r, maxRef)
	if err != nil {
		return err
	}
	var b [maxRef]byte
	if _, err := io.ReadFull(r, b[:n]); err != nil {
		return err
	}
	if f.Ref == nil {
		f.Ref = &fleetv1.JobRef{}
	}
	return proto.UnmarshalOptions{Merge: true}.Unmarshal(b[:n], f.Ref)
}

func (f *frame) readData(r *mem.Reader) error {
	n, err := length(r, maxFrame)
	if err != nil {
		return err
	}
	if f.buffer == nil {
		f.buffer = frames.Get().(*[maxFrame]byte)
	}
	f.Data = f.buffer[:n]
	_, err = io.ReadFull(r, f.Data)
	return err
}

// skip reads over a field that this version does not know.
func skip(r *mem.Reader, number protowire.Number, kind protowire.Type) error {
	var n int
	var err error
	switch {
	case !number.IsValid():
		return errors.New("no such field is possible")
	case kind == protowire.VarintType:
		_, err = binary.ReadUvarint(r)
	case kind == protowire.Fixed32Type:
		n = 4
	case kind == protowire.Fixed64Type:
		n = 8
	case kind == protowire.BytesType:
		n, err = length(r, maxFrame)
	default:
		return fmt.Errorf("unknown wire type %d", kind)
	}
	if err == nil && n > 0 {
		_, err = r.Discard(n)
	}
	return err
}
