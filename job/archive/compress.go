//go:build unix

package archive

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/klauspost/compress"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// incompressible tells whether compressing b is a waste of time, by a look at parts of it.
func incompressible(b []byte) bool {
	const part = 4 << 10
	if len(b) <= 4*part {
		return len(b) >= 1<<10 && compress.Estimate(b) < 0.05
	}
	for i := range 4 {
		at := i * (len(b) - part) / 3
		if compress.Estimate(b[at:at+part]) >= 0.05 {
			return false
		}
	}
	return true
}

// gains tells whether packed is worth unpacking.
func gains(packed, plain int) bool { return packed < plain-plain/64 }

// compressor compresses whole files and blocks of files. Several goroutines use it.
type compressor struct {
	buffers *buffers
	level   int // of deflate
	zstd    *zstd.Encoder
	writers stack[*flate.Writer]
}

// whole compresses a file. Without gain packed stays nil.
func (c *compressor) whole(p *piece) error {
	p.crc = crc32.ChecksumIEEE(p.plain)
	if c.zstd == nil && c.level == 0 || len(p.plain) == 0 || incompressible(p.plain) {
		return nil
	}
	return c.try(p, true)
}

// block compresses a block of a file so that what all blocks give, one after another, is one stream.
func (c *compressor) block(p *piece) error {
	if c.zstd != nil {
		p.packed = c.zstd.EncodeAll(p.plain, c.buffers.get(len(p.plain))[:0])
		return nil
	}
	if c.level != 0 && !incompressible(p.plain) {
		if err := c.try(p, false); err != nil {
			return err
		}
	}
	if p.packed == nil {
		p.packed = storedBlocks(c.buffers.get(len(p.plain))[:0], p.plain) // buffers have room for its headers
	}
	if p.last {
		p.packed = append(p.packed, emptyFinalBlock...)
	}
	return nil
}

// emptyFinalBlock ends a deflate stream at the boundary of a byte.
const emptyFinalBlock = "\x03\x00"

// storedBlocks appends plain as deflate's blocks that are not compressed (RFC 1951, 3.2.4), none of them the final one.
func storedBlocks(b, plain []byte) []byte {
	for len(plain) > 0 {
		n := min(len(plain), 1<<16-1)
		b = append(b, 0)
		b = binary.LittleEndian.AppendUint16(b, uint16(n))
		b = binary.LittleEndian.AppendUint16(b, ^uint16(n))
		b = append(b, plain[:n]...)
		plain = plain[n:]
	}
	return b
}

// errNoGain ends a compression that makes nothing smaller.
var errNoGain = errors.New("no gain")

// try compresses; packed stays nil if that does not pay.
func (c *compressor) try(p *piece, final bool) error {
	out := c.buffers.get(len(p.plain))[:0]
	if c.zstd != nil {
		out = c.zstd.EncodeAll(p.plain, out)
	} else {
		to := &bounded{b: out[:0:len(p.plain)]}
		if err := c.deflate(p.plain, to, final); errors.Is(err, errNoGain) {
			c.buffers.put(out)
			return nil
		} else if err != nil {
			return err
		}
		out = out[:len(to.b)]
	}
	if gains(len(out), len(p.plain)) {
		p.packed = out
	} else {
		c.buffers.put(out)
	}
	return nil
}

func (c *compressor) deflate(plain []byte, to *bounded, final bool) error {
	w, ok := c.writers.pop()
	if !ok {
		var err error
		if w, err = flate.NewWriter(nil, c.level); err != nil {
			return err
		}
	}
	defer c.writers.push(w)
	w.Reset(to)
	if _, err := w.Write(plain); err != nil {
		return err
	}
	if final {
		return w.Close()
	}
	return w.Flush()
}

// bounded is a buffer that refuses to grow.
type bounded struct{ b []byte }

func (b *bounded) Write(p []byte) (int, error) {
	if len(b.b)+len(p) > cap(b.b) {
		return 0, errNoGain
	}
	b.b = append(b.b, p...)
	return len(p), nil
}
