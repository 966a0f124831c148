package docker_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// aSpec is that of a job in an image.
func aSpec(t testing.TB, name, image string) executors.Spec {
	t.Helper()
	return executors.Spec{
		Name: "sy-test-" + name, Folder: t.TempDir(), Timeout: time.Hour,
		Runner: folder.Runner{ID: 1, Name: "runner", ShortToken: "AbC_12", SystemID: "s_0123456789ab", Version: "1.0"},
		Job: &runnerapi.Job{
			ID: 7, Token: "glcbt-job-token-of-a-job", AllowGitFetch: true,
			JobInfo: runnerapi.JobInfo{ID: 7, ProjectID: 5, Name: "job"},
			GitInfo: runnerapi.GitInfo{RepoURL: "http://127.0.0.1:1/group/project.git", Ref: "main", SHA: strings.Repeat("0", 40)},
			Image:   &runnerapi.Image{Name: image},
			Steps:   []runnerapi.Step{{Name: "script", Script: []string{"true"}}},
		},
	}
}

// left lists what there is of an environment.
func left(t testing.TB, api *client.Client, name string) (all []string) {
	t.Helper()
	f := func() client.Filters { return make(client.Filters).Add("label", "ci.switchyard.name="+name) }
	containers, err := api.ContainerList(context.Background(), client.ContainerListOptions{All: true, Filters: f()})
	require.NoError(t, err)
	for _, c := range containers.Items {
		all = append(all, strings.Join(c.Names, " "))
	}
	networks, err := api.NetworkList(context.Background(), client.NetworkListOptions{Filters: f()})
	require.NoError(t, err)
	for _, n := range networks.Items {
		all = append(all, "network "+n.Name)
	}
	volumes, err := api.VolumeList(context.Background(), client.VolumeListOptions{Filters: f()})
	require.NoError(t, err)
	for _, v := range volumes.Items {
		all = append(all, "volume "+v.Name)
	}
	return all
}

func TestLife(t *testing.T) {
	api := engine(t)
	e := newExecutor(t, nil, "")
	require.NoError(t, e.Check(t.Context()))
	spec := aSpec(t, "life", image(t, "busybox"))
	var trace bytes.Buffer
	began := time.Now()
	env, err := e.Prepare(t.Context(), spec, &trace)
	require.NoError(t, err, trace.String())
	t.Log("prepared in", time.Since(began))
	t.Log(trace.String())
	require.Len(t, left(t, api, spec.Name), 4, "two containers, a network, a volume")

	began = time.Now()
	var out, errs bytes.Buffer
	code, err := env.Exec(t.Context(), executors.Command{
		Argv: []string{"sh", "-c", "read line; echo $line; hostname; id -u; echo oops >&2; exit 9"}, Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: &errs,
	})
	require.NoError(t, err)
	t.Log("exec in", time.Since(began))
	require.Equal(t, 9, code)
	require.Equal(t, "in\nrunner-abc-12-project-5-concurrent-0\n0\n", out.String())
	require.Equal(t, "oops\n", errs.String())
	_, err = env.Exec(t.Context(), executors.Command{Argv: []string{"/no/such/program"}})
	require.ErrorContains(t, err, "/no/such/program")
	code, err = env.Exec(t.Context(), executors.Command{Argv: []string{"sh", "-c", "exit 127"}})
	require.NoError(t, err)
	require.Equal(t, 127, code)

	again, err := e.Recover(t.Context(), spec)
	require.NoError(t, err)
	require.Equal(t, env.Job(), again.Job())
	require.NoError(t, again.Err())

	began = time.Now()
	require.NoError(t, env.Destroy(t.Context()))
	t.Log("destroyed in", time.Since(began))
	require.Empty(t, left(t, api, spec.Name))
	require.NoError(t, env.Destroy(t.Context()))
	require.NoError(t, again.Destroy(t.Context()))
	_, err = e.Recover(t.Context(), spec)
	require.ErrorIs(t, err, executors.ErrNotFound)
}
