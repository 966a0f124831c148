package docker_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/docker"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// containerOf returns the id of a container of an environment.
func containerOf(t *testing.T, api *client.Client, name, kind string) string {
	t.Helper()
	list, err := api.ContainerList(t.Context(), client.ContainerListOptions{
		All: true, Filters: make(client.Filters).Add("label", "ci.switchyard.name="+name, "ci.switchyard.type="+kind),
	})
	require.NoError(t, err)
	require.Len(t, list.Items, 1)
	return list.Items[0].ID
}

func TestContainersThatEndUnderTheJob(t *testing.T) {
	api := engine(t)
	e := newExecutor(t, &config.Config{Memory: "32m", MemorySwap: "32m"}, "")
	for name, c := range map[string]struct {
		happens func(name string) error
		says    string
	}{
		"the build container is killed": {func(name string) error {
			_, err := api.ContainerKill(t.Context(), containerOf(t, api, name, "build"), client.ContainerKillOptions{})
			return err
		}, "the build container sy-test-ends-.*-build ended with exit code 137"},
		"the helper container is removed": {func(name string) error {
			_, err := api.ContainerRemove(t.Context(), containerOf(t, api, name, "helper"), client.ContainerRemoveOptions{Force: true})
			return err
		}, "the helper container sy-test-ends-.*-helper (was removed|ended)"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := aSpec(t, "ends", image(t, "busybox"))
			env, _ := prepared(t, e, spec)
			running := make(chan struct{})
			go func() {
				defer close(running)
				code, err := env.Exec(context.Background(), executors.Command{Argv: []string{"sleep", "1000"}})
				assert.True(t, err != nil || code != 0, "it goes with its container")
			}()
			require.NoError(t, env.Err())
			require.NoError(t, c.happens(spec.Name))
			select {
			case <-env.Done():
			case <-time.After(patience):
				t.Fatal("nobody noticed")
			}
			require.Regexp(t, c.says, env.Err().Error())
			// An agent that comes back later finds out, too.
			again, err := e.Recover(t.Context(), spec)
			require.NoError(t, err)
			require.Error(t, again.Err())
			require.NoError(t, again.Destroy(t.Context()))
			<-running
		})
	}
	t.Run("memory runs out", func(t *testing.T) {
		spec := aSpec(t, "ends", image(t, "busybox"))
		env, _ := prepared(t, e, spec)
		// A process of the job is killed, not the container.
		require.Contains(t, said(t, env, api, spec.Name, "(tail /dev/zero; echo code $?)"), "code 137")
		require.NoError(t, env.Err())
	})
}

func TestOtherAgentsOnTheSameEngine(t *testing.T) {
	api := engine(t)
	mine, other := newExecutor(t, nil, ""), newExecutor(t, nil, "")
	spec := aSpec(t, "shared", image(t, "busybox"))
	env, _ := prepared(t, other, spec)
	_, err := mine.Recover(t.Context(), spec)
	require.ErrorIs(t, err, executors.ErrNotFound)
	require.NoError(t, mine.Sweep(t.Context(), func(string) bool { return false }))
	require.NoError(t, env.Err())
	require.Equal(t, "alive\n", said(t, env, api, spec.Name, "echo alive"))

	// Both may have a job of that name.
	own, err := mine.Prepare(t.Context(), spec, io.Discard)
	require.NoError(t, err)
	require.NotEqual(t, env.Job().ScriptToken, own.Job().ScriptToken)
	require.NoError(t, own.Destroy(t.Context()))
	require.NoError(t, env.Err())
}

// interrupter ends a context when it has been told some text so often.
type interrupter struct {
	io.Writer
	text string
	end  context.CancelCauseFunc
}

var errInterrupted = errors.New("interrupted by the test")

func (i interrupter) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(i.text)) {
		i.end(errInterrupted)
	}
	return len(b), nil
}

func TestPreparationsThatAreInterrupted(t *testing.T) {
	api := engine(t)
	e := newExecutor(t, nil, "")
	for name, text := range map[string]string{
		"at its begin": "Using Docker executor with image", "while images are got": "Using docker image", "while services are awaited": "Waiting for services",
	} {
		t.Run(name, func(t *testing.T) {
			spec := aSpec(t, "interrupted", image(t, "busybox"))
			spec.Job.Services = []runnerapi.Image{{Name: greeter(t)}}
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			_, err := e.Prepare(ctx, spec, interrupter{text: text, end: cancel})
			require.Error(t, err)
			require.Empty(t, left(t, api, spec.Name))
			// It can be had again at once.
			env, _ := prepared(t, e, spec)
			require.NoError(t, env.Err())
		})
	}
}

// What was half made when an agent was killed is found, cannot be used and can be removed.
func TestHalfMadeEnvironments(t *testing.T) {
	api := engine(t)
	data := t.TempDir()
	e := newExecutor(t, nil, data)
	spec := aSpec(t, "half", image(t, "busybox"))
	for _, missing := range []string{"build", "helper"} {
		env, err := e.Prepare(t.Context(), spec, io.Discard)
		require.NoError(t, err)
		_, err = api.ContainerRemove(t.Context(), containerOf(t, api, spec.Name, missing), client.ContainerRemoveOptions{Force: true})
		require.NoError(t, err)
		again, err := newExecutor(t, nil, data).Recover(t.Context(), spec)
		require.NoError(t, err)
		require.ErrorContains(t, again.Err(), "not all of the job's containers are there")
		if missing == "helper" {
			_, err = again.Exec(t.Context(), executors.Command{Argv: []string{"true"}})
			require.Error(t, err)
		}
		require.NoError(t, again.Destroy(t.Context()))
		require.Empty(t, left(t, api, spec.Name))
		require.NoError(t, env.Destroy(t.Context()))
	}
}

func TestCheckSaysWhatToDo(t *testing.T) {
	engine(t)
	for name, c := range map[string]struct {
		settings config.Config
		change   func(*docker.Options)
		says     string
	}{
		"no engine":                              {config.Config{Host: "unix:///no/such/docker.sock"}, nil, "does not answer at unix:///no/such/docker.sock"},
		"no helper image":                        {config.Config{}, func(o *docker.Options) { o.Programs = t.TempDir() }, "there is no helper image at"},
		"a helper image that the engine has not": {config.Config{HelperImage: "sha256:" + string(bytes.Repeat([]byte("0"), 64))}, nil, "load it there"},
	} {
		t.Run(name, func(t *testing.T) {
			change := c.change
			if change == nil {
				change = func(*docker.Options) {}
			}
			e := openExecutor(t, &c.settings, "", change)
			defer e.Close()
			require.ErrorContains(t, e.Check(t.Context()), c.says)
		})
	}
	for name, o := range map[string]docker.Options{
		"data": {}, "builds_dir": {Data: "/d", BuildsDir: "builds"}, "cache_dir": {Data: "/d", CacheDir: "/"},
		"host": {Data: "/d", Config: &config.Config{Host: "nonsense"}}, "memory": {Data: "/d", Config: &config.Config{Memory: "much"}},
	} {
		_, err := docker.New(o)
		require.ErrorContains(t, err, name)
	}
}
