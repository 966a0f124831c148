package simulation

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
	"unicode/utf8"
)

// Write writes the report as text.
func (r *Report) Write(w io.Writer) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	if r.Scenario != "" {
		fmt.Fprintf(w, "%s\n", r.Scenario)
	}
	fmt.Fprintf(w, "policy %s, %s, %g h, played %s, slots in use %.1f %%\n",
		r.Mode, some(r.Slots, "slot"), r.Hours, some(r.Seeds, "time"), 100*r.Busy)
	if backlogs := r.backlogs(); backlogs > 1 {
		fmt.Fprintf(w, "Jain's index %.3f: how evenly the %d projects with a backlog got what is due to them (1: all alike, %.3f: one has all)\n",
			r.Jain, backlogs, 1/float64(backlogs))
	}
	fmt.Fprintln(w)
	width := len("PROJECT")
	ruled := false
	for _, p := range r.Projects {
		width = max(width, utf8.RuneCountInString(p.label()))
		ruled = ruled || p.Rule != ""
	}
	rank := ""
	if ruled {
		rank = "CLASS\tPRIORITY\t"
	}
	fmt.Fprintf(out, "%-*s\t%sWEIGHT\tDUE\tGOT\tSLOT-SECONDS\tJOBS\tLEFT\tWAIT P50\tP95\tMAX\t\n", width, "PROJECT", rank)
	for _, p := range r.Projects {
		due, left, p50, p95, longest := "-", fmt.Sprint(p.Waiting), "-", "-", "-"
		switch {
		case p.Backlog:
			due, left = percent(p.Due), "backlog"
		case p.Jobs > 0:
			p50, p95, longest = seconds(p.WaitP50), seconds(p.WaitP95), seconds(p.WaitMax)
		}
		if ruled {
			rank = fmt.Sprintf("%s\t%d\t", p.Class, p.Priority)
		}
		fmt.Fprintf(out, "%-*s\t%s%g\t%s\t%s\t%.0f\t%d\t%s\t%s\t%s\t%s\t\n",
			width, p.label(), rank, p.Weight, due, percent(p.Share), p.SlotSeconds, p.Jobs, left, p50, p95, longest)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// label is what the row is called: a project may have several.
func (p *ProjectReport) label() string {
	if p.Name == "" {
		return p.Path
	}
	return p.Path + " (" + p.Name + ")"
}

func some(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func percent(part float64) string { return fmt.Sprintf("%.1f %%", 100*part) }

func seconds(s float64) string { return (time.Duration(s+0.5) * time.Second).String() }
