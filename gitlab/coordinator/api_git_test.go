package coordinator

import (
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

const oneJob = "test:\n  script: [echo hello]\n"

// listen serves the coordinator over a socket.
func (s *server) listen() string {
	srv := httptest.NewServer(s.Handler())
	s.t.Cleanup(srv.Close)
	require.NoError(s.t, s.SetURL(srv.URL))
	return srv.URL
}

// fetch does what a runner does: fetch the refspecs and check out the commit.
func fetch(t *testing.T, j runnerapi.Job, options ...string) string {
	t.Helper()
	dir := t.TempDir()
	git(t, dir, "init", "-q", "--object-format="+j.GitInfo.RepoObjectFormat)
	args := append(options, "fetch", "-q", "--prune")
	if j.GitInfo.Depth > 0 {
		args = append(args, "--depth", "20")
	}
	args = append(args, j.GitInfo.RepoURL)
	git(t, dir, append(args, j.GitInfo.Refspecs...)...)
	git(t, dir, "checkout", "-f", "-q", j.GitInfo.SHA)
	return dir
}

// snapshot is every file of a folder with its content.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files[path] = string(b)
		return err
	}))
	return files
}

func TestAJobFetchesItsCommit(t *testing.T) {
	s := newServer(t, Options{})
	base := s.listen()
	dir := repository(t, map[string]string{".gitlab-ci.yml": oneJob, "file": "old"})
	old := commit(t, dir, "second", map[string]string{"file": "then"})
	commit(t, dir, "third", map[string]string{"file": "now"})
	git(t, dir, "branch", "other")
	before := snapshot(t, dir)
	p := s.projectWith(ProjectOptions{Path: "group/sub/app", RepoDir: dir})
	run := s.runWith(p, PipelineOptions{SHA: old})
	require.Equal(t, old, run.SHA)
	j := s.claim(s.runner())
	u, err := url.Parse(j.GitInfo.RepoURL)
	require.NoError(t, err)
	require.Equal(t, base+"/group/sub/app.git", "http://"+u.Host+u.Path)
	require.Equal(t, url.UserPassword("gitlab-ci-token", j.Token), u.User)
	require.Equal(t, []string{"+refs/pipelines/1:refs/pipelines/1", "+refs/heads/main:refs/remotes/origin/main"}, j.GitInfo.Refspecs)

	for _, version := range []string{"0", "1", "2"} {
		work := fetch(t, j, "-c", "protocol.version="+version)
		text, err := os.ReadFile(filepath.Join(work, "file"))
		require.NoError(t, err)
		require.Equal(t, "then", string(text), "the commit, not the tip of the branch")
		require.Equal(t, "third\n", git(t, work, "log", "-1", "--format=%s", "refs/remotes/origin/main"))
	}
	work := t.TempDir()
	git(t, work, "clone", "-q", j.GitInfo.RepoURL, ".")
	require.Contains(t, git(t, work, "branch", "-r"), "origin/other")
	require.Equal(t, "main\n", git(t, work, "branch", "--show-current"))
	git(t, work, "fetch", "-q", "origin", old) // any commit by its id
	git(t, t.TempDir(), "clone", "-q", "--filter=blob:none", "--no-checkout", j.GitInfo.RepoURL, "partial")

	require.Equal(t, before, snapshot(t, dir), "the user's repository is as it was")
	require.Positive(t, s.Stats().GitRequests)
	require.Zero(t, s.Stats().GitRefused)
}

func TestAllHistoryOnRequest(t *testing.T) {
	s := newServer(t, Options{})
	s.listen()
	dir := repository(t, map[string]string{".gitlab-ci.yml": oneJob + "  variables: {GIT_DEPTH: 0}\n"})
	git(t, dir, "tag", "v1")
	p := s.projectWith(ProjectOptions{Path: "g/p", RepoDir: dir})
	s.runWith(p, PipelineOptions{})
	j := s.claim(s.runner())
	require.Zero(t, j.GitInfo.Depth)
	require.Equal(t, []string{
		"+refs/pipelines/1:refs/pipelines/1", "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*",
	}, j.GitInfo.Refspecs)
	work := fetch(t, j)
	require.Equal(t, "v1\n", git(t, work, "tag"))
}

