// Package githttp serves repositories over git's smart HTTP protocol (gitprotocol-http(5)), for reading only: every
// request is authenticated, and `git upload-pack --stateless-rpc` does the work.
package githttp

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator/gitrepo"
)

// What an [Opener] answers if it opens nothing.
var (
	ErrUnauthorized = errors.New("unauthorized")
	ErrNotFound     = errors.New("repository not found")
)

// Opener returns the folder of the repository at a path ("group/name") for who has shown a user name and a password.
type Opener func(path, user, password string) (dir string, err error)

// The limits of a request.
const (
	maxBody     = 64 << 20 // what a client has and wants, unpacked
	maxDuration = time.Hour
	waitDelay   = 5 * time.Second
)

type handler struct {
	open Opener
	log  *slog.Logger
	// maxBody bounds what a request has unpacked, in bytes.
	maxBody int64
	// busy bounds the number of git processes.
	busy chan struct{}

	mu sync.Mutex
	// advertised is the answer of git's version 2 protocol to info/refs, by repository: it says what the server can do
	// and nothing about refs, so it does not change.
	advertised map[string][]byte
}

// New returns the handler.
func New(open Opener, log *slog.Logger) http.Handler {
	return &handler{
		open: open, log: log, maxBody: maxBody, busy: make(chan struct{}, max(4, 2*runtime.NumCPU())), advertised: map[string][]byte{},
	}
}

const service = "git-upload-pack"

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, action, ok := split(r.URL.Path)
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Cache-Control", "no-cache")
	user, password, _ := r.BasicAuth()
	dir, err := h.open(path, user, password)
	switch {
	case errors.Is(err, ErrUnauthorized):
		w.Header().Set("WWW-Authenticate", `Basic realm="GitLab"`)
		http.Error(w, "HTTP Basic: Access denied. Only the token of a running job opens a repository.", http.StatusUnauthorized)
		return
	case err != nil:
		http.Error(w, "The project you were looking for could not be found or you don't have permission to view it.", http.StatusNotFound)
		return
	}
	switch {
	case action == "info/refs" && r.Method == http.MethodGet && r.URL.Query().Get("service") == service:
		h.advertise(w, r, dir)
	case action == service && r.Method == http.MethodPost:
		h.upload(w, r, dir)
	case action == "git-receive-pack" || r.URL.Query().Get("service") == "git-receive-pack":
		http.Error(w, "Pushing to this server is not possible.", http.StatusForbidden)
	case action == "info/refs" && r.Method == http.MethodGet:
		http.Error(w, "This server speaks git's smart HTTP protocol only.", http.StatusForbidden)
	default:
		http.NotFound(w, r)
	}
}

// split takes "/group/name.git/info/refs" apart.
func split(p string) (path, action string, ok bool) {
	p = strings.TrimPrefix(p, "/")
	for _, action := range []string{"info/refs", service, "git-receive-pack"} {
		if path, ok := strings.CutSuffix(p, ".git/"+action); ok {
			return path, action, true
		}
	}
	return "", "", false
}

var protocolHeader = regexp.MustCompile(`^[a-z0-9=:._-]{1,100}$`)

// protocol is the Git-Protocol header if it is a decent one.
func protocol(r *http.Request) string {
	if p := r.Header.Get("Git-Protocol"); protocolHeader.MatchString(p) {
		return p
	}
	return ""
}

func (h *handler) advertise(w http.ResponseWriter, r *http.Request, dir string) {
	w.Header().Set("Content-Type", "application/x-"+service+"-advertisement")
	if p := protocol(r); p == "version=2" {
		body, err := h.capabilities(r.Context(), dir)
		if err != nil {
			h.fail(w, "info/refs", err)
			return
		}
		_, _ = w.Write(body) // the client has gone
		return
	}
	var refs bytes.Buffer
	if err := h.git(r.Context(), protocol(r), nil, &refs, "--stateless-rpc", "--advertise-refs", dir); err != nil {
		h.fail(w, "info/refs", err)
		return
	}
	line := "# service=" + service + "\n"
	_, _ = fmt.Fprintf(w, "%04x%s0000", len(line)+4, line)
	_, _ = refs.WriteTo(w)
}

func (h *handler) capabilities(ctx context.Context, dir string) ([]byte, error) {
	h.mu.Lock()
	body := h.advertised[dir]
	h.mu.Unlock()
	if body != nil {
		return body, nil
	}
	var out bytes.Buffer
	if err := h.git(ctx, "version=2", nil, &out, "--stateless-rpc", "--advertise-refs", dir); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.advertised[dir] = out.Bytes()
	return out.Bytes(), nil
}

func (h *handler) upload(w http.ResponseWriter, r *http.Request, dir string) {
	if t := r.Header.Get("Content-Type"); t != "application/x-"+service+"-request" {
		http.Error(w, "Unexpected content type.", http.StatusUnsupportedMediaType)
		return
	}
	body := io.Reader(r.Body)
	switch r.Header.Get("Content-Encoding") {
	case "", "identity":
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			http.Error(w, "The body is no gzip stream.", http.StatusBadRequest)
			return
		}
		body = z
	default:
		http.Error(w, "Unknown content encoding.", http.StatusUnsupportedMediaType)
		return
	}
	w.Header().Set("Content-Type", "application/x-"+service+"-result")
	out := &flusher{w: w, control: http.NewResponseController(w)}
	if err := h.git(r.Context(), protocol(r), &limited{r: body, left: h.maxBody}, out, "--stateless-rpc", dir); err != nil {
		if !out.begun {
			h.fail(w, service, err)
			return
		}
		// The answer has begun: git says the rest in it, or the client sees it cut off.
		h.log.Debug("git upload-pack ended early", "error", err)
	}
}

func (h *handler) fail(w http.ResponseWriter, what string, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	h.log.Warn("a git request failed", "request", what, "error", err)
	w.Header().Del("Content-Type")
	http.Error(w, "git failed on the server.", http.StatusInternalServerError)
}

// git runs upload-pack when it is its turn.
func (h *handler) git(ctx context.Context, protocol string, in io.Reader, out io.Writer, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, maxDuration)
	defer cancel()
	select {
	case h.busy <- struct{}{}:
		defer func() { <-h.busy }()
	case <-ctx.Done():
		return ctx.Err()
	}
	cmd := exec.CommandContext(ctx, "git", append([]string{"upload-pack", "--strict"}, args...)...)
	cmd.Env = gitrepo.Env()
	if protocol != "" {
		cmd.Env = append(cmd.Env, "GIT_PROTOCOL="+protocol)
	}
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = in, out, &headWriter{w: &said, left: 4096}, waitDelay
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("git upload-pack: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}

// flusher sends on what git writes at once: its progress lines are for a person who waits.
type flusher struct {
	w       io.Writer
	control *http.ResponseController
	begun   bool
}

func (f *flusher) Write(p []byte) (int, error) {
	f.begun = true
	n, err := f.w.Write(p)
	if err == nil {
		err = f.control.Flush()
	}
	return n, err
}

// limited fails after a number of bytes.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, errors.New("the request is too large")
	}
	return n, err
}

// headWriter keeps the first bytes.
type headWriter struct {
	w    *bytes.Buffer
	left int
}

func (h *headWriter) Write(p []byte) (int, error) {
	n := min(len(p), h.left)
	h.left -= n
	h.w.Write(p[:n])
	return len(p), nil
}
