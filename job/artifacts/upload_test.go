//go:build unix

package artifacts

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func TestUpload(t *testing.T) {
	b := newBench(t)
	b.write("bin/app", "program")
	b.write("bin/app.log", "log")
	b.write("untracked", "u")
	b.stage.Git = func(context.Context) ([]byte, error) { return []byte("untracked\x00"), nil }
	a := paths("bin/")
	a.Exclude, a.Untracked, a.Name, a.ExpireIn = []string{"bin/*.log"}, true, "dir/$NAME", "1 week"
	said, err := b.upload(a)
	require.NoError(t, err)
	uploads, _ := b.gitlab.requests()
	require.Len(t, uploads, 1)
	u := uploads[0]
	require.Equal(t, "/relative/api/v4/jobs/7/artifacts", u.path)
	require.Equal(t, "artifact_format=zip&artifact_type=archive&expire_in=1+week", u.query)
	require.Equal(t, "from a variable.zip", u.file)
	require.Equal(t, token, u.header.Get("JOB-TOKEN"))
	require.Equal(t, "switchyard test", u.header.Get("User-Agent"))
	require.Regexp(t, "^[0-9a-f]{12}4[0-9a-f]{19}$", u.header.Get("X-Request-Id"))
	require.True(t, u.chunked)
	require.Equal(t, map[string]string{"bin/": "", "bin/app": "program", "untracked": "u"}, unzip(t, u.data))
	require.Contains(t, said, "> Uploading artifacts...\nbin/: found ")
	require.Contains(t, said, `Uploading artifacts as "archive" to coordinator... 201 Created  correlation_id=`)
	require.Contains(t, said, " id=7 responseStatus=201 Created")
}

func TestNamesAndFormats(t *testing.T) {
	for _, c := range []struct {
		name, format, kind, file, query string
	}{
		{"", "", "", "artifacts.zip", ""},
		{"junit.xml", "gzip", "junit", "junit.xml.gz", "artifact_format=gzip&artifact_type=junit"},
		{".env", "gzip", "dotenv", ".env.gz", "artifact_format=gzip&artifact_type=dotenv"},
		{"gl-sast-report.json", "raw", "sast", "gl-sast-report.json", "artifact_format=raw&artifact_type=sast"},
		{"x", "zipzstd", "archive", "x.zip", "artifact_format=zipzstd&artifact_type=archive"},
		{"x", "tarzstd", "archive", "x.tar.zst", "artifact_format=tarzstd&artifact_type=archive"},
		{".", "zip", "archive", "default.zip", "artifact_format=zip&artifact_type=archive"},
		{"$EMPTY", "zip", "archive", "default.zip", "artifact_format=zip&artifact_type=archive"},
		{`a/b "c"`, "zip", "archive", `b "c".zip`, "artifact_format=zip&artifact_type=archive"},
	} {
		b := newBench(t)
		b.write("report", "text")
		said, err := b.upload(runnerapi.Artifact{Name: c.name, Paths: []string{"report"}, Format: c.format, Type: c.kind})
		require.NoError(t, err)
		uploads, _ := b.gitlab.requests()
		require.Equal(t, c.file, uploads[0].file)
		require.Equal(t, c.query, uploads[0].query)
		if c.kind == "" {
			require.Contains(t, said, "Uploading artifacts to coordinator... 201 Created")
		}
		switch c.format {
		case "gzip":
			r, err := gzip.NewReader(bytes.NewReader(uploads[0].data))
			require.NoError(t, err)
			text, err := io.ReadAll(r)
			require.NoError(t, err)
			require.Equal(t, "text", string(text))
		case "raw":
			require.Equal(t, "text", string(uploads[0].data))
		case "", "zip":
			require.Equal(t, map[string]string{"report": "text"}, unzip(t, uploads[0].data))
		}
	}
	b := newBench(t)
	b.write("a", "1")
	b.write("b", "2")
	_, err := b.upload(runnerapi.Artifact{Paths: []string{"a"}, Format: "rar"})
	require.ErrorIs(t, err, ErrConfiguration)
	require.ErrorContains(t, err, `artifact_format "rar" is not supported: it can be`)
	_, err = b.upload(runnerapi.Artifact{Paths: []string{"a", "b"}, Format: "raw"})
	require.ErrorIs(t, err, ErrLocal)
	uploads, _ := b.gitlab.requests()
	require.Empty(t, uploads)
}

