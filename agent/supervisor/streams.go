package supervisor

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
)

// readiness waits for the first line that switchyard-job prints: it says that the fence stands and the control socket
// listens.
type readiness struct {
	once sync.Once
	line chan struct{} // closed then
}

func newReadiness() *readiness { return &readiness{line: make(chan struct{})} }

func (r *readiness) Write(b []byte) (int, error) {
	if bytes.IndexByte(b, '\n') >= 0 {
		r.once.Do(func() { close(r.line) })
	}
	return len(b), nil
}

// tail keeps the end of what a process complained about.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const tailLength = 2 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	if len(t.text) > tailLength {
		t.text = append(t.text[:0], t.text[len(t.text)-tailLength:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(strings.ToValidUTF8(string(t.text), "�"))
}

// exitError says that switchyard-job ended.
type exitError struct {
	code      int
	complaint *tail
}

func (e *exitError) Error() string {
	text := fmt.Sprintf("the job's process ended with exit code %d and left no result", e.code)
	switch e.code {
	case 3:
		text = "the job was started before, and the process that ran it left no result"
	case 137:
		text = "the job's process was killed (SIGKILL: by hand, or because memory ran out) and left no result"
	case 143:
		text = "the job's process was terminated (SIGTERM) and left no result"
	}
	if said := e.complaint.String(); said != "" {
		text += ": " + said
	}
	return text
}
