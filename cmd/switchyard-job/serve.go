//go:build unix

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/switchyard-ci/switchyard/job/process"
	jobserve "github.com/switchyard-ci/switchyard/job/serve"
)

const (
	// worker marks the child that process 1 starts.
	worker       = "--child-of-init=yes"
	defaultGrace = 10 * time.Second
	maxToken     = 1 << 10
)

func serve(args []string) int {
	_, named, err := parse(args, 0, "socket", "token-file", "grace", "child-of-init")
	if err != nil {
		return misused("serve: " + err.Error())
	}
	if named["socket"] == "" {
		return misused("serve: --socket PATH is missing")
	}
	grace := defaultGrace
	if text, ok := named["grace"]; ok {
		if grace, err = time.ParseDuration(text); err != nil || grace < 0 {
			return misused(fmt.Sprintf("serve: --grace %q is not a duration", text))
		}
	}
	if os.Getpid() == 1 {
		code, err := jobserve.Reap(slices.Concat([]string{os.Args[0], "serve"}, args, []string{worker}))
		if err != nil {
			return failed(err)
		}
		return code
	}
	if err := serveAs(named["socket"], named["token-file"], grace); err != nil {
		return failed(err)
	}
	return exitOK
}

func serveAs(socket, tokenFile string, grace time.Duration) error {
	token, err := readToken(tokenFile)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	group, err := process.NewGroup()
	if err != nil {
		return err
	}
	l, err := jobserve.Listen(socket)
	if err != nil {
		return err
	}
	announce("ready")
	s := jobserve.Server{
		Token: token, Group: group, Environment: os.Environ(), Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	return s.Serve(ctx, l, grace)
}

// readToken reads the token from the first line of a file or of standard input.
func readToken(file string) (string, error) {
	in := io.Reader(os.Stdin)
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	line, err := bufio.NewReader(io.LimitReader(in, maxToken)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the token: %w", err)
	}
	if line = strings.TrimSpace(line); line == "" {
		return "", errors.New("read the token: it is empty")
	}
	return line, nil
}
