//go:build unix

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	defaultReach = 30 * time.Second
	// dialPatience is how long one attempt may take, and the longest pause between two.
	dialPatience = time.Second
)

// reach waits until a port of a host can be connected to.
func reach(args []string) int {
	operand, named, err := parse(args, 2, "timeout")
	if err != nil {
		return misused("reach: " + err.Error())
	}
	limit := defaultReach
	if text, ok := named["timeout"]; ok {
		if limit, err = time.ParseDuration(text); err != nil || limit <= 0 {
			return misused(fmt.Sprintf("reach: --timeout %q is not a duration", text))
		}
	}
	var ports []string
	for port := range strings.SplitSeq(operand[1], ",") {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return misused(fmt.Sprintf("reach: %q is not a port", port))
		}
		ports = append(ports, port)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	go func() { // whoever waits for this program may go
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	fmt.Printf("waiting for TCP connection to %s on %v...\n", operand[0], ports)
	if !reachAny(ctx, operand[0], ports, os.Stdout) {
		return exitFailed
	}
	return exitOK
}

// reachAny tries all ports until one answers.
func reachAny(ctx context.Context, host string, ports []string, say io.Writer) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reached := make(chan struct{}, len(ports))
	var all sync.WaitGroup
	for _, port := range ports {
		all.Go(func() {
			address := net.JoinHostPort(host, port)
			dialer := net.Dialer{Timeout: dialPatience}
			said := false
			for pause := 20 * time.Millisecond; ctx.Err() == nil; pause = min(2*pause, dialPatience) {
				if !said || pause == dialPatience {
					_, _ = io.WriteString(say, "dialing "+address+"...\n")
					said = true
				}
				c, err := dialer.DialContext(ctx, "tcp", address)
				if err == nil {
					_ = c.Close()
					reached <- struct{}{}
					cancel()
					return
				}
				t := time.NewTimer(pause)
				select {
				case <-t.C:
				case <-ctx.Done():
					t.Stop()
				}
			}
		})
	}
	all.Wait()
	return len(reached) > 0
}
