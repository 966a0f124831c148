// Command switchyard-agent runs jobs on this host for a Switchyard fleet. It dials out to the control plane; nothing
// listens here.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/switchyard-ci/switchyard/agent"
	"github.com/switchyard-ci/switchyard/agent/datadir"
	"github.com/switchyard-ci/switchyard/agent/identity"
	"github.com/switchyard-ci/switchyard/agent/uplink"
	"github.com/switchyard-ci/switchyard/internal/buildinfo"
)

// Exit codes; they stand in the help too.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3
	exitExpired = 4
	exitInUse   = 5
)

func main() {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP)
	os.Exit(run(os.Args[1:], signals, os.Stdout, os.Stderr))
}

// run is the program, less its process: it returns the exit code.
func run(args []string, signals <-chan os.Signal, stdout, stderr io.Writer) int {
	var f flags
	parser, exited, err := newParser(&f, stdout, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "switchyard-agent:", err)
		return exitFailed
	}
	usage := func(err error) int {
		fmt.Fprintf(stderr, "switchyard-agent: %v\n(switchyard-agent --help shows all settings)\n", err)
		return exitUsage
	}
	if _, err := parser.Parse(args); *exited {
		return exitOK
	} else if err != nil {
		return usage(err)
	}
	if f.Version {
		fmt.Fprintln(stdout, buildinfo.Line("switchyard-agent"))
		return exitOK
	}
	s, err := f.settings()
	if err != nil {
		return usage(err)
	}
	log := newLogger(stderr, s.logLevel, s.logFormat)
	config, err := s.config(log)
	if err != nil {
		return usage(err)
	}
	defer leavePlaces(config.Executors, log)
	a, err := agent.New(config)
	if err != nil {
		return usage(err)
	}
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	obeyed := make(chan struct{})
	go func() {
		defer close(obeyed)
		obey(ctx, signals, a, leave, log)
	}()
	err = a.Run(ctx)
	leave()
	<-obeyed
	if err != nil {
		fmt.Fprintln(stderr, "switchyard-agent:", err)
	}
	return exitCode(err)
}

// obey turns signals into orders until ctx ends.
func obey(ctx context.Context, signals <-chan os.Signal, a *agent.Agent, leave func(), log *slog.Logger) {
	asked := 0
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			if s == syscall.SIGQUIT || s == syscall.SIGHUP {
				asked = 2
			}
			asked++
			switch asked {
			case 1:
				log.Info("finishing the running jobs before leaving; a second signal cancels them", "signal", s)
				a.Drain()
			case 2:
				log.Info("cancelling the running jobs; a third signal leaves at once", "signal", s)
				a.CancelJobs()
			default:
				log.Info("leaving at once; jobs go on and are taken up by the next start", "signal", s)
				leave()
			}
		}
	}
}

func exitCode(err error) int {
	var (
		used    *datadir.InUseError
		refused *identity.RefusedError
		expired *identity.ExpiredError
		failed  *uplink.Error
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &used):
		return exitInUse
	case errors.As(err, &expired):
		return exitExpired
	case errors.As(err, &refused), errors.As(err, &failed), errors.Is(err, identity.ErrNotEnrolled), errors.Is(err, errToken):
		return exitRefused
	}
	return exitFailed
}

// newParser returns the parser and whether it has done all that was asked for (--help).
func newParser(f *flags, stdout, stderr io.Writer) (*kong.Kong, *bool, error) {
	exited := new(bool)
	parser, err := kong.New(f,
		kong.Name("switchyard-agent"), kong.Description(description),
		kong.Writers(stdout, stderr), kong.Exit(func(int) { *exited = true }),
		kong.ConfigureHelp(kong.HelpOptions{WrapUpperBound: 100}),
		kong.Vars{"data": defaultData()},
	)
	if err != nil {
		return nil, nil, fmt.Errorf("build the command line: %w", err)
	}
	return parser, exited, nil
}
