package liveview

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/tracetext"
)

const (
	// maxTail is how many lines of a running job are shown at most.
	maxTail = 8
	// maxHead is how wide the first line is at most: on a wide terminal its end would be far from everything else.
	maxHead = 110
)

// Frame is what a live view shows at one moment.
type Frame struct {
	// Title says what runs; Notice, if there is one, what happens to it.
	Title, Notice string
	Pipeline      coordinator.Pipeline
	// Tails are the last lines of jobs, by id, as package tracetext makes them.
	Tails map[int64][]string
	// Partial are the lines that jobs have not completed, by id.
	Partial map[int64]string
	Now     time.Time
}

// Lines draws the frame into at most height lines of at most width columns. Jobs that run or failed are shown for as long
// as there is room; others of a stage share a line before, and at last the stages do.
func (f Frame) Lines(width, height int, s Style) []string {
	if width <= 0 || height <= 0 {
		return nil
	}
	head := []string{f.head(min(width, maxHead), s)}
	if f.Notice != "" {
		head = append(head, s.fit(s.paint(yellow, f.Notice), width))
	}
	if len(head) >= height {
		return head[:height]
	}
	body := f.body(width, height-len(head), s)
	if len(head)+len(body) < height {
		head = append(head, "")
	}
	return append(head, body...)
}

// head is the first line: the title on the left, counts and time on the right.
func (f Frame) head(width int, s Style) string {
	var counts [numClasses]int
	for _, j := range f.Pipeline.Jobs {
		counts[classOf(j)]++
	}
	var parts []string
	for _, c := range []class{passed, failed, tolerated, canceled, skipped, manual, running, pending, scheduled, waiting} {
		if counts[c] > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", s.symbol(c), counts[c]))
		}
	}
	right := strings.Join(append(parts, s.paint(bold, Span(f.elapsed()))), "  ")
	room := width - widthOf(right) - 2
	if room < 8 {
		return s.fit(right, width)
	}
	return pad(s.fit(s.paint(bold, f.Title), room), room) + "  " + right
}

func (f Frame) elapsed() time.Duration {
	if end := f.Pipeline.FinishedAt; !end.IsZero() {
		return end.Sub(f.Pipeline.CreatedAt)
	}
	return f.Now.Sub(f.Pipeline.CreatedAt)
}

// row is one line of the table: a job, or several of a stage and class.
type row struct {
	job  *coordinator.Job
	of   class
	many int  // without job
	rest bool // without job: others have rows of their own
}

// block is the rows of a stage.
type block struct {
	stage string
	rows  []row
}

// body is the table, made small enough.
func (f Frame) body(width, height int, s Style) []string {
	sizes := map[group]int{}
	for _, j := range f.Pipeline.Jobs {
		sizes[group{j.Stage, classOf(j)}]++
	}
	limits := groups{}
	rows := len(f.Pipeline.Jobs)
	stages := f.Pipeline.Stages
	for c := numClasses - 1; c >= 0; c-- {
		for i := range stages {
			if rows <= height {
				return f.table(f.blocks(limits), width, height, s)
			}
			g := group{stages[i].Name, c}
			if c == waiting || c == pending {
				g.stage = stages[len(stages)-1-i].Name // what comes last matters least
			}
			if sizes[g] < 2 {
				continue
			}
			limits[g] = 1
			rows -= sizes[g] - 1
			if room := height - rows; c <= failed && room > 0 {
				limits[g] += room
				rows += room
			}
		}
	}
	if rows > height {
		return f.stages(width, height, s)
	}
	return f.table(f.blocks(limits), width, height, s)
}

// group is a stage's jobs of a class; groups says how many lines one has, if that is less than it has jobs.
type (
	group struct {
		stage string
		class class
	}
	groups map[group]int
)

func count(blocks []block) int {
	n := 0
	for _, b := range blocks {
		n += len(b.rows)
	}
	return n
}

// blocks orders the jobs into rows.
func (f Frame) blocks(g groups) []block {
	var blocks []block
	at := map[string]int{}
	for _, stage := range f.Pipeline.Stages {
		at[stage.Name] = len(blocks)
		blocks = append(blocks, block{stage: stage.Name})
	}
	lines := map[group]int{} // that are there
	last := map[group]int{}  // the row of the last of them
	for i := range f.Pipeline.Jobs {
		j := &f.Pipeline.Jobs[i]
		of := group{j.Stage, classOf(*j)}
		b := &blocks[at[j.Stage]]
		limit, limited := g[of]
		if limited && lines[of] == limit {
			shared := &b.rows[last[of]]
			shared.job = nil
			shared.many++
			continue
		}
		lines[of]++
		last[of] = len(b.rows)
		b.rows = append(b.rows, row{job: j, of: of.class, many: 1, rest: lines[of] > 1})
	}
	return blocks
}

// columns are the widths of the table's columns.
type columns struct{ stage, name, width int }

