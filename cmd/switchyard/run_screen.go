package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/liveview"
	"github.com/switchyard-ci/switchyard/internal/tracetext"
)

// screen is where a run is shown: a live view on a terminal, lines elsewhere.
type screen struct {
	view interface {
		liveview.View
		Print(line string)
		Say(notice string)
		Finish(p coordinator.Pipeline) error
	}
	options liveview.Options
	title   string
	live    *liveview.Live // nil: lines

	stop    context.CancelFunc
	drawing sync.WaitGroup
}

// screen chooses. unreadable is called once if what is written cannot be read by anyone any more.
func (c *runCmd) screen(std streams, title string, unreadable func()) *screen {
	out := std.out
	if c.Output == "json" {
		out = std.err
	}
	file, terminal := terminalOf(out)
	style := liveview.Style{Color: c.color(terminal), ASCII: asciiOnly(os.Getenv)}
	s := &screen{title: title, options: liveview.Options{Color: style.Color}, stop: func() {}}
	watched := &watchedWriter{Writer: out, failed: unreadable}
	if !terminal || c.Plain || os.Getenv("TERM") == "dumb" {
		width := 0
		if terminal {
			width, _ = sizeOf(file)
		}
		s.view = liveview.NewPlain(watched, width, style)
		return s
	}
	s.options.Newest = newest
	s.live = liveview.NewLive(watched, func() (int, int) { return sizeOf(file) }, title, style)
	s.view = s.live
	return s
}

// begin shows what is going to happen.
func (s *screen) begin(ctx context.Context, p coordinator.Pipeline, slots int) {
	if s.live == nil {
		s.view.Print(fmt.Sprintf("%s · %s, %d at once", s.title, count(len(p.Jobs), "job"), slots))
	} else {
		ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
		s.drawing.Go(func() { s.live.Run(ctx) })
	}
	for _, w := range p.Warnings {
		s.view.Print("warning: " + tracetext.Clean(w))
	}
}

func (s *screen) say(notice string) { s.view.Say(notice) }

// finish shows the result.
func (s *screen) finish(p coordinator.Pipeline) error {
	s.stop()
	s.drawing.Wait()
	return s.view.Finish(p)
}

// abandon leaves the terminal in order without a result.
func (s *screen) abandon() {
	s.stop()
	s.drawing.Wait()
	if s.live != nil {
		s.live.Leave()
	}
}

// watchedWriter tells of the first error of writing.
type watchedWriter struct {
	io.Writer
	failed func()
	once   sync.Once
}

func (w *watchedWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if err != nil {
		w.once.Do(w.failed)
	}
	return n, err
}

// terminalOf says whether w is a terminal.
func terminalOf(w io.Writer) (*os.File, bool) {
	f, ok := w.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

// sizeOf is the size of a terminal now. One that does not know is taken for a usual one.
func sizeOf(f *os.File) (width, height int) {
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		return 80, 24
	}
	return width, height
}

// color decides whether to use colours (https://no-color.org).
func (c *runCmd) color(terminal bool) bool {
	if c.Color != "auto" {
		return c.Color == "always"
	}
	return terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// asciiOnly says that the user's locale is known not to have other characters.
func asciiOnly(getenv func(string) string) bool {
	for _, key := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(getenv(key)); v != "" {
			return !strings.Contains(v, "utf-8") && !strings.Contains(v, "utf8")
		}
	}
	return false
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
