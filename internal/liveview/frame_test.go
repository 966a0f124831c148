package liveview

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/internal/tracetext"
)

var update = flag.Bool("update", false, "write the golden files anew")

var durations = regexp.MustCompile(`[0-9]+\.[0-9]s`)

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// at is a moment of the pipeline, in seconds.
func at(seconds float64) time.Time { return began.Add(time.Duration(seconds * float64(time.Second))) }

type jobOption func(*coordinator.Job)

func ran(from, to float64) jobOption {
	return func(j *coordinator.Job) {
		j.StartedAt = at(from)
		if to > 0 {
			j.FinishedAt = at(to)
		}
	}
}

func exit(code int) jobOption {
	return func(j *coordinator.Job) {
		j.FailureReason, j.ExitCode = runnerapi.ReasonScriptFailure, code
	}
}

func mayFail(j *coordinator.Job) { j.AllowFailure = true }

func needs(names ...string) jobOption { return func(j *coordinator.Job) { j.Needs = names } }

func job(stage, name, status string, options ...jobOption) coordinator.Job {
	j := coordinator.Job{Stage: stage, Name: name, Status: status, Attempt: 1}
	for _, o := range options {
		o(&j)
	}
	return j
}

func pipeline(status string, jobs ...coordinator.Job) coordinator.Pipeline {
	p := coordinator.Pipeline{ID: 1, Status: status, CreatedAt: began}
	for i := range jobs {
		jobs[i].ID = int64(i + 1)
		if n := len(p.Stages); n == 0 || p.Stages[n-1].Name != jobs[i].Stage {
			p.Stages = append(p.Stages, coordinator.Stage{Name: jobs[i].Stage})
		}
	}
	p.Jobs = jobs
	return p
}

// sample has a job of every kind.
func sample() Frame {
	p := pipeline("running",
		job("check", "shell-syntax", "success", ran(0.1, 0.42)),
		job("check", "unit-tests", "success", ran(0.1, 63)),
		job("check", "licence-scan", "failed", ran(0.2, 0.5), exit(1), mayFail),
		job("check", "lint", "failed", ran(0.2, 12), exit(2)),
		job("build", "package: [linux, amd64]", "running", ran(2, 0)),
		job("build", "package: [linux, arm64]", "running", ran(60, 0)),
		job("build", "package: [windows, amd64]", "pending"),
		job("build", "old", "canceled"),
		job("build", "flaky", "canceling", ran(61, 0), func(j *coordinator.Job) { j.Attempt = 2 }),
		job("deploy", "staging", "created", needs("package: [linux, amd64]", "shell-syntax")),
		job("deploy", "later", "scheduled", func(j *coordinator.Job) { j.ScheduledAt = at(100) }),
		job("deploy", "production", "manual"),
		job("deploy", "clean-up", "skipped"),
	)
	return Frame{
		Title: "service · main @ 1a2b3c4d with changes · push", Pipeline: p, Now: at(67.3),
		Tails: map[int64][]string{
			5: {"$ make package", "compiling \x1b[0;31mone\x1b[0m", "compiling two", "linking"},
			6: {"$ make package", "a very long line " + strings.Repeat("that goes on and on ", 12)},
		},
	}
}

// large has more jobs than a terminal has lines.
func large(stages, jobs int) Frame {
	var all []coordinator.Job
	for s := range stages {
		for j := range jobs {
			status := "created"
			switch {
			case s < stages/2 && j%7 == 3:
				status = "failed"
			case s < stages/2:
				status = "success"
			case s == stages/2:
				status = "running"
			}
			all = append(all, job(fmt.Sprintf("stage-%02d", s), fmt.Sprintf("job-%d-%d", s, j), status))
		}
	}
	return Frame{Title: "large", Pipeline: pipeline("running", all...), Now: at(5)}
}

func golden(t *testing.T, name string, lines []string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	text := strings.Join(lines, "\n") + "\n"
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), text)
}

func TestFrames(t *testing.T) {
	for _, c := range []struct {
		name          string
		frame         Frame
		width, height int
		style         Style
	}{
		{"80x24", sample(), 80, 23, Style{}},
		{"80x24-ascii", sample(), 80, 23, Style{ASCII: true}},
		{"80x24-colours", sample(), 80, 23, Style{Color: true}},
		{"200x50", sample(), 200, 49, Style{}},
		{"40x12", sample(), 40, 11, Style{}},
		{"20x5", sample(), 20, 4, Style{}},
		{"80x24-large", large(6, 20), 80, 23, Style{}},
		{"80x10-many-stages", large(20, 3), 80, 9, Style{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines := c.frame.Lines(c.width, c.height, c.style)
			golden(t, c.name, lines)
		})
	}
}

