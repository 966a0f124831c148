package liveview

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// terminal is one that understands what a region is drawn with, and nothing else.
type terminal struct {
	width, height int
	lines         [][]rune // all that was ever there; the screen is the last height of them
	row, column   int      // row counts from the first of lines
	wrap          bool
	hidden        bool
	unknown       []string
}

func newTerminal(width, height int) *terminal {
	return &terminal{width: width, height: height, lines: make([][]rune, 1), wrap: true}
}

func (t *terminal) Write(p []byte) (int, error) {
	s := string(p)
	for s != "" {
		if rest, ok := strings.CutPrefix(s, "\x1b["); ok {
			end := strings.IndexFunc(rest, func(r rune) bool { return r >= '@' && r <= '~' })
			t.control(rest[:end], rest[end])
			s = rest[end+1:]
			continue
		}
		r := []rune(s)[0]
		s = s[len(string(r)):]
		t.put(r)
	}
	return len(p), nil
}

func (t *terminal) control(parameters string, final byte) {
	switch string(final) + parameters {
	case "K":
		t.lines[t.row] = t.lines[t.row][:min(t.column, len(t.lines[t.row]))]
	case "J":
		if t.row == t.top() && t.column == 0 {
			t.unknown = append(t.unknown, "the whole screen is erased at once")
		}
		t.control("", 'K')
		t.lines = t.lines[:t.row+1]
	case "h?7", "l?7":
		t.wrap = final == 'h'
	case "h?25", "l?25":
		t.hidden = final == 'l'
	case "h?2026", "l?2026":
	default:
		n, err := strconv.Atoi(parameters)
		switch {
		case final == 'm':
		case final == 'A' && err == nil:
			t.row = max(t.row-n, t.top())
		default:
			t.unknown = append(t.unknown, parameters+string(final))
		}
	}
}

// top is the first line of the screen.
func (t *terminal) top() int { return max(0, len(t.lines)-t.height) }

func (t *terminal) put(r rune) {
	switch r {
	case '\r':
		t.column = 0
		return
	case '\n': // a terminal device makes CR LF of it
		t.column = 0
		if t.row++; t.row == len(t.lines) {
			t.lines = append(t.lines, nil)
		}
		return
	}
	if t.column >= t.width {
		if !t.wrap {
			t.column = t.width - 1
		} else {
			t.put('\r')
			t.put('\n')
		}
	}
	line := t.lines[t.row]
	for len(line) <= t.column {
		line = append(line, ' ')
	}
	line[t.column] = r
	t.lines[t.row] = line
	t.column++
}

func (t *terminal) text() []string {
	var out []string
	for _, line := range t.lines {
		out = append(out, strings.TrimRight(string(line), " "))
	}
	return out
}

func TestARegionIsDrawnInPlace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		term := newTerminal(20, 8)
		r := region{out: term}
		var printed, last []string
		for i := range rapid.IntRange(1, 12).Draw(t, "frames") {
			above := ""
			for j := range rapid.IntRange(0, 3).Draw(t, "above") {
				line := fmt.Sprintf("printed %d %d ", i, j) + strings.Repeat("y", rapid.IntRange(0, 30).Draw(t, "length"))
				above += line + "\n"
				for len(line) > 20 { // the terminal breaks it
					printed, line = append(printed, line[:20]), line[20:]
				}
				printed = append(printed, strings.TrimRight(line, " "))
			}
			last = nil
			for j := range rapid.IntRange(0, 7).Draw(t, "lines") {
				line := fmt.Sprintf("frame %d line %d%s", i, j, strings.Repeat("x", rapid.IntRange(0, 8).Draw(t, "long")))
				last = append(last, line[:min(len(line), 20)])
			}
			if err := r.draw(above, last, 20, 8); err != nil {
				t.Fatal(err)
			}
		}
		want := append(append([]string{}, printed...), last...)
		got, rest := term.text()[:term.row], term.text()[term.row:]
		if strings.Join(got, "\n") != strings.Join(want, "\n") || term.column != 0 || strings.Join(rest, "") != "" {
			t.Fatalf("there is\n%s\nand should be\n%s\nand below is\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), strings.Join(rest, "\n"))
		}
		if len(term.unknown) > 0 || !term.wrap || !term.hidden {
			t.Fatalf("unknown %q, wrap %t, hidden %t", term.unknown, term.wrap, term.hidden)
		}
		if err := r.leave(); err != nil || term.hidden {
			t.Fatal("the cursor stays hidden")
		}
	})
}

func TestTheSameFrameIsNotDrawnAgain(t *testing.T) {
	var out strings.Builder
	r := region{out: &out}
	require.NoError(t, r.draw("", []string{"a", "b"}, 80, 24))
	require.NoError(t, r.draw("", []string{"a", "b"}, 80, 24))
	n := out.Len()
	require.NoError(t, r.draw("", []string{"a", "b"}, 80, 24))
	require.Equal(t, n, out.Len())
}

// A narrower terminal has broken the lines that were drawn on it.
func TestAfterTheTerminalHasBecomeNarrower(t *testing.T) {
	r := region{drawn: []int{30, 10, 0}}
	require.Equal(t, 3, r.rows(30, 24))
	require.Equal(t, 4, r.rows(20, 24))
	require.Equal(t, 5, r.rows(10, 24))
	require.Equal(t, 2, r.rows(10, 3), "what has left the screen cannot be reached")
}
