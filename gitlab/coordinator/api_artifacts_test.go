package coordinator

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// capable is the info of a runner that can do all that artifacts and caches need.
func capable() obj {
	return obj{"features": obj{
		"cancel_gracefully": true, "return_exit_code": true, "upload_multiple_artifacts": true, "artifacts_exclude": true,
		"fallback_cache_keys": true,
	}}
}

// claimed asks for a job as a runner that can do everything.
func (s *server) claimed(r Runner) runnerapi.Job {
	s.t.Helper()
	return s.claimWith(r, obj{"info": capable()})
}

// form is a multipart form: a file, and fields in pairs before it.
func form(t testing.TB, name string, file []byte, fields ...string) (contentType string, body []byte) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i := 0; i < len(fields); i += 2 {
		require.NoError(t, w.WriteField(fields[i], fields[i+1]))
	}
	if name != "" {
		part, err := w.CreateFormFile("file", name)
		require.NoError(t, err)
		_, err = part.Write(file)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return w.FormDataContentType(), b.Bytes()
}

// upload sends a file as gitlab-runner does: what it is stands in the address.
func (s *server) upload(j runnerapi.Job, query, name string, file []byte) *httptest.ResponseRecorder {
	s.t.Helper()
	contentType, body := form(s.t, name, file)
	return s.do(http.MethodPost, jobPath(j)+"/artifacts?"+query, body, "Job-Token", j.Token, "Content-Type", contentType)
}

// uploaded is upload of an archive that must be accepted.
func (s *server) uploaded(j runnerapi.Job, file []byte) {
	s.t.Helper()
	w := s.upload(j, "artifact_type=archive&artifact_format=zip", "artifacts.zip", file)
	require.Equal(s.t, http.StatusCreated, w.Code, w.Body.String())
}

func (s *server) download(j runnerapi.Job, token string, headers ...string) *httptest.ResponseRecorder {
	s.t.Helper()
	return s.do(http.MethodGet, jobPath(j)+"/artifacts", nil, append([]string{"Job-Token", token}, headers...)...)
}

func (s *server) list(j runnerapi.Job) []Artifact {
	s.t.Helper()
	list, err := s.Artifacts(j.ID)
	require.NoError(s.t, err)
	return list
}

// files counts what is on the disk.
func (s *server) files() int {
	s.t.Helper()
	entries, err := os.ReadDir(s.store.Dir())
	require.NoError(s.t, err)
	return len(entries)
}

