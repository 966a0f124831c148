//go:build linux

package fleettest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// An upgrade is a restart with other programs: what the old agent wrote down the new one reads.
func TestAJobOutlivesTheUpgradeOfItsAgent(t *testing.T) {
	t.Parallel()
	newer := t.TempDir()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-X github.com/switchyard-ci/switchyard/internal/buildinfo.version=99.0.0",
		"-o", newer, "../../cmd/switchyard-agent", "../../cmd/switchyard-job")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))

	s := newScene(t, "127.77.100.1", running, matrixOptions{})
	s.reach()
	s.agents[first].signal(t, syscall.SIGKILL)
	s.programs = newer
	s.startFirst()
	require.Contains(t, s.agents[first].log.String(), "took up a job of an earlier run")
	s.leave()
	s.verify(success(first))
	require.Contains(t, string(trace(t, s.gitlab, s.job())), "Running with switchyard 0.0.0-dev", "the old one began the trace")

	s.createPipeline() // and the new one goes on from there
	s.open(s.end)
	done := s.wait()
	require.Equal(t, "success", done.Status)
	require.Contains(t, string(trace(t, s.gitlab, done.Jobs[0])), "Running with switchyard 99.0.0")
}

// A downgrade finds folders that it does not understand. It says so and does not touch them; the job is reported as lost.
func TestAnAgentLeavesFoldersOfANewerFormatAlone(t *testing.T) {
	t.Parallel()
	s := newScene(t, "127.77.100.2", running, matrixOptions{})
	s.reach()
	s.agents[first].signal(t, syscall.SIGKILL)
	found, err := filepath.Glob(filepath.Join(s.dir, first, "jobs", "*", "job", "started"))
	require.NoError(t, err)
	require.Len(t, found, 1)
	b, err := os.ReadFile(found[0])
	require.NoError(t, err)
	newer := strings.Replace(string(b), `"version":1`, `"version":2`, 1)
	require.NotEqual(t, string(b), newer)
	require.NoError(t, os.WriteFile(found[0], []byte(newer), 0o600))

	s.startFirst()
	require.Contains(t, s.agents[first].log.String(), "its folder is left alone")
	done := s.wait()
	require.Equal(t, "failed", done.Status)
	require.Equal(t, "runner_system_failure", string(done.Jobs[0].FailureReason))
	require.Contains(t, string(trace(t, s.gitlab, done.Jobs[0])), "agent first came back without the job")
	require.FileExists(t, found[0])
	require.NotEmpty(t, s.leftovers(), "its process is left alone, too")
	s.open(s.end)
	s.until("the process has come to its end", func() bool { return len(s.leftovers()) == 0 })
}
