// Package tracetext turns the bytes of a job's trace into lines that may be printed on a terminal, whoever wrote them: no
// control sequence but colours, no control character but tabs, no half characters, no invisible reordering. Sections'
// markers are left out, and what a carriage return or a backspace overwrites is gone, as on a terminal.
package tracetext

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// DefaultMaxLine is the greatest length of a line in bytes.
const DefaultMaxLine = 16 << 10

// maxSequence is the longest control sequence that may be a colour, in bytes.
const maxSequence = 48

// Lines is the state between two pieces of one trace.
type Lines struct {
	color   bool
	maxLine int

	line     []byte
	colored  int  // how many bytes of line are colours
	colorEnd int  // line[:colorEnd] ends with a colour: a backspace does not reach into it
	cr       bool // a carriage return whose effect depends on what follows
	state    state
	sequence []byte  // of the control sequence under way
	partial  [4]byte // of a character that is not complete
	partialN int
	begin    style // at the begin of the line
	now      style
}

type state uint8

const (
	text       state = iota
	escape           // after ESC
	control          // after CSI
	str              // in a string (OSC, DCS, APC, PM, SOS), which ends with BEL or ST
	strEscape        // in a string, after ESC
	designator       // after ESC and an intermediate byte: one more
)

// New makes the state for the begin of a trace. With color, colours and other attributes of text stay in the lines; each
// line sets those that it begins with and ends with a reset. maxLine is the greatest length of a line in bytes without
// its colours, 0 for the default; longer ones are broken.
func New(color bool, maxLine int) *Lines {
	if maxLine <= 0 {
		maxLine = DefaultMaxLine
	}
	return &Lines{color: color, maxLine: maxLine}
}

// Write takes the next piece of the trace and calls emit with each line that is complete.
func (l *Lines) Write(p []byte, emit func(line string)) {
	for len(p) > 0 {
		if l.state == text && l.partialN == 0 && !l.cr {
			n := plain(p)
			n = min(n, l.maxLine-l.length())
			l.line = append(l.line, p[:n]...)
			if p = p[n:]; len(p) == 0 {
				return
			}
		}
		r, size := l.decode(p)
		p = p[size:]
		if r >= 0 {
			l.rune(r, emit)
		}
	}
}

// Flush emits what there is of a last line without a line break.
func (l *Lines) Flush(emit func(line string)) {
	for range l.partialN {
		l.put(utf8.RuneError, emit)
	}
	l.partialN, l.state, l.sequence = 0, text, l.sequence[:0]
	if l.cr {
		l.overwrite(emit)
	}
	if l.length() > 0 {
		l.end(emit)
	}
}

// plain is the length of the printable ASCII that p begins with.
func plain(p []byte) int {
	for i, c := range p {
		if c < ' ' || c > '~' {
			return i
		}
	}
	return len(p)
}

// decode returns the next character of p and how many bytes of p it takes; -1 if p ends within it.
func (l *Lines) decode(p []byte) (rune, int) {
	if l.partialN == 0 {
		if !utf8.FullRune(p) {
			l.partialN = copy(l.partial[:], p)
			return -1, len(p)
		}
		return utf8.DecodeRune(p)
	}
	had := l.partialN
	n := copy(l.partial[had:], p)
	whole := l.partial[:had+n]
	if !utf8.FullRune(whole) {
		l.partialN = had + n
		return -1, n
	}
	r, size := utf8.DecodeRune(whole)
	if size >= had {
		l.partialN = 0
		return r, size - had
	}
	// What was taken for the begin of a character was none: its first byte is wrong, the others are looked at again.
	l.partialN = copy(l.partial[:], l.partial[size:had])
	return r, 0
}

func (l *Lines) rune(r rune, emit func(string)) {
	if r == '\n' {
		l.state, l.sequence = text, l.sequence[:0]
		if l.cr && marker(l.line[l.colorEnd:]) >= 0 {
			l.overwrite(emit)
			return
		}
		l.end(emit)
		return
	}
	switch l.state {
	case text:
		l.text(r, emit)
	case escape:
		l.escape(r)
	case control:
		l.control(r, emit)
	case designator:
		l.state = text
	case strEscape:
		l.state = text // ST, or any other escape, which ends the string too
	case str:
		switch r {
		case 0x07, 0x18, 0x1a, 0x9c:
			l.state = text
		case 0x1b:
			l.state = strEscape
		}
	}
}

func (l *Lines) text(r rune, emit func(string)) {
	switch r {
	case '\r':
		l.cr = true
		return
	case 0x1b:
		l.state = escape
		return
	case 0x9b:
		l.state, l.sequence = control, l.sequence[:0]
		return
	case 0x90, 0x98, 0x9d, 0x9e, 0x9f:
		l.state = str
		return
	}
	if l.cr {
		l.overwrite(emit)
	}
	switch {
	case r == '\b':
		if len(l.line) > l.colorEnd {
			_, size := utf8.DecodeLastRune(l.line)
			l.line = l.line[:len(l.line)-size]
		}
	case r == '\u2028' || r == '\u2029':
		l.put(' ', emit)
	case r == '\t' || visible(r):
		l.put(r, emit)
	}
}

