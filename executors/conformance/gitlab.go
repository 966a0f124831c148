//go:build unix

package conformance

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/testbed"
)

// gitlab is what a job sees of GitLab: a repository, and a place for artifacts. All of it is open to the bearer of the
// job's token only.
type gitlab struct {
	url     string // scheme, host and port
	host    string
	token   string
	commits []string // of the branch main: file says first, second
	tagged  string   // v1.0

	mu sync.Mutex
	// refusals are the statuses of the next answers to uploads, downloadRefusals of those to downloads.
	refusals, downloadRefusals []int
	uploads                    []upload
	offered                    map[int64][]byte // artifacts of other jobs, by id
	// hold makes requests for artifacts wait: each is told to reached and goes on when release is closed. nil: none waits.
	hold *hold
}

// hold keeps whoever comes to it until it is released.
type hold struct {
	reached chan struct{} // gets one for each that comes
	release chan struct{}
}

func newHold() *hold { return &hold{reached: make(chan struct{}, 16), release: make(chan struct{})} }

// pass waits if there is a hold.
func (g *gitlab) pass(q *http.Request) {
	g.mu.Lock()
	h := g.hold
	g.mu.Unlock()
	if h == nil {
		return
	}
	h.reached <- struct{}{}
	select {
	case <-h.release:
	case <-q.Context().Done():
	}
}

// upload is one file that was uploaded.
type upload struct {
	kind, format, expire, filename string
	body                           []byte
}

const submodule = "library"

// newGitLab serves at an address that jobs of the place reach.
func (p *place) newGitLab(token string) *gitlab {
	p.t.Helper()
	testbed.Need(p.t, testbed.Git)
	g := &gitlab{token: token, offered: map[int64][]byte{}}
	root := p.t.TempDir()
	git := func(dir string, args ...string) string { return runGit(p.t, dir, args...) }

	library := filepath.Join(root, "group", submodule+".git")
	work := p.t.TempDir()
	git(root, "init", "-q", "--bare", "--initial-branch=main", library)
	git(work, "init", "-q", "--initial-branch=main")
	require.NoError(p.t, os.WriteFile(filepath.Join(work, "library.txt"), []byte("of the library\n"), 0o600))
	git(work, "add", ".")
	git(work, "commit", "-q", "-m", "library")
	git(work, "push", "-q", library, "main")
	libraryCommit := git(work, "rev-parse", "HEAD")

	bare := filepath.Join(root, "group", "project.git")
	work = p.t.TempDir()
	git(root, "init", "-q", "--bare", "--initial-branch=main", bare)
	git(bare, "config", "uploadpack.allowAnySHA1InWant", "true")
	git(work, "init", "-q", "--initial-branch=main")
	require.NoError(p.t, os.WriteFile(filepath.Join(work, ".gitmodules"),
		[]byte("[submodule \""+submodule+"\"]\n\tpath = "+submodule+"\n\turl = ../"+submodule+".git\n"), 0o600))
	git(work, "add", ".gitmodules")
	git(work, "update-index", "--add", "--cacheinfo", "160000,"+libraryCommit+","+submodule)
	for _, content := range []string{"first", "second"} {
		require.NoError(p.t, os.WriteFile(filepath.Join(work, "file"), []byte(content+"\n"), 0o600))
		git(work, "add", "file")
		git(work, "commit", "-q", "-m", content)
		g.commits = append(g.commits, git(work, "rev-parse", "HEAD"))
	}
	git(work, "tag", "-a", "-m", "one", "v1.0", g.commits[0])
	g.tagged = g.commits[0]
	git(work, "push", "-q", bare, "main", "v1.0", "HEAD:refs/merge-requests/1/head")

	program, err := exec.LookPath("git")
	require.NoError(p.t, err)
	backend := &cgi.Handler{
		Path: program, Args: []string{"http-backend"},
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null", "HOME=" + root},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v4/jobs/{id}/artifacts", g.upload)
	mux.HandleFunc("GET /api/v4/jobs/{id}/artifacts", g.download)
	mux.HandleFunc("/group/", func(w http.ResponseWriter, q *http.Request) {
		if user, password, _ := q.BasicAuth(); user != "gitlab-ci-token" || password != token {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "the job token is missing", http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, q)
	})
	server := httptest.NewUnstartedServer(mux)
	if p.Host != "127.0.0.1" {
		require.NoError(p.t, server.Listener.Close())
		server.Listener, err = net.Listen("tcp4", "0.0.0.0:0") // jobs reach it over their own network
		require.NoError(p.t, err)
	}
	server.Start()
	p.t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	require.NoError(p.t, err)
	g.host = net.JoinHostPort(p.Host, port)
	g.url = "http://" + g.host
	return g
}

