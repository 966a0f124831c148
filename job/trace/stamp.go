package trace

import (
	"bytes"
	"time"
)

// Stream tells in a stamped trace where a line comes from.
type Stream uint8

// The streams, with gitlab-runner's numbers.
const (
	Runner Stream = 0
	Script Stream = 1
)

// longest is how much of a line is kept until its end is seen.
const longest = 8 << 10

// Stamper puts a time before each line of one stream, in GitLab's form: 2006-01-02T15:04:05.000000Z, a space, two
// hexadecimal digits for the stream, O for standard output, and a space for a new line or + for one that goes on. It
// follows gitlab-runner's rules for when a line is passed on: at its end, when it is longer than 8 KiB, and when a piece
// of output has a carriage return but no end of line. Standard output and standard error are one stream here, which keeps
// their order.
type Stamper struct {
	stream Stream
	now    func() time.Time
	line   []byte
	goesOn bool
}

// NewStamper stamps one stream with the times that now returns.
func NewStamper(stream Stream, now func() time.Time) *Stamper {
	return &Stamper{stream: stream, now: now}
}

// Append appends to out what of the stream can be passed on after b.
func (s *Stamper) Append(out, b []byte) []byte {
	for {
		end := bytes.IndexByte(b, '\n') + 1
		if end == 0 {
			break
		}
		if len(s.line) > 0 {
			out = append(out, s.line...)
			s.line = s.line[:0]
		} else {
			out = s.stamp(out)
		}
		out = append(out, b[:end]...)
		b = b[end:]
	}
	switch {
	case len(b) == 0:
	case bytes.IndexByte(b, '\r') >= 0 || len(s.line)+len(b) > longest:
		if len(s.line) == 0 {
			out = s.stamp(out)
		}
		out = append(append(append(out, s.line...), b...), '\n')
		s.line = s.line[:0]
		s.goesOn = true
	default:
		if len(s.line) == 0 {
			s.line = s.stamp(s.line)
		}
		s.line = append(s.line, b...)
	}
	return out
}

// Flush appends to out what is kept, as a whole line.
func (s *Stamper) Flush(out []byte) []byte {
	if len(s.line) > 0 {
		out = append(append(out, s.line...), '\n')
		s.line = s.line[:0]
	}
	return out
}

func (s *Stamper) stamp(out []byte) []byte {
	const digits = "0123456789abcdef"
	out = s.now().UTC().AppendFormat(out, "2006-01-02T15:04:05.000000Z ")
	mark := byte(' ')
	if s.goesOn {
		mark = '+'
	}
	s.goesOn = false
	return append(out, digits[s.stream>>4], digits[s.stream&15], 'O', mark)
}
