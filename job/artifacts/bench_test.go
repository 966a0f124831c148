//go:build unix

package artifacts

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/transfer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "glcbt-s3cret-token"

// bench is a project folder, a GitLab, and what the stages say.
type bench struct {
	t        *testing.T
	stage    Stage
	gitlab   *gitlab
	values   map[string]string
	said     []string
	progress strings.Builder
	pauses   []time.Duration
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, gitlab: newGitLab(t), values: map[string]string{"FF_USE_DIRECT_DOWNLOAD": "true", "NAME": "from a variable"}}
	line := func(prefix string) func(string) { return func(text string) { b.said = append(b.said, prefix+text) } }
	dir := filepath.Join(t.TempDir(), "project")
	b.stage = Stage{
		ProjectDir: dir, TempDir: dir + ".tmp", ServerURL: b.gitlab.URL + "/relative/ci/", UserAgent: "switchyard test", JobID: 7, Token: token,
		Expand: func(text string) (string, error) {
			return os.Expand(text, func(k string) string { return b.values[k] }), nil
		},
		Value: func(k string) string { return b.values[k] },
		Flag:  func(k string) bool { return b.values[k] == "true" },
		Lines: transfer.Lines{
			Notice: line("> "), Say: line(""), Warn: line("WARNING: "), Fail: line("ERROR: "),
			Progress: func(text string) { b.progress.WriteString(text) },
		},
		wait: func(_ context.Context, d time.Duration) error {
			b.pauses = append(b.pauses, d)
			return nil
		},
	}
	require.NoError(t, os.MkdirAll(dir, 0o755))
	return b
}

func (b *bench) write(name, content string) {
	b.t.Helper()
	name = filepath.Join(b.stage.ProjectDir, name)
	require.NoError(b.t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(b.t, os.WriteFile(name, []byte(content), 0o644))
}

func (b *bench) read(name string) string {
	content, err := os.ReadFile(filepath.Join(b.stage.ProjectDir, name))
	if err != nil {
		return "missing"
	}
	return string(content)
}

// upload runs the stage and returns what it said. The token is never said.
func (b *bench) upload(list ...runnerapi.Artifact) (string, error) {
	b.t.Helper()
	b.said, b.pauses = nil, nil
	err := b.stage.Upload(b.t.Context(), list, true)
	return b.lines(err), err
}

func (b *bench) download(list ...runnerapi.Dependency) (string, error) {
	b.t.Helper()
	b.said, b.pauses = nil, nil
	err := b.stage.Download(b.t.Context(), list)
	entries, _ := os.ReadDir(b.stage.TempDir)
	require.Empty(b.t, entries, "temporary files are removed")
	return b.lines(err), err
}

func (b *bench) lines(err error) string {
	all := strings.Join(b.said, "\n")
	require.NotContains(b.t, all, token)
	require.NotContains(b.t, all, "signature")
	if err != nil {
		require.NotContains(b.t, err.Error(), token)
		require.NotContains(b.t, err.Error(), "signature")
	}
	return all
}

func paths(list ...string) runnerapi.Artifact {
	return runnerapi.Artifact{Paths: list, Type: "archive", Format: "zip"}
}

func dependency(id int64) runnerapi.Dependency {
	d := runnerapi.Dependency{ID: id, Name: "compile", Token: token}
	d.ArtifactsFile.Filename = "artifacts.zip"
	return d
}

// received is one upload as GitLab saw it.
type received struct {
	path, query, host, file string
	header                  http.Header
	chunked                 bool
	data                    []byte
}

// gitlab is the part of a GitLab that stages talk to.
type gitlab struct {
	*httptest.Server
	mu      sync.Mutex
	answers []func(w http.ResponseWriter, r *http.Request) bool // of the next requests; false: as usual
	uploads []received
	asked   []string // the downloads' paths with their queries
	tokens  []string
	files   map[string][]byte
	store   *httptest.Server // where direct downloads go
	stored  []http.Header
}

func newGitLab(t *testing.T) *gitlab {
	t.Helper()
	g := &gitlab{files: map[string][]byte{}}
	g.Server = httptest.NewServer(g)
	t.Cleanup(g.Close)
	return g
}

func (g *gitlab) next() func(http.ResponseWriter, *http.Request) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.answers) == 0 {
		return nil
	}
	answer := g.answers[0]
	g.answers = g.answers[1:]
	return answer
}

