//go:build unix

package git_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/testbed"
	"github.com/switchyard-ci/switchyard/job/git"
)

const token = "glcbt-s3cret+/%20 token"

func run(t testing.TB, dir string, args ...string) string {
	t.Helper()
	c := exec.Command("git", args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b", "GIT_ALLOW_PROTOCOL=file:http")
	out, err := c.CombinedOutput()
	require.NoError(t, err, "git %s: %s", strings.Join(args, " "), out)
	return strings.TrimSpace(string(out))
}

// server is a GitLab that serves the repositories below root to those who have the job's token, or to everybody if it is
// public.
type server struct {
	root, url string
	public    bool
	handler   http.Handler

	mu       sync.Mutex
	refused  int
	headers  []http.Header
	serving  func() // called in the middle of a fetch
	lfs      http.Handler
	requests []string
}

func newServer(t testing.TB) *server {
	t.Helper()
	testbed.Need(t, testbed.Git)
	s := &server{root: t.TempDir()}
	backend := &cgi.Handler{
		Path: filepath.Join(run(t, s.root, "--exec-path"), "git-http-backend"),
		Env: []string{
			"GIT_PROJECT_ROOT=" + s.root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1",
			"GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		},
	}
	s.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, password, ok := r.BasicAuth()
		allowed := s.public || ok && password == token || strings.Contains(r.URL.Path, "/info/lfs/objects/batch/") // it sees itself
		s.mu.Lock()
		if !allowed {
			s.refused++
		}
		s.headers = append(s.headers, r.Header.Clone())
		s.requests = append(s.requests, r.Method+" "+r.URL.Path)
		serving := s.serving
		s.mu.Unlock()
		switch {
		case !allowed:
			w.Header().Set("WWW-Authenticate", `Basic realm="GitLab"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		case strings.Contains(r.URL.Path, "/info/lfs/"):
			s.lfs.ServeHTTP(w, r)
			return
		case serving != nil && strings.HasSuffix(r.URL.Path, "/git-upload-pack"):
			serving()
		}
		backend.ServeHTTP(w, r)
	})
	h := httptest.NewServer(s.handler)
	t.Cleanup(h.Close)
	s.url = h.URL
	return s
}

// locked gives do what the server notes, alone.
func (s *server) locked(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

// vain is how many requests came without credentials.
func (s *server) vain() (n int) {
	s.locked(func() { n = s.refused })
	return n
}

// seen returns what came since it was called last.
func (s *server) seen() (headers []http.Header, requests []string) {
	s.locked(func() { headers, requests, s.headers, s.requests = s.headers, s.requests, nil, nil })
	return headers, requests
}

// repository is one on a server, with a working copy of its own.
type repository struct {
	*server
	path, url string
	shas      []string
}

func (s *server) repository(t testing.TB, name, format string) *repository {
	t.Helper()
	r := &repository{server: s, path: filepath.Join(s.root, name+".git"), url: s.url + "/" + name + ".git"}
	require.NoError(t, os.MkdirAll(r.path, 0o755))
	run(t, r.path, "init", "-q", "-b", "main", "--object-format", format)
	run(t, r.path, "config", "uploadpack.allowAnySHA1InWant", "true")
	run(t, r.path, "config", "uploadpack.allowFilter", "true")
	return r
}

func (r *repository) write(t testing.TB, name, text string) {
	t.Helper()
	name = filepath.Join(r.path, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, []byte(text), 0o644))
}

// commit commits text as the content of file, and everything else that has changed.
func (r *repository) commit(t testing.TB, text string) string {
	t.Helper()
	r.write(t, "file", text)
	run(t, r.path, "add", "--all")
	run(t, r.path, "commit", "-q", "-m", text)
	r.shas = append(r.shas, run(t, r.path, "rev-parse", "HEAD"))
	return r.last()
}

func (r *repository) last() string { return r.shas[len(r.shas)-1] }

// newUpstream is a repository with three commits on main and a tag.
func newUpstream(t testing.TB, format string) *repository {
	t.Helper()
	r := newServer(t).repository(t, "group/project", format)
	for _, text := range []string{"one", "two", "three"} {
		r.commit(t, text)
	}
	run(t, r.path, "tag", "v1")
	return r
}

// project is where sources are got to.
type project struct {
	git.Sources
	t       testing.TB
	notices []string
	said    string
	argv    []string
	envs    [][]string
	as      *syscall.Credential // of git's processes, unless nil
}

func newProject(t testing.TB, r *repository) *project {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "group", "project")
	p := &project{t: t}
	p.Sources = git.Sources{
		Options: git.Options{
			Strategy: git.Fetch, Checkout: true, BundleURIs: true,
			CleanFlags: []string{"-ffdx"}, FetchFlags: []string{"--prune", "--quiet"},
		},
		Dir: dir, Temp: dir + ".tmp", URL: withToken(r.url), Ref: "main", Depth: 2,
		UserAgent:   "switchyard-job test",
		Environment: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "CI_JOB_TOKEN=" + token, "GIT_CONFIG_NOSYSTEM=1"},
		Notice:      func(s string) { p.notices = append(p.notices, s) },
		Warn:        func(s string) { p.notices = append(p.notices, "WARNING: "+s) },
		Say:         func(s string) { p.said += s + "\n" },
		Run: func(ctx context.Context, argv, env []string, dir string) (int, []byte, error) {
			p.argv = append(p.argv, strings.Join(argv, " "))
			p.envs = append(p.envs, env)
			c := exec.CommandContext(ctx, "git", argv[1:]...)
			for _, kv := range env {
				if path, ok := strings.CutPrefix(kv, "PATH="); ok {
					c.Path, c.Err = look(path), nil
				}
			}
			c.Dir, c.Env = dir, env
			if p.as != nil {
				c.SysProcAttr = &syscall.SysProcAttr{Credential: p.as}
			}
			out, err := c.CombinedOutput()
			p.said += string(out)
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				return exit.ExitCode(), out, nil
			}
			return 0, out, err
		},
	}
	p.wants(r)
	require.NoError(t, p.Check())
	return p
}

// look finds git in path.
func look(path string) string {
	for _, dir := range filepath.SplitList(path) {
		if _, err := os.Stat(filepath.Join(dir, "git")); err == nil {
			return filepath.Join(dir, "git")
		}
	}
	return "git"
}

func withToken(url string) string {
	return strings.Replace(url, "http://",
		"http://gitlab-ci-token:"+strings.NewReplacer("+", "%2B", "/", "%2F", "%", "%25", " ", "%20").Replace(token)+"@", 1)
}

// wants makes the repository's last commit the job's.
func (p *project) wants(r *repository) {
	p.SHA = r.last()
	p.Refspecs = []string{"+" + p.SHA + ":refs/pipelines/7", "+refs/heads/main:refs/remotes/origin/main"}
}

// script runs a command line as the user's script would.
func (p *project) script(line string) string {
	p.t.Helper()
	out, err := p.tryScript(line)
	require.NoError(p.t, err, out)
	return out
}

func (p *project) tryScript(line string) (string, error) {
	c := exec.Command("/bin/sh", "-ec", line)
	c.Dir, c.Env = p.Dir, append(p.Environment, "GIT_TERMINAL_PROMPT=0", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
	for _, kv := range p.ScriptEnvironment() {
		c.Env = append(c.Env, kv[0]+"="+kv[1])
	}
	out, err := c.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (p *project) file() string {
	p.t.Helper()
	return p.read("file")
}

func (p *project) read(name string) string {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.Dir, name))
	require.NoError(p.t, err)
	return string(b)
}

func (p *project) get() {
	p.t.Helper()
	p.notices, p.said, p.argv, p.envs = nil, "", nil, nil
	require.NoError(p.t, p.Get(context.Background()), p.said)
}
