package liveview

import (
	"io"
	"strconv"
	"strings"
)

// Control sequences that a region is drawn with. Terminals that do not know synchronized updates ignore them.
const (
	beginUpdate = "\x1b[?2026h"
	endUpdate   = "\x1b[?2026l"
	hideCursor  = "\x1b[?25l"
	showCursor  = "\x1b[?25h"
	noWrap      = "\x1b[?7l"
	wrap        = "\x1b[?7h"
	eraseLine   = "\x1b[K"
	eraseBelow  = "\x1b[J"
)

// region is the lines above the cursor that are drawn again and again. The cursor stands at the begin of the line below.
type region struct {
	out   io.Writer
	drawn []int // the widths of the lines that are there
	last  string
}

// draw replaces what is there. above is printed where the region began, and stays; its lines end with line breaks.
// width and height are the terminal's now: if it has become narrower, it has broken the lines that are there.
func (r *region) draw(above string, lines []string, width, height int) error {
	var b strings.Builder
	rows := r.rows(width, height)
	b.WriteString(up(rows))
	if above != "" || len(lines) == 0 {
		// Row by row: when everything is erased at once some terminals take the screen for worth keeping. And before the
		// text, which the terminal may break.
		b.WriteString(strings.Repeat(eraseLine+"\r\n", rows) + up(rows) + strings.ReplaceAll(above, "\n", "\r\n"))
	}
	b.WriteString(noWrap)
	drawn := make([]int, len(lines))
	for i, line := range lines {
		b.WriteString(eraseLine + line + "\r\n") // erased first: at the right edge it would take the last character
		drawn[i] = widthOf(line)
	}
	b.WriteString(wrap)
	if len(lines) > 0 {
		b.WriteString(eraseBelow)
	}
	if b.String() == r.last {
		return nil
	}
	r.drawn, r.last = drawn, b.String()
	_, err := io.WriteString(r.out, beginUpdate+hideCursor+b.String()+endUpdate)
	return err
}

// leave ends the drawing: what is printed from now on follows the region.
func (r *region) leave() error {
	r.drawn, r.last = nil, ""
	_, err := io.WriteString(r.out, wrap+showCursor)
	return err
}

// rows is how many rows of the screen the region takes.
func (r *region) rows(width, height int) int {
	rows := 0
	for _, w := range r.drawn {
		rows += max(1, (w+width-1)/max(1, width))
	}
	return max(0, min(rows, height-1))
}

// up moves the cursor to the begin of a row above.
func up(rows int) string {
	if rows == 0 {
		return "\r"
	}
	return "\r\x1b[" + strconv.Itoa(rows) + "A"
}
