//go:build unix

package main

import (
	"encoding/pem"
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
)

// repository is a project that a server gives to whoever has the job's token.
type repository struct {
	url, sha, ca string
}

func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	c := exec.Command("git", args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
	out, err := c.CombinedOutput()
	require.NoError(t, err, "git %s: %s", strings.Join(args, " "), out)
	return strings.TrimSpace(string(out))
}

func newRepository(t testing.TB) repository {
	t.Helper()
	return serveRepository(t, false)
}

func serveRepository(t testing.TB, secure bool) repository {
	t.Helper()
	root := t.TempDir()
	path := filepath.Join(root, "group", "project.git")
	require.NoError(t, os.MkdirAll(path, 0o755))
	git(t, path, "init", "-q", "-b", "main")
	for _, text := range []string{"one", "two", "three"} {
		require.NoError(t, os.WriteFile(filepath.Join(path, "file"), []byte(text), 0o644))
		git(t, path, "add", "file")
		git(t, path, "commit", "-q", "-m", text)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(git(t, path, "--exec-path"), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "job-token-0123456789" {
			w.Header().Set("WWW-Authenticate", `Basic realm="GitLab"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	if secure {
		server.StartTLS()
	} else {
		server.Start()
	}
	r := repository{url: server.URL + "/group/project.git", sha: git(t, path, "rev-parse", "HEAD")}
	if secure {
		r.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	}
	return r
}

// use makes j a job of the repository.
func (r repository) use(j *testJob) {
	j.payload.AllowGitFetch = true
	j.payload.Variables = []runnerapi.Variable{{Key: "CI_JOB_TOKEN", Value: j.payload.Token, Masked: true}}
	j.payload.GitInfo = runnerapi.GitInfo{
		RepoURL: strings.Replace(r.url, "://", "://gitlab-ci-token:"+j.payload.Token+"@", 1), SHA: r.sha, Ref: "main", RefType: "branch",
		Refspecs: []string{"+refs/heads/main:refs/remotes/origin/main"}, Depth: 20,
	}
}

func TestSourcesAreFetched(t *testing.T) {
	up := newRepository(t)
	j := newJob(t, "cat file; git log -1 --format=%s; git status --porcelain; git fetch -q origin main && git config --list --show-origin | grep -i -c job-token || true")
	up.use(j)
	j.run()
	require.Equal(t, "threethree\n0\n", j.said(), j.trace())
	project := filepath.Join(j.builds, "abcdefghi", "1", "group", "project")
	require.Contains(t, j.plain(), green+"Fetching changes with git depth set to 20..."+reset+"\nInitialized empty Git repository in "+project+"/.git/\n"+
		green+"Created fresh repository."+reset+"\n"+green+"Checking out "+up.sha[:8]+" as detached HEAD (ref is main)..."+reset+"\n"+
		green+"Skipping Git submodules setup"+reset+"\nsection_end:T:get_sources")
	require.NotContains(t, j.trace(), j.payload.Token)
	require.NoDirExists(t, project+".tmp/git-template")

	// The same slot's next job finds the working copy.
	next := newJob(t, "cat file")
	next.spec.BuildsDir = j.builds
	up.use(next)
	next.payload.Variables = append(next.payload.Variables, runnerapi.Variable{Key: "FF_ENABLE_JOB_CLEANUP", Value: "true"})
	next.payload.Steps[0].Script = []string{"touch left-behind; cat file"}
	next.run()
	require.Contains(t, next.trace(), "Reinitialized existing Git repository in "+project+"/.git/\n")
	require.NoFileExists(t, filepath.Join(project, "left-behind"))
	require.Contains(t, next.trace(), "HEAD is now at")
}

func TestSourcesThatCannotBeFetched(t *testing.T) {
	up := newRepository(t)
	j := newJob(t, "echo ran")
	up.use(j)
	j.payload.GitInfo.RepoURL = up.url
	j.payload.Token = "wrong-token-1234"
	j.payload.Variables[0].Value = "wrong-token-1234"
	r := j.run()
	require.Equal(t, runnerapi.ReasonScriptFailure, r.FailureReason)
	require.Equal(t, 128, r.ExitCode)
	require.Contains(t, j.trace(), "Authentication failed")
	require.NotContains(t, j.trace(), "ran\n")
	require.Contains(t, j.trace(), "section_start")
	require.Contains(t, j.plain(), "section_start:T:cleanup_file_variables")
}

func TestSourcesAreTriedAgain(t *testing.T) {
	up := newRepository(t)
	j := newJob(t, "cat file")
	up.use(j)
	// Git is there from the second attempt on.
	bin := t.TempDir()
	path, err := exec.LookPath("git")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(bin, "git"), []byte("#!/bin/sh\nif test $1 = fetch && mkdir "+bin+"/once 2>/dev/null; then echo broken; exit 42; fi\nexec "+path+" \"$@\"\n"), 0o755))
	j.env = []string{"PATH=" + bin + ":" + os.Getenv("PATH")}
	j.variable("GET_SOURCES_ATTEMPTS", "3")
	j.variable("FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY", "false")
	require.Equal(t, runnerapi.StateSuccess, j.run().State, j.trace())
	require.Equal(t, 2, strings.Count(j.plain(), "section_start:T:get_sources"))
	require.Equal(t, 1, strings.Count(j.plain(), "section_start:T:clear_worktree"))
}

func TestNoGit(t *testing.T) {
	bin := t.TempDir()
	for _, name := range []string{"sh", "bash", "cat"} {
		path, err := exec.LookPath(name)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(path, filepath.Join(bin, name)))
	}
	j := newJob(t, "echo ran")
	newRepository(t).use(j)
	j.env = []string{"PATH=" + bin}
	r := j.run()
	require.Equal(t, runnerapi.ReasonScriptFailure, r.FailureReason, "this GitLab knows no better one")
	require.Contains(t, r.Message, "git was not found in "+bin+": install git where jobs run, or set GIT_STRATEGY to none or empty")
	require.NotContains(t, j.trace(), "get_sources")

	j = newJob(t, "echo ran")
	j.env = []string{"PATH=" + bin}
	require.Equal(t, runnerapi.StateSuccess, j.run().State, "without sources there is no need for git")
}

func TestFileURLs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.git")
	require.NoError(t, os.MkdirAll(path, 0o755))
	git(t, path, "init", "-q", "-b", "main")
	git(t, path, "commit", "-q", "--allow-empty", "-m", "x")
	j := newJob(t, "git log -1 --format=%s; basename $PWD")
	repository{url: "file://" + path, sha: git(t, path, "rev-parse", "HEAD")}.use(j)
	require.Equal(t, runnerapi.StateSuccess, j.run().State, j.trace())
	require.Equal(t, "x\nproject-42\n", j.said())
}

func TestACertificateOfAPrivateCA(t *testing.T) {
	up := serveRepository(t, true)
	j := newJob(t, "git fetch -q origin main && cat file && test -s $CI_SERVER_TLS_CA_FILE && echo ' trusted'")
	up.use(j)
	j.env = []string{"GIT_SSL_CAINFO=/of/this/machine"}
	j.spec.ServerCA = up.ca
	j.payload.Steps[0].Script = append([]string{"unset GIT_SSL_CAINFO"}, j.payload.Steps[0].Script...)
	require.Equal(t, runnerapi.StateSuccess, j.run().State, j.trace())
	require.Equal(t, "three trusted\n", j.said())

	j = newJob(t, "true")
	up.use(j)
	require.Equal(t, 128, j.run().ExitCode)
	require.Contains(t, j.trace(), "certificate")
}