// repoURL is the repository's address as GitLab gives it, with the token.
func (g *gitlab) repoURL() string {
	return "http://gitlab-ci-token:" + g.token + "@" + g.host + "/group/project.git"
}

func runGit(t *testing.T, dir string, args ...string) string {
	t.Helper()
	c := exec.Command("git", args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	out, err := c.CombinedOutput()
	require.NoError(t, err, "git %v: %s", args, out)
	return strings.TrimSpace(string(out))
}

// next takes the next of some statuses; 0 if there is none.
func (g *gitlab) next(statuses *[]int) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(*statuses) == 0 {
		return 0
	}
	status := (*statuses)[0]
	*statuses = (*statuses)[1:]
	return status
}

func (g *gitlab) upload(w http.ResponseWriter, q *http.Request) {
	if q.Header.Get("Job-Token") != g.token {
		http.Error(w, `{"message":"403 Forbidden"}`, http.StatusForbidden)
		return
	}
	g.pass(q)
	r, err := q.MultipartReader()
	if err != nil {
		http.Error(w, fmt.Sprintf(`{"message":%q}`, err), http.StatusBadRequest)
		return
	}
	u := upload{
		kind: q.URL.Query().Get("artifact_type"), format: q.URL.Query().Get("artifact_format"), expire: q.URL.Query().Get("expire_in"),
	}
	for {
		part, err := r.NextPart()
		if err != nil {
			break
		}
		if part.FormName() == "file" {
			u.filename = part.FileName()
			if u.body, err = io.ReadAll(part); err != nil {
				return
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if status := g.next(&g.refusals); status != 0 {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"message":"%d"}`, status)
		return
	}
	g.mu.Lock()
	g.uploads = append(g.uploads, u)
	g.mu.Unlock()
	w.WriteHeader(http.StatusCreated)
	fmt.Fprint(w, `{"id":1}`)
}

func (g *gitlab) download(w http.ResponseWriter, q *http.Request) {
	if q.Header.Get("Job-Token") != g.token {
		http.Error(w, `{"message":"403 Forbidden"}`, http.StatusForbidden)
		return
	}
	g.pass(q)
	if status := g.next(&g.downloadRefusals); status != 0 {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"message":"%d"}`, status)
		return
	}
	id, _ := strconv.ParseInt(q.PathValue("id"), 10, 64)
	g.mu.Lock()
	body, ok := g.offered[id]
	g.mu.Unlock()
	if !ok {
		http.Error(w, `{"message":"404 Not Found"}`, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/zip")
	_, _ = w.Write(body)
}

// offer makes artifacts of another job, of files with contents.
func (g *gitlab) offer(t *testing.T, id int64, files map[string]string) {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, content := range files {
		w, err := z.Create(name)
		require.NoError(t, err)
		_, err = io.WriteString(w, content)
		require.NoError(t, err)
	}
	require.NoError(t, z.Close())
	g.offered[id] = b.Bytes()
}

// contents are the files of an upload in zip form.
func (u upload) contents(t *testing.T) map[string]string {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(u.body), int64(len(u.body)))
	require.NoError(t, err)
	files := map[string]string{}
	for _, f := range z.File {
		if f.FileInfo().IsDir() {
			continue
		}
		r, err := f.Open()
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, r.Close())
		files[f.Name] = string(b)
	}
	return files
}