func TestKindsOfRepositories(t *testing.T) {
	plain := func(t *testing.T) string {
		dir := repository(t, map[string]string{".gitlab-ci.yml": oneJob})
		commit(t, dir, "second", nil)
		return dir
	}
	for name, prepare := range map[string]func(t *testing.T) (dir string, o PipelineOptions){
		"bare": func(t *testing.T) (string, PipelineOptions) {
			bare := t.TempDir()
			git(t, bare, "clone", "-q", "--bare", plain(t), ".")
			return bare, PipelineOptions{}
		},
		"a work tree of another": func(t *testing.T) (string, PipelineOptions) {
			dir := plain(t)
			tree := filepath.Join(t.TempDir(), "tree")
			git(t, dir, "worktree", "add", "-q", "-b", "topic", tree)
			return tree, PipelineOptions{}
		},
		"a folder within": func(t *testing.T) (string, PipelineOptions) {
			dir := plain(t)
			require.NoError(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
			return filepath.Join(dir, "sub"), PipelineOptions{}
		},
		"shallow": func(t *testing.T) (string, PipelineOptions) {
			dir := t.TempDir()
			git(t, dir, "clone", "-q", "--depth=1", "file://"+plain(t), ".")
			return dir, PipelineOptions{}
		},
		"packed": func(t *testing.T) (string, PipelineOptions) {
			dir := plain(t)
			git(t, dir, "gc", "-q")
			return dir, PipelineOptions{}
		},
		"with an alternate of its own": func(t *testing.T) (string, PipelineOptions) {
			dir := t.TempDir()
			git(t, dir, "clone", "-q", "--shared", plain(t), ".")
			return dir, PipelineOptions{}
		},
		"SHA-256": func(t *testing.T) (string, PipelineOptions) {
			dir := t.TempDir()
			git(t, dir, "init", "-q", "-b", "main", "--object-format=sha256")
			commit(t, dir, "first", map[string]string{".gitlab-ci.yml": oneJob})
			return dir, PipelineOptions{}
		},
		"HEAD is no branch": func(t *testing.T) (string, PipelineOptions) {
			dir := plain(t)
			git(t, dir, "checkout", "-q", "--detach")
			git(t, dir, "branch", "-q", "-D", "main")
			return dir, PipelineOptions{SHA: strings.TrimSpace(git(t, dir, "rev-parse", "HEAD"))}
		},
		"a tag": func(t *testing.T) (string, PipelineOptions) {
			dir := plain(t)
			git(t, dir, "tag", "-a", "-m", "Release\n\nnotes", "v1.0")
			return dir, PipelineOptions{Ref: "v1.0", Tag: true}
		},
		"a commit in another object directory": func(t *testing.T) (string, PipelineOptions) {
			dir := plain(t)
			objects := t.TempDir()
			cmd := gitCommand(t, dir, "commit-tree", "-m", "not in a ref", "-p", "HEAD", "HEAD^{tree}")
			cmd.Env = append(cmd.Env, "GIT_OBJECT_DIRECTORY="+objects, "GIT_ALTERNATE_OBJECT_DIRECTORIES="+filepath.Join(dir, ".git/objects"))
			out, err := cmd.Output()
			require.NoError(t, err)
			return dir + "\n" + objects, PipelineOptions{SHA: strings.TrimSpace(string(out))}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, Options{})
			s.listen()
			dir, o := prepare(t)
			dir, objects, more := strings.Cut(dir, "\n")
			project := ProjectOptions{Path: "g/p", RepoDir: dir}
			if more {
				project.Objects = []string{objects}
			}
			p := s.projectWith(project)
			run := s.runWith(p, o)
			require.Equal(t, "pending", run.Status)
			j := s.claim(s.runner())
			work := fetch(t, j)
			require.Equal(t, j.GitInfo.SHA+"\n", git(t, work, "rev-parse", "HEAD"))
			require.FileExists(t, filepath.Join(work, ".gitlab-ci.yml"))
		})
	}
}

