package coordinator

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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

func TestWhoMayUpload(t *testing.T) {
	s := newServer(t, Options{})
	j := running(t, s)
	contentType, body := form(t, "a.zip", []byte("x"))
	post := func(path string, headers ...string) *httptest.ResponseRecorder {
		return s.do(http.MethodPost, path, body, append([]string{"Content-Type", contentType}, headers...)...)
	}
	for _, path := range []string{jobPath(j) + "/artifacts", jobPath(j) + "/artifacts/authorize"} {
		require.Equal(t, http.StatusForbidden, post(path).Code)
		require.Equal(t, http.StatusForbidden, post(path, "Job-Token", "wrong").Code)
		require.Equal(t, http.StatusForbidden, post("/api/v4/jobs/999/artifacts", "Job-Token", j.Token).Code)
		require.Equal(t, http.StatusBadRequest, post("/api/v4/jobs/x/artifacts", "Job-Token", j.Token).Code)
	}
	require.Equal(t, http.StatusOK, s.do(http.MethodPost, jobPath(j)+"/artifacts/authorize?token="+j.Token, nil).Code)
	require.Equal(t, http.StatusCreated, post(jobPath(j)+"/artifacts?token="+j.Token).Code)
	s.finish(j, "success")
	w := post(jobPath(j)+"/artifacts", "Job-Token", j.Token)
	require.Equal(t, http.StatusForbidden, w.Code)
	require.Equal(t, "success", w.Header().Get("Job-Status"))
	require.Contains(t, w.Body.String(), "Job is not processing on runner")
	require.Equal(t, 1, s.files())
}

func TestAuthorizeAnUpload(t *testing.T) {
	s := newServer(t, Options{MaxArtifact: 1000})
	j := running(t, s)
	ask := func(query string) *httptest.ResponseRecorder {
		return s.do(http.MethodPost, jobPath(j)+"/artifacts/authorize?"+query, nil, "Job-Token", j.Token)
	}
	w := ask("filesize=1000")
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, "application/vnd.gitlab-workhorse+json", w.Header().Get("Content-Type"))
	var answer map[string]any
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &answer))
	require.Equal(t, map[string]any{"TempPath": s.store.Dir(), "MaximumSize": 1000.0}, answer)
	require.Contains(t, ask("artifact_type=lsif").Body.String(), `"ProcessLsif":true`)
	require.Equal(t, http.StatusRequestEntityTooLarge, ask("filesize=1001").Code)
	require.Equal(t, http.StatusBadRequest, ask("filesize=x").Code)
	require.Equal(t, http.StatusBadRequest, ask("artifact_type=nonsense").Code)
	w = s.do(http.MethodPost, jobPath(j)+"/artifacts/authorize", []byte("token="+j.Token+"&filesize=2000"),
		"Content-Type", "application/x-www-form-urlencoded")
	require.Equal(t, http.StatusRequestEntityTooLarge, w.Code)
}

