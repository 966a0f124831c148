package coordinator

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a coordinator with what a test needs around it. Requests go to the handler without a socket.
type server struct {
	*Coordinator
	t testing.TB
}

func newServer(t testing.TB, o Options) *server {
	t.Helper()
	if o.Hold == 0 {
		o.Hold = -1
	}
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	c, err := New(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return &server{c, t}
}

// project adds a project without repository.
func (s *server) project(path string) Project {
	s.t.Helper()
	return s.projectWith(ProjectOptions{Path: path})
}

func (s *server) projectWith(o ProjectOptions) Project {
	s.t.Helper()
	p, err := s.AddProject(s.t.Context(), o)
	require.NoError(s.t, err)
	return p
}

// runner adds an instance runner that takes everything.
func (s *server) runner() Runner {
	s.t.Helper()
	return s.runnerWith(RunnerOptions{RunUntagged: true})
}

func (s *server) runnerWith(o RunnerOptions) Runner {
	s.t.Helper()
	r, err := s.AddRunner(o)
	require.NoError(s.t, err)
	return r
}

// run makes a pipeline of jobs that are all in stage test.
func (s *server) run(p Project, jobs ...ciconfig.Job) Pipeline {
	s.t.Helper()
	return s.runWith(p, PipelineOptions{Config: config(jobs...)})
}

func (s *server) runWith(p Project, o PipelineOptions) Pipeline {
	s.t.Helper()
	run, err := s.CreatePipeline(s.t.Context(), p.ID, o)
	require.NoError(s.t, err)
	return run
}

// config completes jobs: a name, a stage, a script.
func config(jobs ...ciconfig.Job) *ciconfig.Pipeline {
	def := &ciconfig.Pipeline{}
	seen := map[string]bool{}
	for i, j := range jobs {
		setDefault(&j.Name, "job"+strconv.Itoa(i+1))
		setDefault(&j.Group, j.Name)
		setDefault(&j.Stage, "test")
		setDefault(&j.When, ciconfig.OnSuccess)
		if j.Script == nil {
			j.Script = []string{"echo " + j.Name}
		}
		if !seen[j.Stage] {
			seen[j.Stage] = true
			def.Stages = append(def.Stages, j.Stage)
		}
		def.Jobs = append(def.Jobs, j)
	}
	return def
}

func (s *server) job(id int64) Job {
	s.t.Helper()
	j, err := s.Job(id)
	require.NoError(s.t, err)
	return j
}

// do sends a request and returns the answer; headers come in pairs.
func (s *server) do(method, path string, body any, headers ...string) *httptest.ResponseRecorder {
	s.t.Helper()
	var reader io.Reader
	kind := ""
	switch b := body.(type) {
	case nil:
	case []byte:
		reader = bytes.NewReader(b)
	case string:
		reader, kind = strings.NewReader(b), "text/plain"
	default:
		text, err := json.Marshal(b)
		require.NoError(s.t, err)
		reader, kind = bytes.NewReader(text), "application/json"
	}
	req := httptest.NewRequestWithContext(s.t.Context(), method, "http://gitlab.test"+path, reader)
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return s.serve(req)
}

func (s *server) serve(req *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, req)
	return w
}

// pass lets virtual time pass: for tests in a synctest bubble.
func pass(d time.Duration) {
	time.Sleep(d)
}

type obj = map[string]any

// modern is the info of a runner that knows everything but two-phase commit.
func modern() obj { return obj{"features": obj{"cancel_gracefully": true, "return_exit_code": true}} }

func twoPhase() obj {
	return obj{"features": obj{"cancel_gracefully": true, "return_exit_code": true, "two_phase_job_commit": true}}
}

// request asks for a job.
func (s *server) request(r Runner, fields obj) *httptest.ResponseRecorder {
	s.t.Helper()
	return s.requestContext(s.t.Context(), r, fields)
}

// requestContext is request for a client that may leave.
func (s *server) requestContext(ctx context.Context, r Runner, fields obj) *httptest.ResponseRecorder {
	s.t.Helper()
	body := obj{"token": r.Token, "system_id": "s_test", "info": modern()}
	maps.Copy(body, fields)
	text, err := json.Marshal(body)
	require.NoError(s.t, err)
	req := httptest.NewRequestWithContext(ctx, http.MethodPost, "http://gitlab.test/api/v4/jobs/request", bytes.NewReader(text))
	req.Header.Set("Content-Type", "application/json")
	return s.serve(req)
}