func TestRefsFollowTheUsersRepository(t *testing.T) {
	s := newServer(t, Options{})
	s.listen()
	dir := repository(t, map[string]string{".gitlab-ci.yml": oneJob})
	git(t, dir, "branch", "gone")
	p := s.projectWith(ProjectOptions{Path: "g/p", RepoDir: dir})
	r := s.runner()
	s.runWith(p, PipelineOptions{})
	first := s.claim(r)
	git(t, dir, "branch", "-D", "gone")
	git(t, dir, "branch", "new")
	tip := commit(t, dir, "later", nil)
	git(t, dir, "gc", "-q", "--prune=now")
	s.runWith(p, PipelineOptions{})
	second := s.claim(r)
	require.Equal(t, first.GitInfo.SHA, second.GitInfo.BeforeSHA)
	require.Equal(t, tip, second.GitInfo.SHA)
	refs := git(t, dir, "ls-remote", second.GitInfo.RepoURL)
	require.Contains(t, refs, tip+"\trefs/heads/main")
	require.Contains(t, refs, first.GitInfo.SHA+"\trefs/heads/new")
	require.NotContains(t, refs, "refs/heads/gone")
	require.Contains(t, refs, first.GitInfo.SHA+"\trefs/pipelines/1")
	require.Contains(t, refs, tip+"\trefs/pipelines/2")
}

func TestWhoMayReadARepository(t *testing.T) {
	s := newServer(t, Options{})
	base := s.listen()
	dir := repository(t, map[string]string{".gitlab-ci.yml": oneJob})
	p := s.projectWith(ProjectOptions{Path: "g/p", RepoDir: dir})
	s.projectWith(ProjectOptions{Path: "g/other", RepoDir: dir})
	s.project("g/empty")
	r := s.runner()
	s.runWith(p, PipelineOptions{})
	j := s.claimWith(r, obj{"info": twoPhase()})

	const refs = "/info/refs?service=git-upload-pack"
	get := func(path, user, password string) (status int, challenge string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, nil)
		require.NoError(t, err)
		if user != "" {
			req.SetBasicAuth(user, password)
		}
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		require.NoError(t, err)
		return res.StatusCode, res.Header.Get("WWW-Authenticate")
	}
	own := func() int {
		status, _ := get("/g/p.git"+refs, "gitlab-ci-token", j.Token)
		return status
	}
	require.Equal(t, 401, own(), "it does not run yet")
	require.Equal(t, 200, s.put(j, obj{"state": "running"}).Code)
	for _, c := range []struct {
		name, path, user, password string
		want                       int
	}{
		{"the token of the running job", "/g/p.git" + refs, "gitlab-ci-token", j.Token, 200},
		{"nobody", "/g/p.git" + refs, "", "", 401},
		{"a wrong token", "/g/p.git" + refs, "gitlab-ci-token", "glcbt-no", 401},
		{"no token", "/g/p.git" + refs, "gitlab-ci-token", "", 401},
		{"another user", "/g/p.git" + refs, "root", j.Token, 401},
		{"the runner's token", "/g/p.git" + refs, "gitlab-ci-token", r.Token, 401},
		{"another project", "/g/other.git" + refs, "gitlab-ci-token", j.Token, 404},
		{"a project that does not exist", "/g/none.git" + refs, "gitlab-ci-token", j.Token, 404},
		{"a path out of the tree", "/g/../p.git" + refs, "gitlab-ci-token", j.Token, 404},
		{"to push", "/g/p.git/info/refs?service=git-receive-pack", "gitlab-ci-token", j.Token, 403},
		{"the dumb protocol", "/g/p.git/info/refs", "gitlab-ci-token", j.Token, 403},
		{"a file of the repository", "/g/p.git/HEAD", "gitlab-ci-token", j.Token, 404},
		{"a page", "/g/p", "gitlab-ci-token", j.Token, 404},
	} {
		status, challenge := get(c.path, c.user, c.password)
		require.Equal(t, c.want, status, c.name)
		require.Equal(t, c.want == 401, challenge != "", c.name)
	}
	push := gitCommand(t, dir, "push", j.GitInfo.RepoURL, "main:refs/heads/evil")
	out, err := push.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "403")

	_, err = s.Cancel(j.ID, false)
	require.NoError(t, err)
	require.Equal(t, 200, own(), "canceling is on a runner, too")
	s.finish(j, "success")
	require.Equal(t, 401, own(), "it has ended")
}