func TestWhen(t *testing.T) {
	b := newBench(t)
	b.write("f", "x")
	for when, kept := range map[string][2]bool{"": {true, false}, "on_success": {true, false}, "on_failure": {false, true}, "always": {true, true}} {
		a := paths("f")
		a.When = when
		for i, succeeded := range []bool{true, false} {
			require.Equal(t, kept[i], Uploads([]runnerapi.Artifact{a}, succeeded))
			require.NoError(t, b.stage.Upload(t.Context(), []runnerapi.Artifact{a}, succeeded))
			uploads, _ := b.gitlab.requests()
			require.Equal(t, kept[i], len(uploads) == 1, when)
		}
	}
	require.False(t, Uploads([]runnerapi.Artifact{{Type: "archive"}}, true))
}

func TestNothingToUpload(t *testing.T) {
	b := newBench(t)
	said, err := b.upload(paths("missing"))
	require.NoError(t, err)
	require.Contains(t, said, "WARNING: missing: no matching files")
	require.True(t, strings.HasSuffix(said, "\nERROR: No files to upload"), said)
	uploads, _ := b.gitlab.requests()
	require.Empty(t, uploads)
}

func TestWhatAnswersMean(t *testing.T) {
	repeat := func(n int, f func(http.ResponseWriter, *http.Request) bool) []func(http.ResponseWriter, *http.Request) bool {
		return slices.Repeat([]func(http.ResponseWriter, *http.Request) bool{f}, n)
	}
	for name, c := range map[string]struct {
		answers []func(http.ResponseWriter, *http.Request) bool
		tries   int
		err     error
		said    string
	}{
		"403":               {repeat(9, status(403, "Content-Type", "application/json", "", `{"message":"403 Forbidden - Job is not running"}`)), 1, ErrPermission, `coordinator... 403 Forbidden: 403 Forbidden - Job is not running`},
		"401":               {repeat(9, status(401)), 1, ErrPermission, "401 Unauthorized"},
		"413":               {repeat(9, status(413)), 1, ErrTooLarge, "413 Request Entity Too Large"},
		"413 after the end": {repeat(9, readStatus(413)), 1, ErrTooLarge, "413 Request Entity Too Large"},
		"503 for ever":      {repeat(9, status(503)), 6, ErrUnavailable, "503 Service Unavailable"},
		"503 five times":    {repeat(5, status(503)), 6, nil, "503 Service Unavailable"},
		"429 five times":    {repeat(5, status(429)), 6, nil, "429 Too Many Requests"},
		"500 for ever":      {repeat(9, readStatus(500)), 3, ErrUnavailable, "500 Internal Server Error"},
		"500 twice":         {repeat(2, status(500)), 3, nil, "WARNING: Retrying...  context=artifacts-uploader error="},
		"400 for ever":      {repeat(9, status(400, "Content-Type", "application/json", "", `{"message":"Invalid dotenv"}`)), 3, ErrUnavailable, "400 Bad Request: Invalid dotenv"},
		"404 for ever":      {repeat(9, status(404)), 3, ErrUnavailable, "404 Not Found"},
		"broken once":       {repeat(1, broken), 2, nil, "coordinator... error  error="},
		"broken for ever":   {repeat(9, broken), 3, ErrUnavailable, "EOF"},
		"417 is no answer":  {repeat(1, status(417)), 2, nil, "201 Created"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.write("f", strings.Repeat("x", 100_000))
			tries := 0
			for i, a := range c.answers {
				c.answers[i] = func(w http.ResponseWriter, r *http.Request) bool { tries++; return a(w, r) }
			}
			b.gitlab.answer(c.answers...)
			said, err := b.upload(paths("f"))
			require.ErrorIs(t, err, c.err)
			require.Contains(t, said, c.said)
			b.gitlab.mu.Lock()
			defer b.gitlab.mu.Unlock()
			if c.err == nil {
				tries++
				require.Equal(t, map[string]string{"f": strings.Repeat("x", 100_000)}, unzip(t, b.gitlab.uploads[len(b.gitlab.uploads)-1].data))
			}
			require.Equal(t, c.tries, tries)
			for i, d := range b.pauses {
				require.LessOrEqual(t, d, min(time.Second<<i, 5*time.Second))
				require.Greater(t, d, min(time.Second<<i, 5*time.Second)/2-1)
			}
		})
	}
}

func TestTheServerMayAskForPatience(t *testing.T) {
	b := newBench(t)
	b.write("f", "x")
	b.gitlab.answer(status(429, "Retry-After", "30"))
	_, err := b.upload(paths("f"))
	require.NoError(t, err)
	require.Equal(t, []time.Duration{30 * time.Second}, b.pauses)
}

