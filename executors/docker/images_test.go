package docker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/docker"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/serve"
)

// refused prepares a job that cannot be, and returns why and its trace. Nothing must be left of it.
func refused(t *testing.T, e *docker.Executor, spec executors.Spec) (*executors.Error, string) {
	t.Helper()
	var trace bytes.Buffer
	_, err := e.Prepare(t.Context(), spec, &trace)
	require.Error(t, err, trace.String())
	require.Empty(t, left(t, fixture.api, spec.Name))
	var known *executors.Error
	if !errors.As(err, &known) {
		known = &executors.Error{Err: err}
	}
	return known, trace.String()
}

// said runs a script in the build container of an environment, by way of its server, and returns what it wrote.
func said(t *testing.T, env executors.Environment, api *client.Client, name, script string) string {
	t.Helper()
	list, err := api.ContainerList(t.Context(), client.ContainerListOptions{
		Filters: make(client.Filters).Add("label", "ci.switchyard.name="+name, "ci.switchyard.type=build"),
	})
	require.NoError(t, err)
	require.Len(t, list.Items, 1)
	// The server's socket is in a volume, which on this machine is a folder.
	volumes, err := api.VolumeList(t.Context(), client.VolumeListOptions{
		Filters: make(client.Filters).Add("label", "ci.switchyard.name="+name, "ci.switchyard.type=socket"),
	})
	require.NoError(t, err)
	require.Len(t, volumes.Items, 1)
	place := env.Job()
	conn, err := serve.Dial(t.Context(), filepath.Join(volumes.Items[0].Mountpoint, filepath.Base(place.ScriptSocket)), place.ScriptToken)
	require.NoError(t, err)
	in, out := temporary(t, script), temporary(t, "")
	remote, err := serve.Start(conn, serve.Command{Shells: place.Shells, Dir: "/", KillWithClient: true}, in, out, out)
	require.NoError(t, err)
	defer remote.Close()
	<-remote.Done()
	_, err = remote.Exit()
	require.NoError(t, err)
	b, err := os.ReadFile(out.Name())
	require.NoError(t, err)
	return string(b)
}

func temporary(t *testing.T, content string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	_, err = f.WriteString(content)
	require.NoError(t, err)
	_, err = f.Seek(0, 0)
	require.NoError(t, err)
	return f
}

func TestEntrypoints(t *testing.T) {
	api := engine(t)
	e := newExecutor(t, nil, "")
	works := map[string]struct {
		image *runnerapi.Image
		says  string
	}{
		"the image's is kept":          {&runnerapi.Image{Name: image(t, "busybox", `ENTRYPOINT ["setting-entrypoint"]`)}, "yes"},
		"a shell that loses arguments": {&runnerapi.Image{Name: image(t, "busybox", `ENTRYPOINT ["sh","-c"]`)}, ""},
		"the job's wins":               {&runnerapi.Image{Name: image(t, "busybox", `ENTRYPOINT ["deaf-entrypoint"]`), Entrypoint: []string{"setting-entrypoint"}}, "yes"},
		"the job sets it aside":        {&runnerapi.Image{Name: image(t, "busybox", `ENTRYPOINT ["deaf-entrypoint"]`), Entrypoint: []string{""}}, ""},
	}
	for name, c := range works {
		t.Run(name, func(t *testing.T) {
			spec := aSpec(t, "entrypoint", "")
			spec.Job.Image = c.image
			var trace bytes.Buffer
			env, err := e.Prepare(t.Context(), spec, &trace)
			require.NoError(t, err, trace.String())
			defer func() { require.NoError(t, env.Destroy(context.Background())) }()
			require.Equal(t, "<"+c.says+">\n", said(t, env, api, spec.Name, `echo "<$OF_THE_ENTRYPOINT$SWITCHYARD_SERVE_SOCKET>"`))
		})
	}
	t.Run("one that runs nothing", func(t *testing.T) {
		why, trace := refused(t, e, aSpec(t, "entrypoint", image(t, "busybox", `ENTRYPOINT ["deaf-entrypoint"]`)))
		require.Equal(t, runnerapi.ReasonScriptFailure, why.Reason)
		require.ErrorContains(t, why, "ended with exit code 7")
		require.Contains(t, trace, "the entrypoint says /opt/switchyard/bin/switchyard-job serve")
		require.Contains(t, trace, `entrypoint: [""]`)
	})
	t.Run("one that does not exist", func(t *testing.T) {
		why, _ := refused(t, e, aSpec(t, "entrypoint", image(t, "busybox", `ENTRYPOINT ["missing-entrypoint"]`)))
		require.Equal(t, runnerapi.ReasonRunnerSystem, why.Reason)
		require.ErrorContains(t, why, "missing-entrypoint")
	})
	t.Run("the settings allow no other", func(t *testing.T) {
		e := newExecutor(t, &config.Config{DisableEntrypoint: true}, "")
		spec := aSpec(t, "entrypoint", image(t, "busybox", `ENTRYPOINT ["setting-entrypoint"]`))
		spec.Job.Image.Entrypoint = []string{"deaf-entrypoint"}
		var trace bytes.Buffer
		env, err := e.Prepare(t.Context(), spec, &trace)
		require.NoError(t, err, trace.String())
		require.NoError(t, env.Destroy(t.Context()))
		require.Contains(t, trace.String(), "Entrypoint override disabled")
	})
}