func TestUploadPackRequests(t *testing.T) {
	s := newServer(t, Options{})
	dir := repository(t, map[string]string{".gitlab-ci.yml": oneJob})
	p := s.projectWith(ProjectOptions{Path: "g/p", RepoDir: dir})
	s.runWith(p, PipelineOptions{})
	j := s.claim(s.runner())
	list := []byte("0014command=ls-refs\n00000000")
	zip := func(b []byte) []byte {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		_, err := z.Write(b)
		require.NoError(t, err)
		require.NoError(t, z.Close())
		return out.Bytes()
	}
	post := func(body []byte, headers ...string) *httptest.ResponseRecorder {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/g/p.git/git-upload-pack", bytes.NewReader(body))
		req.SetBasicAuth("gitlab-ci-token", j.Token)
		req.Header.Set("Git-Protocol", "version=2")
		req.Header.Set("Content-Type", "application/x-git-upload-pack-request")
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		return s.serve(req)
	}
	for _, w := range []*httptest.ResponseRecorder{
		post(list), post(zip(list), "Content-Encoding", "gzip"), post(zip(list), "Content-Encoding", "x-gzip"),
	} {
		require.Equal(t, 200, w.Code, w.Body.String())
		require.Equal(t, "application/x-git-upload-pack-result", w.Header().Get("Content-Type"))
		require.Equal(t, "no-cache", w.Header().Get("Cache-Control"))
		require.Contains(t, w.Body.String(), "refs/pipelines/1")
	}
	require.Equal(t, 415, post(list, "Content-Type", "text/plain").Code)
	require.Equal(t, 415, post(list, "Content-Encoding", "br").Code)
	require.Equal(t, 400, post(list, "Content-Encoding", "gzip").Code, "it is none")
	w := post(list, "Git-Protocol", "version=2:$(id)")
	require.NotContains(t, w.Body.String(), "refs/pipelines", "an odd header is not passed on")
	require.Equal(t, 500, post([]byte("zzzz")).Code)
}

func TestARepositoryThatCannotBeUsed(t *testing.T) {
	s := newServer(t, Options{})
	dir := t.TempDir()
	_, err := s.AddProject(t.Context(), ProjectOptions{Path: "g/p", RepoDir: dir})
	require.ErrorContains(t, err, "project g/p: "+dir+" is no usable git repository")
	require.ErrorContains(t, err, "not a git repository")
	_, err = s.AddProject(t.Context(), ProjectOptions{Path: "g/p", RepoDir: filepath.Join(dir, "missing")})
	require.ErrorContains(t, err, "is no usable git repository")
	git(t, dir, "init", "-q", "-b", "trunk")
	p := s.projectWith(ProjectOptions{Path: "g/p", RepoDir: dir})
	require.Equal(t, "trunk", p.DefaultBranch)
	_, err = s.CreatePipeline(t.Context(), p.ID, PipelineOptions{})
	require.ErrorContains(t, err, "project g/p, trunk: find the commit: refs/heads/trunk^{commit}: not found")
	_, err = s.CreatePipeline(t.Context(), p.ID, PipelineOptions{SHA: "a\nb"})
	require.ErrorIs(t, err, gitNotFound)
	_, err = s.CreatePipeline(t.Context(), p.ID, PipelineOptions{Ref: "a b"})
	require.EqualError(t, err, `project g/p: "a b" is no valid name of a branch or tag`)
	_, err = s.CreatePipeline(t.Context(), p.ID, PipelineOptions{Config: config(ciconfig.Job{})})
	require.ErrorIs(t, err, gitNotFound, "a compiled configuration needs a commit, too")
}
