package liveview

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
)

const (
	// frameInterval is the time between two frames at least, idleInterval at most.
	frameInterval = 100 * time.Millisecond
	idleInterval  = time.Second
	// keep is how many lines of a job are kept: what is shown of a failed one at the end.
	keep = 20
	// keepTolerated is how many are shown of one that was allowed to fail.
	keepTolerated = 8
)

// Live draws a pipeline on a terminal, at most ten times a second and only if something has changed.
type Live struct {
	title string
	style Style
	size  func() (width, height int)

	mu       sync.Mutex
	region   region
	pipeline coordinator.Pipeline
	notice   string
	above    strings.Builder // lines to be printed above
	tails    map[int64][]string
	partial  map[int64]string // lines that are not complete
	changed  chan struct{}    // capacity 1
}

// NewLive makes a view on out, a terminal whose size is what size returns.
func NewLive(out io.Writer, size func() (width, height int), title string, s Style) *Live {
	return &Live{
		title: title, style: s, size: size, region: region{out: out}, tails: map[int64][]string{},
		partial: map[int64]string{},
		changed: make(chan struct{}, 1),
	}
}

// Run draws until ctx ends. It takes up changes of the terminal's size, and leaves the terminal in order when the process
// is stopped (Ctrl-Z).
func (l *Live) Run(ctx context.Context) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, terminalSignals...)
	defer signal.Stop(signals)
	l.loop(ctx, signals)
}

func (l *Live) loop(ctx context.Context, signals <-chan os.Signal) {
	idle := time.NewTimer(idleInterval)
	defer idle.Stop()
	var last time.Time
	for {
		select {
		case <-l.changed:
		case <-idle.C:
		case s := <-signals:
			l.signal(s)
		case <-ctx.Done():
			return
		}
		if wait := frameInterval - time.Since(last); wait > 0 {
			pause := time.NewTimer(wait)
			select {
			case <-pause.C:
			case <-ctx.Done():
				pause.Stop()
				return
			}
		}
		last = time.Now()
		l.draw(last)
		idle.Reset(idleInterval)
	}
}

// signal handles what happens to the terminal or to this process in it.
func (l *Live) signal(s os.Signal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !suspends(s) {
		return // another size: the next frame has it
	}
	_ = l.region.leave()
	suspend() // returns when the process goes on
}

func (l *Live) draw(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pipeline.ID == 0 {
		return
	}
	width, height := l.size()
	f := Frame{Title: l.title, Notice: l.notice, Pipeline: l.pipeline, Tails: l.tails, Partial: l.partial, Now: now}
	above := l.above.String()
	l.above.Reset()
	// The cursor needs a line of its own. A terminal that cannot be written to is nobody's concern here: the pipeline
	// goes on, its result is the exit code.
	_ = l.region.draw(above, f.Lines(width, height-1, l.style), width, height)
}

// Say sets the line that says what happens to the pipeline as a whole.
func (l *Live) Say(notice string) {
	l.mu.Lock()
	l.notice = notice
	l.mu.Unlock()
	l.wake()
}

// Print prints a line above the table, where it stays.
func (l *Live) Print(line string) {
	l.mu.Lock()
	l.above.WriteString(line + "\n")
	l.mu.Unlock()
	l.wake()
}

func (l *Live) wake() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// Pipeline takes the pipeline's new state.
func (l *Live) Pipeline(p coordinator.Pipeline) {
	l.mu.Lock()
	l.pipeline = p
	l.mu.Unlock()
	l.wake()
}

// Output takes lines of a job.
func (l *Live) Output(j coordinator.Job, lines []string) {
	l.mu.Lock()
	tail := append(l.tails[j.ID], lines...)
	l.tails[j.ID] = append([]string(nil), tail[max(0, len(tail)-keep):]...)
	delete(l.partial, j.ID)
	l.mu.Unlock()
	l.wake()
}

// Partial takes what is there of a job's next line.
func (l *Live) Partial(j coordinator.Job, line string) {
	l.mu.Lock()
	if line == "" {
		delete(l.partial, j.ID)
	} else {
		l.partial[j.ID] = line
	}
	l.mu.Unlock()
	l.wake()
}

// Ended drops what is not needed any more.
func (l *Live) Ended(j coordinator.Job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.partial, j.ID)
	if c := classOf(j); c != failed && c != tolerated {
		delete(l.tails, j.ID)
	}
}

// Leave leaves the terminal in order, with what is on it. Run must have returned.
func (l *Live) Leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.region.leave()
}

// Finish replaces the table by what stays: the ends of the failed jobs' output, all jobs, the verdict. Run must have
// returned.
func (l *Live) Finish(p coordinator.Pipeline) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	width, height := l.size()
	above := l.above.String()
	l.above.Reset()
	var lines []string
	for _, j := range p.Jobs {
		c := classOf(j)
		if c != failed && c != tolerated {
			continue
		}
		tail := l.tails[j.ID]
		if c == tolerated {
			tail = tail[max(0, len(tail)-keepTolerated):]
		}
		lines = append(append(lines, Failure(j, tail, width, l.style)...), "")
	}
	lines = append(lines, Summary(p, width, l.style)...)
	if err := l.region.draw(above+strings.Join(lines, "\n")+"\n", nil, width, height); err != nil {
		return err
	}
	return l.region.leave()
}