func (s *server) decode(w *httptest.ResponseRecorder) runnerapi.Job {
	s.t.Helper()
	require.Equal(s.t, http.StatusCreated, w.Code, w.Body.String())
	var j runnerapi.Job
	require.NoError(s.t, json.Unmarshal(w.Body.Bytes(), &j))
	return j
}

// claim asks for a job and expects one.
func (s *server) claim(r Runner) runnerapi.Job {
	s.t.Helper()
	return s.claimWith(r, nil)
}

func (s *server) claimWith(r Runner, fields obj) runnerapi.Job {
	s.t.Helper()
	return s.decode(s.request(r, fields))
}

// patch sends a piece of the trace with a Content-Range.
func (s *server) patch(j runnerapi.Job, contentRange, text string) *httptest.ResponseRecorder {
	s.t.Helper()
	return s.do(http.MethodPatch, jobPath(j)+"/trace", text, "Job-Token", j.Token, "Content-Range", contentRange)
}

func (s *server) put(j runnerapi.Job, fields obj) *httptest.ResponseRecorder {
	s.t.Helper()
	body := obj{"token": j.Token}
	maps.Copy(body, fields)
	return s.do(http.MethodPut, jobPath(j), body)
}

func (s *server) finish(j runnerapi.Job, state string) {
	s.t.Helper()
	w := s.put(j, obj{"state": state})
	require.Equal(s.t, http.StatusOK, w.Code, w.Body.String())
}

// Jobs are all jobs there are.
func (s *server) Jobs() []Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Job
	for _, j := range s.jobs {
		all = append(all, j.snapshot())
	}
	return all
}

// wire is what a runner knows of a job.
func (s *server) wire(id int64) runnerapi.Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	return runnerapi.Job{ID: id, Token: s.jobs[id].token}
}

func jobPath(j runnerapi.Job) string { return "/api/v4/jobs/" + strconv.FormatInt(j.ID, 10) }

// repository makes a git repository with one commit of files.
func repository(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	git(t, dir, "init", "-q", "-b", "main")
	commit(t, dir, "First commit\n\nwith a body", files)
	return dir
}

func commit(t testing.TB, dir, message string, files map[string]string) string {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "--allow-empty", "-m", message)
	return strings.TrimSpace(git(t, dir, "rev-parse", "HEAD"))
}

// git runs git as a user without configuration.
func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	out, err := gitCommand(t, dir, args...).CombinedOutput()
	require.NoError(t, err, "git %v: %s", args, out)
	return string(out)
}

func gitCommand(t testing.TB, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com",
		"GIT_AUTHOR_DATE=2026-01-02T03:04:05+01:00", "GIT_COMMITTER_DATE=2026-01-02T03:04:05+01:00")
	return cmd
}

func TestAPipelineFromARepositoryRuns(t *testing.T) {
	s := newServer(t, Options{})
	dir := repository(t, map[string]string{".gitlab-ci.yml": `
stages: [build, test]
variables: {GREETING: hello}
compile:
  stage: build
  script: [echo compiling]
check:
  stage: test
  before_script: [echo before]
  script: [echo $GREETING]
  after_script: [echo after]
`})
	p := s.projectWith(ProjectOptions{Path: "group/app", RepoDir: dir})
	r := s.runner()
	run := s.runWith(p, PipelineOptions{})
	require.Equal(t, "pending", run.Status)
	require.Len(t, run.Jobs, 2)

	for _, name := range []string{"compile", "check"} {
		j := s.claim(r)
		require.Equal(t, name, j.JobInfo.Name)
		require.Equal(t, http.StatusNoContent, s.request(r, nil).Code, "one job at a time")
		require.Equal(t, http.StatusAccepted, s.patch(j, "0-5", "hello\n").Code)
		w := s.put(j, obj{"state": "success", "output": obj{"checksum": "crc32:363a3020", "bytesize": 6}})
		require.Equal(t, http.StatusOK, w.Code)
		require.Equal(t, "200", w.Body.String())
		done := s.job(j.ID)
		require.Equal(t, "success", done.Status)
		require.True(t, done.Report.ChecksumOK)
		require.True(t, done.Report.SizeOK)
	}
	end, err := s.Wait(t.Context(), run.ID)
	require.NoError(t, err)
	require.Equal(t, "success", end.Status)
	require.Equal(t, []Stage{{"build", "success"}, {"test", "success"}}, end.Stages)
	require.WithinDuration(t, time.Now(), end.FinishedAt, time.Minute)
}