func zipped(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for name, text := range files {
		f, err := w.Create(name)
		require.NoError(t, err)
		_, err = io.WriteString(f, text)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func gzipped(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := io.WriteString(w, text)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

func TestUploadAndDownload(t *testing.T) {
	s := newServer(t, Options{})
	p, r := s.project("g/p"), s.runner()
	run := s.run(p,
		ciconfig.Job{Stage: "build", Artifacts: &ciconfig.Artifacts{Paths: []string{"a"}, ExposeAs: "Files", Access: "developer"}},
		ciconfig.Job{})
	j := s.claimed(r)
	file := zipped(t, map[string]string{"dir/a": strings.Repeat("text ", 1000)})
	w := s.upload(j, "artifact_type=archive&artifact_format=zip&expire_in=1+week", "my files.zip", file)
	require.Equal(t, http.StatusCreated, w.Code)
	require.Equal(t, "201", w.Body.String())
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))

	sum := sha256.Sum256(file)
	list := s.list(j)
	require.Len(t, list, 1)
	a := list[0]
	require.WithinDuration(t, time.Now().Add(7*24*time.Hour), a.ExpiresAt, time.Minute)
	require.WithinDuration(t, time.Now(), a.CreatedAt, time.Minute)
	require.Equal(t, Artifact{
		Type: "archive", Format: "zip", Name: "my_files.zip", Size: int64(len(file)), SHA256: hex.EncodeToString(sum[:]),
		Access: "developer", ExposedAs: "Files", CreatedAt: a.CreatedAt, ExpiresAt: a.ExpiresAt, Path: a.Path,
	}, a)
	entries, err := s.ArtifactEntries(j.ID)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, "dir/a", entries[0].Name)
	require.EqualValues(t, 5000, entries[0].Size)

	s.finish(j, "success")
	next := s.claimed(r)
	require.Equal(t, []runnerapi.Dependency{{ID: j.ID, Name: "job1", Token: next.Token, ArtifactsFile: next.Dependencies[0].ArtifactsFile}}, next.Dependencies)
	require.Equal(t, "my_files.zip", next.Dependencies[0].ArtifactsFile.Filename)
	require.EqualValues(t, len(file), next.Dependencies[0].ArtifactsFile.Size)
	w = s.download(j, next.Token)
	require.Equal(t, http.StatusOK, w.Code)
	require.True(t, bytes.Equal(file, w.Body.Bytes()))
	require.Equal(t, `attachment; filename="my_files.zip"; filename*=UTF-8''my_files.zip`, w.Header().Get("Content-Disposition"))
	require.Equal(t, "binary", w.Header().Get("Content-Transfer-Encoding"))
	require.Equal(t, "application/octet-stream", w.Header().Get("Content-Type"))

	w = s.download(j, next.Token, "Range", "bytes=2-9")
	require.Equal(t, http.StatusPartialContent, w.Code)
	require.Equal(t, fmt.Sprintf("bytes 2-9/%d", len(file)), w.Header().Get("Content-Range"))
	require.Equal(t, file[2:10], w.Body.Bytes())
	require.Equal(t, http.StatusRequestedRangeNotSatisfiable, s.download(j, next.Token, "Range", "bytes=99999999-").Code)
	w = s.do(http.MethodGet, jobPath(j)+"/artifacts?token="+next.Token+"&direct_download=true", nil)
	require.Equal(t, http.StatusOK, w.Code, "there is no object store")

	stats := s.Stats()
	require.EqualValues(t, 1, stats.Uploads)
	require.EqualValues(t, len(file), stats.UploadBytes)
	require.EqualValues(t, 4, stats.Downloads)
	require.Zero(t, stats.Redirects)
	require.Equal(t, "running", s.job(next.ID).Status)
	require.Len(t, run.Jobs, 2)
}

// The address of a direct download is of use without a token, for a while, and for nothing else.
func TestDirectDownload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{DirectDownload: true, URL: "https://gitlab.example.com"})
		p, r := s.project("g/p"), s.runner()
		s.run(p, ciconfig.Job{}, ciconfig.Job{})
		j, other := s.claimed(r), s.claimed(r)
		file := zipped(t, map[string]string{"a": "b"})
		s.uploaded(j, file)
		direct := func() *url.URL {
			w := s.do(http.MethodGet, jobPath(j)+"/artifacts?direct_download=true", nil, "Job-Token", other.Token)
			require.Equal(t, http.StatusFound, w.Code)
			u, err := url.Parse(w.Header().Get("Location"))
			require.NoError(t, err)
			require.Equal(t, "gitlab.example.com", u.Host)
			require.NotContains(t, u.String(), other.Token)
			return u
		}
		get := func(u *url.URL, headers ...string) *httptest.ResponseRecorder {
			return s.do(http.MethodGet, u.RequestURI(), nil, headers...)
		}
		u := direct()
		w := get(u)
		require.Equal(t, http.StatusOK, w.Code)
		require.True(t, bytes.Equal(file, w.Body.Bytes()))
		require.Equal(t, file[1:3], get(u, "Range", "bytes=1-2").Body.Bytes())
		require.Equal(t, http.StatusOK, s.download(j, other.Token).Code, "who does not ask for it is served here")

		for name, change := range map[string]func(q url.Values){
			"later": func(q url.Values) { q.Set("expires", "99999999999") }, "unsigned": func(q url.Values) { q.Del("signature") },
			"other": func(q url.Values) { q.Set("signature", strings.Repeat("0", 64)) }, "no time": func(q url.Values) { q.Set("expires", "x") },
		} {
			forged := *u
			q := forged.Query()
			change(q)
			forged.RawQuery = q.Encode()
			require.Equal(t, http.StatusForbidden, get(&forged).Code, name)
		}
		forged := *u
		forged.Path = strings.Replace(u.Path, "/1/", "/2/", 1)
		require.Equal(t, http.StatusForbidden, get(&forged).Code)
		pass(storageLinkLife)
		require.Equal(t, http.StatusForbidden, get(u).Code)
		u = direct()
		s.finish(j, "success")
		require.NoError(t, s.Erase(j.ID))
		require.Equal(t, http.StatusNotFound, get(u).Code)
		require.EqualValues(t, 2, s.Stats().Redirects)
	})
}

