//go:build unix

package attach

import (
	"encoding/binary"
	"encoding/json"
	"io"
)

const (
	headLength   = 5 // kind, and the content's length, big endian
	offsetLength = 8
)

// writer writes frames, each with one call of Write.
type writer struct {
	w   io.Writer
	buf []byte
	// data is the buffer of a Data frame, with room for head and offset before the trace's bytes.
	data []byte
}

func (w *writer) frame(kind Kind, content []byte) error {
	w.buf = appendHead(w.buf[:0], kind, len(content))
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

// room is where the next piece of trace is to be put.
func (w *writer) room() []byte {
	if w.data == nil {
		w.data = make([]byte, headLength+offsetLength+MaxData)
	}
	return w.data[headLength+offsetLength:]
}

// trace writes the first n bytes of room as the trace's bytes from offset on.
func (w *writer) trace(offset int64, n int) error {
	b := appendHead(w.data[:0], Data, offsetLength+n)
	b = binary.BigEndian.AppendUint64(b, uint64(offset)) //nolint:gosec // G115: it is not negative
	_, err := w.w.Write(b[:len(b)+n])
	return err
}

func appendHead(b []byte, kind Kind, length int) []byte {
	return binary.BigEndian.AppendUint32(append(b, byte(kind)), uint32(length)) //nolint:gosec // G115: below the kind's limit
}

// Fail writes a stream that says only why there is none.
func Fail(out io.Writer, why error) { (&writer{w: out}).fail(why) }

func (w *writer) fail(why error) {
	text := why.Error()
	if most := int(Failed.limit()); len(text) > most {
		text = text[:most]
	}
	// Whoever cannot be told sees the end of the stream.
	_ = w.frame(Failed, []byte(text))
}
