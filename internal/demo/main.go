// Command demo shows a small fleet on this machine: an embedded GitLab with three projects, a control plane and two
// agents as processes of their own. It runs the projects' pipelines, checks every result and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/term"
)

// patience is how long the whole demo may take.
const patience = 2 * time.Minute

func main() {
	bin := flag.String("bin", "bin", "where switchyard, switchyard-agent and switchyard-job are")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the demo took longer than %s", patience))
	err := demonstrate(ctx, *bin, newStage(os.Stdout, colorful(os.Stdout)))
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// colorful says whether a file is a terminal that may have colours (https://no-color.org).
func colorful(f *os.File) bool {
	return term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// demonstrate is the demo.
func demonstrate(ctx context.Context, bin string, s *stage) (err error) {
	began := time.Now()
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "switchyard-demo-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	y := &yard{stage: s, bin: bin, dir: dir}
	err = y.show(ctx)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	if err != nil {
		y.complain()
	}
	err = errors.Join(err, y.close())
	if err == nil {
		s.say("\n%s", s.paint(green, fmt.Sprintf("All as expected, in %.1f s.", time.Since(began).Seconds())))
	}
	return err
}

// show goes through the demo's steps.
func (y *yard) show(ctx context.Context) error {
	steps := []struct {
		title string
		do    func(context.Context) error
	}{
		{"An embedded GitLab, with three projects made on the fly", y.startGitLab},
		{"A control plane: switchyard serve", y.startControlPlane},
		{"Two agents: switchyard-agent, with a join token of the control plane", y.startAgents},
		{"A pipeline for each project", y.run},
		{"Who ran what", y.report},
		{"Everybody goes home", y.stop},
	}
	for i, step := range steps {
		y.stage.heading(i+1, step.title)
		if err := step.do(ctx); err != nil {
			return err
		}
	}
	return nil
}
