package coordinator

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
)

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
