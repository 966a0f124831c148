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
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func repository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, args := range [][]string{{"init", "-q", "--bare", "."}, {"update-ref", "refs/heads/main", tree(t, dir)}} {
		run(t, dir, nil, args...)
	}
	return dir
}

// tree makes a commit without files.
func tree(t *testing.T, dir string) string {
	run(t, dir, nil, "init", "-q", "--bare", ".")
	empty := run(t, dir, nil, "hash-object", "-w", "-t", "tree", "--stdin")
	return run(t, dir, nil, "commit-tree", "-m", "x", empty)
}

func run(t *testing.T, dir string, in []byte, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(in)
	cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=A", "GIT_COMMITTER_EMAIL=a@b")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "git %v: %s", args, out)
	return strings.TrimSpace(string(out))
}

func TestSplit(t *testing.T) {
	for in, want := range map[string][2]string{
		"/g/p.git/info/refs":              {"g/p", "info/refs"},
		"/g/s/p.git/git-upload-pack":      {"g/s/p", "git-upload-pack"},
		"/g/p.git/git-receive-pack":       {"g/p", "git-receive-pack"},
		"/g/p.git/x.git/git-receive-pack": {"g/p.git/x", "git-receive-pack"},
		"/g/p/info/refs":                  {},
		"/g/p.git":                        {},
		"/g/p.git/HEAD":                   {},
		"/":                               {},
	} {
		path, action, ok := split(in)
		require.Equal(t, want, [2]string{path, action}, in)
		require.Equal(t, want[0] != "", ok, in)
	}
}

func TestAdvertisements(t *testing.T) {
	dir := repository(t)
	asked := ""
	h := New(func(path, user, password string) (string, error) {
		asked = path + " " + user + " " + password
		return dir, nil
	}, slog.New(slog.DiscardHandler))
	get := func(protocol string) string {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/g/p.git/info/refs?service=git-upload-pack", nil)
		req.SetBasicAuth("u", "p")
		req.Header.Set("Git-Protocol", protocol)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		require.Equal(t, 200, w.Code)
		require.Equal(t, "application/x-git-upload-pack-advertisement", w.Header().Get("Content-Type"))
		return w.Body.String()
	}
	old := get("")
	require.True(t, strings.HasPrefix(old, "001e# service=git-upload-pack\n0000"), old)
	require.Contains(t, old, "refs/heads/main")
	require.Contains(t, get("version=1"), "version 1")
	modern := get("version=2")
	require.True(t, strings.HasPrefix(modern, "000eversion 2\n"), modern)
	require.NotContains(t, modern, "refs/heads/main")
	require.Equal(t, "g/p u p", asked)
	require.NoError(t, os.RemoveAll(dir))
	require.Equal(t, modern, get("version=2"), "it is the same for ever")
}

func TestWhenGitFails(t *testing.T) {
	var said bytes.Buffer
	h := New(func(string, string, string) (string, error) { return t.TempDir(), nil }, slog.New(slog.NewTextHandler(&said, nil)))
	for _, protocol := range []string{"", "version=2"} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/g/p.git/info/refs?service=git-upload-pack", nil)
		req.Header.Set("Git-Protocol", protocol)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		require.Equal(t, 500, w.Code)
		require.Equal(t, "git failed on the server.\n", w.Body.String(), "nothing of the server's is told")
		require.Contains(t, said.String(), "not appear to be a git repository")
	}
	said.Reset()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/g/p.git/info/refs?service=git-upload-pack", nil))
	require.Empty(t, said.String(), "a client that has gone is no failure")
}

func TestErrorsOfTheOpener(t *testing.T) {
	for err, want := range map[error]int{ErrUnauthorized: 401, ErrNotFound: 404, errors.New("other"): 404} {
		h := New(func(string, string, string) (string, error) { return "", err }, slog.New(slog.DiscardHandler))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/g/p.git/info/refs?service=git-upload-pack", nil))
		require.Equal(t, want, w.Code)
	}
}

// TestARequestThatUnpacksToTooMuch: its size on the wire is of no account.
func TestARequestThatUnpacksToTooMuch(t *testing.T) {
	dir := repository(t)
	h := New(func(string, string, string) (string, error) { return dir, nil }, slog.New(slog.DiscardHandler)).(*handler)
	h.maxBody = 1 << 20
	post := func(size int) int {
		line := "ref-prefix refs/heads/" + strings.Repeat("x", 1000)
		packet := fmt.Sprintf("%04x%s", len(line)+4, line)
		var body bytes.Buffer
		z := gzip.NewWriter(&body)
		_, err := io.WriteString(z, "0013command=ls-refs0001"+strings.Repeat(packet, size/len(packet))+"0000")
		require.NoError(t, err)
		require.NoError(t, z.Close())
		require.Less(t, body.Len(), 64<<10)
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/g/p.git/git-upload-pack", &body)
		req.Header.Set("Content-Type", "application/x-git-upload-pack-request")
		req.Header.Set("Content-Encoding", "gzip")
		req.Header.Set("Git-Protocol", "version=2")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		return w.Code
	}
	require.Equal(t, 200, post(1<<20-100_000))
	require.Equal(t, 500, post(1<<20+100_000))
}

// TestOnlySoManyAtOnce: with all places taken a request waits, and leaves with its client.
func TestOnlySoManyAtOnce(t *testing.T) {
	dir := repository(t)
	h := New(func(string, string, string) (string, error) { return dir, nil }, slog.New(slog.DiscardHandler)).(*handler)
	for range cap(h.busy) {
		h.busy <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	get := func(ctx context.Context) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/g/p.git/info/refs?service=git-upload-pack", nil))
		done <- w.Body.Len()
	}
	go get(ctx)
	cancel()
	require.Zero(t, <-done)
	go get(t.Context())
	<-h.busy
	require.Positive(t, <-done)
}