func TestWhoMayDownload(t *testing.T) {
	s := newServer(t, Options{})
	r := s.runner()
	s.run(s.project("g/one"), ciconfig.Job{}, ciconfig.Job{})
	s.run(s.project("g/two"), ciconfig.Job{})
	own, same, foreign := s.claimed(r), s.claimed(r), s.claimed(r)
	if same.JobInfo.ProjectID != own.JobInfo.ProjectID {
		same, foreign = foreign, same
	}
	require.Equal(t, http.StatusNotFound, s.download(own, same.Token).Code, "there is nothing yet")
	s.uploaded(own, zipped(t, nil))
	require.Equal(t, http.StatusOK, s.download(own, own.Token).Code)
	require.Equal(t, http.StatusOK, s.download(own, same.Token).Code)
	require.Equal(t, http.StatusForbidden, s.download(own, foreign.Token).Code)
	require.Equal(t, http.StatusForbidden, s.download(runnerapi.Job{ID: 999}, same.Token).Code, "no such job")
	for name, token := range map[string]string{"none": "", "wrong": "glcbt-wrong", "a runner's": r.Token} {
		require.Equal(t, http.StatusUnauthorized, s.download(own, token).Code, name)
	}
	s.finish(same, "success")
	require.Equal(t, http.StatusUnauthorized, s.download(own, same.Token).Code, "the job that asks has ended")
	require.Equal(t, http.StatusBadRequest, s.do(http.MethodGet, "/api/v4/jobs/x/artifacts", nil, "Job-Token", own.Token).Code)
	require.NotContains(t, s.download(own, foreign.Token).Body.String(), own.Token)
}

func TestEraseRemovesArtifacts(t *testing.T) {
	s := newServer(t, Options{})
	p, r := s.project("g/p"), s.runner()
	s.run(p, ciconfig.Job{Stage: "build"}, ciconfig.Job{})
	j := s.claimed(r)
	s.uploaded(j, zipped(t, nil))
	s.finish(j, "success")
	require.NoError(t, s.Erase(j.ID))
	require.Empty(t, s.list(j))
	require.Zero(t, s.files())
	require.Equal(t, http.StatusNoContent, s.request(r, obj{"info": capable()}).Code)
	next := s.job(2)
	require.Equal(t, "failed", next.Status)
	require.EqualValues(t, "missing_dependency_failure", next.FailureReason)
}