func TestAServerThatIsNotThereIsGivenAsLongAsOneThatIsNotAvailable(t *testing.T) {
	b := newBench(t)
	b.write("f", "x")
	b.gitlab.Close()
	_, err := b.upload(paths("f"))
	require.ErrorIs(t, err, ErrUnavailable)
	require.Len(t, b.pauses, triesUnavailable-1)
}

func TestOneFailureLeavesTheOthers(t *testing.T) {
	b := newBench(t)
	b.write("f", "x")
	junit := runnerapi.Artifact{Name: "junit.xml", Paths: []string{"f"}, Format: "gzip", Type: "junit"}
	b.gitlab.answer(status(413))
	_, err := b.upload(paths("f"), junit)
	require.ErrorIs(t, err, ErrTooLarge)
	uploads, _ := b.gitlab.requests()
	require.Len(t, uploads, 2)
	require.Equal(t, "junit.xml.gz", uploads[1].file)

	b.gitlab.answer(status(403))
	_, err = b.upload(paths("f"), junit)
	require.ErrorIs(t, err, ErrPermission)
	uploads, _ = b.gitlab.requests()
	require.Len(t, uploads, 1)
}

func TestRedirectedUpload(t *testing.T) {
	other := newGitLab(t)
	for name, c := range map[string]struct {
		location, path string
		code           int
	}{
		"to another host":   {"/", "/api/v4/jobs/7/artifacts", 307},
		"to another path":   {"/sub/api/v4/jobs/7/artifacts?x=1", "/sub/api/v4/jobs/7/artifacts", 308},
		"somewhere on that": {"/elsewhere?x=1", "/api/v4/jobs/7/artifacts", 307},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.write("f", "x")
			b.gitlab.answer(status(c.code, "Location", other.URL+c.location))
			said, err := b.upload(paths("f"))
			require.NoError(t, err)
			require.Empty(t, b.pauses)
			require.Contains(t, said, "Upload request redirected")
			require.NotContains(t, said, "x=1")
			uploads, _ := other.requests()
			require.Len(t, uploads, 1)
			require.Equal(t, c.path, uploads[0].path)
			require.Equal(t, map[string]string{"f": "x"}, unzip(t, uploads[0].data))
		})
	}
	b := newBench(t)
	b.write("f", "x")
	b.gitlab.answer(status(307), status(307, "Location", "file:///x"), status(307, "Location", "http://"))
	_, err := b.upload(paths("f"))
	require.ErrorIs(t, err, ErrUnavailable)
	require.ErrorContains(t, err, "redirected the upload to nowhere")
	round := status(307, "Location", b.gitlab.URL+"/relative/api/v4/jobs/7/artifacts")
	b.gitlab.answer(slices.Repeat([]func(http.ResponseWriter, *http.Request) bool{round}, 99)...)
	_, err = b.upload(paths("f"))
	require.ErrorIs(t, err, ErrUnavailable)
	require.ErrorContains(t, err, "307 Temporary Redirect")
}

func TestUploadIsNotRedirectedFromTLSToPlain(t *testing.T) {
	plain := newGitLab(t)
	b := newBench(t)
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", plain.URL)
		w.WriteHeader(http.StatusTemporaryRedirect)
	}))
	defer secure.Close()
	b.stage.ServerURL, b.stage.CA = secure.URL, certificate(secure)
	b.write("f", "x")
	_, err := b.upload(paths("f"))
	require.ErrorIs(t, err, ErrConfiguration)
	uploads, _ := plain.requests()
	require.Empty(t, uploads)
}

func TestUploadTimeouts(t *testing.T) {
	b := newBench(t)
	b.write("f", "x")
	hang := func(_ http.ResponseWriter, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		return true
	}
	b.stage.UploadTimeout = 50 * time.Millisecond
	b.gitlab.answer(hang, hang, hang)
	_, err := b.upload(paths("f"))
	require.ErrorIs(t, err, ErrUnavailable)
	require.ErrorContains(t, err, "it took too long (50ms)")

	b.stage.UploadTimeout, b.stage.ResponseTimeout = 0, 50*time.Millisecond
	b.gitlab.answer(hang)
	_, err = b.upload(paths("f"))
	require.NoError(t, err, "the second try is answered")
	require.Len(t, b.pauses, 1)
	b.stage.ResponseTimeout = 0

	cause := errors.New("canceled by somebody")
	ctx, cancel := context.WithCancelCause(t.Context())
	b.gitlab.answer(func(w http.ResponseWriter, r *http.Request) bool { cancel(cause); return hang(w, r) })
	require.ErrorIs(t, b.stage.Upload(ctx, []runnerapi.Artifact{paths("f")}, true), cause)
}