// What is refused leaves nothing behind, and the job can go on to upload what is right.
func TestUploadsThatAreRefused(t *testing.T) {
	s := newServer(t, Options{MaxArtifact: 1000})
	j := running(t, s)
	text := []byte("x")
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprint("field", i), "x")
	}
	for name, tc := range map[string]struct {
		query  string
		fields []string
		file   []byte
		name   string
		code   int
		want   string
	}{
		"type":            {"artifact_type=nonsense", nil, text, "a", 400, "artifact_type does not have a valid value"},
		"format":          {"artifact_format=tar", nil, text, "a", 400, "artifact_format does not have a valid value"},
		"type in form":    {"", []string{"artifact_type", "nonsense"}, text, "a", 400, "artifact_type does not have a valid value"},
		"archive as gzip": {"artifact_format=gzip", nil, text, "a", 400, "Validation failed: Invalid file format with specified file type"},
		"junit as raw":    {"artifact_type=junit&artifact_format=raw", nil, text, "a", 400, "Invalid file format"},
		"dotenv as raw":   {"artifact_type=dotenv&artifact_format=raw", nil, text, "a", 400, "Invalid file format"},
		"dotenv":          {"artifact_type=dotenv&artifact_format=gzip", nil, gzipped(t, "nothing"), "a", 400, "Invalid Format"},
		"dotenv's key":    {"artifact_type=dotenv&artifact_format=gzip", nil, gzipped(t, "a-b=c"), "a", 400, "Key can contain only letters, digits and '_'."},
		"expire_in":       {"expire_in=soon", nil, text, "a", 400, "expire_in is invalid"},
		"no file":         {"", []string{"a", "b"}, nil, "", 400, "file is missing"},
		"size":            {"", nil, bytes.Repeat(text, 1001), "a", 413, "file size has reached maximum size limit"},
		"long field":      {"", []string{"a", strings.Repeat("x", maxUploadField+1)}, text, "a", 400, "too long"},
		"many fields":     {"", many, text, "a", 400, "too many fields"},
	} {
		contentType, body := form(t, tc.name, tc.file, tc.fields...)
		w := s.do(http.MethodPost, jobPath(j)+"/artifacts?"+tc.query, body, "Job-Token", j.Token, "Content-Type", contentType)
		require.Equal(t, tc.code, w.Code, "%s: %s", name, w.Body.String())
		require.Contains(t, w.Body.String(), tc.want, name)
		require.Zero(t, s.files(), name)
	}
	contentType, body := form(t, "a", text)
	_, boundary, _ := strings.Cut(contentType, "boundary=")
	part := "--" + boundary + "\r\nContent-Disposition: form-data; name=\"%s\"; filename=\"a\"\r\n\r\nx\r\n"
	for name, broken := range map[string]string{
		"no form": "x", "cut short": string(body[:len(body)-10]),
		"two files":  fmt.Sprintf(part, "file") + string(body),
		"other file": fmt.Sprintf(part, "metadata") + string(body),
	} {
		w := s.do(http.MethodPost, jobPath(j)+"/artifacts", []byte(broken), "Job-Token", j.Token, "Content-Type", contentType)
		require.Equal(t, http.StatusBadRequest, w.Code, "%s: %s", name, w.Body.String())
		require.Zero(t, s.files(), name)
	}
	w := s.do(http.MethodPost, jobPath(j)+"/artifacts", []byte("x"), "Job-Token", j.Token, "Content-Type", "text/plain")
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.Empty(t, s.list(j))
	s.uploaded(j, bytes.Repeat(text, 1000))
	require.Equal(t, 1, s.files())
}

// A client sees why its upload is refused: it is told before it sends, if it asks, and is listened to otherwise.
func TestTooLargeOverASocket(t *testing.T) {
	s := newServer(t, Options{MaxArtifact: 1 << 20})
	srv := httptest.NewServer(s.Handler())
	defer srv.Close()
	srv.Client().Transport.(*http.Transport).ExpectContinueTimeout = time.Minute
	j := running(t, s)
	post := func(body io.Reader, contentType string, headers ...string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+jobPath(j)+"/artifacts", body)
		require.NoError(t, err)
		req.Header.Set("Job-Token", j.Token)
		req.Header.Set("Content-Type", contentType)
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		res, err := srv.Client().Do(req)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res.StatusCode
	}
	contentType, body := form(t, "a", bytes.Repeat([]byte("x"), 8<<20))
	require.Equal(t, http.StatusRequestEntityTooLarge, post(bytes.NewReader(body), contentType))
	require.Equal(t, http.StatusRequestEntityTooLarge, post(io.MultiReader(bytes.NewReader(body)), contentType), "chunked")
	unread := bytes.NewReader(body)
	require.Equal(t, http.StatusRequestEntityTooLarge, post(unread, contentType, "Expect", "100-continue"))
	require.Equal(t, len(body), unread.Len(), "nothing was sent")
	require.Zero(t, s.files())
	contentType, body = form(t, "a", bytes.Repeat([]byte("x"), 1<<20))
	require.Equal(t, http.StatusCreated, post(io.MultiReader(bytes.NewReader(body)), contentType, "Expect", "100-continue"))
}

// An upload whose job ends while it is under way is refused; a client that goes leaves nothing.
func TestUploadsThatComeTooLate(t *testing.T) {
	s := newServer(t, Options{})
	srv := httptest.NewServer(s.Handler())
	defer srv.Close()
	j := running(t, s)
	contentType, body := form(t, "a", bytes.Repeat([]byte("x"), 1<<20))
	begin := func() (*io.PipeWriter, chan int) {
		r, w := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+jobPath(j)+"/artifacts", r)
		require.NoError(t, err)
		req.Header.Set("Job-Token", j.Token)
		req.Header.Set("Content-Type", contentType)
		code := make(chan int, 1)
		go func() {
			res, err := srv.Client().Do(req)
			if err != nil {
				code <- 0
				return
			}
			_ = res.Body.Close()
			code <- res.StatusCode
		}()
		_, err = w.Write(body[:1<<19])
		require.NoError(t, err)
		require.Eventually(t, func() bool { return s.files() == 1 }, 10*time.Second, time.Millisecond)
		return w, code
	}
	w, code := begin()
	require.NoError(t, w.CloseWithError(io.ErrClosedPipe))
	require.Zero(t, <-code)
	require.Eventually(t, func() bool { return s.files() == 0 }, 10*time.Second, time.Millisecond)

	w, code = begin()
	s.finish(j, "success")
	_, err := w.Write(body[1<<19:])
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.Equal(t, http.StatusForbidden, <-code)
	require.Zero(t, s.files())
	require.Empty(t, s.list(j))
}

