//go:build unix

// Switchyard-job is the program that travels to where a job runs. It must start quickly: it runs for every job.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/switchyard-ci/switchyard/internal/buildinfo"
)

const usage = `switchyard-job runs one GitLab job in the place where it is started.

  switchyard-job run FOLDER
      Run the job that is described in FOLDER, once. "switchyard-job VERSION ready" on
      standard output says that it can be followed; it then lets go of its standard streams,
      and what it has to say itself goes to FOLDER/job.log. If another process runs the job
      already, the line ends in "attached", and this one waits for the end of that one.

  switchyard-job launch FOLDER [--offset N] [--lease DURATION]
      Make FOLDER of the job's description, with which standard input begins, start "run" for it
      in a session of its own, and do the same as attach. What was done before is not repeated:
      the job starts once.

  switchyard-job attach FOLDER [--offset N] [--lease DURATION]
      Write the job's trace from byte N of the whole trace on, its stages, its questions and its
      result to standard output, as frames, until it ends. Lines on standard input are orders
      for the job: "cancel graceful", "cancel kill", "lease MILLISECONDS", "answer JSON"; --lease
      gives one first. The end of standard input is the end of attach, not of the job.

  switchyard-job serve --socket PATH [--token-file FILE] [--grace DURATION]
      Run programs for a switchyard-job in another container, which knows the token in FILE
      (the first line of standard input without it). As process 1 it reaps what others leave.

      A token file that is not there yet is waited for. Without any argument and with
      SWITCHYARD_SERVE_SOCKET (and SWITCHYARD_SERVE_TOKEN_FILE) in the environment the program
      does the same: an image's entrypoint may lose arguments.

  switchyard-job hold [--open FOLDER:FOLDER] [--socket PATH --token-file FILE]
      Keep a container alive, reap what others leave in it, make the folders writable for
      everyone. With --socket: write the token (the first line of standard input) to FILE, wait
      for the server at PATH to answer to it and remove FILE. "switchyard-job VERSION ready" on
      standard output says that all this is done.

  switchyard-job reach [--timeout DURATION] HOST PORT,PORT
      Wait until one of the ports can be connected to. It ends early with its standard input.

  switchyard-job install FOLDER
      Copy this program to FOLDER/switchyard-job, in one step.

  switchyard-job version
  switchyard-job --help

Exit codes of run:
  0  the job has ended, and result.json says how
  1  the job cannot be started: nothing was
  2  the command line is wrong
  3  the job was started before, by a process that is gone: it never starts again
  4  the job has ended, but result.json could not be written
  5  another process ran the job, and result.json says how it ended
  6  another process had the job and is gone without a result
Exit codes of launch and attach: 0 the result was written, 3 the job ended without one, 7 standard
input ended first, 1 and 2 as above.
`

// Exit codes; see usage.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitStartedBefore
	exitNoResult
	exitAttached
	exitAttachedNoResult
)

func main() { os.Exit(command(os.Args[1:])) }

func command(args []string) int {
	if len(args) == 0 {
		if args = serveArguments(os.Getenv); args == nil {
			return misused("a command is missing")
		}
	}
	switch args[0] {
	case "run":
		return run(args[1:])
	case "launch":
		return launch(args[1:])
	case "attach":
		return attachTo(args[1:])
	case "serve":
		return serve(args[1:])
	case "hold":
		return hold(args[1:])
	case "reach":
		return reach(args[1:])
	case "install":
		return install(args[1:])
	case "version", "--version":
		_, _ = io.WriteString(os.Stdout, "switchyard-job "+buildinfo.Version()+"\n")
		return exitOK
	case "help", "--help", "-h":
		_, _ = io.WriteString(os.Stdout, usage)
		return exitOK
	}
	return misused(fmt.Sprintf("%q is not a command", args[0]))
}

func misused(what string) int {
	fmt.Fprintf(os.Stderr, "switchyard-job: %s (see switchyard-job --help)\n", what)
	return exitUsage
}

func failed(err error) int {
	fmt.Fprintf(os.Stderr, "switchyard-job: %v\n", err)
	return exitFailed
}

// parse splits arguments into the one without a name and the values of named ones (--name value or --name=value).
func parse(args []string, operands int, names ...string) (operand []string, named map[string]string, err error) {
	named = map[string]string{}
	for i := 0; i < len(args); i++ {
		a := args[i]
		if len(a) < 2 || a[:2] != "--" {
			operand = append(operand, a)
			continue
		}
		name, value, has := cut(a[2:])
		known := false
		for _, n := range names {
			known = known || n == name
		}
		if !known {
			return nil, nil, fmt.Errorf("--%s is not an option of this command", name)
		}
		if !has {
			if i++; i == len(args) {
				return nil, nil, fmt.Errorf("--%s needs a value", name)
			}
			value = args[i]
		}
		named[name] = value
	}
	if len(operand) != operands {
		return nil, nil, fmt.Errorf("%d arguments, not %d", operands, len(operand))
	}
	return operand, named, nil
}

func cut(s string) (name, value string, has bool) {
	for i := range len(s) {
		if s[i] == '=' {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}
