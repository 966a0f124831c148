package supervisor

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/internal/buildinfo"
)

// What GitLab's log viewer understands: clear the line, colours, and back to normal.
const (
	clearLine = "\x1b[0K"
	cyan      = "\x1b[36;1m"
	red       = "\x1b[31;1m"
	normal    = "\x1b[0;m"

	section = "prepare_executor"
	// longestLine is how much of an executor's line is kept until its end is seen.
	longestLine = 16 << 10
)

// prefix writes a trace's first segment. What an executor writes to it appears line by line. The output limit holds: what
// is over it is dropped. Writes may be concurrent; its fields are for after close.
type prefix struct {
	mu       sync.Mutex
	file     *os.File
	limit    int64
	grown    func(length int64)
	partial  []byte
	sections bool
	open     bool // an earlier process of the agent began the section and did not end it
	midLine  bool // and it did not end its last line
	closed   bool

	length int64
	crc    uint32
	err    error
}

// takeUp goes on after what an earlier process of the agent has written: source is the trace so far.
func (p *prefix) takeUp(source io.ReaderAt) error {
	old, err := io.ReadAll(io.NewSectionReader(source, 0, p.limit))
	if err != nil {
		return fmt.Errorf("read the begin of the trace: %w", err)
	}
	p.length, p.crc = int64(len(old)), crc32.ChecksumIEEE(old)
	p.midLine = len(old) > 0 && old[len(old)-1] != '\n'
	p.open = bytes.LastIndex(old, []byte("section_start:")) > bytes.LastIndex(old, []byte("section_end:"))
	return nil
}

func (p *prefix) begin(i Intent, version, revision string, sections bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sections = sections
	if p.length == 0 {
		p.line("Running with switchyard " + version + " (" + revision + ")")
		p.line("  on " + i.Runner.Name + " " + i.Runner.ShortToken + ", system ID: " + i.Runner.SystemID)
	} else {
		if p.open {
			p.put(fmt.Appendf(nil, "section_end:%d:%s\r%s", time.Now().Unix(), section, clearLine))
		}
		if p.midLine {
			p.put([]byte{'\n'})
		}
		p.line("The agent was restarted before the job had started: the environment is prepared anew.")
	}
	if sections {
		p.put(fmt.Appendf(nil, "section_start:%d:%s\r%s", time.Now().Unix(), section, clearLine))
	}
	p.line(cyan + fmt.Sprintf("Preparing the %q executor", i.Executor) + normal)
}

// Write takes an executor's text. It always takes all of it.
func (p *prefix) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return len(b), nil
	}
	for rest := b; len(rest) > 0; {
		line, after, whole := bytes.Cut(rest, []byte{'\n'})
		p.partial = append(p.partial, line...)
		if whole || len(p.partial) > longestLine {
			p.line(strings.ToValidUTF8(string(p.partial), "�"))
			p.partial = p.partial[:0]
		}
		rest = after
	}
	return len(b), nil
}

// close ends the segment. It may be called again.
func (p *prefix) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return p.err
	}
	if len(p.partial) > 0 {
		p.line(strings.ToValidUTF8(string(p.partial), "�"))
	}
	if p.sections {
		p.put(fmt.Appendf(nil, "section_end:%d:%s\r%s", time.Now().Unix(), section, clearLine))
	}
	p.closed = true
	if err := p.file.Close(); p.err == nil {
		p.err = err
	}
	return p.err
}

func (p *prefix) line(text string) {
	p.put([]byte(clearLine + text + normal + "\n"))
}

func (p *prefix) put(b []byte) {
	if p.err != nil || int64(len(b)) > p.limit-p.length {
		return
	}
	n, err := p.file.Write(b)
	p.err = err
	p.crc = crc32.Update(p.crc, crc32.IEEETable, b[:n])
	p.length += int64(n)
	p.grown(p.length)
}

// farewell is what stands at the end of a trace whose job the agent ended.
func farewell(reason runnerapi.FailureReason, message string) string {
	kind := ""
	if reason == runnerapi.ReasonRunnerSystem {
		kind = " (system failure)"
	}
	return red + "ERROR: Job failed" + kind + ": " + strings.ToValidUTF8(message, "�") + normal + "\n"
}

func versions() (version, revision string) { return buildinfo.Version(), buildinfo.Revision() }
