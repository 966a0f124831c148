package docker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

const (
	// servePatience is how long the build container may take until its server answers.
	servePatience = 30 * time.Second
	// maxSaid bounds what is shown of what a container said.
	maxSaid = 64 << 10
)

// errSilent says that the server in the build container did not answer.
var errSilent = errors.New("nothing in it answers")

// handshake is the connection to the helper container's process, which gets the token and says when the build container's
// server has answered to it.
type handshake struct {
	p     *preparation
	heard chan struct{}
	stop  sync.WaitGroup

	mu    sync.Mutex
	conn  *client.HijackedResponse
	words bytes.Buffer
}

func newHandshake(p *preparation) *handshake { return &handshake{p: p, heard: make(chan struct{})} }

// attach connects to the container, which has not been started yet.
func (h *handshake) attach(ctx context.Context, id string) error {
	attached, err := h.p.executor.client.ContainerAttach(ctx, id, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		return fmt.Errorf("attach to the helper container: %w", err)
	}
	h.mu.Lock()
	h.conn = &attached.HijackedResponse
	h.mu.Unlock()
	if _, err := io.WriteString(attached.Conn, h.p.self.token(h.p.spec.Name)+"\n"); err != nil {
		return fmt.Errorf("give the helper container its token: %w", err)
	}
	h.stop.Go(func() { h.listen(attached.Reader) })
	return nil
}

func (h *handshake) listen(r io.Reader) {
	lines, w := io.Pipe()
	h.stop.Go(func() {
		_, err := stdcopy.StdCopy(w, complaints{h}, r)
		_ = w.CloseWithError(err)
	})
	scan := bufio.NewScanner(lines)
	for scan.Scan() {
		if strings.HasSuffix(scan.Text(), " ready") {
			close(h.heard)
			break
		}
	}
	_, _ = io.Copy(io.Discard, lines)
}

// complaints is the helper's standard error.
type complaints struct{ h *handshake }

func (c complaints) Write(b []byte) (int, error) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	c.h.words.Write(b[:min(len(b), max(0, maxSaid-c.h.words.Len()))])
	return len(b), nil
}

// wait waits until the build container's server has answered.
func (h *handshake) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, servePatience, errSilent)
	defer cancel()
	var err error
	select {
	case <-h.heard:
		return nil
	case <-h.p.env.Done():
		err = h.p.env.Err()
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return h.p.explain(ctx, err)
}

func (h *handshake) close() {
	h.mu.Lock()
	conn := h.conn
	h.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	h.stop.Wait()
}

// explain tells the user why the containers cannot be used, with what the user's own one has said.
func (p *preparation) explain(ctx context.Context, err error) error {
	var died *diedError
	var start *startError
	ended := errors.As(err, &died) && died.kind == kindBuild
	silent := errors.Is(err, errSilent)
	if !ended && !silent {
		if errors.As(err, &start) && start.kind == kindBuild {
			return failure(runnerapi.ReasonRunnerSystem, "%w", err)
		}
		if errors.As(err, &died) {
			return fmt.Errorf("%w%s", err, p.quote(ctx, p.env.helperID()))
		}
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), servePatience)
	defer cancel()
	said := p.quote(ctx, p.env.buildID())
	const hint = "The container must run the command that it is given: an entrypoint of the image has to end with exec \"$@\", " +
		"or the job has to set it aside with\n  image:\n    entrypoint: [\"\"]"
	if said == "" {
		said = "\nIt said nothing."
	}
	if ended {
		p.out.warn(fmt.Sprintf("The container of image %s ended with exit code %d before a script could be run in it.%s\n%s", p.image.Name, died.code, said, hint))
		return failure(runnerapi.ReasonScriptFailure, "the container of image %s ended with exit code %d before a script could be run in it", p.image.Name, died.code)
	}
	p.out.warn(fmt.Sprintf("The container of image %s runs, but does not answer.%s\n%s", p.image.Name, said, hint))
	return failure(runnerapi.ReasonRunnerSystem, "the container of image %s did not answer within %v", p.image.Name, servePatience)
}

// quote returns what a container has said, in a form to be put after a sentence; empty if that is nothing.
func (p *preparation) quote(ctx context.Context, id string) string {
	text, err := p.executor.logs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: "100"})
	if err != nil {
		return fmt.Sprintf("\nWhat it said cannot be read: %v", err)
	}
	if text == "" {
		return ""
	}
	return " It said:\n" + text
}

// logs returns what a container has said, at most maxSaid bytes of it.
func (e *Executor) logs(ctx context.Context, id string, o client.ContainerLogsOptions) (string, error) {
	if id == "" {
		return "", nil
	}
	r, err := e.client.ContainerLogs(ctx, id, o)
	if err != nil {
		return "", err
	}
	defer r.Close()
	var text bytes.Buffer
	limited := &limitedWriter{w: &text, left: maxSaid}
	if _, err := stdcopy.StdCopy(limited, limited, r); err != nil && !errors.Is(err, errEnough) {
		return "", err
	}
	return strings.TrimSpace(strings.ToValidUTF8(text.String(), "�")), nil
}

var errEnough = errors.New("enough")

// limitedWriter stops a copy when it has enough.
type limitedWriter struct {
	w    io.Writer
	left int
}

func (l *limitedWriter) Write(b []byte) (int, error) {
	n := min(len(b), l.left)
	l.left -= n
	if _, err := l.w.Write(b[:n]); err != nil {
		return 0, err
	}
	if n < len(b) {
		return n, errEnough
	}
	return n, nil
}
