package docker_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func TestWhatJobsOfOneSlotShare(t *testing.T) {
	api := engine(t)
	e := newExecutor(t, &config.Config{Volumes: []string{"/root/.cache"}}, "")
	run := func(name, script string, change func(*executors.Spec)) string {
		spec := aSpec(t, "shared", image(t, "busybox"))
		if change != nil {
			change(&spec)
		}
		env, err := e.Prepare(t.Context(), spec, new(bytes.Buffer))
		require.NoError(t, err, name)
		out := said(t, env, api, spec.Name, script)
		require.NoError(t, env.Destroy(t.Context()))
		require.Empty(t, left(t, api, spec.Name))
		return out
	}
	const look = "cat /builds/file /cache/file /root/.cache/file 2>/dev/null; true"
	require.Empty(t, run("the first", "for d in /builds /cache /root/.cache; do echo mine >$d/file || exit 1; done", nil))
	require.Equal(t, "mine\nmine\nmine\n", run("the next", look, nil))
	protected := true
	for name, change := range map[string]func(*executors.Spec){
		"another slot":    func(s *executors.Spec) { s.ConcurrentProjectID = 1 },
		"another project": func(s *executors.Spec) { s.Job.JobInfo.ProjectID++ },
		"another runner":  func(s *executors.Spec) { s.Runner.ShortToken = "other" },
		"protected":       func(s *executors.Spec) { s.Job.GitInfo.Protected = &protected },
		"protected, said by an older GitLab": func(s *executors.Spec) {
			s.Job.Variables = []runnerapi.Variable{{Key: "CI_COMMIT_REF_PROTECTED", Value: "true"}, {Key: "CI_COMMIT_REF_PROTECTED", Value: "false"}}
		},
	} {
		require.Empty(t, run(name, look, change), name)
	}
	require.Equal(t, "mine\nmine\nmine\n", run("once more", look, nil))
}

func TestVolumesOfTheSettings(t *testing.T) {
	api := engine(t)
	host := t.TempDir()
	require.NoError(t, os.Chmod(host, 0o777))
	require.NoError(t, os.Mkdir(filepath.Join(host, "ro"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(host, "ro", "file"), []byte("given\n"), 0o644))
	caches := t.TempDir()
	spec := func() executors.Spec {
		s := aSpec(t, "volumes", image(t, "busybox", "USER user"))
		s.Job.Variables = []runnerapi.Variable{
			{Key: "TEAM", Value: "blue", Public: true}, {Key: "UP", Value: "../../etc", Public: true}, {Key: "COLON", Value: "x:/etc", Public: true},
		}
		return s
	}
	t.Run("folders of the host", func(t *testing.T) {
		e := newExecutor(t, &config.Config{Volumes: []string{host + "/ro:/given:ro", host + "/$TEAM:/team"}}, "")
		env, _ := prepared(t, e, spec())
		require.Equal(t, "given\nro\n", said(t, env, api, "sy-test-volumes", "cat /given/file; touch /given/x 2>/dev/null || echo ro"))
		require.DirExists(t, filepath.Join(host, "blue"))
		require.False(t, env.Job().SharedBuildsDir)
	})
	t.Run("builds on the host", func(t *testing.T) {
		e := newExecutor(t, &config.Config{Volumes: []string{host + ":/builds"}}, "")
		env, _ := prepared(t, e, spec())
		require.True(t, env.Job().SharedBuildsDir)
		require.Equal(t, "given\n", said(t, env, api, "sy-test-volumes", "cat /builds/ro/file; echo built >/builds/built"))
		again, err := e.Recover(t.Context(), spec())
		require.NoError(t, err)
		require.Equal(t, env.Job(), again.Job())
		require.NoError(t, again.Destroy(t.Context()))
		require.FileExists(t, filepath.Join(host, "built"))
	})
	t.Run("caches on the host", func(t *testing.T) {
		e := newExecutor(t, &config.Config{CacheDir: caches, Volumes: []string{"/more"}}, "")
		env, _ := prepared(t, e, spec())
		said(t, env, api, "sy-test-volumes", "for d in /builds /cache /more; do echo mine >$d/file; done")
		found, err := filepath.Glob(filepath.Join(caches, "runner-abc-12-project-5-concurrent-0-cache-*", "file"))
		require.NoError(t, err)
		require.Len(t, found, 3)
	})
	t.Run("no caches", func(t *testing.T) {
		e := newExecutor(t, &config.Config{DisableCache: true, Volumes: []string{"/more"}}, "")
		env, trace := prepared(t, e, spec())
		require.Contains(t, trace, `Container based cache volumes creation is disabled. Will not create volume for "/more"`)
		require.Equal(t, "built\n", said(t, env, api, "sy-test-volumes", "echo built >/builds/file && cat /builds/file; ls -d /more 2>/dev/null"))
	})
	t.Run("an image's files are a volume's first ones", func(t *testing.T) {
		e := newExecutor(t, &config.Config{Volumes: []string{"/etc"}}, "")
		env, _ := prepared(t, e, spec())
		require.Contains(t, said(t, env, api, "sy-test-volumes", "cat /etc/passwd"), "user:x:1000")
	})
	for name, volume := range map[string]string{
		"out of the folder": host + "/$UP:/x", "two colons": host + "/$COLON:/x", "not absolute": "$TEAM", "twice": "/x",
	} {
		t.Run(name, func(t *testing.T) {
			e := newExecutor(t, &config.Config{Volumes: []string{"/x", volume}}, "")
			why, _ := refused(t, e, spec())
			require.ErrorContains(t, why, "volumes: ")
		})
	}
	t.Run("in memory", func(t *testing.T) {
		e := newExecutor(t, &config.Config{Tmpfs: map[string]string{"/scratch": "rw,size=1m,mode=1777"}}, "")
		env, _ := prepared(t, e, spec())
		require.Contains(t, said(t, env, api, "sy-test-volumes", "mount | grep /scratch"), "tmpfs")
	})
}

// The volume with the program is used by nobody between two jobs, and who tidies up removes it.
func TestAVolumeThatSomebodyRemoves(t *testing.T) {
	api := engine(t)
	e := newExecutor(t, nil, "")
	spec := aSpec(t, "pruned", image(t, "busybox"))
	env, err := e.Prepare(t.Context(), spec, new(bytes.Buffer))
	require.NoError(t, err)
	list, err := api.ContainerList(t.Context(), client.ContainerListOptions{Filters: make(client.Filters).Add("label", "ci.switchyard.name="+spec.Name, "ci.switchyard.type=build")})
	require.NoError(t, err)
	require.Len(t, list.Items, 1)
	volume := ""
	for _, m := range list.Items[0].Mounts {
		if m.Destination == filepath.Dir("/opt/switchyard/bin/x") {
			volume = m.Name
			require.False(t, m.RW)
		}
	}
	require.True(t, strings.HasPrefix(volume, "switchyard-job-"), volume)
	require.NoError(t, env.Destroy(t.Context()))
	_, err = api.VolumeRemove(t.Context(), volume, client.VolumeRemoveOptions{})
	require.NoError(t, err)
	env, _ = prepared(t, e, spec)
	require.Equal(t, "works\n", said(t, env, api, spec.Name, "echo works"))
}
