//go:build unix

package conformance

import (
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/internal/testbed"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// repository is a git repository that is served to the bearer of a job's token.
type repository struct {
	url string // with the token, as GitLab gives it
	sha []string
}

// serveRepository makes a repository with two commits of one file.
func (p *place) serveRepository(token string) repository {
	p.t.Helper()
	testbed.Need(p.t, testbed.Git)
	root := p.t.TempDir()
	bare := filepath.Join(root, "group", "project.git")
	work := p.t.TempDir()
	git := func(dir string, args ...string) string {
		p.t.Helper()
		c := exec.Command("git", args...)
		c.Dir = dir
		c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
		out, err := c.CombinedOutput()
		require.NoError(p.t, err, "git %v: %s", args, out)
		return strings.TrimSpace(string(out))
	}
	git(root, "init", "-q", "--bare", "--initial-branch=main", bare)
	git(bare, "config", "uploadpack.allowAnySHA1InWant", "true")
	git(work, "init", "-q", "--initial-branch=main")
	var r repository
	for _, content := range []string{"first", "second"} {
		require.NoError(p.t, os.WriteFile(filepath.Join(work, "file"), []byte(content+"\n"), 0o600))
		git(work, "add", "file")
		git(work, "commit", "-q", "-m", content)
		r.sha = append(r.sha, git(work, "rev-parse", "HEAD"))
	}
	git(work, "push", "-q", bare, "main")

	program, err := exec.LookPath("git")
	require.NoError(p.t, err)
	backend := &cgi.Handler{
		Path: program, Args: []string{"http-backend"},
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"},
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if user, password, _ := q.BasicAuth(); user != "gitlab-ci-token" || password != token {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "the job token is missing", http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, q)
	}))
	if p.Host != "127.0.0.1" {
		require.NoError(p.t, server.Listener.Close())
		server.Listener, err = net.Listen("tcp", ":0")
		require.NoError(p.t, err)
	}
	server.Start()
	p.t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	require.NoError(p.t, err)
	r.url = "http://gitlab-ci-token:" + token + "@" + net.JoinHostPort(p.Host, port) + "/group/project.git"
	return r
}

func getSources(t *testing.T, p *place) {
	const token = "glcbt-a-job-token"
	repo := p.serveRepository(token)
	fetch := func(sha string, depth int) option {
		return func(j *runnerapi.Job, s *folder.Spec) {
			j.Token = token
			j.Variables = []runnerapi.Variable{
				{Key: "GIT_STRATEGY", Value: "fetch", Public: true},
				{Key: "CI_JOB_TOKEN", Value: token, Masked: true},
			}
			j.GitInfo = runnerapi.GitInfo{
				RepoURL: repo.url, Ref: "main", RefType: "branch", SHA: sha, Depth: depth, BeforeSHA: strings.Repeat("0", 40),
				Refspecs: []string{"+refs/heads/main:refs/remotes/origin/main", "+" + sha + ":refs/pipelines/1"},
			}
			s.ConcurrentProjectID = 0 // the second job finds the first one's clone
		}
	}
	result, trace := p.finish(script("cat file; git log -1 --format=%H", "touch untracked",
		"! grep -r "+token+" .git"), fetch(repo.sha[1], 20))
	succeeded(t, result, trace)
	require.Contains(t, trace, "second\n"+repo.sha[1])
	require.NotContains(t, trace, token)

	result, trace = p.finish(script("cat file; test ! -e untracked"), fetch(repo.sha[0], 20))
	succeeded(t, result, trace)
	require.Contains(t, trace, "first\n")

	result, trace = p.finish(script("echo never"), fetch(repo.sha[1], 20), func(j *runnerapi.Job, _ *folder.Spec) {
		j.GitInfo.RepoURL = strings.Replace(repo.url, token, "wrong", 1)
		j.GitInfo.SHA = strings.Repeat("1", 40)
		j.GitInfo.Refspecs = []string{"+" + strings.Repeat("1", 40) + ":refs/pipelines/1"}
	})
	require.Equal(t, runnerapi.StateFailed, result.State)
	require.NotContains(t, trace, "never\n")
}
