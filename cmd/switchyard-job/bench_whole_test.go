//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/internal/testbed"
)

// BenchmarkJobWithGitAndArtifact is a whole job of the ordinary kind: a fetch over HTTP of a repository of 650 KB in 100 files,
// a script, and an artifact of all these files. cpu-ms/op is the processor time of switchyard-job and of all that it starts,
// without the server's, which is this process. On a machine that does other things too the least of it says most.
//
// Fresh begins with an empty folder; Warm finds the working copy of a job before, and one file has changed since.
func BenchmarkJobWithGitAndArtifact(b *testing.B) {
	testbed.Need(b, testbed.Git)
	path := built(b)
	g := serveProject(b)
	for _, name := range []string{"Fresh", "Warm"} {
		b.Run(name, func(b *testing.B) {
			home, builds := b.TempDir(), b.TempDir()
			run := func(environment ...string) time.Duration {
				b.StopTimer()
				if name == "Warm" {
					g.change(b)
				} else {
					require.NoError(b, os.RemoveAll(builds))
				}
				j := newJob(b, "ls")
				j.spec.BuildsDir, j.spec.ServerURL = builds, g.url
				g.use(j)
				j.payload.Artifacts = []runnerapi.Artifact{{Name: "all", Paths: []string{"package*/"}, Type: "archive", Format: "zip", When: "on_success"}}
				j.create()
				c := exec.Command(path, "run", j.dir)
				c.Env = append([]string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}, environment...)
				uploaded := g.uploaded
				b.StartTimer()
				require.NoError(b, c.Run())
				b.StopTimer()
				r, err := j.folder.Result()
				require.NoError(b, err)
				require.Equal(b, runnerapi.StateSuccess, r.State, j.trace())
				require.Greater(b, g.uploaded-uploaded, int64(200<<10))
				b.StartTimer()
				return cpu(c)
			}
			run() // so that Warm has a working copy
			events := filepath.Join(b.TempDir(), "events")
			run("GIT_TRACE2_EVENT=" + events)
			traced, err := os.ReadFile(events)
			require.NoError(b, err)
			b.ResetTimer()

			var total, least time.Duration
			for b.Loop() {
				spent := run()
				if total += spent; least == 0 || spent < least {
					least = spent
				}
			}
			b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(least.Microseconds())/1000, "least-cpu-ms")
			b.ReportMetric(float64(2+bytes.Count(traced, []byte(`"event":"start"`))), "processes/op") // 2: this program and the shell
		})
	}
}

// project is a repository and what takes the artifacts of its jobs.
type project struct {
	repository
	dir      string
	changes  int
	uploaded int64 // bytes
}

func serveProject(b *testing.B) *project {
	b.Helper()
	root := b.TempDir()
	p := &project{dir: filepath.Join(root, "group", "project.git")}
	words := rand.New(rand.NewPCG(1, 2))
	for i := range 100 {
		var text strings.Builder
		for text.Len() < 6500 {
			fmt.Fprintf(&text, "%x ", words.Uint32())
		}
		name := filepath.Join(p.dir, fmt.Sprintf("package%d/file%d", i%10, i))
		require.NoError(b, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(b, os.WriteFile(name, []byte(text.String()), 0o644))
	}
	git(b, p.dir, "init", "-q", "-b", "main")
	p.change(b)
	backend := &cgi.Handler{
		Path: filepath.Join(git(b, p.dir, "--exec-path"), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/api/") {
			backend.ServeHTTP(w, r)
			return
		}
		n, err := io.Copy(io.Discard, r.Body)
		p.uploaded += n
		if err != nil || r.URL.Path != "/api/v4/jobs/7/artifacts" || r.Header.Get("JOB-TOKEN") == "" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusCreated)
	}))
	b.Cleanup(server.Close)
	p.url = server.URL
	return p
}

// change makes another commit.
func (p *project) change(b *testing.B) {
	b.Helper()
	p.changes++
	require.NoError(b, os.WriteFile(filepath.Join(p.dir, "package0", "file0"), []byte(strings.Repeat(fmt.Sprintln(p.changes), 500)), 0o644))
	git(b, p.dir, "add", ".")
	git(b, p.dir, "commit", "-q", "-m", fmt.Sprint(p.changes))
	p.sha = git(b, p.dir, "rev-parse", "HEAD")
}

// use makes j a job of the project.
func (p *project) use(j *testJob) {
	repository{url: p.url + "/group/project.git", sha: p.sha}.use(j)
}
