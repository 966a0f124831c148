package helper

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/internal/helperimage"
	"github.com/switchyard-ci/switchyard/internal/testbed"
	"github.com/switchyard-ci/switchyard/internal/testbinary"
)

var programs string

func TestMain(m *testing.M) {
	var err error
	if programs, err = testbinary.Build("switchyard-job"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(programs)
		os.Exit(code)
	}))
}

// engine counts what it is asked to load.
type engine struct {
	*client.Client
	loads atomic.Int32
}

func (e *engine) ImageLoad(ctx context.Context, r io.Reader, options ...client.ImageLoadOption) (client.ImageLoadResult, error) {
	e.loads.Add(1)
	return e.Client.ImageLoad(ctx, r, options...)
}

// other is an engine of another kind.
type other struct{ *engine }

func (other) ServerVersion(context.Context, client.ServerVersionOptions) (client.ServerVersionResult, error) {
	return client.ServerVersionResult{Os: "linux", Arch: "vax"}, nil
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	testbed.Need(t, testbed.Docker, testbed.Git)
	c, err := client.New(client.FromEnv)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return &engine{Client: c}
}

// build makes the one archive of these tests, under a name that nobody else has.
var build = sync.OnceValues(func() (helperimage.Info, error) {
	info, _, err := helperimage.Build(context.Background(), helperimage.Options{
		Job: filepath.Join(programs, "switchyard-job"), Version: "test-" + strings.ToLower(rand.Text()[:8]),
	}, filepath.Join(programs, helperimage.FileName))
	return info, err
})

// archive returns the archive of an image that the engine does not have.
func archive(t *testing.T, e *engine) (file string, info helperimage.Info) {
	t.Helper()
	info, err := build()
	require.NoError(t, err)
	file = filepath.Join(programs, helperimage.FileName)
	t.Cleanup(func() {
		_, _ = e.ImageRemove(context.Background(), info.Reference, client.ImageRemoveOptions{})
	})
	return file, info
}

func TestTheFileIsLoadedOnceForAll(t *testing.T) {
	e := newEngine(t)
	file, info := archive(t, e)
	h := New(e, Source{File: file})
	const callers = 8
	ids := make([]string, callers)
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			id, err := h.Ensure(t.Context(), nil)
			if err == nil {
				ids[i] = id
			}
		})
	}
	group.Wait()
	found, err := e.ImageInspect(t.Context(), info.Reference)
	require.NoError(t, err)
	for _, id := range ids {
		require.Equal(t, found.ID, id)
	}
	require.EqualValues(t, 1, e.loads.Load())

	// Somebody else's image under the name does not count.
	_, err = e.ImageRemove(t.Context(), info.Reference, client.ImageRemoveOptions{})
	require.NoError(t, err)
	imported, err := e.ImageImport(t.Context(), client.ImageImportSource{Source: bytes.NewReader(make([]byte, 1024)), SourceName: "-"},
		info.Reference, client.ImageImportOptions{})
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, imported)
	require.NoError(t, errors.Join(err, imported.Close()))
	foreign, err := e.ImageInspect(t.Context(), info.Reference)
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = e.ImageRemove(context.Background(), foreign.ID, client.ImageRemoveOptions{}) })
	id, err := h.Ensure(t.Context(), nil)
	require.NoError(t, err)
	require.NotEqual(t, foreign.ID, id)
	require.EqualValues(t, 2, e.loads.Load())
}

func TestANamedImageIsUsedOrPulled(t *testing.T) {
	e := newEngine(t)
	file, info := archive(t, e)
	load := func(ctx context.Context, _ string) error {
		_, err := New(e, Source{File: file}).Ensure(ctx, nil)
		return err
	}
	h := New(e, Source{Image: info.Reference})
	_, err := h.Ensure(t.Context(), nil)
	require.ErrorContains(t, err, "does not have the helper image "+info.Reference)
	refused := errors.New("registry says no")
	_, err = h.Ensure(t.Context(), func(context.Context, string) error { return refused })
	require.Equal(t, refused, err)
	_, err = h.Ensure(t.Context(), func(context.Context, string) error { return nil })
	require.ErrorContains(t, err, "does not have it: is something removing images?")
	id, err := h.Ensure(t.Context(), load)
	require.NoError(t, err)
	again, err := h.Ensure(t.Context(), func(context.Context, string) error { return refused })
	require.NoError(t, err)
	require.Equal(t, id, again)
	byID, err := New(e, Source{Image: id}).Ensure(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, id, byID)

	_, err = New(e, Source{Image: "sha256:" + strings.Repeat("0", 64)}).Ensure(t.Context(), load)
	require.ErrorContains(t, err, "or set helper_image to NAME@sha256:… of a registry")
	_, err = New(other{e}, Source{Image: info.Reference}).Ensure(t.Context(), nil)
	require.ErrorContains(t, err, "runs linux/vax and the helper image "+info.Reference+" is for linux/"+runtime.GOARCH)
}