// Artifacts go when their time is over, those of the latest pipeline of a ref when a newer one has succeeded.
func TestArtifactsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		kept, strict := s.project("g/kept"), s.projectWith(ProjectOptions{Path: "g/strict", NoKeepLatestArtifacts: true})
		r := s.runner()
		begin := func(p Project, expire string) (first, second int64) {
			run := s.run(p, ciconfig.Job{Stage: "build"}, ciconfig.Job{When: ciconfig.Manual, AllowFailure: true})
			j := s.claimed(r)
			require.Equal(t, run.Jobs[0].ID, j.ID)
			w := s.upload(j, "expire_in="+url.QueryEscape(expire), "a.zip", zipped(t, nil))
			require.Equal(t, http.StatusCreated, w.Code)
			s.finish(j, "success")
			return run.Jobs[0].ID, run.Jobs[1].ID
		}
		after := func(manual int64) Job {
			_, err := s.Play(manual)
			require.NoError(t, err)
			if s.request(r, obj{"info": capable()}).Code == http.StatusCreated {
				s.finish(s.wire(manual), "success")
			}
			return s.job(manual)
		}
		old, _ := begin(kept, "2 hrs")
		latest, afterLatest := begin(kept, "1h 30m")
		gone, afterGone := begin(strict, "1 hour")
		never, afterNever := begin(strict, "Never")
		count := func(id int64) int { return len(s.list(runnerapi.Job{ID: id})) }
		pass(time.Hour - time.Second)
		synctest.Wait()
		require.Equal(t, []int{1, 1, 1, 1}, []int{count(old), count(latest), count(gone), count(never)})
		pass(time.Second)
		synctest.Wait()
		require.Equal(t, []int{1, 1, 0, 1}, []int{count(old), count(latest), count(gone), count(never)})
		pass(time.Hour)
		synctest.Wait()
		require.Equal(t, []int{0, 1, 0, 1}, []int{count(old), count(latest), count(gone), count(never)})
		require.Equal(t, 2, s.files())
		require.Equal(t, "success", after(afterLatest).Status)
		require.EqualValues(t, "missing_dependency_failure", after(afterGone).FailureReason)
		require.Equal(t, "success", after(afterNever).Status)
		newer, _ := begin(kept, "1 day")
		synctest.Wait()
		require.Equal(t, []int{0, 1}, []int{count(latest), count(newer)})
		require.Equal(t, 2, s.files())
	})
}

func TestDotenvReachesLaterJobs(t *testing.T) {
	s := newServer(t, Options{})
	p := s.projectWith(ProjectOptions{Path: "g/p", Variables: []ciconfig.Variable{{Key: "FROM_PROJECT", Value: "project"}}})
	r := s.runner()
	yaml := []ciconfig.Variable{{Key: "FROM_YAML", Value: "yaml", Public: true}, {Key: "USES", Value: "<$NAME>", Public: true}}
	needs := func(name string, artifacts bool) []ciconfig.Need {
		return []ciconfig.Need{{Job: name, Artifacts: artifacts}}
	}
	s.run(p,
		ciconfig.Job{Name: "build", Stage: "build"},
		ciconfig.Job{Name: "later", Variables: yaml},
		ciconfig.Job{Name: "needs", Needs: needs("build", true), NeedsDeclared: true},
		ciconfig.Job{Name: "without", Needs: needs("build", false), NeedsDeclared: true},
		ciconfig.Job{Name: "nothing", Dependencies: []string{}},
	)
	j := s.claimed(r)
	w := s.upload(j, "artifact_type=dotenv&artifact_format=gzip", ".env.gz",
		gzipped(t, "NAME=env\nFROM_YAML=env\nFROM_PROJECT=env\nTWICE=$NAME$NAME\n"))
	require.Equal(t, http.StatusCreated, w.Code)
	s.finish(j, "success")
	got := map[string]map[string]string{}
	for range 4 {
		next := s.claimed(r)
		got[next.JobInfo.Name] = values(next)
		for _, v := range next.Variables {
			require.False(t, v.Key == "NAME" && v.Public, "it is no secret, but GitLab does not call it public")
		}
	}
	require.Equal(t, "env", got["later"]["FROM_YAML"])
	require.Equal(t, "project", got["later"]["FROM_PROJECT"])
	require.Equal(t, "<env>", got["later"]["USES"])
	require.Equal(t, "envenv", got["later"]["TWICE"])
	require.Equal(t, "env", got["needs"]["NAME"])
	for _, name := range []string{"without", "nothing"} {
		require.NotContains(t, got[name], "NAME")
	}
}
