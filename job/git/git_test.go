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
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/job/git"
)

const token = "glcbt-s3cret+/%20 token"

// upstream is a repository with three commits on main and a tag, and a server that wants the job token for it.
type upstream struct {
	path, url string
	shas      []string
	mu        sync.Mutex
	refused   int
	allowed   int
}

func run(t *testing.T, dir string, args ...string) string {
	t.Helper()
	c := exec.Command("git", args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
	out, err := c.CombinedOutput()
	require.NoError(t, err, "git %s: %s", strings.Join(args, " "), out)
	return strings.TrimSpace(string(out))
}

func newUpstream(t *testing.T, format string) *upstream {
	t.Helper()
	u := &upstream{path: filepath.Join(t.TempDir(), "group", "project.git")}
	require.NoError(t, os.MkdirAll(u.path, 0o755))
	run(t, u.path, "init", "-q", "-b", "main", "--object-format", format)
	run(t, u.path, "config", "http.receivepack", "true")
	run(t, u.path, "config", "uploadpack.allowAnySHA1InWant", "true")
	for _, text := range []string{"one", "two", "three"} {
		u.commit(t, text)
	}
	run(t, u.path, "tag", "v1")

	backend := &cgi.Handler{
		Path: filepath.Join(run(t, u.path, "--exec-path"), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + filepath.Dir(filepath.Dir(u.path)), "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, password, ok := r.BasicAuth()
		u.mu.Lock()
		if !ok || password != token {
			u.refused++
		} else {
			u.allowed++
		}
		u.mu.Unlock()
		if !ok || password != token {
			w.Header().Set("WWW-Authenticate", `Basic realm="GitLab"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	u.url = server.URL + "/group/project.git"
	return u
}

func (u *upstream) commit(t *testing.T, text string) string {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(u.path, "file"), []byte(text), 0o644))
	run(t, u.path, "add", "file")
	run(t, u.path, "commit", "-q", "-m", text)
	u.shas = append(u.shas, run(t, u.path, "rev-parse", "HEAD"))
	return u.shas[len(u.shas)-1]
}

func (u *upstream) last() string { return u.shas[len(u.shas)-1] }

// project is where sources are got to.
type project struct {
	git.Sources
	t       *testing.T
	notices []string
	said    string
	argv    []string
	env     []string
}

func newProject(t *testing.T, u *upstream) *project {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "group", "project")
	p := &project{t: t}
	p.Sources = git.Sources{
		Options: git.Options{
			Strategy: git.Fetch, Checkout: true, BundleURIs: true,
			CleanFlags: []string{"-ffdx"}, FetchFlags: []string{"--prune", "--quiet"},
		},
		Dir: dir, Temp: dir + ".tmp",
		URL: strings.Replace(u.url, "http://", "http://gitlab-ci-token:"+strings.NewReplacer("+", "%2B", "/", "%2F", "%", "%25", " ", "%20").Replace(token)+"@", 1),
		SHA: u.last(), Ref: "main", Depth: 2,
		Refspecs:    []string{"+" + u.last() + ":refs/pipelines/7", "+refs/heads/main:refs/remotes/origin/main"},
		UserAgent:   "switchyard-job test",
		Environment: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "CI_JOB_TOKEN=" + token},
		Notice:      func(s string) { p.notices = append(p.notices, s) },
		Warn:        func(s string) { p.notices = append(p.notices, "WARNING: "+s) },
		Run: func(ctx context.Context, argv, env []string, dir string) (int, []byte, error) {
			p.argv = append(p.argv, strings.Join(argv, " "))
			p.env = append(p.env, env...)
			c := exec.CommandContext(ctx, "git", argv[1:]...)
			c.Dir, c.Env = dir, env
			out, err := c.CombinedOutput()
			p.said += string(out)
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				return exit.ExitCode(), out, nil
			}
			return 0, out, err
		},
	}
	require.NoError(t, p.Check())
	return p
}

func (p *project) file() string {
	b, err := os.ReadFile(filepath.Join(p.Dir, "file"))
	require.NoError(p.t, err)
	return string(b)
}

func (p *project) get() {
	p.t.Helper()
	p.notices, p.argv, p.env = nil, nil, nil
	require.NoError(p.t, p.Get(context.Background()), p.said)
}

func TestGet(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		t.Run(format, func(t *testing.T) {
			u := newUpstream(t, format)
			p := newProject(t, u)
			p.ObjectFormat = format
			p.get()
			require.Equal(t, "three", p.file())
			require.Equal(t, []string{
				"Fetching changes with git depth set to 2...", "Created fresh repository.",
				"Checking out " + u.last()[:8] + " as detached HEAD (ref is main)...", "Skipping Git submodules setup",
			}, p.notices)
			require.Contains(t, p.said, "Initialized empty Git repository in "+p.Dir+"/.git/\n")
			require.Len(t, p.argv, 3, "no process more than needed")
			require.Equal(t, "2", run(t, p.Dir, "rev-list", "--count", "HEAD"))
			require.Zero(t, u.refused, "no request without credentials")

			// The next job of the project finds the working copy, with things left behind.
			sha := u.commit(t, "four")
			require.NoError(t, os.WriteFile(filepath.Join(p.Dir, "untracked"), nil, 0o644))
			require.NoError(t, os.WriteFile(filepath.Join(p.Dir, ".git", "index.lock"), nil, 0o644))
			require.NoError(t, os.WriteFile(filepath.Join(p.Dir, ".git", "refs", "remotes", "origin", "main.lock"), nil, 0o644))
			require.NoError(t, os.MkdirAll(filepath.Join(p.Dir, ".git", "hooks"), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(p.Dir, ".git", "hooks", "post-checkout"), []byte("#!/bin/sh\ntouch "+p.Temp+"/hooked\n"), 0o755))
			run(t, p.Dir, "config", "core.fsmonitor", "touch "+p.Temp+"/watched")
			p.SHA, p.Refspecs = sha, []string{"+refs/heads/main:refs/remotes/origin/main"}
			p.get()
			require.Equal(t, "four", p.file())
			require.NoFileExists(t, filepath.Join(p.Dir, "untracked"))
			require.NoFileExists(t, filepath.Join(p.Temp, "hooked"))
			require.NoFileExists(t, filepath.Join(p.Temp, "watched"))
			require.NotContains(t, p.notices, "Created fresh repository.")
			require.Contains(t, p.said, "Reinitialized existing Git repository in "+p.Dir+"/.git/\n")
		})
	}
}

func TestSecretsAreNowhere(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	p.get()
	secrets := append(p.Secrets(), token)
	require.Len(t, secrets, 3)
	for _, secret := range secrets {
		require.NotContains(t, strings.Join(p.argv, "\n"), secret)
		require.NotContains(t, p.said, secret)
		for _, root := range []string{p.Dir, p.Temp} {
			require.NoError(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					b, err := os.ReadFile(path)
					require.NoError(t, err)
					require.NotContains(t, string(b), secret, path)
				}
				return err
			}))
		}
	}
	header := slices.IndexFunc(p.env, func(kv string) bool { return strings.Contains(kv, "Authorization") })
	require.GreaterOrEqual(t, header, 0)
	require.Equal(t, 1, strings.Count(strings.Join(p.env, "\n"), "Authorization"), "only one process has the header")
	require.Equal(t, u.url, run(t, p.Dir, "remote", "get-url", "origin"))
}

func TestTheUsersOwnGitCommandsWork(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	p.get()
	run(t, u.path, "branch", "other", "HEAD~2")
	c := exec.Command("git", "fetch", "origin", "other")
	c.Dir, c.Env = p.Dir, append(p.Environment, "GIT_TERMINAL_PROMPT=0")
	out, err := c.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Equal(t, u.shas[0], run(t, p.Dir, "rev-parse", "FETCH_HEAD"))
}

func TestStrategies(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	p.get()
	marker := filepath.Join(p.Dir, ".git", "marker")
	leave := func() {
		require.NoError(t, os.WriteFile(marker, nil, 0o644))
		require.NoError(t, os.MkdirAll(filepath.Join(p.Dir, "cache", "sub"), 0o755))
		require.NoError(t, os.Chmod(filepath.Join(p.Dir, "cache"), 0o555))
	}
	leave()
	p.Strategy = git.Clone
	p.get()
	require.NoFileExists(t, marker)
	require.Equal(t, "three", p.file())

	leave()
	p.Strategy = git.None
	p.get()
	require.FileExists(t, marker)
	require.Empty(t, p.argv)
	require.Equal(t, []string{"Skipping Git repository setup", "Skipping Git checkout", "Skipping Git submodules setup"}, p.notices)

	p.Strategy = git.Empty
	p.get()
	entries, err := os.ReadDir(p.Dir)
	require.NoError(t, err)
	require.Empty(t, entries)
	require.Equal(t, "Skipping Git repository setup and creating an empty build directory", p.notices[0])

	p.Strategy, p.Checkout, p.Depth = git.Fetch, false, 0
	p.get()
	require.NoFileExists(t, filepath.Join(p.Dir, "file"))
	require.Equal(t, []string{"Fetching changes...", "Created fresh repository.", "Skipping Git checkout", "Skipping Git submodules setup"}, p.notices)
}

func TestUnshallow(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	p.Depth = 1
	p.get()
	require.Equal(t, "1", run(t, p.Dir, "rev-list", "--count", "HEAD"))
	p.Depth = 0
	p.get()
	require.Equal(t, "3", run(t, p.Dir, "rev-list", "--count", "HEAD"))
}

func TestADamagedWorkingCopyIsGotAnew(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"empty objects": func(t *testing.T, dir string) {
			require.NoError(t, filepath.WalkDir(filepath.Join(dir, ".git", "objects"), func(path string, d os.DirEntry, err error) error {
				if d.Type().IsRegular() {
					require.NoError(t, os.Chmod(path, 0o644))
					require.NoError(t, os.Truncate(path, 0))
				}
				return err
			}))
		},
		"no HEAD": func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, ".git", "HEAD"), nil, 0o644))
		},
		"index garbage": func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, ".git", "index"), []byte("garbage"), 0o644))
		},
		"other format": func(t *testing.T, dir string) {
			require.NoError(t, os.RemoveAll(dir))
			run(t, "/", "init", "-q", "--object-format", "sha256", dir)
		},
		".git is a file": func(t *testing.T, dir string) {
			require.NoError(t, os.RemoveAll(filepath.Join(dir, ".git")))
			require.NoError(t, os.WriteFile(filepath.Join(dir, ".git"), []byte("gitdir: /no/where"), 0o644))
		},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t, "sha1")
			p := newProject(t, u)
			p.get()
			damage(t, p.Dir)
			p.get()
			require.Equal(t, "three", p.file())
			require.Equal(t, u.last(), run(t, p.Dir, "rev-parse", "HEAD"))
		})
	}
}

func TestAServerThatFailsCostsNoWorkingCopy(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	p.get()
	require.NoError(t, os.WriteFile(filepath.Join(p.Dir, ".git", "marker"), nil, 0o644))
	for name, bad := range map[string]string{
		"gone":    "http://127.0.0.1:1/group/project.git",
		"refused": strings.Replace(u.url, "http://", "http://gitlab-ci-token:wrong@", 1),
	} {
		p.URL = bad
		p.Environment = append(p.Environment, "CI_JOB_TOKEN=wrong")
		err := p.Get(context.Background())
		var exit *git.ExitError
		require.ErrorAs(t, err, &exit, name)
		require.Equal(t, "fetch", exit.Command)
		require.Equal(t, 128, exit.Code)
		require.FileExists(t, filepath.Join(p.Dir, ".git", "marker"))
		require.NotContains(t, p.said, "wrong", name)
	}
}

func TestClearWorktreeAndCleanUp(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	require.NoError(t, p.ClearWorktree(context.Background()))
	p.get()
	require.NoError(t, os.WriteFile(filepath.Join(p.Dir, "untracked"), nil, 0o644))
	require.NoError(t, p.ClearWorktree(context.Background()))
	entries, err := os.ReadDir(p.Dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)

	p.get()
	require.NoError(t, os.WriteFile(filepath.Join(p.Dir, "file"), []byte("changed"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(p.Dir, "untracked"), nil, 0o644))
	require.NoError(t, p.CleanUp(context.Background()))
	require.Equal(t, "three", p.file())
	require.NoFileExists(t, filepath.Join(p.Dir, "untracked"))
	p.Strategy = git.Clone
	require.NoError(t, p.CleanUp(context.Background()))
	require.NoDirExists(t, p.Dir)
}

func TestTheContextEndsIt(t *testing.T) {
	p := newProject(t, newUpstream(t, "sha1"))
	ctx, cancel := context.WithCancelCause(context.Background())
	reason := errors.New("stop it")
	cancel(reason)
	require.ErrorIs(t, p.Get(ctx), reason)
}

func TestCheck(t *testing.T) {
	good := git.Sources{Options: git.Options{Strategy: git.Fetch}, SHA: strings.Repeat("a", 40), URL: "https://x:secret@h/p.git", Refspecs: []string{"+a:b"}}
	require.NoError(t, good.Check())
	for want, change := range map[string]func(*git.Sources){
		`git_info.sha: "-x"`:                       func(s *git.Sources) { s.SHA = "-x" },
		`git_info.sha: ""`:                         func(s *git.Sources) { s.SHA = "" },
		`git_info.refspecs[1]: "--upload-pack=sh"`: func(s *git.Sources) { s.Refspecs = append(s.Refspecs, "--upload-pack=sh") },
		`repo_object_format: "md5"`:                func(s *git.Sources) { s.ObjectFormat = "md5" },
		`git_info.repo_url: not a URL`:             func(s *git.Sources) { s.URL = "https://x:secret@h/\x01" },
		`git_info.repo_url: it names no host`:      func(s *git.Sources) { s.URL = "https:///p.git" },
	} {
		s := good
		change(&s)
		err := s.Check()
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "secret")
		s.Strategy = git.None
		require.NoError(t, s.Check())
	}
	local := git.Sources{Options: git.Options{Strategy: git.Fetch}, SHA: strings.Repeat("a", 64), URL: "file:///srv/p.git"}
	require.NoError(t, local.Check())
	require.Empty(t, local.Secrets())
}

func TestAGitConfigCountOfTheJobStays(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	p.Environment = append(p.Environment, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=core.abbrev", "GIT_CONFIG_VALUE_0=11")
	p.get()
	require.Contains(t, p.env, "GIT_CONFIG_KEY_0=core.abbrev")
	require.Contains(t, p.env, "GIT_CONFIG_COUNT=4")
	require.NotContains(t, p.env, "GIT_CONFIG_COUNT=1")
}

func TestLargeFilesAreNotPassedOver(t *testing.T) {
	u := newUpstream(t, "sha1")
	require.NoError(t, os.WriteFile(filepath.Join(u.path, ".gitattributes"), []byte("*.bin filter=lfs diff=lfs merge=lfs -text\n"), 0o644))
	run(t, u.path, "add", ".gitattributes")
	u.commit(t, "lfs")
	p := newProject(t, u)
	p.get()
	require.Contains(t, strings.Join(p.notices, "\n"), "WARNING: The repository uses Git LFS")
}
