package masking

import (
	"encoding/binary"
	"math/bits"
)

// index finds where patterns may begin. All patterns are at least shortest bytes long, so any occurrence holds a gram
// (width bytes) that begins at one of its first stride bytes: it is enough to look at every stride-th position, without
// any dependence of one look on another, and to ask a small table whether the gram there is in some pattern. Grams are
// compared without regard to case, which only makes them a little less sharp.
type index struct {
	width, stride int
	mask          uint32               // of a gram in a loaded word
	grams         [1 << gramBits]uint8 // 1 or 0

	// heads are lists of patterns by the hash of their first width bytes; first are those by their first byte.
	heads     []int32
	headShift uint
	first     [256][]int32
	begins    [256]bool
}

const (
	hash     = 0x9e3779b1
	gramBits = 14
	noMore   = -1
	maxWidth = 4
	fold     = 0x20202020
)

func (x *index) build(patterns []pattern) {
	shortest := len(patterns[0].text)
	for _, p := range patterns {
		shortest = min(shortest, len(p.text))
	}
	switch {
	case shortest < maxWidth:
		x.width, x.stride = shortest, 1
	case shortest == maxWidth:
		x.width, x.stride = maxWidth-1, 2
	default:
		x.width, x.stride = maxWidth, min(shortest-maxWidth+1, 16)
	}
	x.mask = uint32(1<<(8*x.width) - 1)
	headBits := min(20, max(6, bits.Len(uint(2*len(patterns)))))
	x.heads = make([]int32, 1<<headBits)
	x.headShift = 32 - uint(headBits)
	for i := range x.heads {
		x.heads[i] = noMore
	}
	for i := range patterns {
		p := &patterns[i]
		p.next = noMore
		x.first[p.text[0]] = append(x.first[p.text[0]], int32(i))
		x.begins[p.text[0]] = true
		for at := range x.stride {
			x.grams[gramOf(x.word(p.text[at:])&x.mask)] = 1
		}
		// Patterns whose letters match in either case are few and begin with '?' or '&': match finds them by their first
		// byte.
		if p.kind != parameter {
			h := x.word(p.text) & x.mask * hash >> x.headShift
			p.next, x.heads[h] = x.heads[h], int32(i)
		}
	}
}

func gramOf(word uint32) uint32 { return (word | fold) * hash >> (32 - gramBits) }

// word is the first width bytes of text.
func (x *index) word(text string) (w uint32) {
	for i := range x.width {
		w |= uint32(text[i]) << (8 * i)
	}
	return w
}

// scan finds all occurrences that begin in the buffer and returns the position up to which it is sure of having done so:
// the first place where a pattern may begin whose end is not in the buffer yet, or the buffer's length. If last is true no
// more will come, and it is always the latter.
func (m *Masker) scan(last bool) int {
	x, b := &m.search, m.buf
	mask, stride := x.mask, x.stride
	i := stride - 1
	for i+maxWidth <= len(b) {
		// As long as nothing is found, several looks at once. A stride of two is what GitLab's shortest token prefix leads
		// to, so it has a way of its own with fewer loads.
		if stride == 2 && mask == 1<<32-1 {
			for i+14 <= len(b) {
				near, far := binary.LittleEndian.Uint64(b[i:]), binary.LittleEndian.Uint64(b[i+6:])
				if x.grams[gramOf(uint32(near))]|x.grams[gramOf(uint32(near>>16))]|x.grams[gramOf(uint32(near>>32))]|
					x.grams[gramOf(uint32(far))]|x.grams[gramOf(uint32(far>>16))]|x.grams[gramOf(uint32(far>>32))] != 0 {
					break
				}
				i += 12
			}
		} else {
			for i+3*stride+maxWidth <= len(b) {
				if x.grams[gramOf(load(b, i)&mask)]|x.grams[gramOf(load(b, i+stride)&mask)]|
					x.grams[gramOf(load(b, i+2*stride)&mask)]|x.grams[gramOf(load(b, i+3*stride)&mask)] != 0 {
					break
				}
				i += 4 * stride
			}
		}
		if i+maxWidth > len(b) {
			break
		}
		if x.grams[gramOf(load(b, i)&mask)] != 0 {
			for start := i - stride + 1; start <= i; start++ {
				if x.begins[b[start]] && !m.match(start, last) {
					return start
				}
			}
		}
		i += stride
	}
	for start := i - stride + 1; start < len(b); start++ {
		if x.begins[b[start]] && !m.match(start, last) {
			return start
		}
	}
	return len(b)
}

// match notes what occurs at start. It returns false, and has noted nothing, if more of the stream may change that.
func (m *Masker) match(start int, last bool) bool {
	x, rest := &m.search, m.buf[start:]
	m.here = m.here[:0]
	longest := int32(noMore)
	try := func(i int32) bool {
		p := &m.patterns[i]
		switch {
		case !p.matches(rest[:min(len(rest), len(p.text))]):
			return true
		case len(rest) < len(p.text):
			return last
		case p.kind != phrase:
			m.here = append(m.here, i)
		case longest == noMore || len(m.patterns[longest].text) < len(p.text):
			longest = i
		}
		return true
	}
	if len(rest) >= maxWidth && rest[0] != '?' && rest[0] != '&' {
		gram := load(rest, 0) & x.mask
		for i := x.heads[gram*hash>>x.headShift]; i != noMore; i = m.patterns[i].next {
			if !try(i) {
				return false
			}
		}
	} else {
		for _, i := range x.first[rest[0]] {
			if !try(i) {
				return false
			}
		}
	}
	if longest != noMore {
		m.found(start, &m.patterns[longest])
	}
	for _, i := range m.here {
		m.found(start, &m.patterns[i])
	}
	return true
}
