//go:build unix

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/folder"
)

func attachTo(args []string) int {
	operand, named, err := parse(args, 1, "offset", "lease")
	if err != nil {
		return misused("attach: " + err.Error())
	}
	offset := int64(0)
	if text, ok := named["offset"]; ok {
		if offset, err = strconv.ParseInt(text, 10, 64); err != nil || offset < 0 {
			return misused(fmt.Sprintf("attach: --offset %q is not a number of bytes", text))
		}
	}
	lease := time.Duration(0)
	if text, ok := named["lease"]; ok {
		if lease, err = time.ParseDuration(text); err != nil || lease < time.Millisecond {
			return misused(fmt.Sprintf("attach: --lease %q is not a duration of at least 1ms", text))
		}
	}
	f, err := folder.Open(operand[0])
	if err != nil {
		return failed(err)
	}
	resulted, err := attach.Serve(context.Background(), f, offset, lease, os.Stdin, os.Stdout)
	switch {
	case err != nil:
		return failed(err)
	case !resulted:
		return exitStartedBefore
	}
	return exitOK
}