func (f Frame) columns(width int) columns {
	c := columns{width: width}
	for _, stage := range f.Pipeline.Stages {
		c.stage = max(c.stage, widthOf(tracetext.Clean(stage.Name)))
	}
	for _, j := range f.Pipeline.Jobs {
		c.name = max(c.name, widthOf(tracetext.Clean(j.Name)))
	}
	c.stage = min(c.stage, 14, max(0, width/5))
	c.name = min(c.name, max(12, width*45/100))
	return c
}

// table draws rows, and below those of running jobs their last lines as far as there is room.
func (f Frame) table(blocks []block, width, height int, s Style) []string {
	runs := 0
	for _, b := range blocks {
		for _, r := range b.rows {
			if r.job != nil && r.of == running {
				runs++
			}
		}
	}
	free := height - count(blocks)
	each := 0
	if runs > 0 {
		each = min(max(0, free/runs), maxTail)
	}
	cols := f.columns(width)
	var lines []string
	for _, b := range blocks {
		for i, r := range b.rows {
			stage := ""
			if i == 0 {
				stage = b.stage
			}
			lines = append(lines, f.row(stage, r, cols, each == 0, s))
			if r.job != nil && r.of == running {
				lines = append(lines, f.tail(*r.job, cols, each, s)...)
			}
		}
	}
	return lines
}

// row draws one row of the table.
func (f Frame) row(stage string, r row, cols columns, withOutput bool, s Style) string {
	left := " " + pad(s.fit(s.paint(dim, tracetext.Clean(stage)), cols.stage), cols.stage) + "  " + s.symbol(r.of) + " "
	if r.job == nil {
		text := fmt.Sprintf("%d %s", r.many, looks[r.of].many)
		if r.rest {
			text = fmt.Sprintf("%d more %s", r.many, looks[r.of].many)
		}
		return s.fit(left+s.paint(looks[r.of].color, text), cols.width)
	}
	name := pad(s.fit(tracetext.Clean(r.job.Name), cols.name), cols.name)
	if r.of == waiting || r.of == skipped {
		name = s.paint(dim, name)
	}
	time := padLeft("", 7)
	if d := spent(*r.job, f.Now); d > 0 {
		time = padLeft(Span(d), 7)
	}
	note := note(*r.job, r.of, f.Now)
	noteColor := looks[r.of].color
	if r.of == running && withOutput && note == "" {
		if tail := f.lastLines(r.job.ID); len(tail) > 0 {
			note, noteColor = tracetext.Bare(tail[len(tail)-1]), dim
		}
	}
	return s.fit(strings.TrimRight(left+name+" "+time+"  "+s.paint(noteColor, note), " "), cols.width)
}

// lastLines are the last lines of a job, the one that is not complete included.
func (f Frame) lastLines(job int64) []string {
	tail := f.Tails[job]
	if partial := f.Partial[job]; partial != "" {
		return append(slices.Clip(tail), partial)
	}
	return tail
}

// tail draws the last lines of a running job.
func (f Frame) tail(j coordinator.Job, cols columns, limit int, s Style) []string {
	tail := f.lastLines(j.ID)
	tail = tail[max(0, len(tail)-limit):]
	indent := strings.Repeat(" ", cols.stage+3) + s.paint(cyan, s.pick("│", "|")) + " "
	lines := make([]string, len(tail))
	for i, text := range tail {
		lines[i] = s.fit(indent+s.paint(dim, tracetext.Bare(text)), cols.width)
	}
	return lines
}

// stages draws one line per stage, for pipelines that are larger than the terminal.
func (f Frame) stages(width, height int, s Style) []string {
	counts := map[string]*[numClasses]int{}
	for _, j := range f.Pipeline.Jobs {
		if counts[j.Stage] == nil {
			counts[j.Stage] = new([numClasses]int)
		}
		counts[j.Stage][classOf(j)]++
	}
	cols := f.columns(width)
	var lines []string
	active := -1 // the first stage in which something goes on
	for i, stage := range f.Pipeline.Stages {
		if n := counts[stage.Name]; active < 0 && n != nil && n[running]+n[pending] > 0 {
			active = i
		}
		var line strings.Builder
		line.WriteString(" " + pad(s.fit(s.paint(dim, tracetext.Clean(stage.Name)), cols.stage), cols.stage))
		for c, n := range counts[stage.Name] {
			if n > 0 {
				fmt.Fprintf(&line, "  %s %d", s.symbol(class(c)), n)
			}
		}
		lines = append(lines, s.fit(line.String(), width))
	}
	if more := len(lines) - height; more > 0 {
		from := min(max(0, active-1), more+1)
		lines = lines[from : from+height-1]
		lines = append(lines, s.fit(s.paint(dim, fmt.Sprintf(" %s %d more stages", s.pick("…", "..."), more+1)), width))
	}
	return lines
}