func TestASecondUploadOfAType(t *testing.T) {
	s := newServer(t, Options{})
	j := running(t, s)
	first, second := zipped(t, map[string]string{"a": "1"}), zipped(t, map[string]string{"a": "2"})
	s.uploaded(j, first)
	s.uploaded(j, first) // the runner has not heard of the first answer
	w := s.upload(j, "", "artifacts.zip", second)
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.Contains(t, w.Body.String(), "another artifact of the same type already exists")
	require.Len(t, s.list(j), 1)
	require.Equal(t, 1, s.files())
	f, _, err := s.OpenArtifact(j.ID, "archive")
	require.NoError(t, err)
	kept, err := io.ReadAll(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.True(t, bytes.Equal(first, kept))
	require.Equal(t, http.StatusCreated, s.upload(j, "artifact_type=junit&artifact_format=gzip", "junit.xml.gz", gzipped(t, "<xml/>")).Code)
	require.Len(t, s.list(j), 2)
	_, _, err = s.OpenArtifact(j.ID, "sast")
	require.ErrorIs(t, err, ErrNotFound)
	_, err = s.Artifacts(999)
	require.ErrorIs(t, err, ErrNotFound)
}

// Every report that a job may have is kept in its own format and no other.
func TestEveryReportIsAnUploadOfItsOwn(t *testing.T) {
	s := newServer(t, Options{})
	p, r := s.project("g/p"), s.runner()
	var reports []ciconfig.Report
	for _, kind := range ciconfig.ReportTypes() {
		reports = append(reports, ciconfig.Report{Type: kind, Paths: []string{kind + "/*.x"}})
	}
	s.run(p, ciconfig.Job{Artifacts: &ciconfig.Artifacts{Reports: reports}})
	j := s.claimed(r)
	require.Len(t, j.Artifacts, len(reports))
	for _, a := range j.Artifacts {
		file := []byte("x")
		if a.Type == "dotenv" {
			file = gzipped(t, "A=b\n")
		}
		for _, format := range []string{"zip", "gzip", "raw"} {
			w := s.upload(j, "artifact_type="+a.Type+"&artifact_format="+format, a.Name, file)
			if format == a.Format {
				require.Equal(t, http.StatusCreated, w.Code, "%s as %s: %s", a.Type, format, w.Body.String())
			} else if s.list(j) == nil || s.list(j)[len(s.list(j))-1].Type != a.Type {
				require.Equal(t, http.StatusBadRequest, w.Code, "%s as %s", a.Type, format)
			}
		}
	}
	require.Len(t, s.list(j), len(reports))
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

// BenchmarkUpload receives an archive of 64 MB over a socket. The figure includes the sender.
func BenchmarkUpload(b *testing.B) {
	s := newServer(b, Options{})
	srv := httptest.NewServer(s.Handler())
	defer srv.Close()
	p, r := s.project("g/p"), s.runner()
	contentType, body := form(b, "a.zip", bytes.Repeat([]byte("0123456789abcdef"), 4<<20))
	b.SetBytes(int64(len(body)))
	before := cpu(b)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		s.run(p, ciconfig.Job{})
		j := s.claim(r)
		req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, srv.URL+jobPath(j)+"/artifacts", bytes.NewReader(body))
		require.NoError(b, err)
		req.Header.Set("Job-Token", j.Token)
		req.Header.Set("Content-Type", contentType)
		res, err := srv.Client().Do(req)
		require.NoError(b, err)
		require.NoError(b, res.Body.Close())
		require.Equal(b, http.StatusCreated, res.StatusCode)
		s.finish(j, "success")
		require.NoError(b, s.Erase(j.ID))
	}
	b.ReportMetric((cpu(b)-before)/float64(b.N)/64, "cpu-ms/MB")
}
