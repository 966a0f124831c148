//go:build unix

// Package attach brings a job's trace, stages and result out of an environment whose files cannot be read from outside, as
// frames over one byte stream, and orders in. The writing end runs in the environment (`switchyard-job attach`), so the
// reading end believes nothing: sizes, order and offsets are checked.
package attach

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/switchyard-ci/switchyard/job/folder"
)

// Version of the frames. A reader refuses another one: the first frame's form never changes.
const Version = 1

// MaxData is the greatest number of trace bytes in one frame.
const MaxData = 256 << 10

// Kind is the kind of a frame.
type Kind byte

// The kinds. A stream is Hello, then Stage and Data in any number, then one of Result, Gone and Failed.
const (
	Hello  Kind = 'H' // JSON
	Stage  Kind = 'S' // the stage's name
	Data   Kind = 'D' // 8 bytes absolute offset in the whole trace, big endian, then bytes of it
	Result Kind = 'R' // JSON of folder.Result
	Gone   Kind = 'G' // nothing: the job ended without a result and will never have one
	Failed Kind = 'E' // text: attach itself cannot go on
)

const (
	headLength = 5
	maxSmall   = 128 << 10
)

// Greeting is the content of the first frame.
type Greeting struct {
	Version int   `json:"version"`
	Job     int64 `json:"job"`
	Epoch   int64 `json:"epoch"`
	// Offset is where the trace begins in this stream.
	Offset int64 `json:"offset"`
}

// Frame is one frame; what of it is set depends on Kind.
type Frame struct {
	Kind     Kind
	Greeting Greeting
	Stage    string
	Offset   int64  // of Data
	Data     []byte // valid until the next frame is read
	Result   folder.Result
	Text     string // of Failed
}

// ErrEnded is returned when the stream ended without Result, Gone or Failed: attach was killed, and nothing is known.
var ErrEnded = errors.New("the stream from the job ended early")

// Reader reads the frames of one stream. It is not for concurrent use.
type Reader struct {
	r       *bufio.Reader
	offset  int64
	greeted bool
	last    bool
	buf     []byte
}

// NewReader reads a stream that was asked to begin at that offset.
func NewReader(r io.Reader, offset int64) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, 64<<10), offset: offset}
}

// Offset is where the next byte of the trace is expected: it is where to begin when attaching again.
func (r *Reader) Offset() int64 { return r.offset }

// Next returns the next frame. After the last one it returns io.EOF. Any other error means that the stream cannot be read
// further; ErrEnded if it just ended.
func (r *Reader) Next() (Frame, error) {
	if r.last {
		return Frame{}, io.EOF
	}
	var head [headLength]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return Frame{}, ErrEnded
		}
		return Frame{}, fmt.Errorf("read a frame: %w", err)
	}
	kind, size := Kind(head[0]), binary.BigEndian.Uint32(head[1:])
	limit := uint32(maxSmall)
	if kind == Data {
		limit = 8 + MaxData
	}
	if size > limit {
		return Frame{}, fmt.Errorf("read a frame: %d bytes, more than the limit of %d", size, limit)
	}
	if cap(r.buf) < int(size) {
		r.buf = make([]byte, size)
	}
	b := r.buf[:size]
	if _, err := io.ReadFull(r.r, b); err != nil {
		return Frame{}, ErrEnded
	}
	if !r.greeted && kind != Hello && kind != Failed {
		return Frame{}, fmt.Errorf("read a frame: kind %q before the greeting", byte(kind))
	}
	return r.parse(kind, b)
}

func (r *Reader) parse(kind Kind, b []byte) (Frame, error) {
	f := Frame{Kind: kind}
	switch kind {
	case Hello:
		if r.greeted {
			return Frame{}, errors.New("read a frame: a second greeting")
		}
		if err := json.Unmarshal(b, &f.Greeting); err != nil {
			return Frame{}, fmt.Errorf("read the greeting: %w", err)
		}
		if f.Greeting.Version != Version {
			return Frame{}, fmt.Errorf("the job's switchyard-job writes version %d of frames, this program reads %d", f.Greeting.Version, Version)
		}
		if f.Greeting.Offset != r.offset {
			return Frame{}, fmt.Errorf("read the greeting: the trace begins at %d, not at %d", f.Greeting.Offset, r.offset)
		}
		r.greeted = true
	case Stage:
		if len(b) == 0 || len(b) > folder.MaxLine {
			return Frame{}, fmt.Errorf("read a frame: the name of a stage has %d bytes", len(b))
		}
		f.Stage = string(b)
	case Data:
		if len(b) <= 8 {
			return Frame{}, errors.New("read a frame: no data")
		}
		f.Offset, f.Data = int64(binary.BigEndian.Uint64(b)), b[8:]
		if f.Offset != r.offset {
			return Frame{}, fmt.Errorf("read a frame: data at %d, expected at %d", f.Offset, r.offset)
		}
		r.offset += int64(len(f.Data))
	case Result:
		result, err := folder.ParseResult(b)
		if err != nil {
			return Frame{}, err
		}
		f.Result, r.last = result, true
	case Gone:
		r.last = true
	case Failed:
		f.Text, r.last = string(b), true
	default:
		return Frame{}, fmt.Errorf("read a frame: unknown kind %q", byte(kind))
	}
	return f, nil
}

// writer writes frames.
type writer struct {
	w   io.Writer
	buf []byte
}

func (w *writer) frame(kind Kind, content []byte) error {
	w.buf = append(w.buf[:0], byte(kind))
	w.buf = binary.BigEndian.AppendUint32(w.buf, uint32(len(content)))
	w.buf = append(w.buf, content...)
	_, err := w.w.Write(w.buf)
	return err
}

func (w *writer) json(kind Kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.frame(kind, b)
}
