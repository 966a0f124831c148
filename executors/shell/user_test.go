//go:build linux

package shell_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/conformance"
	"github.com/switchyard-ci/switchyard/executors/shell"
)

// runAs is a user that every Debian has.
const runAs = "daemon"

// openFolder is a folder that every user may pass through; those of testing.T are closed to others.
func openFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "switchyard-run-as-") //nolint:usetesting // another user must get to it
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o711))
	return dir
}

func asUser(t *testing.T) shell.Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: only root can run jobs as other users")
	}
	c := config(t)
	dir := openFolder(t)
	c.Jobs, c.BuildsDir, c.CacheDir = filepath.Join(dir, "jobs"), filepath.Join(dir, "builds"), filepath.Join(dir, "cache")
	require.NoError(t, os.Mkdir(c.Jobs, 0o700))
	c.RunAs = []string{runAs}
	return c
}

// The whole contract as another user: folders, files, sources, caches, artifacts, kill and sweep.
func TestConformanceAsAnotherUser(t *testing.T) {
	bin := filepath.Dir(jobBinary)
	require.NoError(t, os.Chmod(bin, 0o755))
	conformance.Run(t, func(t *testing.T) conformance.Harness {
		c := asUser(t)
		return conformance.Harness{
			Executor: newExecutor(t, c), Again: func(t *testing.T) executors.Executor { return newExecutor(t, c) },
			Jobs: c.Jobs, JobBinary: jobBinary, Processes: processes, Host: "127.0.0.1",
		}
	})
}

func TestUsersThatCannotBe(t *testing.T) {
	c := asUser(t)
	for want, names := range map[string][]string{
		`run_as names "no-such-user"`:        {"daemon", "no-such-user"},
		`run_as names "root", which is root`: {"root"},
	} {
		c.RunAs = names
		_, err := shell.New(c)
		require.ErrorContains(t, err, want)
	}
	c = asUser(t)
	closed := filepath.Join(openFolder(t), "closed")
	require.NoError(t, os.MkdirAll(filepath.Join(closed, "data", "jobs"), 0o700))
	c.Jobs = filepath.Join(closed, "data", "jobs")
	err := newExecutor(t, c).Check(t.Context())
	require.ErrorContains(t, err, fmt.Sprintf("the user %s cannot reach", runAs))
}