func TestFilesThatCannotBeRead(t *testing.T) {
	b := newBench(t)
	b.stage.ProjectDir = filepath.Join(t.TempDir(), "gone")
	_, err := b.upload(paths("f"))
	require.ErrorIs(t, err, ErrLocal)
	b = newBench(t)
	b.stage.ServerURL = "ftp://x"
	_, err = b.upload(paths("f"))
	require.ErrorIs(t, err, ErrConfiguration)
	require.ErrorContains(t, err, "must begin with https:// or http://")
	b.stage.ServerURL, b.stage.CA = b.gitlab.URL, "nonsense"
	_, err = b.upload(paths("f"))
	require.ErrorIs(t, err, ErrConfiguration)
}

func TestProvenance(t *testing.T) {
	b := newBench(t)
	b.write("bin/app", "program")
	b.write("empty", "")
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(b.stage.ProjectDir, "build-metadata.json")))
	b.values["RUNNER_GENERATE_ARTIFACTS_METADATA"] = "true"
	b.stage.Provenance = Provenance{
		RunnerID: 3, RunnerName: "shared", Executor: "docker", JobName: "compile", RepoURL: "https://user:pass@gitlab.example.com/g/p.git",
		SHA: "0123abc", StartedAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Parameters: []string{"CI", "TOKEN"}, Version: "1.2.3",
	}
	a := paths("bin", "empty")
	a.Name = "build"
	said, err := b.upload(a)
	require.NoError(t, err)
	require.Contains(t, said, "Generating artifacts statement")
	uploads, _ := b.gitlab.requests()
	files := unzip(t, uploads[0].data)
	var s map[string]any
	require.NoError(t, json.Unmarshal([]byte(files["build-metadata.json"]), &s))
	details := s["predicate"].(map[string]any)["runDetails"].(map[string]any)
	metadata := details["metadata"].(map[string]any)
	require.NotEmpty(t, metadata["finishedOn"])
	metadata["finishedOn"] = "later"
	architecture := s["predicate"].(map[string]any)["buildDefinition"].(map[string]any)["internalParameters"].(map[string]any)
	require.NotEmpty(t, architecture["architecture"])
	architecture["architecture"] = "some"
	got, err := json.Marshal(s)
	require.NoError(t, err)
	require.JSONEq(t, `{
		"_type": "https://in-toto.io/Statement/v0.1",
		"predicateType": "https://slsa.dev/provenance/v1",
		"subject": [
			{"name": "bin/app", "digest": {"sha256": "b8e4d30ec6ceab4a8a33ae22d5e6ae9b8f5f0d6bd1c5ab5c7c2a7a1d5a1d2c11"}},
			{"name": "empty", "digest": {"sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}
		],
		"predicate": {
			"buildDefinition": {
				"buildType": "https://gitlab.com/gitlab-org/gitlab-runner/-/blob/main/PROVENANCE.md",
				"externalParameters": {"CI": "", "TOKEN": "", "entryPoint": "compile", "source": "https://gitlab.example.com/g/p"},
				"internalParameters": {"architecture": "some", "executor": "docker", "job": "7", "name": "shared"},
				"resolvedDependencies": [{"uri": "https://gitlab.example.com/g/p", "digest": {"sha256": "0123abc"}}]
			},
			"runDetails": {
				"builder": {"id": "https://gitlab.example.com/g/p/-/runners/3", "version": {"switchyard": "1.2.3"}},
				"metadata": {"invocationId": "7", "startedOn": "2026-01-02T03:04:05Z", "finishedOn": "later"}
			}
		}
	}`, strings.Replace(string(got), digestOf("program"), "b8e4d30ec6ceab4a8a33ae22d5e6ae9b8f5f0d6bd1c5ab5c7c2a7a1d5a1d2c11", 1))

	// Not in what is no archive, nor where it is excluded.
	b.values["SLSA_PROVENANCE_SCHEMA_VERSION"] = "v0.2"
	excluded := a
	excluded.Exclude = []string{"*.json"}
	said, err = b.upload(runnerapi.Artifact{Paths: []string{"empty"}, Format: "gzip", Type: "junit"}, excluded)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(said, "Generating"))
	require.Contains(t, said, "WARNING: Unknown SLSA provenance version v0.2, defaulting to v1")
	uploads, _ = b.gitlab.requests()
	require.NotContains(t, unzip(t, uploads[1].data), "build-metadata.json")
}
