// Package masking hides secrets in a stream of bytes. What is hidden is a property of the stream alone, never of how it
// was cut into pieces:
//
//   - every byte of every occurrence of a phrase (the value of a masked variable);
//   - what follows a token prefix such as "glpat-", as far as it is made of [0-9A-Za-z._=-];
//   - the value of a sensitive URL parameter, up to the next '?', '&', white space or control character.
//
// Each run of bytes that overlapping rules hide becomes one "[MASKED]"; prefixes and parameter names stay visible.
// gitlab-runner does the same with one filter after another (longest phrase first); where occurrences overlap it shows
// the rest of the shorter one, and this package does not. Nor is the number of token prefixes limited here.
package masking

import (
	"encoding/binary"
	"slices"
	"strings"
)

// Mask stands for what is hidden.
const Mask = "[MASKED]"

// DefaultTokenPrefixes are those of GitLab's own tokens.
func DefaultTokenPrefixes() []string {
	return []string{
		"glpat-", "gloas-", "gldt-", "glrt-", "glcbt-", "glrtr-", "glptt-", "glft-", "glimt-", "glagent-", "glsoat-",
		"glffct-", "_gitlab_session=", "gltok-",
	}
}

var sensitiveParameters = [...]string{
	"private_token", "authenticity_token", "rss_token", "x-amz-signature", "x-amz-credential", "x-amz-security-token",
}

type kind uint8

const (
	phrase    kind = iota // hide the occurrence
	token                 // hide what follows in the token alphabet
	parameter             // hide what follows up to the end of a URL parameter; letters match in either case
)

type pattern struct {
	text string
	kind kind
	next int32 // in its bucket, -1 ends
}

// hidden is a run of bytes to hide, in buffer positions. An open one goes on with the stream.
type hidden struct {
	start, end int
	kind       kind
	open       bool
	shown      bool // its mask has been emitted
}

// Masker masks one stream. It is not for concurrent use.
//
// The stream is written to it without a copy: Space gives room, Advance says how much of it was filled.
type Masker struct {
	patterns []pattern
	search   index

	buf     []byte
	n       int      // bytes in buf that are not decided yet
	covered int      // up to here they are hidden by what was shown
	runs    []hidden // sorted by start; not shown, or open
	out     []byte
	here    []int32 // patterns other than phrases that occur at the place that is looked at
}

// New makes a masker. Phrases are trimmed of white space; empty ones are ignored, as are empty prefixes.
func New(phrases, tokenPrefixes []string) *Masker {
	m := &Masker{}
	seen := map[string]bool{}
	for _, p := range phrases {
		if p = strings.TrimSpace(p); p != "" && !seen[p] {
			seen[p] = true
			m.patterns = append(m.patterns, pattern{text: p, kind: phrase})
		}
	}
	clear(seen)
	for _, p := range tokenPrefixes {
		if p = strings.TrimSpace(p); p != "" && !seen[p] {
			seen[p] = true
			m.patterns = append(m.patterns, pattern{text: p, kind: token})
		}
	}
	for _, p := range sensitiveParameters {
		m.patterns = append(m.patterns, pattern{text: "?" + p + "=", kind: parameter}, pattern{text: "&" + p + "=", kind: parameter})
	}
	m.search.build(m.patterns)
	return m
}

// Space returns at least size bytes to be filled with what comes next in the stream. It is valid until the next call of
// any method.
func (m *Masker) Space(size int) []byte {
	if cap(m.buf)-m.n < size {
		const slack = 16 << 10 // for what is usually held
		m.buf = append(make([]byte, 0, size+m.n+max(m.n/2, slack)), m.buf[:m.n]...)
	}
	m.buf = m.buf[:cap(m.buf)]
	return m.buf[m.n:]
}

// Advance takes the first k bytes of the space and calls emit with what is decided now; what it is called with is valid
// during the call only. Bytes that may begin something to hide stay until more of the stream, or Flush, decides.
func (m *Masker) Advance(k int, emit func([]byte)) {
	fresh := m.n
	m.n += k
	m.buf = m.buf[:m.n]
	m.extend(fresh)
	limit := m.scan(false)
	m.emit(limit, false, emit)
	m.drop(limit)
}

