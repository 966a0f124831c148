//go:build unix

package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// exitLeft is attach's and launch's exit code if the caller is gone before the job has ended; see usage.
const exitLeft = 7

// attachTo follows a job that was started before.
func attachTo(args []string) int {
	runtime.GOMAXPROCS(1) // see run
	to, err := parseAttach(args)
	if err != nil {
		return misused("attach: " + err.Error())
	}
	f, err := folder.Open(to.folder)
	if err != nil {
		attach.Fail(os.Stdout, err)
		return failed(err)
	}
	return follow(f, to, os.Stdin)
}

// target is what to attach to.
type target struct {
	folder string
	offset int64
	lease  time.Duration // 0: none
}

func parseAttach(args []string) (to target, err error) {
	operand, named, err := parse(args, 1, "offset", "lease")
	if err != nil {
		return target{}, err
	}
	to.folder = operand[0]
	if text, ok := named["offset"]; ok {
		if to.offset, err = strconv.ParseInt(text, 10, 64); err != nil || to.offset < 0 {
			return target{}, fmt.Errorf("--offset %q is not a number of bytes", text)
		}
	}
	if text, ok := named["lease"]; ok {
		if to.lease, err = time.ParseDuration(text); err != nil || to.lease < time.Millisecond {
			return target{}, fmt.Errorf("--lease %q is not a duration of at least 1ms", text)
		}
	}
	return to, nil
}
