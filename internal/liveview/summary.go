package liveview

import (
	"fmt"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/tracetext"
)

// Summary is the table of a pipeline's jobs as it is when nothing goes on any more, and the verdict as the last line.
// width is that of the terminal, 0 if it is none: then nothing is cut.
func Summary(p coordinator.Pipeline, width int, s Style) []string {
	f := Frame{Pipeline: p, Now: time.Now()}
	if !p.FinishedAt.IsZero() {
		f.Now = p.FinishedAt
	}
	if width <= 0 {
		width = 1 << 12
	}
	lines := f.table(f.blocks(groups{}), width, 0, s)
	return append(lines, "", s.fit(s.verdict(p), width))
}

// verdict says in one line how a pipeline ended.
func (s Style) verdict(p coordinator.Pipeline) string {
	names := map[class][]string{}
	for _, j := range p.Jobs {
		c := classOf(j)
		names[c] = append(names[c], tracetext.Clean(j.Name))
	}
	took := ""
	if !p.FinishedAt.IsZero() {
		took = " after " + Span(p.FinishedAt.Sub(p.CreatedAt))
	}
	say := func(c class, text string) string {
		return s.symbol(c) + " " + s.paint(bold, "pipeline "+text) + took
	}
	switch p.Status {
	case "success":
		text := fmt.Sprintf(": %s", several(len(names[passed]), "job", "jobs")+" passed")
		if n := len(names[tolerated]); n > 0 {
			text += fmt.Sprintf(", %d failed and may: %s", n, list(names[tolerated]))
		}
		if n := len(names[manual]); n > 0 {
			text += fmt.Sprintf(", %s by hand: %s", several(n, "waits to be started", "wait to be started"), list(names[manual]))
		}
		return say(passed, "passed") + text
	case "failed":
		return say(failed, "failed") + fmt.Sprintf(": %d of %s failed: %s", len(names[failed]), several(len(p.Jobs), "job", "jobs"), list(names[failed]))
	case "canceled":
		ended := len(names[passed]) + len(names[failed]) + len(names[tolerated])
		return say(canceled, "canceled") + fmt.Sprintf(": %d of %s had ended before", ended, several(len(p.Jobs), "job", "jobs"))
	case "skipped":
		return say(skipped, "skipped") + ": no job was to run"
	case "manual":
		return say(manual, "waits") + ": name a job to run it: " + list(names[manual])
	}
	return say(waiting, p.Status)
}

func several(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// list writes at most five names.
func list(names []string) string {
	const most = 5
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

// Failure is the end of a failed job's output under a heading.
func Failure(j coordinator.Job, tail []string, width int, s Style) []string {
	c := classOf(j)
	rule := s.pick("──", "--")
	text := fmt.Sprintf("%s %s %s %s", s.paint(looks[c].color, rule), s.paint(bold, tracetext.Clean(j.Name)), note(j, c, j.FinishedAt), "")
	if width <= 0 {
		width = 80
	}
	if room := width - widthOf(text); room > 0 {
		text += s.paint(looks[c].color, strings.Repeat(s.pick("─", "-"), room))
	}
	lines := []string{s.fit(text, width)}
	if len(tail) == 0 {
		return append(lines, s.paint(dim, "(no output)"))
	}
	for _, line := range tail {
		if !s.Color {
			line = tracetext.Bare(line)
		}
		lines = append(lines, line)
	}
	return lines
}
