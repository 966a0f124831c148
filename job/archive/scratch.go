//go:build unix

package archive

import (
	"bufio"
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// scratch is what one goroutine needs to decompress, made when it is needed and used again.
type scratch struct {
	in, out  []byte
	small    bytes.Reader
	buffered *bufio.Reader
	inflater io.ReadCloser
	whole    *zstd.Decoder
	stream   *zstd.Decoder
}

func (s *scratch) close() {
	if s.whole != nil {
		s.whole.Close()
	}
	if s.stream != nil {
		s.stream.Close()
	}
}

// large is a buffer to copy with.
func (s *scratch) large() []byte {
	if s.out == nil {
		s.out = make([]byte, blockSize)
	}
	return s.out
}

// compressedBuffer is a buffer of n bytes for what is compressed.
func (s *scratch) compressedBuffer(n int) []byte {
	if cap(s.in) < n {
		s.in = make([]byte, max(n, 64<<10))
	}
	return s.in[:n]
}

// inflate decompresses deflate. r must be an io.ByteReader.
func (s *scratch) inflate(r io.Reader) (io.Reader, error) {
	if s.inflater == nil {
		s.inflater = flate.NewReader(r)
		return s.inflater, nil
	}
	resetter, ok := s.inflater.(flate.Resetter)
	if !ok {
		return nil, fmt.Errorf("flate.NewReader gives a %T", s.inflater)
	}
	return s.inflater, resetter.Reset(r, nil)
}

// unzstd decompresses zstd as a stream.
func (s *scratch) unzstd(r io.Reader) (io.Reader, error) {
	if s.stream == nil {
		var err error
		s.stream, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		return s.stream, err
	}
	return s.stream, s.stream.Reset(r)
}

// stored reads through a large buffer.
func (s *scratch) stored(r io.Reader) *bufio.Reader {
	if s.buffered == nil {
		s.buffered = bufio.NewReaderSize(r, 128<<10)
	} else {
		s.buffered.Reset(r)
	}
	return s.buffered
}

// exactly decompresses b, which is all of a file of size bytes, size being at most blockSize.
func (s *scratch) exactly(method uint16, b []byte, size int) ([]byte, error) {
	out := s.large()[:size]
	switch method {
	case methodStored:
		out = b
	case methodDeflate:
		s.small.Reset(b)
		r, err := s.inflate(&s.small)
		if err == nil {
			_, err = io.ReadFull(r, out)
		}
		if err != nil {
			return nil, corrupt(err)
		}
		var more [1]byte
		if n, err := r.Read(more[:]); n > 0 || err == nil {
			return nil, fmt.Errorf("%w: it is longer than the archive says (%d bytes)", ErrCorrupt, size)
		}
	default:
		if s.whole == nil {
			var err error
			s.whole, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true),
				zstd.WithDecoderMaxMemory(maxWindow))
			if err != nil {
				return nil, err
			}
		}
		var err error
		if out, err = s.whole.DecodeAll(b, s.large()[:0:size]); err != nil {
			return nil, corrupt(err)
		}
	}
	if len(out) != size {
		return nil, fmt.Errorf("%w: it has %d bytes, the archive says %d", ErrCorrupt, len(out), size)
	}
	return out, nil
}