func TestImagesThatCannotBe(t *testing.T) {
	e := newExecutor(t, &config.Config{AllowedImages: []string{"switchyard-test/*:*"}}, "")
	for _, c := range []struct {
		name   string
		change func(*runnerapi.Job)
		reason runnerapi.FailureReason
		says   string
	}{
		{"none", func(j *runnerapi.Job) { j.Image = nil }, runnerapi.ReasonRunnerSystem, "no Docker image specified"},
		{"not allowed", func(j *runnerapi.Job) { j.Image.Name = "other:1" }, runnerapi.ReasonRunnerSystem, "disallowed image"},
		{"unknown", func(j *runnerapi.Job) {
			j.Image.Name, j.Image.PullPolicy = "switchyard-test/missing:1", []string{"if-not-present"}
		}, "", "switchyard-test/missing:1"},
		{"policy", func(j *runnerapi.Job) { j.Image.PullPolicy = []string{"never"} }, runnerapi.ReasonConfiguration, "allowed_pull_policies"},
		{"options", func(j *runnerapi.Job) {
			j.Image.ExecutorOpts = map[string]json.RawMessage{"docker": json.RawMessage(`{"colour":"red"}`)}
		}, runnerapi.ReasonRunnerSystem, "colour"},
		{"platform", func(j *runnerapi.Job) {
			j.Image.ExecutorOpts = map[string]json.RawMessage{"docker": json.RawMessage(`{"platform":"a/b/c/d"}`)}
		}, runnerapi.ReasonConfiguration, "platform"},
		{"service", func(j *runnerapi.Job) { j.Services = []runnerapi.Image{{Name: ":x"}} }, runnerapi.ReasonRunnerSystem, "invalid service image name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := aSpec(t, "refused", image(t, "busybox"))
			c.change(spec.Job)
			why, _ := refused(t, e, spec)
			require.ErrorContains(t, why, c.says)
			if c.reason != "" {
				require.Equal(t, c.reason, why.Reason)
			}
			if c.name == "options" {
				require.Equal(t, runnerapi.ExitCodeUnsupportedOptions, why.ExitCode)
			}
		})
	}
}

func TestWhatContainersHaveInTheirEnvironment(t *testing.T) {
	api := engine(t)
	e := newExecutor(t, nil, "")
	spec := aSpec(t, "variables", image(t, "busybox"))
	spec.Environment = []runnerapi.Variable{{Key: "OF_RUNNER", Value: "runner", Public: true}}
	spec.Job.Variables = []runnerapi.Variable{
		{Key: "PUBLIC", Value: "[$OF_RUNNER $SECRET]", Public: true},
		{Key: "SECRET", Value: "s3cr3t-value", Masked: true},
		{Key: "PRIVATE", Value: "private"},
		{Key: "CI_JOB_URL", Value: "https://gitlab.example.com/-/jobs/7", Public: true},
	}
	var trace bytes.Buffer
	env, err := e.Prepare(t.Context(), spec, &trace)
	require.NoError(t, err, trace.String())
	defer func() { require.NoError(t, env.Destroy(context.Background())) }()
	list, err := api.ContainerList(t.Context(), client.ContainerListOptions{Filters: make(client.Filters).Add("label", "ci.switchyard.name="+spec.Name)})
	require.NoError(t, err)
	require.Len(t, list.Items, 2)
	for _, c := range list.Items {
		r, err := api.ContainerInspect(t.Context(), c.ID, client.ContainerInspectOptions{})
		require.NoError(t, err)
		all := strings.Join(r.Container.Config.Env, "\n") + strings.Join(r.Container.Config.Cmd, "\n")
		require.NotContains(t, all, "s3cr3t-value")
		require.NotContains(t, all, "private")
		require.NotContains(t, all, spec.Job.Token)
		require.NotContains(t, all, env.Job().ScriptToken)
		require.Equal(t, "https://gitlab.example.com/-/jobs/7", r.Container.Config.Labels["ci.switchyard.job.url"])
		if c.Labels["ci.switchyard.type"] == "build" {
			require.Contains(t, all, "PUBLIC=[runner ]")
			require.Contains(t, all, "CI_BUILD_NETWORK_NAME=sy-test-variables-")
		}
	}
}
