//go:build unix

package artifacts

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/archive"
)

func digestOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func certificate(s *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

const (
	plainPath  = "/relative/api/v4/jobs/5/artifacts"
	directPath = plainPath + "?direct_download=true"
)

func TestDownload(t *testing.T) {
	b := newBench(t)
	b.gitlab.files[plainPath] = zipOf(t, "bin/app", "program")
	b.write("bin/app", "older")
	skipped := dependency(6)
	skipped.ArtifactsFile.Filename = ""
	require.False(t, Downloads([]runnerapi.Dependency{skipped}))
	said, err := b.download(skipped, dependency(5))
	require.NoError(t, err)
	require.Equal(t, "program", b.read("bin/app"))
	require.Regexp(t, `^> Downloading artifacts for compile \(5\)\.\.\.\nDownloading artifacts from coordinator\.\.\. ok  correlation_id=[0-9a-f]{32} host=\S+ id=5 responseStatus=200 OK$`, said)
	_, asked := b.gitlab.requests()
	require.Equal(t, []string{directPath}, asked)
	b.values["FF_USE_DIRECT_DOWNLOAD"] = "false"
	_, err = b.download(dependency(5))
	require.NoError(t, err)
	_, asked = b.gitlab.requests()
	require.Equal(t, []string{plainPath}, asked)
}

func TestDirectDownload(t *testing.T) {
	b := newBench(t)
	b.gitlab.direct(t, content)
	b.gitlab.files[plainPath] = zipOf(t, "bin/app", "program")
	said, err := b.download(dependency(5))
	require.NoError(t, err)
	require.Equal(t, "program", b.read("bin/app"))
	require.Contains(t, said, "host="+strings.TrimPrefix(b.gitlab.store.URL, "http://"))
	require.Len(t, b.gitlab.stored, 1)
	require.Empty(t, b.gitlab.stored[0].Get("JOB-TOKEN"))
	require.Equal(t, []string{token}, b.gitlab.tokens)
}

func TestWithoutTheObjectStoreGitLabIsAsked(t *testing.T) {
	b := newBench(t)
	b.gitlab.direct(t, content)
	b.gitlab.store.Close() // cannot be reached
	b.gitlab.files[plainPath] = zipOf(t, "bin/app", "program")
	said, err := b.download(dependency(5))
	require.NoError(t, err)
	require.Equal(t, "program", b.read("bin/app"))
	require.Contains(t, said, "WARNING: Retrying...")
	_, asked := b.gitlab.requests()
	require.Equal(t, []string{directPath, plainPath}, asked)
}

func TestABrokenDirectDownloadGoesOnWhereItWas(t *testing.T) {
	b := newBench(t)
	noise := rand.Text() + strings.Repeat("0123456789", 30_000)
	archived := zipOf(t, "noise", noise, "more", rand.Text())
	b.gitlab.files[plainPath] = archived
	broken := 0
	b.gitlab.direct(t, func(w http.ResponseWriter, r *http.Request, data []byte) {
		if broken++; broken == 1 {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data[:500])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		content(w, r, data)
	})
	_, err := b.download(dependency(5))
	require.NoError(t, err)
	require.Equal(t, noise, b.read("noise"))
	_, asked := b.gitlab.requests()
	require.Equal(t, []string{directPath, directPath}, asked)
	require.Equal(t, "bytes=500-", b.gitlab.stored[1].Get("Range"))
}

func TestParallelDownload(t *testing.T) {
	b := newBench(t)
	noise := make([]byte, 40<<20)
	_, _ = rand.Read(noise)
	b.gitlab.files[plainPath] = zipOf(t, "noise", string(noise))
	b.values["FF_USE_PARALLEL_ARTIFACT_TRANSFER"] = "true"
	_, err := b.download(dependency(5)) // from GitLab itself: one after another
	require.NoError(t, err)
	_, asked := b.gitlab.requests()
	require.Equal(t, []string{directPath, directPath}, asked)
	require.Equal(t, string(noise), b.read("noise"))
	b.write("noise", "")

	b.gitlab.direct(t, content)
	_, err = b.download(dependency(5))
	require.NoError(t, err)
	require.Equal(t, string(noise), b.read("noise"))
	_, asked = b.gitlab.requests()
	require.Equal(t, []string{directPath}, asked)
	require.Len(t, b.gitlab.stored, 3)
}

func TestWhatDownloadAnswersMean(t *testing.T) {
	xml := status(403, "Content-Type", "application/xml", "", "<?xml version=\"1.0\"?><Error><Code>SecurityPolicyViolated</Code><Message>VPC</Message></Error>")
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request) bool
		times  int
		asked  int
		err    error
		said   string
	}{
		"403":             {xml, 9, 1, ErrPermission, "ERROR: Downloading artifacts from coordinator... forbidden"},
		"403 says why":    {xml, 9, 1, ErrPermission, `status="SecurityPolicyViolated: VPC"`},
		"401":             {status(401), 9, 1, ErrPermission, "ERROR: Downloading artifacts from coordinator... unauthorized"},
		"404":             {status(404), 9, 1, ErrNotFound, "ERROR: Downloading artifacts from coordinator... not found"},
		"500":             {status(500), 9, 3, ErrUnavailable, "WARNING: Downloading artifacts from coordinator... failed"},
		"500 twice":       {status(500), 2, 3, nil, "WARNING: Retrying..."},
		"418":             {status(418), 9, 3, ErrUnavailable, "responseStatus=418"},
		"broken":          {broken, 9, 3, ErrUnavailable, "ERROR: Downloading artifacts from coordinator... error"},
		"broken once":     {broken, 1, 2, nil, "WARNING: Retrying..."},
		"204 has no file": {status(204), 9, 3, ErrUnavailable, "failed"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.gitlab.files[plainPath] = zipOf(t, "a", "b")
			b.gitlab.answer(slices.Repeat([]func(http.ResponseWriter, *http.Request) bool{c.answer}, c.times)...)
			said, err := b.download(dependency(5), dependency(5))
			require.ErrorIs(t, err, c.err)
			require.Contains(t, said, c.said)
			_, asked := b.gitlab.requests()
			if c.err == nil {
				asked = asked[:len(asked)-1] // of the second dependency
			} else {
				require.ErrorContains(t, err, "artifacts of compile (5): ")
			}
			require.Len(t, asked, c.asked)
			for i, query := range asked {
				require.Equal(t, i == 0, query == directPath)
			}
		})
	}
}