// visible says whether a character has no effect but its own picture. Format characters can reorder or hide what is
// around them; the two joiners cannot.
func visible(r rune) bool {
	return !unicode.Is(unicode.Cc, r) && (!unicode.Is(unicode.Cf, r) || r == '\u200c' || r == '\u200d')
}

func (l *Lines) put(r rune, emit func(string)) {
	if l.length()+utf8.RuneLen(r) > l.maxLine {
		l.end(emit)
	}
	l.line = utf8.AppendRune(l.line, r)
}

func (l *Lines) escape(r rune) {
	switch {
	case r == '[':
		l.state, l.sequence = control, l.sequence[:0]
	case r == ']' || r == 'P' || r == 'X' || r == '^' || r == '_':
		l.state = str
	case r == 0x1b:
	case r >= ' ' && r <= '/':
		l.state = designator
	default:
		l.state = text
	}
}

func (l *Lines) control(r rune, emit func(string)) {
	switch {
	case r == 0x1b:
		l.state = escape
	case r == 0x18 || r == 0x1a:
		l.state = text
	case r >= '@' && r <= '~':
		l.state = text
		switch {
		case r == 'm' && l.color && len(l.sequence) < maxSequence:
			l.setStyle()
		case r == 'K' && l.cr:
			l.overwrite(emit)
		}
	case r < utf8.RuneSelf && len(l.sequence) < maxSequence:
		l.sequence = append(l.sequence, byte(r))
	case len(l.sequence) < maxSequence:
		l.sequence = append(l.sequence, '?') // no colour
	}
}

func (l *Lines) setStyle() {
	was := l.now
	if !l.now.apply(string(l.sequence)) || l.now == was {
		return
	}
	if l.length() == 0 {
		l.line, l.colored, l.begin = l.line[:0], 0, l.now
		l.colorEnd = 0
		return
	}
	whole := l.now.sequence()
	if l.colored+len(whole) > l.maxLine {
		return // nothing but colours; the next line has the right one
	}
	l.line = append(l.line, whole...)
	l.colored += len(whole)
	l.colorEnd = len(l.line)
}

// overwrite lets a carriage return take effect: what follows is not a line break. A section's marker ends with one.
func (l *Lines) overwrite(emit func(string)) {
	l.cr = false
	if at := marker(l.line[l.colorEnd:]); at >= 0 {
		l.line = l.line[:l.colorEnd+at]
		if l.length() > 0 {
			l.end(emit)
			return
		}
	}
	l.clear()
}

// marker returns where the section marker begins that a line ends with, or -1.
func marker(line []byte) int {
	at := bytes.LastIndex(line, []byte("section_"))
	if at < 0 {
		return -1
	}
	kind, rest, _ := bytes.Cut(line[at+len("section_"):], []byte(":"))
	stamp, name, ok := bytes.Cut(rest, []byte(":"))
	if string(kind) != "start" && string(kind) != "end" || !ok || len(stamp) == 0 || len(bytes.Trim(stamp, "0123456789")) > 0 {
		return -1
	}
	if open := bytes.IndexByte(name, '['); open >= 0 && name[len(name)-1] == ']' {
		name = name[:open]
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '.' && c != '-' {
			return -1
		}
	}
	if len(name) == 0 {
		return -1
	}
	return at
}

// Partial is what there is of a line that is not complete: a prompt, a progress bar. It is as safe as a whole line.
func (l *Lines) Partial() string {
	if l.cr && marker(l.line[l.colorEnd:]) >= 0 {
		return ""
	}
	return l.whole()
}

// end emits the line.
func (l *Lines) end(emit func(string)) {
	emit(l.whole())
	l.clear()
}

// whole is the line with its colours.
func (l *Lines) whole() string {
	switch {
	case l.begin == style{} && l.colored == 0:
		return string(l.line)
	case l.begin == style{}:
		return string(l.line) + reset
	default:
		return l.begin.sequence() + string(l.line) + reset
	}
}

// clear begins a new line.
func (l *Lines) clear() {
	l.line, l.colored, l.colorEnd, l.cr = l.line[:0], 0, 0, false
	l.begin = l.now
}

// length is how many bytes of text the line has.
func (l *Lines) length() int { return len(l.line) - l.colored }

// Clean makes one line of a short text that somebody else wrote, a job's name for example.
func Clean(s string) string {
	var parts []string
	l := New(false, 0)
	l.Write([]byte(s), func(line string) { parts = append(parts, line) })
	l.Flush(func(line string) { parts = append(parts, line) })
	return strings.ReplaceAll(strings.Join(parts, " "), "\t", " ")
}

// Bare returns a line of Lines without its colours.
func Bare(line string) string {
	if !strings.Contains(line, "\x1b") {
		return line
	}
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(line, "\x1b")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		_, line, _ = strings.Cut(rest, "m")
	}
}
