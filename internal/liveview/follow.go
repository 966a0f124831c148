// Package liveview shows a pipeline of the embedded GitLab while it runs: on a terminal as a table that is drawn again
// with each change, elsewhere as the lines of all jobs' output.
package liveview

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/tracetext"
)

// View is told what happens to one pipeline. Its methods are called by one goroutine, in order.
type View interface {
	// Pipeline takes the pipeline's state when it, or one of its jobs, has changed.
	Pipeline(p coordinator.Pipeline)
	// Output takes lines that a job has written; they are complete, and safe to print (package tracetext).
	Output(job coordinator.Job, lines []string)
	// Partial takes what a job has written of a line that is not complete, empty if there is none. It holds until the
	// next Output or Partial for this job.
	Partial(job coordinator.Job, line string)
	// Ended is called when an attempt of a job has ended and all its output was shown.
	Ended(job coordinator.Job)
}

const (
	// chunk is how much of a trace is read at once, in bytes.
	chunk = 64 << 10
	// lookInterval is the time between two looks at the pipeline at least: all its jobs are looked at.
	lookInterval = 20 * time.Millisecond
)

// Source is where a pipeline comes from: a [coordinator.Coordinator].
type Source interface {
	// Pipeline returns a pipeline as it is now.
	Pipeline(id int64) (coordinator.Pipeline, error)
	// Subscribe says when to look again.
	Subscribe(ctx context.Context) <-chan coordinator.Event
	// Trace returns what there is of a trace from an offset on.
	Trace(jobID, offset int64) (*io.SectionReader, error)
}

// Options of Follow.
type Options struct {
	// Color keeps the colours of the jobs' output.
	Color bool
	// Newest says that the end of each trace is enough: where more than this many bytes have not been read, the older
	// are left out. 0 leaves out nothing.
	Newest int64
}

// Follow shows a pipeline until it has ended, or until nothing goes on without a person because a manual job blocks it,
// and all output has been shown. It returns the pipeline as it is then, or an error if ctx ends before.
func Follow(ctx context.Context, from Source, id int64, view View, o Options) (coordinator.Pipeline, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &follower{from: from, id: id, view: view, options: o, traces: map[int64]*follow{}, buffer: make([]byte, chunk)}
	events := from.Subscribe(ctx)
	f.changed = true
	looked := time.NewTimer(0)
	defer looked.Stop()
	mayLook := false
	for {
		if f.changed && mayLook {
			if err := f.look(); err != nil {
				return f.pipeline, err
			}
			mayLook = false
			looked.Reset(lookInterval)
		}
		if len(f.unread) > 0 {
			if err := f.next(); err != nil {
				return f.pipeline, err
			}
			f.drain(events)
			select {
			case <-looked.C:
				mayLook = true
			case <-ctx.Done():
				return f.pipeline, ctx.Err()
			default:
			}
			continue
		}
		if !f.changed && over(f.pipeline) {
			return f.pipeline, nil
		}
		select {
		case e, open := <-events:
			if !open {
				return f.pipeline, cmp.Or(ctx.Err(), coordinator.ErrClosed)
			}
			f.event(e)
			f.drain(events)
		case <-looked.C:
			mayLook = true
		case <-ctx.Done():
			return f.pipeline, ctx.Err()
		}
	}
}

// over says that nothing goes on by itself.
func over(p coordinator.Pipeline) bool { return p.Finished() || p.Status == "manual" }

type follower struct {
	from    Source
	id      int64
	view    View
	options Options

	pipeline coordinator.Pipeline
	changed  bool // the pipeline must be looked at
	traces   map[int64]*follow
	unread   []int64 // jobs whose trace may have more, each once
	buffer   []byte
}

// follow is how far one job's trace has been read.
type follow struct {
	job    coordinator.Job
	offset int64
	lines  *tracetext.Lines
	queued bool // is in unread
	ended  bool // the rest was shown
	// cut: what comes next begins within a line that was left out.
	cut bool
}

// look shows the pipeline as it is.
func (f *follower) look() error {
	f.changed = false
	p, err := f.from.Pipeline(f.id)
	if err != nil {
		return fmt.Errorf("look at the pipeline: %w", err)
	}
	f.pipeline = p
	for _, list := range [][]coordinator.Job{p.Retried, p.Jobs} {
		for _, j := range list {
			f.job(j)
		}
	}
	f.view.Pipeline(p)
	return nil
}

// next shows one piece of the trace that has waited longest.
func (f *follower) next() error {
	t := f.traces[f.unread[0]]
	f.unread = f.unread[1:]
	t.queued = false
	return f.read(t)
}

// job notes the state of a job; one that has ended since is read to its end.
func (f *follower) job(j coordinator.Job) {
	t := f.traces[j.ID]
	if t == nil {
		t = &follow{lines: tracetext.New(f.options.Color, 0)}
		f.traces[j.ID] = t
	}
	t.job = j
	if !t.ended && (j.TraceSize > t.offset || j.Finished()) {
		f.queue(t)
	}
}

func (f *follower) queue(t *follow) {
	if !t.queued && !t.ended {
		t.queued = true
		f.unread = append(f.unread, t.job.ID)
	}
}

// read shows one piece of a trace.
func (f *follower) read(t *follow) error {
	trace, err := f.from.Trace(t.job.ID, t.offset)
	if errors.Is(err, coordinator.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the trace of %s: %w", t.job.Name, err)
	}
	if newest := f.options.Newest; newest > 0 && trace.Size() > newest {
		skip := trace.Size() - newest
		t.offset += skip
		t.lines, t.cut = tracetext.New(f.options.Color, 0), true
		if _, err := trace.Seek(skip, io.SeekStart); err != nil {
			return fmt.Errorf("read the trace of %s: %w", t.job.Name, err)
		}
	}
	n, err := trace.Read(f.buffer)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the trace of %s: %w", t.job.Name, err)
	}
	t.offset += int64(n)
	var lines []string
	emit := func(line string) {
		if t.cut {
			t.cut = false
			return
		}
		lines = append(lines, line)
	}
	t.lines.Write(f.buffer[:n], emit)
	switch {
	case n > 0:
		f.queue(t)
	case t.job.Finished():
		t.lines.Flush(emit)
		t.lines, t.ended = nil, true
	}
	if len(lines) > 0 {
		f.view.Output(t.job, lines)
	}
	if n > 0 && !t.cut {
		f.view.Partial(t.job, t.lines.Partial())
	}
	if t.ended {
		f.view.Ended(t.job)
	}
	return nil
}

// drain takes in the events that are there.
func (f *follower) drain(events <-chan coordinator.Event) {
	for {
		select {
		case e, open := <-events:
			if !open {
				return // Follow sees it
			}
			f.event(e)
		default:
			return
		}
	}
}

func (f *follower) event(e coordinator.Event) {
	if e.PipelineID != f.id {
		return
	}
	if e.Kind != coordinator.TraceChanged {
		f.changed = true
		return
	}
	if t := f.traces[e.JobID]; t != nil {
		f.queue(t)
	} else {
		f.changed = true
	}
}