func TestANoticeHasALineOfItsOwn(t *testing.T) {
	f := sample()
	f.Notice = "canceling: Ctrl-C again kills the jobs"
	require.Equal(t, f.Notice, f.Lines(80, 23, Style{})[1])
}

// Whatever the pipeline and the terminal, a frame fits, and shows what runs before anything else.
func TestFramesFit(t *testing.T) {
	for _, f := range []Frame{sample(), large(1, 1), large(3, 50), large(40, 2), {Pipeline: pipeline("created")}} {
		for width := range 100 {
			for _, height := range []int{0, 1, 2, 3, 5, 10, 24, 50, 200} {
				lines := f.Lines(width, height, Style{Color: true})
				require.LessOrEqual(t, len(lines), height, "%dx%d", width, height)
				for _, line := range lines {
					require.LessOrEqual(t, widthOf(line), width, "%dx%d: %q", width, height, line)
				}
			}
		}
	}
}

func TestAHostileNameIsText(t *testing.T) {
	f := sample()
	f.Pipeline.Jobs[0].Name = "a\x1b[2J\x1b]0;x\x07\r\nb"
	f.Pipeline.Jobs[0].Stage, f.Pipeline.Stages[0].Name = "\x1b[31mcheck\n", "\x1b[31mcheck\n"
	f.Pipeline.Jobs[1].Stage, f.Pipeline.Jobs[2].Stage, f.Pipeline.Jobs[3].Stage = "\x1b[31mcheck\n", "\x1b[31mcheck\n", "\x1b[31mcheck\n"
	text := strings.Join(f.Lines(80, 23, Style{}), "\n")
	require.NotContains(t, text, "\x1b")
	require.Contains(t, text, " check   ✓ a b ")
}

func TestSummary(t *testing.T) {
	f := sample()
	f.Pipeline.Status, f.Pipeline.FinishedAt = "failed", at(68)
	golden(t, "summary-failed", Summary(f.Pipeline, 80, Style{}))
	for status, want := range map[string]string{
		"success":  "✓ pipeline passed after 1m08s: 2 jobs passed, 1 failed and may: licence-scan, 1 waits to be started by hand: production",
		"canceled": "⊘ pipeline canceled after 1m08s: 4 of 13 jobs had ended before",
		"skipped":  "» pipeline skipped after 1m08s: no job was to run",
	} {
		f.Pipeline.Status = status
		lines := Summary(f.Pipeline, 0, Style{})
		require.Equal(t, want, lines[len(lines)-1])
	}
	f.Pipeline.Status, f.Pipeline.FinishedAt = "manual", time.Time{}
	lines := Summary(f.Pipeline, 0, Style{})
	require.Equal(t, "▸ pipeline waits: name a job to run it: production", lines[len(lines)-1])
}

func TestFailure(t *testing.T) {
	j := sample().Pipeline.Jobs[3]
	tail := []string{"one", "\x1b[0;31mtwo\x1b[0m"}
	require.Equal(t, []string{"── lint exit code 2 " + strings.Repeat("─", 20), "one", "two"}, Failure(j, tail, 40, Style{}))
	require.Equal(t, tail, Failure(j, tail, 40, Style{Color: true})[1:])
	require.Equal(t, []string{"-- lint exit code 2 " + strings.Repeat("-", 60), "(no output)"}, Failure(j, nil, 0, Style{ASCII: true}))
}

func TestFit(t *testing.T) {
	s := Style{}
	for _, c := range []struct {
		text  string
		limit int
		want  string
	}{
		{"short", 10, "short"},
		{"exactly", 7, "exactly"},
		{"too long", 7, "too lo…"},
		{"漢字かな", 8, "漢字かな"},
		{"漢字かな", 7, "漢字か…"},
		{"漢字かな", 6, "漢字…"},
		{"e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"},
		{"a\tb", 9, "a       b"},
		{"a\tb", 8, "a…"},
		{"\x1b[31mred text\x1b[0m", 5, "\x1b[31mred …\x1b[0m"},
		{"x", 0, ""},
	} {
		got := s.fit(c.text, c.limit)
		require.Equal(t, c.want, got)
		require.LessOrEqual(t, widthOf(got), c.limit)
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-1: "0.0s", 340 * time.Millisecond: "0.3s", 9990 * time.Millisecond: "9.9s", 42 * time.Second: "42s",
		187 * time.Second: "3m07s", 62 * time.Minute: "1h02m", 50 * time.Hour: "50h00m",
	} {
		require.Equal(t, want, Span(d))
	}
}

func TestBareLinesOfTheTraceAreShown(t *testing.T) {
	require.Equal(t, "compiling one", tracetext.Bare(sample().Tails[5][1]))
}
