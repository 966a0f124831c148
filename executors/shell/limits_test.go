//go:build linux

package shell_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/shell"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// A job that takes more memory than it may ends, and says why if it is switchyard-job itself that had to go.
func TestLimitsHoldForTheWholeJob(t *testing.T) {
	c := config(t)
	c.Limits = shell.Limits{Memory: 48 << 20}
	x, err := shell.New(c)
	if err != nil {
		t.Skipf("needs control groups that this process may make: %v", err)
	}
	spec := executors.Spec{Name: "sy-a-2-1", Folder: c.Jobs + "/sy-a-2-1/job", JobBinary: jobBinary}
	f := makeJob(t, spec, `x=$(head -c 400000000 /dev/zero | tr '\0' x); echo ${#x}`)
	env, err := x.Prepare(t.Context(), spec, &bytes.Buffer{})
	require.NoError(t, err)
	code, err := env.Exec(t.Context(), executors.Command{Argv: []string{jobBinary, "run", spec.Folder}})
	require.NoError(t, err)
	if code == 0 { // the kernel took the shell
		result, err := f.Result()
		require.NoError(t, err)
		require.Equal(t, "failed", result.State)
	} else {
		select {
		case <-env.Done():
			require.ErrorContains(t, env.Err(), "more memory than its limit")
		case <-time.After(10 * time.Second):
			t.Fatal("nobody says why")
		}
	}
	require.NoError(t, env.Destroy(t.Context()))
}

// makeJob makes a job folder with a job of one command.
func makeJob(t *testing.T, spec executors.Spec, command string) *folder.Folder {
	t.Helper()
	job := runnerapi.Job{
		ID: 1, Token: "job-token", JobInfo: runnerapi.JobInfo{ID: 1, ProjectID: 1},
		GitInfo:    runnerapi.GitInfo{RepoURL: "http://127.0.0.1:1/group/project.git", SHA: strings.Repeat("0", 40)},
		RunnerInfo: runnerapi.RunnerInfo{Timeout: 60},
		Variables:  []runnerapi.Variable{{Key: "GIT_STRATEGY", Value: "none"}},
		Steps:      []runnerapi.Step{{Name: "script", Script: []string{command}}},
	}
	payload, err := json.Marshal(job)
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Dir(spec.Folder), 0o700))
	dir := filepath.Dir(filepath.Dir(spec.Folder))
	require.NoError(t, folder.Create(spec.Folder, folder.Spec{
		Job: 1, Epoch: 1, OutputLimit: 1 << 20, Executor: "shell", BuildsDir: filepath.Join(dir, "builds"),
		CacheDir: filepath.Join(dir, "cache"), Shells: []string{"bash", "sh"}, KillGrace: time.Second,
	}, payload))
	f, err := folder.Open(spec.Folder)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}
