//go:build unix

package archive

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// gains tells whether packed is worth unpacking.
func gains(packed, plain int) bool { return packed < plain-plain/64 }

// compressor compresses whole files and blocks of files. Several goroutines use it. There is no look ahead at whether it
// pays: the library notices quickly where nothing repeats. It would miss what only Huffman's codes make smaller, as base64.
type compressor struct {
	buffers *buffers
	level   int // of deflate
	zstd    *zstd.Encoder
	writers stack[*flate.Writer]
	huffman stack[*flate.Writer]
}

// whole compresses a file. Without gain packed stays nil.
func (c *compressor) whole(p *piece) error {
	p.crc = crc32.ChecksumIEEE(p.plain)
	if c.zstd == nil && c.level == 0 || len(p.plain) == 0 {
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
	if c.level != 0 {
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
	var err error
	if c.zstd != nil {
		out = c.zstd.EncodeAll(p.plain, out)
	} else {
		out, err = deflate(&c.writers, c.level, p.plain, out, final)
		if err == nil && !gains(len(out), len(p.plain)) && fewBits(p.plain) {
			out, err = deflate(&c.huffman, flate.HuffmanOnly, p.plain, out[:0], final)
		}
	}
	if err == nil && gains(len(out), len(p.plain)) {
		p.packed = out
	} else {
		c.buffers.put(out)
	}
	return err
}

// deflate compresses into out, and no more than plain has bytes: then, it returns so many.
func deflate(writers *stack[*flate.Writer], level int, plain, out []byte, final bool) ([]byte, error) {
	w, ok := writers.pop()
	if !ok {
		var err error
		if w, err = flate.NewWriter(nil, level); err != nil {
			return out, err
		}
	}
	defer writers.push(w)
	to := &bounded{b: out[:0:len(plain)]}
	w.Reset(to)
	_, err := w.Write(plain)
	switch {
	case err != nil:
	case final:
		err = w.Close()
	default:
		err = w.Flush()
	}
	if errors.Is(err, errNoGain) {
		return out[:len(plain)], nil
	}
	return out[:len(to.b)], err
}

// fewBits tells, by a look at some of b, whether its bytes could do with a twentieth less bits.
func fewBits(b []byte) bool {
	const parts, part = 4, 1 << 10
	var counts [256]int
	n := 0
	count := func(b []byte) {
		n += len(b)
		for _, c := range b {
			counts[c]++
		}
	}
	if len(b) <= parts*part {
		count(b)
	} else {
		for i := range parts {
			at := i * (len(b) - part) / (parts - 1)
			count(b[at : at+part])
		}
	}
	bits := 0.0
	for _, c := range counts {
		if c > 0 {
			bits -= float64(c) * math.Log2(float64(c)/float64(n))
		}
	}
	return bits < 7.6*float64(n)
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
