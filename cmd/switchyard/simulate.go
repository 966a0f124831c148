package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/switchyard-ci/switchyard/controlplane/allocation/simulation"
	"github.com/switchyard-ci/switchyard/controlplane/policy"
)

type simulateCmd struct {
	File       string   `short:"f" required:"" placeholder:"SCENARIO.yaml" help:"The scenario; - is the standard input."`
	PolicyFile string   `placeholder:"POLICY.yaml" help:"Play it with this policy instead of the scenario's: a file as policy apply takes it."`
	Policy     []string `enum:"fair,gitlab,fifo" placeholder:"NAME" help:"Share slots by this rule instead of the policy's: fair, gitlab or fifo. More than one, with commas or by repeating it, to compare them."`
	Seed       *uint64  `help:"Other lengths and arrivals; the same number gives the same ones."`
	SVG        string   `placeholder:"FILE" help:"Draw the slots over the time into this file."`
	Output     string   `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Help is shown by --help.
func (simulateCmd) Help() string {
	return `It plays a load on a number of slots, with the code that decides in a running control plane, and says what every
project gets and how long its jobs wait. Try a change of the policy here before you apply it. A scenario:

  name: a team with a backlog beside two small ones
  slots: 8
  duration: 24h
  seeds: 10                          # played ten times, with other lengths each time
  policy:                            # as in: switchyard policy apply --help
    nodes:
      - {path: apps, weight: 2}
      - {path: data/import, hard_quota: 2}
    rules:
      - {when: environment == "production", priority: 100}
  projects:
    - {path: apps/web, every: 1h, length: 4m, name: deploy, environment: production}
    - {path: apps/web, backlog: true, length: 5m}    # always has jobs waiting
    - {path: data/import, jobs: 500, length: 20m}    # so many at the start
    - {path: tools/cli, every: 10m, length: 1m}      # one every ten minutes, more or less
    - {path: tools/lib, count: 5, every: 1h, length: 3m, start: 8h, stop: 18h}

Lengths vary (exponential, at most five times the mean); "fixed: true" makes them all alike. Rules see what an entry says
of its jobs: name (job in a rule), stage, ref or tag, protected, environment, source, user, runner. There is one kind of
slots, and jobs are claimed as soon as they come: what a policy says of runners and of placement is not played.

  switchyard simulate -f scenario.yaml --policy-file policy.yaml
  switchyard simulate -f scenario.yaml --policy fair,gitlab,fifo
  switchyard simulate -f scenario.yaml --svg slots.svg`
}

// Run plays the scenario.
func (c *simulateCmd) Run(std streams) error {
	if c.SVG != "" && len(c.Policy) > 1 {
		return usageError(errors.New("--svg draws one play: give one --policy with it"))
	}
	s, err := c.scenario(std)
	if err != nil {
		return usageError(err)
	}
	modes := []policy.Mode{s.Policy.Mode}
	if len(c.Policy) > 0 {
		modes = modes[:0]
		for _, name := range c.Policy {
			modes = append(modes, policy.Mode(name))
		}
	}
	reports := make([]simulation.Report, 0, len(modes))
	for _, m := range modes {
		s.Policy = s.Policy.WithMode(m)
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

// scenario reads the scenario and the policy that it is played with.
func (c *simulateCmd) scenario(std streams) (simulation.Scenario, error) {
	if c.File == "-" && c.PolicyFile == "-" {
		return simulation.Scenario{}, errors.New("the scenario and the policy cannot both come from the standard input")
	}
	text, err := readText("scenario", c.File, simulation.MaxSize)
	if err != nil {
		return simulation.Scenario{}, err
	}
	s, warnings, err := simulation.Read(c.File, text)
	for _, w := range warnings {
		fmt.Fprintln(std.err, "warning:", w)
	}
	if err != nil {
		return s, fmt.Errorf("the scenario cannot be played:\n%w", err)
	}
	if c.PolicyFile != "" {
		text, err := readText("policy", c.PolicyFile, policy.MaxSize)
		if err != nil {
			return s, err
		}
		p, warnings, err := policy.Parse(c.PolicyFile, text)
		for _, w := range warnings {
			fmt.Fprintln(std.err, "warning:", w)
		}
		if err != nil {
			return s, fmt.Errorf("the policy cannot be used:\n%w", err)
		}
		s.Policy = p
	}
	for _, w := range s.Unplayed() {
		fmt.Fprintln(std.err, "warning:", w)
	}
	if c.Seed != nil {
		s.Seed = *c.Seed
	}
	return s, nil
}

func (c *simulateCmd) draw(r *simulation.Report) (err error) {
	f, err := os.Create(c.SVG)
	if err != nil {
		return fmt.Errorf("draw: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return r.WriteSVG(f)
}
