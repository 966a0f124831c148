package simulation

import (
	"bufio"
	"cmp"
	"fmt"
	"html"
	"io"
	"slices"
	"time"
)

// The picture, in pixels.
const (
	pictureWidth, pictureHeight = 1080, 460
	plotLeft, plotTop           = 60, 60
	plotWidth, plotHeight       = 680, 340
	legendLeft                  = plotLeft + plotWidth + 24
	legendRight                 = pictureWidth - 20
	legendRows                  = 12
)

// Colours that people with most kinds of colour blindness tell apart (Okabe and Ito 2008), and lighter ones of the same.
var colours = [legendRows]string{
	"#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442", "#004166", "#8f6200", "#00593f", "#7a3600", "#bbbbbb",
}

// band is what the picture shows in one colour.
type band struct {
	name   string
	colour string
	share  float64
	slots  []float64
}

// WriteSVG draws who had how many slots over the time of the first play: the mean of each of some parts of the time. The
// projects with the most slot-seconds have colours of their own, the others one together.
func (r *Report) WriteSVG(to io.Writer) error {
	w := bufio.NewWriter(to)
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12">`+"\n",
		pictureWidth, pictureHeight)
	fmt.Fprintf(w, "<title>%s</title>\n", html.EscapeString(r.Scenario))
	fmt.Fprintf(w, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", pictureWidth, pictureHeight)
	text(w, plotLeft, 24, "start", 16, r.Scenario)
	text(w, plotLeft, 44, "start", 12, r.caption())
	bands := r.bands()
	below := make([]float64, columns)
	for _, b := range bands {
		fmt.Fprintf(w, `<path fill="%s" d="`, b.colour)
		top := make([]float64, columns)
		for c := range columns {
			top[c] = below[c] + b.slots[c]
		}
		// Along the top from left to right, along the bottom back, in steps.
		for c := range columns {
			op := "L"
			if c == 0 {
				op = "M"
			}
			fmt.Fprintf(w, "%s%.1f %.1fH%.1f", op, x(c), r.y(top[c]), x(c+1))
		}
		for c := columns - 1; c >= 0; c-- {
			fmt.Fprintf(w, "L%.1f %.1fH%.1f", x(c+1), r.y(below[c]), x(c))
		}
		fmt.Fprint(w, "Z\"/>\n")
		below = top
	}
	r.axes(w) // over the bands, which fill the picture
	text(w, legendLeft, plotTop-16, "start", 12, "project")
	text(w, legendRight, plotTop-16, "end", 12, "of what was used")
	for i := range bands {
		b := bands[len(bands)-1-i] // in the order of the picture, from the top
		y := plotTop + 22*i
		fmt.Fprintf(w, `<rect x="%d" y="%d" width="14" height="14" fill="%s"/>`+"\n", legendLeft, y, b.colour)
		text(w, legendLeft+20, y+12, "start", 12, b.name)
		text(w, legendRight, y+12, "end", 12, percent(b.share))
	}
	fmt.Fprint(w, "</svg>\n")
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the picture: %w", err)
	}
	return nil
}

func (r *Report) caption() string {
	caption := fmt.Sprintf("policy %s, %s, %.1f %% in use", r.Mode, some(r.Slots, "slot"), 100*r.Busy)
	if r.backlogs() > 1 {
		caption += fmt.Sprintf(", Jain's index %.3f", r.Jain)
	}
	if r.Seeds > 1 {
		caption += fmt.Sprintf("; figures of %d plays, picture of the first", r.Seeds)
	}
	return caption
}

func (r *Report) backlogs() (n int) {
	for _, p := range r.Projects {
		if p.Backlog {
			n++
		}
	}
	return n
}

