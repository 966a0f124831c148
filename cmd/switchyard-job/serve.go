//go:build unix

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	// tokenPatience is how long a token file may take to appear: who writes it is in a container that starts beside.
	tokenPatience = 30 * time.Second

	// The variables that stand for the arguments of serve.
	socketVariable    = "SWITCHYARD_SERVE_SOCKET"
	tokenFileVariable = "SWITCHYARD_SERVE_TOKEN_FILE" // #nosec G101 -- a file's name
)

// serveArguments are the arguments of serve that the environment stands for; nil if it does not.
func serveArguments(environment func(string) string) []string {
	socket := environment(socketVariable)
	if socket == "" {
		return nil
	}
	args := []string{"serve", "--socket", socket}
	if file := environment(tokenFileVariable); file != "" {
		args = append(args, "--token-file", file)
	}
	return args
}

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
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	token, err := readToken(ctx, tokenFile)
	if err != nil {
		return err
	}
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
		Token: token, Group: group, Environment: scriptEnvironment(), Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	return s.Serve(ctx, l, grace)
}

// scriptEnvironment is what programs inherit: the container's environment less what is for this program only.
func scriptEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, socketVariable+"=") || strings.HasPrefix(kv, tokenFileVariable+"=")
	})
}

// readToken reads the token from the first line of a file, which is waited for, or of standard input.
func readToken(ctx context.Context, file string) (string, error) {
	in := io.Reader(os.Stdin)
	if file != "" {
		f, err := awaitFile(ctx, file)
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

// awaitFile opens a file that appears in one step. It is looked for again and again, because a volume that two containers
// share announces nothing to programs that may not watch it.
func awaitFile(ctx context.Context, name string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenPatience)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		f, err := os.Open(name)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, err
		}
	}
}
