//go:build unix

// Package attach brings a job's trace, stages, questions and result out of an environment whose files cannot be read from
// outside, as frames over one byte stream, and the job and its orders in. The writing end runs in the environment
// (`switchyard-job launch` and `attach`), so the reading end believes nothing: sizes, order, offsets and amounts are checked.
package attach

import (
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

// The kinds. A stream is Hello, then Stage, Data and Ask in any number, then one of Result, Gone and Failed. Failed may come
// without Hello.
const (
	Hello  Kind = 'H' // JSON of Greeting
	Stage  Kind = 'S' // the stage's name
	Data   Kind = 'D' // 8 bytes absolute offset in the whole trace, big endian, then bytes of it
	Ask    Kind = 'A' // JSON of folder.CacheRequest; the order `answer` answers it
	Result Kind = 'R' // JSON of folder.Result; the trace has come whole
	Gone   Kind = 'G' // nothing: the job ended without a result and will never have one
	Failed Kind = 'E' // text: attach itself cannot go on
)

// Limits of one frame's content in bytes, and of the number of frames other than Data in one stream.
const (
	maxStage  = 1 << 10
	maxOthers = 10_000
)

func (k Kind) limit() uint32 {
	switch k {
	case Data:
		return 8 + MaxData
	case Result:
		return folder.MaxResult
	case Stage:
		return maxStage
	case Hello, Ask, Gone, Failed:
	}
	return folder.MaxLine
}

// Greeting is the content of the first frame.
type Greeting struct {
	Version int   `json:"version"`
	Job     int64 `json:"job"`
	Epoch   int64 `json:"epoch"`
	// Offset is where the trace begins in this stream.
	Offset int64 `json:"offset"`
	// Started is the job's fence; nil: no command of the user has run.
	Started *folder.Started `json:"started,omitempty"`
}

// Frame is one frame; what of it is set depends on Kind.
type Frame struct {
	Kind     Kind
	Greeting Greeting
	Stage    string
	Offset   int64  // of Data
	Data     []byte // valid until the next frame is read
	Ask      folder.CacheRequest
	Result   folder.Result
	Text     string // of Failed
}

// ErrEnded is returned when the stream ended without Result, Gone or Failed: attach was killed or the connection was lost,
// and nothing is known.
var ErrEnded = errors.New("the stream from the job ended early")

// InvalidError says that a stream is not as it must be: its writer is broken, of another version or hostile. To attach again
// does not help.
type InvalidError struct{ err error }

func (e *InvalidError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *InvalidError) Unwrap() error { return e.err }

func invalid(format string, args ...any) error { return &InvalidError{fmt.Errorf(format, args...)} }

// Reader reads the frames of one stream. It is not for concurrent use.
type Reader struct {
	r       io.Reader
	offset  int64
	others  int
	greeted bool
	last    bool
	head    [headLength]byte
	buf     []byte
}

// NewReader reads a stream that was asked to begin at that offset. It reads each frame's head and content at once, so a
// reader that is expensive to call needs a buffer.
func NewReader(r io.Reader, offset int64) *Reader { return &Reader{r: r, offset: offset} }

// Offset is where the next byte of the trace is expected: it is where to begin when attaching again.
func (r *Reader) Offset() int64 { return r.offset }

// Next returns the next frame. After the last one it returns io.EOF. ErrEnded: the stream just ended. An *InvalidError: it
// cannot be believed. Any other error is that of the underlying reader.
func (r *Reader) Next() (Frame, error) {
	if r.last {
		return Frame{}, io.EOF
	}
	if err := r.fill(r.head[:]); err != nil {
		return Frame{}, err
	}
	kind, size := Kind(r.head[0]), binary.BigEndian.Uint32(r.head[1:])
	if limit := kind.limit(); size > limit {
		return Frame{}, invalid("read a frame: %d bytes, more than the limit of %d", size, limit)
	}
	if cap(r.buf) < int(size) {
		r.buf = make([]byte, size)
	}
	b := r.buf[:size]
	if err := r.fill(b); err != nil {
		return Frame{}, err
	}
	if !r.greeted && kind != Hello && kind != Failed {
		return Frame{}, invalid("read a frame: kind %q before the greeting", byte(kind))
	}
	if kind != Data {
		if r.others++; r.others > maxOthers {
			return Frame{}, invalid("read a frame: more than %d stages and questions in one stream", maxOthers)
		}
	}
	return r.parse(kind, b)
}

func (r *Reader) fill(b []byte) error {
	_, err := io.ReadFull(r.r, b)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe):
		return ErrEnded
	}
	return fmt.Errorf("read a frame: %w", err)
}

func (r *Reader) parse(kind Kind, b []byte) (Frame, error) {
	f := Frame{Kind: kind}
	switch kind {
	case Hello:
		if r.greeted {
			return Frame{}, invalid("read a frame: a second greeting")
		}
		if err := json.Unmarshal(b, &f.Greeting); err != nil {
			return Frame{}, invalid("read the greeting: %w", err)
		}
		if f.Greeting.Version != Version {
			return Frame{}, invalid("the job's switchyard-job writes version %d of frames, this program reads %d", f.Greeting.Version, Version)
		}
		if f.Greeting.Offset != r.offset {
			return Frame{}, invalid("read the greeting: the trace begins at %d, not at %d", f.Greeting.Offset, r.offset)
		}
		r.greeted = true
	case Stage:
		if len(b) == 0 {
			return Frame{}, invalid("read a frame: the name of a stage has no bytes")
		}
		f.Stage = string(b)
	case Data:
		if len(b) <= 8 {
			return Frame{}, invalid("read a frame: no data")
		}
		f.Offset, f.Data = int64(binary.BigEndian.Uint64(b)), b[8:] //nolint:gosec // G115: a negative one is not the expected one
		if f.Offset != r.offset {
			return Frame{}, invalid("read a frame: data at %d, expected at %d", f.Offset, r.offset)
		}
		r.offset += int64(len(f.Data))
	case Ask:
		q, err := folder.ParseCacheRequest(b)
		if err != nil {
			return Frame{}, invalid("read a frame: %w", err)
		}
		f.Ask = q
	case Result:
		result, err := folder.ParseResult(b)
		if err != nil {
			return Frame{}, invalid("read a frame: %w", err)
		}
		f.Result, r.last = result, true
	case Gone:
		r.last = true
	case Failed:
		f.Text, r.last = string(b), true
	default:
		return Frame{}, invalid("read a frame: unknown kind %q", byte(kind))
	}
	return f, nil
}
