package docker_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/executors/docker"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/executors/docker/internal/dockertest"
	"github.com/switchyard-ci/switchyard/internal/helperimage"
	"github.com/switchyard-ci/switchyard/internal/testbed"
	"github.com/switchyard-ci/switchyard/internal/testbinary"
)

// fixture is what all tests of this process share: programs, the helper image's file, images in the engine.
var fixture struct {
	programs string
	api      *client.Client

	once   sync.Once
	err    error
	images map[string]string
	mu     sync.Mutex
}

func TestMain(m *testing.M) {
	var err error
	if fixture.programs, err = testbinary.Build("switchyard-job"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		cleanUp()
		os.Exit(code)
	}))
}

func cleanUp() {
	_ = os.RemoveAll(fixture.programs)
	if fixture.api == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if r, err := fixture.api.ImageInspect(ctx, fixture.images["helper"]); err == nil {
		// Unless it is another process's, too.
		_, _ = fixture.api.VolumeRemove(ctx, docker.BinaryVolume(r.ID), client.VolumeRemoveOptions{})
	}
	for _, name := range fixture.images {
		if _, err := fixture.api.ImageRemove(ctx, name, client.ImageRemoveOptions{Force: true}); err != nil {
			fmt.Fprintln(os.Stderr, "an image of the tests stays:", err)
		}
	}
}

// helperFile is the archive of the helper image with the switchyard-job of these sources.
func helperFile() string { return filepath.Join(fixture.programs, helperimage.FileName) }

// engine returns the client of the machine's engine and makes the helper image's file.
func engine(t testing.TB) *client.Client {
	t.Helper()
	testbed.Need(t, testbed.Docker, testbed.Busybox, testbed.Git, testbed.Bash)
	fixture.once.Do(func() {
		fixture.images = make(map[string]string)
		if fixture.api, fixture.err = client.New(client.FromEnv); fixture.err != nil {
			return
		}
		info, _, err := helperimage.Build(context.Background(),
			helperimage.Options{Job: filepath.Join(fixture.programs, "switchyard-job"), Version: "test"}, helperFile())
		fixture.images["helper"], fixture.err = info.Reference, err
	})
	require.NoError(t, fixture.err)
	t.Cleanup(func() { require.NoError(t, fixture.api.Close()) }) // its idle connections
	return fixture.api
}

// image returns an image that is made once in this process: of busybox, of bash and git too, or of that with a user or
// an entrypoint, by lines of a Dockerfile.
func image(t testing.TB, base string, changes ...string) string {
	t.Helper()
	api := engine(t)
	fixture.mu.Lock()
	defer fixture.mu.Unlock()
	key := base + strings.Join(changes, "\n")
	if name := fixture.images[key]; name != "" {
		return name
	}
	root := dockertest.NewRoot().Busybox()
	if base == "bash" {
		root.Program("bash").Program("nohup").Git()
	}
	root.File("/bin/deaf-entrypoint", "#!/bin/sh\necho \"the entrypoint says $*\"\nexit 7\n", 0o755)
	root.File("/bin/setting-entrypoint", "#!/bin/sh\nexport OF_THE_ENTRYPOINT=yes\nexec \"$@\"\n", 0o755)
	name, err := root.Import(t.Context(), api, changes...)
	require.NoError(t, err)
	fixture.images[key] = name
	return name
}

// newExecutor makes an executor with an agent's folder of its own unless it is given one.
func newExecutor(t testing.TB, c *config.Config, data string, change ...func(*docker.Options)) *docker.Executor {
	t.Helper()
	e := openExecutor(t, c, data, change...)
	t.Cleanup(func() { end(t, e) })
	return e
}

// openExecutor is newExecutor for who ends it.
func openExecutor(t testing.TB, c *config.Config, data string, change ...func(*docker.Options)) *docker.Executor {
	t.Helper()
	engine(t)
	if c == nil {
		c = &config.Config{}
	}
	if len(c.PullPolicy) == 0 {
		c.PullPolicy = config.PullPolicies{config.PullIfNotPresent}
	}
	if data == "" {
		data = t.TempDir()
	}
	o := docker.Options{
		Config: c, Data: data, Programs: fixture.programs, Environ: os.Environ(), KillGrace: 2 * time.Second,
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&o)
	}
	e, err := docker.New(o)
	require.NoError(t, err)
	return e
}

// end removes all that an executor's agent has made.
func end(t testing.TB, e *docker.Executor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(t, e.Sweep(ctx, func(string) bool { return false }))
	require.NoError(t, e.RemoveShared(ctx))
	require.NoError(t, e.Close())
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimRight(b, "\n"))
	return len(b), nil
}

// processFolders are their folders in /proc.
func processFolders(t testing.TB, text string) []string {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	var found []string
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil && bytes.Contains(bytes.ReplaceAll(b, []byte{0}, []byte{' '}), []byte(text)) {
			found = append(found, filepath.Dir(name))
		}
	}
	return found
}
