// Package trace writes a job's own part of its trace: counted, checksummed and limited.
package trace

import (
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf8"
)

// DefaultLimit is gitlab-runner's limit of a trace's length in bytes.
const DefaultLimit = 4 << 20

// Writer appends to the trace file. It is not for concurrent use.
//
// Its Write never fails, because a job goes on when its trace cannot: what could not be written is dropped, with all that
// follows, and Err says why.
type Writer struct {
	file  io.Writer
	grown func(length int64)

	prefix int64
	limit  int64
	length int64
	crc    uint32

	reason string // for the notice

	// held are the first bytes of a character that would be cut by the limit if the next byte does not fit.
	held   []byte
	closed bool // the limit was reached
	err    error
}

// NewWriter appends to file, after a prefix of that length and checksum (CRC-32, IEEE). The whole trace gets at most limit
// bytes, and then the notice that it was cut; a limit of 0 or less is DefaultLimit. grown is called with the file's length
// whenever it has grown; it must not block.
func NewWriter(file io.Writer, prefix int64, crc uint32, limit int64, grown func(length int64)) *Writer {
	if limit <= 0 {
		limit = DefaultLimit
	}
	return &Writer{file: file, grown: grown, prefix: prefix, crc: crc, limit: limit}
}

// LimitReason is a line that the notice has, too: whose limit it is. It is for before the first Write.
func (w *Writer) LimitReason(line string) { w.reason = line }

// Length is the length of what was written to the file, in bytes.
func (w *Writer) Length() int64 { return w.length }

// CRC32 is the checksum of prefix and file together.
func (w *Writer) CRC32() uint32 { return w.crc }

// Err is why the trace is incomplete, or nil. The limit is no error.
func (w *Writer) Err() error { return w.err }

// Write appends b, as far as limit and file allow.
func (w *Writer) Write(b []byte) {
	if len(b) == 0 || w.closed || w.err != nil {
		return
	}
	if len(w.held) > 0 {
		b = append(w.held, b...)
		w.held = nil
	}
	room := w.limit - w.prefix - w.length
	if int64(len(b)) > room {
		w.closed = true
		w.append(b[:wholeCharacters(b[:max(room, 0)])])
		reason := w.reason
		if reason != "" {
			reason += "\n"
		}
		w.append(fmt.Appendf(nil, "\n\x1b[33;1mJob's log exceeded limit of %d bytes.\n%s"+
			"Job execution will continue but no more output will be collected.\x1b[0;m\n", w.limit, reason))
		return
	}
	if room-int64(len(b)) < utf8.UTFMax {
		whole := wholeCharacters(b)
		w.held = append([]byte(nil), b[whole:]...)
		b = b[:whole]
	}
	w.append(b)
}

// Close writes what is held. The file stays open: it is the caller's.
func (w *Writer) Close() {
	b := w.held
	w.held = nil
	w.append(b)
}

// Notice appends text beyond the limit and in spite of an earlier error; it is for saying that the trace is incomplete.
func (w *Writer) Notice(text string) {
	err := w.err
	w.err = nil
	w.append([]byte(text))
	if err != nil {
		w.err = err
	}
}

func (w *Writer) append(b []byte) {
	if len(b) == 0 || w.err != nil {
		return
	}
	n, err := w.file.Write(b)
	n = max(0, min(n, len(b)))
	w.crc = crc32.Update(w.crc, crc32.IEEETable, b[:n])
	w.length += int64(n)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		w.err = fmt.Errorf("write the trace: %w", err)
	}
	if n > 0 {
		w.grown(w.length)
	}
}

// wholeCharacters is the length of b without an incomplete UTF-8 sequence at its end. What is no UTF-8 at all is whole.
func wholeCharacters(b []byte) int {
	for back := 1; back < utf8.UTFMax && back <= len(b); back++ {
		if c := b[len(b)-back]; utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[len(b)-back:]) {
				return len(b) - back
			}
			break
		}
	}
	return len(b)
}
