package liveview

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

const tabStop = 8

// cells is how many columns of a terminal a character takes.
func cells(r rune) int {
	switch {
	case r < 0x300:
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return 0
		}
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// widthOf is how many columns a text takes. Colours take none; a tab is counted as one.
func widthOf(s string) int {
	n := 0
	for len(s) > 0 {
		if s[0] == 0x1b {
			s = s[sequence(s):]
			continue
		}
		r, size := utf8.DecodeRuneInString(s)
		n += cells(r)
		s = s[size:]
	}
	return n
}

// sequence is the length of the colour that s begins with.
func sequence(s string) int {
	if end := strings.IndexByte(s, 'm'); end >= 0 {
		return end + 1
	}
	return len(s)
}

// fit cuts a text so that it takes at most limit columns. Tabs become spaces; colours stay, and are reset where the cut
// is.
func (s Style) fit(text string, limit int) string {
	if limit <= 0 {
		return ""
	}
	var b strings.Builder
	at, colored := 0, false
	// kept is what there would be if the text had to be cut here.
	kept, mark := 0, s.pick("…", "~")
	for i := 0; i < len(text); {
		if text[i] == 0x1b {
			n := sequence(text[i:])
			b.WriteString(text[i : i+n])
			i += n
			colored = true
			continue
		}
		r, size := utf8.DecodeRuneInString(text[i:])
		piece, n := text[i:i+size], cells(r)
		if r == '\t' {
			n = tabStop - at%tabStop
			piece = strings.Repeat(" ", n)
		}
		if at+n > limit {
			out := b.String()[:kept] + mark
			if colored {
				out += "\x1b[0m"
			}
			return out
		}
		b.WriteString(piece)
		at += n
		i += size
		if at < limit {
			kept = b.Len()
		}
	}
	return b.String()
}

// pad fills a text up to a width on the right.
func pad(s string, to int) string {
	return s + strings.Repeat(" ", max(0, to-widthOf(s)))
}

// padLeft fills it up on the left.
func padLeft(s string, to int) string {
	return strings.Repeat(" ", max(0, to-widthOf(s))) + s
}

// Span writes a duration as people say it: 0.3s, 42s, 3m07s, 1h02m.
func Span(d time.Duration) string {
	switch d = max(0, d); {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Truncate(100*time.Millisecond).Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}