func TestWhatIsWrongWithTheFileIsSaid(t *testing.T) {
	e := newEngine(t)
	file, _ := archive(t, e)
	_, err := New(other{e}, Source{File: file}).Ensure(t.Context(), nil)
	require.ErrorContains(t, err, "runs linux/vax")
	require.ErrorContains(t, err, "deploy/helper/Dockerfile for linux/vax and name it by helper_image")
	_, err = New(e, Source{File: file + "x"}).Ensure(t.Context(), nil)
	require.ErrorContains(t, err, "`make build` leaves one beside the programs")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = New(e, Source{File: file}).Ensure(ctx, nil)
	require.ErrorIs(t, err, context.Canceled)

	// The engine finds out that the archive is cut off.
	whole, err := os.ReadFile(file)
	require.NoError(t, err)
	cut := filepath.Join(t.TempDir(), "cut.tar")
	require.NoError(t, os.WriteFile(cut, whole[:1<<20], 0o600))
	_, err = New(e, Source{File: cut}).Ensure(t.Context(), nil)
	require.ErrorContains(t, err, "load the helper image from "+cut)
}

// run runs a script with sh in a container of the image, with the host's network, and returns what it writes.
func run(t *testing.T, e *engine, image, script string, env ...string) string {
	t.Helper()
	made, err := e.ContainerCreate(t.Context(), client.ContainerCreateOptions{
		Config:     &container.Config{Image: image, Cmd: []string{"sh", "-euc", script}, Env: env},
		HostConfig: &container.HostConfig{NetworkMode: "host"},
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := e.ContainerRemove(context.Background(), made.ID, client.ContainerRemoveOptions{Force: true})
		require.NoError(t, err)
	})
	wait := e.ContainerWait(t.Context(), made.ID, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	_, err = e.ContainerStart(t.Context(), made.ID, client.ContainerStartOptions{})
	require.NoError(t, err)
	var code int64
	select {
	case result := <-wait.Result:
		code = result.StatusCode
	case err := <-wait.Error:
		require.NoError(t, err)
	}
	logs, err := e.ContainerLogs(t.Context(), made.ID, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true})
	require.NoError(t, err)
	defer logs.Close()
	var out bytes.Buffer
	_, err = stdcopy.StdCopy(&out, &out, logs)
	require.NoError(t, err)
	require.Zero(t, code, out.String())
	return out.String()
}

// repositories serves bare repositories over https: outer.git, which has inner.git as a submodule, its address relative,
// and a file in UTF-16. It returns the address and the certificate.
func repositories(t *testing.T) (url, certificate string) {
	t.Helper()
	dir := t.TempDir()
	script := `
git init -q inner && cd inner && echo inner >file && git add . && git commit -qm inner && cd ..
git clone -q --bare inner inner.git
git init -q outer && cd outer
git -c protocol.file.allow=always submodule --quiet add ../inner.git sub
git config -f .gitmodules submodule.sub.url ../inner.git
echo 'wide.txt working-tree-encoding=UTF-16LE eol=lf' >.gitattributes
printf 'w\0\n\0' >wide.txt
git add . && git commit -qm outer && cd ..
git clone -q --bare outer outer.git`
	cmd := exec.Command("sh", "-euc", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_COUNT=2",
		"GIT_CONFIG_KEY_0=user.name", "GIT_CONFIG_VALUE_0=a", "GIT_CONFIG_KEY_1=user.email", "GIT_CONFIG_VALUE_1=a@example.com")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	core, err := exec.Command("git", "--exec-path").Output()
	require.NoError(t, err)
	server := httptest.NewTLSServer(&cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(core)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + dir},
	})
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	})
	block := &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}
	return server.URL, string(pem.EncodeToMemory(block))
}

func TestGitWorksInTheImage(t *testing.T) {
	testbed.Need(t, testbed.GitLFS, testbed.Bash)
	e := newEngine(t)
	file, _ := archive(t, e)
	id, err := New(e, Source{File: file}).Ensure(t.Context(), nil)
	require.NoError(t, err)
	url, certificate := repositories(t)
	out := run(t, e, id, `
		switchyard-job version
		git lfs version
		bash -c 'echo "${BASH_VERSION:?}" >/dev/null; echo bash works'
		cd /tmp
		printf '%s' "$CERTIFICATE" >ca.pem
		export GIT_SSL_CAINFO=/tmp/ca.pem
		git -c init.defaultBranch=main clone -q "$URL/outer.git" outer
		cd outer
		git submodule update --init --recursive --depth 1
		git submodule foreach --quiet 'echo "$name has $(cat file)"'
		od -An -c wide.txt
		git -c credential.helper='!f() { sed -n s/^host=/asked:/p >&2; echo password=p; }; f' \
			credential fill <<-END
				protocol=https
				host=example.com
				username=u
			END
		git clone -q --no-hardlinks /tmp/outer/.git/modules/sub /tmp/local
		test -w /tmp && grep -c BEGIN /etc/ssl/certs/ca-certificates.crt
		echo "user $(id -un)"`,
		"URL="+url, "CERTIFICATE="+certificate)
	for _, want := range []string{
		"switchyard-job ", "git-lfs/", "bash works", "sub has inner", `w  \0  \n  \0`, "asked:example.com", "password=p", "user root",
	} {
		require.Contains(t, out, want)
	}
}
