package liveview

import (
	"hash/fnv"
	"io"
	"strings"
	"sync"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/tracetext"
)

// maxPrefix is how wide the column of the jobs' names is at most.
const maxPrefix = 32

// prefixes are the colours that tell jobs apart.
var prefixes = []color{cyan, green, yellow, blue, "35", "36;2", "32;2", "33;2", "34;2", "35;2"}

// Plain writes the output of all jobs, line by line, each with the job's name before it.
type Plain struct {
	style Style
	width int // of the terminal; 0 if it is none

	mu     sync.Mutex
	out    io.Writer
	err    error // the first of writing
	column int
}

// NewPlain makes a view that writes to out. width is the terminal's, 0 if out is none.
func NewPlain(out io.Writer, width int, s Style) *Plain {
	return &Plain{out: out, width: width, style: s}
}

// Print writes a line.
func (v *Plain) Print(line string) { v.write(line + "\n") }

func (v *Plain) write(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err == nil {
		_, v.err = io.WriteString(v.out, text)
	}
}

// Pipeline finds out how wide the column of names must be.
func (v *Plain) Pipeline(p coordinator.Pipeline) {
	for _, j := range p.Jobs {
		v.column = max(v.column, min(maxPrefix, widthOf(tracetext.Clean(j.Name))))
	}
}

// Output writes lines of a job.
func (v *Plain) Output(j coordinator.Job, lines []string) {
	prefix := v.prefix(j) + v.style.paint(dim, v.style.pick(" │ ", " | "))
	var b strings.Builder
	for _, line := range lines {
		if !v.style.Color {
			line = tracetext.Bare(line)
		}
		b.WriteString(strings.TrimRight(prefix+line, " ") + "\n")
	}
	v.write(b.String())
}

// Partial does nothing: lines are written when they are complete.
func (*Plain) Partial(coordinator.Job, string) {}

// Ended says how a job has ended.
func (v *Plain) Ended(j coordinator.Job) {
	c := classOf(j)
	text := looks[c].one
	if c == failed || c == tolerated {
		text = "failed, " + note(j, c, j.FinishedAt)
	}
	if d := spent(j, j.FinishedAt); d > 0 {
		text += " after " + Span(d)
	}
	v.write(v.prefix(j) + " " + v.style.symbol(c) + " " + v.style.paint(looks[c].color, text) + "\n")
}

func (v *Plain) prefix(j coordinator.Job) string {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(j.Name))
	return pad(v.style.paint(prefixes[hash.Sum32()%uint32(len(prefixes))], tracetext.Clean(j.Name)), v.column)
}

// Say writes a line about the pipeline as a whole.
func (v *Plain) Say(notice string) { v.Print(v.style.paint(yellow, notice)) }

// Finish writes the table of all jobs and the verdict. It returns the first error of writing.
func (v *Plain) Finish(p coordinator.Pipeline) error {
	v.write("\n" + strings.Join(Summary(p, v.width, v.style), "\n") + "\n")
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}