// bands are the projects that have a colour, in the scenario's order, and the others together.
func (r *Report) bands() []band {
	order := make([]int, len(r.Projects))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(r.Projects[b].SlotSeconds, r.Projects[a].SlotSeconds)
	})
	named := order
	if len(order) > legendRows {
		named = order[:legendRows-1]
	}
	named = slices.Sorted(slices.Values(named))
	bands := make([]band, 0, legendRows)
	for i, n := range named {
		bands = append(bands, band{shorten(r.Projects[n].label()), colours[i], r.Projects[n].Share, r.Timeline[n]})
	}
	if rest := order[len(named):]; len(rest) > 0 {
		others := band{name: some(len(rest), "other"), colour: colours[legendRows-1], slots: make([]float64, columns)}
		for _, n := range rest {
			others.share += r.Projects[n].Share
			for c, v := range r.Timeline[n] {
				others.slots[c] += v
			}
		}
		bands = append(bands, others)
	}
	return bands
}

// shorten keeps the end of a long path, which tells projects apart.
func shorten(path string) string {
	const room = 30
	letters := []rune(path)
	if len(letters) <= room {
		return path
	}
	return "…" + string(letters[len(letters)-room+1:])
}

func x(column int) float64 { return plotLeft + plotWidth*float64(column)/columns }

func (r *Report) y(slots float64) float64 {
	return plotTop + plotHeight*(1-slots/float64(r.Slots))
}

func (r *Report) axes(w io.Writer) {
	for _, n := range steps(r.Slots) {
		y := r.y(float64(n))
		fmt.Fprintf(w, `<path stroke="#ffffff" stroke-opacity="0.5" stroke-width="0.7" d="M%d %.1fH%d"/>`+"\n", plotLeft, y, plotLeft+plotWidth)
		text(w, plotLeft-8, int(y)+4, "end", 12, fmt.Sprint(n))
	}
	all := time.Duration(r.Hours * float64(time.Hour))
	step := tick(all)
	for at := time.Duration(0); at <= all; at += step {
		x := plotLeft + plotWidth*float64(at)/float64(all)
		fmt.Fprintf(w, `<path stroke="#888888" d="M%.1f %dv5"/>`+"\n", x, plotTop+plotHeight)
		text(w, int(x), plotTop+plotHeight+20, "middle", 12, label(at))
	}
	fmt.Fprintf(w, `<path stroke="#888888" fill="none" d="M%d %dV%dH%d"/>`+"\n", plotLeft, plotTop, plotTop+plotHeight, plotLeft+plotWidth)
	text(w, plotLeft+plotWidth/2, plotTop+plotHeight+42, "middle", 12, "time since the start")
	fmt.Fprintf(w, `<text transform="translate(18 %d) rotate(-90)" text-anchor="middle">slots in use, mean of %s</text>`+"\n",
		plotTop+plotHeight/2, label((all / columns).Round(time.Second)))
}

// steps are at most about eight even numbers of slots up to all of them.
func steps(slots int) []int {
	step := 1
	for i := 0; slots/step > 8; i++ {
		step = []int{1, 2, 5}[(i+1)%3] * pow10((i+1)/3)
	}
	var all []int
	for n := 0; n <= slots; n += step {
		all = append(all, n)
	}
	return all
}

func pow10(n int) int {
	p := 1
	for range n {
		p *= 10
	}
	return p
}

func tick(all time.Duration) time.Duration {
	for _, t := range []time.Duration{
		time.Second, 10 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour,
		24 * time.Hour,
	} {
		if all/t <= 10 {
			return t
		}
	}
	return max(all/10, 1)
}

func label(d time.Duration) string {
	switch {
	case d%time.Hour == 0:
		return fmt.Sprintf("%d h", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%d min", d/time.Minute)
	}
	return fmt.Sprintf("%g s", d.Seconds())
}

func text(w io.Writer, x, y int, anchor string, size int, s string) {
	fmt.Fprintf(w, `<text x="%d" y="%d" text-anchor="%s" font-size="%d">%s</text>`+"\n", x, y, anchor, size, html.EscapeString(s))
}