func (g *gitlab) answer(list ...func(w http.ResponseWriter, r *http.Request) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answers = list
}

func (g *gitlab) requests() (uploads []received, asked []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	uploads, asked = g.uploads, g.asked
	g.uploads, g.asked = nil, nil
	return uploads, asked
}

func (g *gitlab) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		g.mu.Lock()
		g.asked = append(g.asked, strings.TrimSuffix(r.URL.Path+"?"+r.URL.RawQuery, "?"))
		g.tokens = append(g.tokens, r.Header.Get("JOB-TOKEN"))
		g.mu.Unlock()
	}
	if answer := g.next(); answer != nil && answer(w, r) {
		if r.Method == http.MethodPost {
			g.mu.Lock()
			g.uploads = append(g.uploads, received{path: r.URL.Path})
			g.mu.Unlock()
		}
		return
	}
	if r.Header.Get("JOB-TOKEN") != token {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	if r.Method == http.MethodPost {
		if err := g.take(r); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, err.Error())
			return
		}
		w.WriteHeader(http.StatusCreated)
		return
	}
	g.mu.Lock()
	data, ok := g.files[r.URL.Path]
	g.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if g.store != nil && r.URL.Query().Get("direct_download") == "true" {
		http.Redirect(w, r, g.store.URL+r.URL.Path+"?signature=hidden", http.StatusFound)
		return
	}
	w.Header().Set("ETag", `"gitlab's"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func (g *gitlab) take(r *http.Request) error {
	u := received{path: r.URL.Path, query: r.URL.RawQuery, host: r.Host, header: r.Header.Clone(), chunked: r.ContentLength < 0}
	media, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "multipart/form-data" {
		return fmt.Errorf("no form: %w", err)
	}
	form := multipart.NewReader(r.Body, parameters["boundary"])
	part, err := form.NextPart()
	if err != nil {
		return err
	}
	if part.FormName() != "file" {
		return errors.New("no field file")
	}
	u.file = part.FileName()
	if u.data, err = io.ReadAll(part); err != nil {
		return err
	}
	if _, err := form.NextPart(); !errors.Is(err, io.EOF) {
		return errors.New("more than one field")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.uploads = append(g.uploads, u)
	return nil
}

// direct begins to send direct downloads to an object store.
func (g *gitlab) direct(t *testing.T, serve func(w http.ResponseWriter, r *http.Request, data []byte)) {
	t.Helper()
	g.store = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		g.stored = append(g.stored, r.Header.Clone())
		data := g.files[r.URL.Path]
		g.mu.Unlock()
		if r.URL.Query().Get("signature") != "hidden" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("ETag", `"stored"`)
		serve(w, r, data)
	}))
	t.Cleanup(g.store.Close)
}

func content(w http.ResponseWriter, r *http.Request, data []byte) {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// status answers with a status and, if text is not empty, a body.
func status(code int, pairs ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		body := ""
		for i := 0; i+1 < len(pairs); i += 2 {
			if pairs[i] == "" {
				body = pairs[i+1]
			} else {
				w.Header().Set(pairs[i], pairs[i+1])
			}
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
		return true
	}
}

// readStatus answers so after it has read the request.
func readStatus(code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(code)
		return true
	}
}

// broken takes a request and breaks the connection.
func broken(_ http.ResponseWriter, r *http.Request) bool {
	_, _ = io.Copy(io.Discard, r.Body)
	panic(http.ErrAbortHandler)
}

// zipOf makes an archive of names and contents.
func zipOf(t *testing.T, pairs ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for i := 0; i < len(pairs); i += 2 {
		f, err := w.CreateHeader(&zip.FileHeader{Name: pairs[i]})
		require.NoError(t, err)
		_, err = io.WriteString(f, pairs[i+1])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// unzip returns names and contents.
func unzip(t *testing.T, data []byte) map[string]string {
	t.Helper()
	r, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	require.NoError(t, err)
	files := map[string]string{}
	for _, f := range r.File {
		rc, err := f.Open()
		require.NoError(t, err)
		b, err := io.ReadAll(rc)
		require.NoError(t, err)
		files[f.Name] = string(b)
	}
	return files
}