func TestArtifactsAreNotTrusted(t *testing.T) {
	for name, data := range map[string][]byte{
		"a path out of the folder": zipOf(t, "ok", "ok", "../evil", "evil"),
		"nonsense":                 []byte("<html>this is no archive</html>"),
		"nothing":                  {},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.gitlab.files[plainPath] = data
			_, err := b.download(dependency(5))
			require.ErrorIs(t, err, ErrLocal)
			require.True(t, errors.Is(err, archive.ErrHostile) || errors.Is(err, archive.ErrCorrupt), err)
			require.NoFileExists(t, filepath.Join(b.stage.ProjectDir, "..", "evil"))
		})
	}
}

func TestTheEndOfADownloadsContext(t *testing.T) {
	b := newBench(t)
	cause := errors.New("canceled by somebody")
	ctx, cancel := context.WithCancelCause(t.Context())
	b.gitlab.answer(func(_ http.ResponseWriter, r *http.Request) bool {
		cancel(cause)
		<-r.Context().Done()
		return true
	})
	require.ErrorIs(t, b.stage.Download(ctx, []runnerapi.Dependency{dependency(5)}), cause)
}

func TestDownloadOverTLS(t *testing.T) {
	b := newBench(t)
	secure := httptest.NewTLSServer(b.gitlab)
	defer secure.Close()
	b.gitlab.files[plainPath] = zipOf(t, "a", "b")
	b.stage.ServerURL = secure.URL + "/relative"
	b.stage.CA = certificate(secure)
	b.values["TRANSFER_METER_FREQUENCY"] = "1h"
	_, err := b.download(dependency(5))
	require.NoError(t, err)
	require.Equal(t, "b", b.read("a"))
	require.Regexp(t, `^\rDownloading artifacts .*\rDownloading artifacts \d+ B/\d+ B \(.*/s\) +\n$`, b.progress.String())
}

func TestProxiesOfTheJob(t *testing.T) {
	b := newBench(t)
	b.gitlab.files[plainPath] = zipOf(t, "a", "b")
	b.values["http_proxy"] = b.gitlab.URL // answers for every host
	b.stage.ServerURL = "http://gitlab.test/relative"
	_, err := b.download(dependency(5))
	require.NoError(t, err)
	require.Equal(t, "b", b.read("a"))
}

// What a job uploads is what the next one downloads.
func TestThereAndBack(t *testing.T) {
	for _, format := range []string{"zip", "zipzstd", "tarzstd"} {
		b := newBench(t)
		b.write("bin/app", strings.Repeat("program", 10_000))
		require.NoError(t, os.Chmod(filepath.Join(b.stage.ProjectDir, "bin/app"), 0o755))
		a := paths("bin/")
		a.Format = format
		_, err := b.upload(a)
		require.NoError(t, err)
		uploads, _ := b.gitlab.requests()
		b.gitlab.files[plainPath] = uploads[0].data
		require.NoError(t, os.RemoveAll(filepath.Join(b.stage.ProjectDir, "bin")))
		_, err = b.download(dependency(5))
		require.NoError(t, err)
		require.Equal(t, strings.Repeat("program", 10_000), b.read("bin/app"))
		info, err := os.Stat(filepath.Join(b.stage.ProjectDir, "bin/app"))
		require.NoError(t, err)
		require.EqualValues(t, 0o755, info.Mode())
	}
}
