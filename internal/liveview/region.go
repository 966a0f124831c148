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
	b.WriteString(r.up(width, height))
	if above != "" {
		// What is printed may be long: it is broken by the terminal, and copied from it as one line.
		b.WriteString(eraseBelow + strings.ReplaceAll(above, "\n", eraseLine+"\r\n"))
	}
	b.WriteString(noWrap)
	drawn := make([]int, len(lines))
	for i, line := range lines {
		b.WriteString(line + eraseLine + "\r\n")
		drawn[i] = widthOf(line)
	}
	b.WriteString(eraseBelow + wrap)
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

// up moves the cursor to where the region begins.
func (r *region) up(width, height int) string {
	rows := 0
	for _, w := range r.drawn {
		rows += max(1, (w+width-1)/max(1, width))
	}
	rows = min(rows, height-1)
	if rows <= 0 {
		return "\r"
	}
	return "\r\x1b[" + strconv.Itoa(rows) + "A"
}
