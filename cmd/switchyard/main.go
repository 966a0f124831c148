// Command switchyard is the program for people: the control plane, its administration, and `switchyard run`, which runs
// a repository's pipeline on this machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/switchyard-ci/switchyard/internal/buildinfo"
)

const description = `A GitLab runner for a whole fleet.

"switchyard run" runs the pipeline of the repository you are in, on this machine, without a GitLab.
"switchyard serve" is the control plane of a fleet; the agents are switchyard-agent's.

Exit codes: 0 all is well, 1 it failed, 2 the command line or a file is wrong, 130 interrupted.`

// Exit codes; they stand in the help too.
const (
	exitFailed = 1
	exitUsage  = 2
)

type cli struct {
	Run      runCmd      `cmd:"" help:"Run a repository's pipeline on this machine."`
	Serve    serveCmd    `cmd:"" help:"Run the control plane of a fleet."`
	Config   configCmd   `cmd:"" help:"Look at the control plane's configuration."`
	Agents   agentsCmd   `cmd:"" help:"Agents: who is there, and tokens to let more join."`
	Jobs     jobsCmd     `cmd:"" help:"Jobs that the control plane holds."`
	Runners  runnersCmd  `cmd:"" help:"Runners: how they do, and their registration in GitLab."`
	Policy   policyCmd   `cmd:"" help:"Fair usage: who gets which share, and which jobs go first."`
	Explain  explainCmd  `cmd:"" help:"Why something waits."`
	Usage    usageCmd    `cmd:"" help:"What projects use of the fleet, and how long they wait."`
	Audit    auditCmd    `cmd:"" help:"Who changed what."`
	Simulate simulateCmd `cmd:"" help:"Play a load on a number of slots: who gets what, who waits for how long."`

	Version kong.VersionFlag `help:"Print the version."`
}

// exitError ends the program with a code of its own. A nil Err has been told to the user already.
type exitError struct {
	Code int
	Err  error
}

func (e *exitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e *exitError) Unwrap() error { return e.Err }

// usageError is a mistake in the command line or in a file that it names.
func usageError(err error) error { return &exitError{Code: exitUsage, Err: err} }

// streams are where a command writes.
type streams struct{ out, err io.Writer }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], streams{os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

// run is the program, less its process: it returns the exit code.
func run(ctx context.Context, args []string, std streams) int {
	var c cli
	exited := false
	parser, err := kong.New(&c,
		kong.Name("switchyard"), kong.Description(description), kong.Writers(std.out, std.err),
		kong.Exit(func(int) { exited = true }), kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.Vars{"version": buildinfo.Line("switchyard")}, kong.Bind(std),
		kong.BindTo(ctx, (*context.Context)(nil)),
	)
	if err != nil {
		fmt.Fprintln(std.err, "switchyard:", err)
		return exitFailed
	}
	command, err := parser.Parse(args)
	if exited {
		return 0
	}
	if err != nil {
		fmt.Fprintf(std.err, "switchyard: %v\n(switchyard --help shows what there is)\n", err)
		return exitUsage
	}
	return exitCode(command.Run(), std.err)
}

func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	code := exitFailed
	if e, ok := errors.AsType[*exitError](err); ok {
		code, err = e.Code, e.Err
	}
	if err != nil {
		fmt.Fprintln(stderr, "switchyard:", err)
	}
	return code
}
