package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/helperimage"
	"github.com/switchyard-ci/switchyard/internal/testbed"
)

// background is for what a test removes at its end.
var background = context.Background()

// busybox makes an image of this machine's busybox, which the test's end removes, and returns its name.
func busybox(t *testing.T, engine *client.Client) string {
	t.Helper()
	program, err := exec.LookPath("busybox")
	require.NoError(t, err)
	text, err := os.ReadFile(program)
	require.NoError(t, err)
	var root bytes.Buffer
	w := tar.NewWriter(&root)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(text))}))
	_, err = w.Write(text)
	require.NoError(t, err)
	for _, name := range []string{"sh", "cat", "echo", "ls", "mkdir", "test", "touch", "wc"} {
		require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777}))
	}
	require.NoError(t, w.Close())
	name := "switchyard-test/run:" + strings.ToLower(rand.Text())
	answer, err := engine.ImageImport(t.Context(), client.ImageImportSource{Source: &root, SourceName: "-"}, name, client.ImageImportOptions{})
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, answer)
	require.NoError(t, err)
	require.NoError(t, answer.Close())
	t.Cleanup(func() {
		_, err := engine.ImageRemove(background, name, client.ImageRemoveOptions{Force: true})
		require.NoError(t, err)
	})
	return name
}

// Jobs in containers have artifacts, dotenv variables and caches as on the host, and leave no container behind.
func TestRunInContainers(t *testing.T) {
	testbed.Need(t, testbed.Docker, testbed.Busybox, testbed.Git)
	engine, err := client.New(client.FromEnv)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, engine.Close()) })
	image := busybox(t, engine)
	helper, _, err := helperimage.Build(t.Context(), helperimage.Options{Job: filepath.Join(programs(t), "switchyard-job"), Version: "test"},
		filepath.Join(programs(t), helperimage.FileName))
	require.NoError(t, err)
	t.Cleanup(func() { // other tests may use it
		_, _ = engine.ImageRemove(background, helper.Reference, client.ImageRemoveOptions{})
	})
	project := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(project, ".gitlab-ci.yml"), []byte(`
stages: [build, test]
make:
  stage: build
  cache: {key: runs, paths: [runs]}
  script:
    - mkdir -p runs out
    - touch "runs/$(ls runs | wc -l)"
    - ls runs | wc -l >out/runs
    - echo VERSION=1.2 >build.env
  artifacts: {paths: [out], reports: {dotenv: build.env}}
use:
  image: `+image+`
  script: ['echo "run $(cat out/runs), version $VERSION, $CI_JOB_IMAGE"']
`), 0o600))
	volume := "switchyard-run-" + cacheName(projectRoot(project))
	t.Cleanup(func() {
		_, err := engine.VolumeRemove(background, volume, client.VolumeRemoveOptions{})
		require.NoError(t, err)
	})
	cmd := switchyard(t, "-C", project, "--executor", "docker")
	out, _ := cmd.CombinedOutput()
	require.Equal(t, exitUsage, cmd.ProcessState.ExitCode(), "%s", out)
	require.Contains(t, string(out), `the job "make" names no image`)
	require.Contains(t, string(out), "--image")

	for _, want := range []string{"run 1,", "run 2,"} {
		kept := t.TempDir()
		cmd = switchyard(t, "-C", project, "--executor", "docker", "--image", image, "--artifacts", kept)
		out, _ = cmd.CombinedOutput()
		require.Zero(t, cmd.ProcessState.ExitCode(), "%s", out)
		require.Contains(t, string(out), want+" version 1.2, "+image)
		require.FileExists(t, filepath.Join(kept, "make", "out", "runs"))
	}
	jobs, err := engine.ContainerList(t.Context(), client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("ancestor", image)})
	require.NoError(t, err)
	require.Empty(t, jobs.Items)
}
