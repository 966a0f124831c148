package docker

import (
	"bytes"
	"io"
	"strings"
	"sync"

	"github.com/switchyard-ci/switchyard/job/masking"
)

// What GitLab's log viewer understands.
const (
	yellow = "\x1b[0;33m"
	grey   = "\x1b[0;90m"
	normal = "\x1b[0;m"
)

// output is the trace of a preparation. What it must not show is masked. It may be written to concurrently.
type output struct {
	mu     sync.Mutex
	w      io.Writer
	masker *masking.Masker
	failed error
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.masker.Write(b, o.emit)
	return len(b), nil
}

func (o *output) emit(b []byte) {
	if o.failed == nil {
		_, o.failed = o.w.Write(b)
	}
}

// flush writes what is held back because it may begin something to mask.
func (o *output) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.masker.Flush(o.emit)
}

func (o *output) err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failed
}

func (o *output) say(line string)  { say(o, line) }
func (o *output) warn(line string) { say(o, yellow+"WARNING: "+line+normal) }

func say(w io.Writer, line string) { _, _ = io.WriteString(w, line+"\n") }

// lanes are writers whose texts come one after another in their order, each as soon as those before are done: pulls go on
// at the same time and are read in turn.
type lanes struct {
	mu    sync.Mutex
	w     io.Writer
	lanes []*lane
	turn  int
}

type lane struct {
	of     *lanes
	number int
	held   bytes.Buffer
	over   bool
}

func newLanes(w io.Writer, n int) *lanes {
	l := &lanes{w: w, lanes: make([]*lane, n)}
	for i := range l.lanes {
		l.lanes[i] = &lane{of: l, number: i}
	}
	return l
}

func (l *lanes) lane(i int) *lane { return l.lanes[i] }

// heldLimit bounds what waits for its turn; progress that comes after is not worth keeping.
const heldLimit = 256 << 10

func (l *lane) Write(b []byte) (int, error) {
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	if l.of.turn == l.number {
		return l.of.w.Write(b)
	}
	if l.held.Len()+len(b) <= heldLimit {
		l.held.Write(b)
	}
	return len(b), nil
}

// done ends the lane.
func (l *lane) done() {
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	l.over = true
	for l.of.turn < len(l.of.lanes) && l.of.lanes[l.of.turn].over {
		if l.of.turn++; l.of.turn == len(l.of.lanes) {
			return
		}
		next := l.of.lanes[l.of.turn]
		_, _ = l.of.w.Write(next.held.Bytes())
		next.held.Reset()
	}
}

// prefixed writes whole lines with something before and after each. It keeps at most one line.
type prefixed struct {
	w             io.Writer
	before, after string
	partial       []byte
}

const longestLine = 16 << 10

func (p *prefixed) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		line, rest, whole := bytes.Cut(b, []byte{'\n'})
		p.partial = append(p.partial, line...)
		if whole || len(p.partial) > longestLine {
			p.line()
		}
		b = rest
	}
	return n, nil
}

func (p *prefixed) line() {
	_, _ = io.WriteString(p.w, p.before+strings.TrimRight(string(p.partial), "\r")+p.after+"\n")
	p.partial = p.partial[:0]
}

// close writes what is there of the last line.
func (p *prefixed) close() {
	if len(p.partial) > 0 {
		p.line()
	}
}
