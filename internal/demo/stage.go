package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
)

type color string

const (
	bold   color = "1"
	dim    color = "2"
	red    color = "31"
	green  color = "32"
	yellow color = "33"
	blue   color = "34"
	purple color = "35"
	cyan   color = "36"
)

// stage is where the demo is shown. Lines of several goroutines do not mix.
type stage struct {
	mu     sync.Mutex
	out    io.Writer
	colors bool
}

func newStage(out io.Writer, colors bool) *stage { return &stage{out: out, colors: colors} }

func (s *stage) paint(c color, text string) string {
	if !s.colors {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

func (s *stage) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format+"\n", args...)
}

func (s *stage) heading(n int, title string) {
	s.say("\n%s %s", s.paint(cyan, fmt.Sprintf("%d", n)), s.paint(bold, title))
}

// command shows what a person would type.
func (s *stage) command(name string, args ...string) {
	s.say("  %s %s", s.paint(dim, "$"), s.paint(dim, strings.Join(append([]string{name}, args...), " ")))
}

// fact shows something that has happened.
func (s *stage) fact(format string, args ...any) {
	s.say("  %s %s", s.paint(green, "✓"), fmt.Sprintf(format, args...))
}
