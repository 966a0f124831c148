// Command answer says for .ci/testbed.sh whether a component is there, as internal/testbed sees it: `answer docker 60s`
// waits up to 60 s for one that has just been started. It prints why the component is missing and exits with 1, or 2 if
// it is used wrongly.
package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/switchyard-ci/switchyard/internal/testbed"
)

// between is the pause between two looks.
const between = 100 * time.Millisecond

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	if len(args) < 1 || len(args) > 2 {
		return usage(errors.New("usage: answer COMPONENT [WAIT]"))
	}
	var wait time.Duration
	if len(args) == 2 {
		var err error
		if wait, err = time.ParseDuration(args[1]); err != nil {
			return usage(err)
		}
	}
	ticks := time.NewTicker(between)
	defer ticks.Stop()
	for end := time.Now().Add(wait); ; <-ticks.C {
		err := testbed.Component(args[0]).Check()
		if err == nil {
			return 0
		}
		if !time.Now().Before(end) {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
}

func usage(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 2
}