// Write is Space and Advance for bytes that are elsewhere already.
func (m *Masker) Write(b []byte, emit func([]byte)) {
	copy(m.Space(len(b)), b)
	m.Advance(len(b), emit)
}

// Flush ends the stream: all that is held is decided. The masker can then be used for another.
func (m *Masker) Flush(emit func([]byte)) {
	m.buf = m.buf[:m.n]
	m.scan(true)
	m.emit(m.n, true, emit)
	m.n, m.covered, m.runs = 0, 0, m.runs[:0]
}

// extend lets open runs grow into the bytes from fresh on.
func (m *Masker) extend(fresh int) {
	for i := range m.runs {
		r := &m.runs[i]
		if r.open {
			r.end, r.open = m.tail(fresh, r.kind)
			if r.shown {
				m.covered = max(m.covered, r.end)
			}
		}
	}
	m.runs = slices.DeleteFunc(m.runs, func(r hidden) bool { return !r.open && r.shown })
}

// tail returns where what is hidden from position at on ends, and whether the end has not been seen yet.
func (m *Masker) tail(at int, k kind) (end int, open bool) {
	class := tokenByte
	if k == parameter {
		class = parameterByte
	}
	for ; at < len(m.buf); at++ {
		if classes[m.buf[at]]&class == 0 {
			return at, false
		}
	}
	return at, true
}

// found notes the pattern that occurs at start.
func (m *Masker) found(start int, p *pattern) {
	r := hidden{start: start, end: start + len(p.text), kind: p.kind}
	if p.kind != phrase {
		r.start = r.end
		r.end, r.open = m.tail(r.start, p.kind)
		if p.kind == token && !r.open && r.end == r.start {
			return
		}
	}
	m.runs = append(m.runs, r)
	// Nearly sorted: only what follows a prefix may begin after later finds.
	for i := len(m.runs) - 1; i > 0 && m.runs[i].start < m.runs[i-1].start; i-- {
		m.runs[i], m.runs[i-1] = m.runs[i-1], m.runs[i]
	}
}

// emit passes on the bytes before limit.
func (m *Masker) emit(limit int, last bool, emit func([]byte)) {
	m.out = m.out[:0]
	at, keep := 0, 0
	for i := range m.runs {
		r := m.runs[i]
		if r.shown {
			m.runs[keep] = r
			keep++
			continue
		}
		if r.kind == token && r.start == r.end && (last || !r.open) {
			continue // a prefix that nothing follows
		}
		if r.start >= limit && !last {
			m.runs[keep] = r
			keep++
			continue
		}
		if r.start >= m.covered {
			m.out = append(m.out, m.buf[max(at, m.covered):max(at, m.covered, r.start)]...)
			m.out = append(m.out, Mask...)
			at = r.start
		}
		m.covered = max(m.covered, r.end)
		if r.open {
			r.shown = true
			m.runs[keep] = r
			keep++
		}
	}
	m.runs = m.runs[:keep]
	at = max(at, m.covered)
	switch {
	case len(m.out) > 0:
		if at < limit {
			m.out = append(m.out, m.buf[at:limit]...)
		}
		emit(m.out)
	case at < limit:
		emit(m.buf[at:limit])
	}
}

// drop forgets the bytes before limit.
func (m *Masker) drop(limit int) {
	copy(m.buf, m.buf[limit:m.n])
	m.n -= limit
	m.covered = max(0, m.covered-limit)
	for i := range m.runs {
		m.runs[i].start -= limit
		m.runs[i].end -= limit
	}
}

const (
	tokenByte     uint8 = 1
	parameterByte uint8 = 2
)

// classes says of each byte where it can be hidden.
var classes = func() (c [256]uint8) {
	for b := range 256 {
		switch {
		case b >= '0' && b <= '9', b >= 'A' && b <= 'Z', b >= 'a' && b <= 'z',
			b == '-', b == '.', b == '_', b == '=':
			c[b] = tokenByte | parameterByte
		case b > ' ' && b != 0x7f && b != '?' && b != '&':
			c[b] = parameterByte
		}
	}
	return c
}()

// matches compares p with b, which may be shorter.
func (p *pattern) matches(b []byte) bool {
	if p.kind != parameter {
		return p.text[:len(b)] == string(b)
	}
	for i, c := range b {
		if lower(c) != p.text[i] {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c | 0x20
	}
	return c
}

func load(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
