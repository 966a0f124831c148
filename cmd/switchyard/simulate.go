package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/switchyard-ci/switchyard/controlplane/allocation/simulation"
)

type simulateCmd struct {
	File   string   `short:"f" required:"" placeholder:"SCENARIO.yaml" help:"The scenario; - is the standard input."`
	Policy []string `enum:"fair,gitlab,fifo" placeholder:"NAME" help:"Play it with this rule instead of the scenario's: fair, gitlab or fifo. More than one, with commas or by repeating it, to compare them."`
	Seed   *uint64  `help:"Other lengths and arrivals; the same number gives the same ones."`
	SVG    string   `placeholder:"FILE" help:"Draw the slots over the time into this file."`
	Output string   `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Help is shown by --help.
func (simulateCmd) Help() string {
	return `It plays a load on a number of slots, with the code that decides in a running control plane, and says what every
project gets and how long its jobs wait. Try a change of the policy here first. A scenario:

  name: a team with a backlog beside two small ones
  slots: 8
  duration: 24h
  seeds: 10                          # played ten times, with other lengths each time
  policy:
    nodes:                           # by the path of a group or project
      apps: {weight: 2}
      data/import: {hard: 2}         # at most 2 slots; also: min, soft, paused
  projects:
    - {path: apps/web, backlog: true, length: 5m}    # always has jobs waiting
    - {path: data/import, jobs: 500, length: 20m}    # so many at the start
    - {path: tools/cli, every: 10m, length: 1m}      # one every ten minutes, more or less
    - {path: tools/lib, count: 5, every: 1h, length: 3m, start: 8h, stop: 18h}

Lengths vary (exponential, at most five times the mean); "fixed: true" makes them all alike.

  switchyard simulate -f scenario.yaml --policy fair,gitlab,fifo
  switchyard simulate -f scenario.yaml --svg slots.svg`
}

// Run plays the scenario.
func (c *simulateCmd) Run(std streams) error {
	if c.SVG != "" && len(c.Policy) > 1 {
		return usageError(errors.New("--svg draws one play: give one --policy with it"))
	}
	in := io.Reader(os.Stdin)
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return usageError(fmt.Errorf("open the scenario: %w", err))
		}
		defer f.Close()
		in = f
	}
	s, err := simulation.Read(in)
	if err != nil {
		return usageError(fmt.Errorf("%s: %w", c.File, err))
	}
	if c.Seed != nil {
		s.Seed = *c.Seed
	}
	policies := c.Policy
	if len(policies) == 0 {
		policies = []string{s.Policy.Mode}
	}
	reports := make([]simulation.Report, 0, len(policies))
	for _, p := range policies {
		s.Policy.Mode = p
		r, err := simulation.Play(s)
		if err != nil {
			return fmt.Errorf("play %s: %w", c.File, err)
		}
		reports = append(reports, r)
	}
	if c.SVG != "" {
		if err := c.draw(&reports[0]); err != nil {
			return err
		}
	}
	if c.Output == "json" {
		e := json.NewEncoder(std.out)
		e.SetIndent("", "  ")
		return e.Encode(reports)
	}
	for i := range reports {
		if i > 0 {
			fmt.Fprintln(std.out)
		}
		if err := reports[i].Write(std.out); err != nil {
			return err
		}
	}
	return nil
}

func (c *simulateCmd) draw(r *simulation.Report) (err error) {
	f, err := os.Create(c.SVG)
	if err != nil {
		return fmt.Errorf("draw: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return r.WriteSVG(f)
}
