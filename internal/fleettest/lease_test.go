package fleettest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/faults"
)

// An agent that is cut off stops its job before GitLab hears that the job failed: here with real processes, in virtual time
// see package virtualtime. What counts is what the test sees of both: the file that the script writes to, and GitLab.
func TestAJobThatIsCutOffHasStoppedWhenGitLabHearsOfIt(t *testing.T) {
	for name, direction := range map[string]faults.Direction{"both ways": faults.Both, "what the control plane says": faults.ToAgents} {
		t.Run(name, func(t *testing.T) {
			p := startProcesses(t, processOptions{config: "ping_period: 1s\nlease: {stop_after: 5s, lost_after: 15s}\n"})
			network, err := faults.NewNetwork(p.listen)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, network.Close()) })
			p.listen = network.Addr()
			p.startAgent("first", 1)
			beats := filepath.Join(p.dir, "beats")
			run := pipeline(t, p.gitlab, project(t, p.gitlab, "group/cut"), fmt.Sprintf(`
job:
  script:
    - 'echo "it runs"; while :; do date +%%s.%%N >> %s; sleep 0.05; done'
`, beats))
			job := run.Jobs[0].ID
			waitForTrace(t, p.gitlab, job, "it runs\n")
			network.Cut(direction)

			size := func() int64 {
				info, err := os.Stat(beats)
				require.NoError(t, err)
				return info.Size()
			}
			var grown, failed time.Time
			var last int64
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			ticker := time.NewTicker(10 * time.Millisecond)
			defer ticker.Stop()
			for failed.IsZero() {
				select {
				case <-ticker.C:
				case <-ctx.Done():
					t.Fatal("GitLab does not hear of the loss")
				}
				j, err := p.gitlab.Job(job)
				require.NoError(t, err)
				if now := size(); now != last { // after GitLab was asked: what is written in between counts against us
					last, grown = now, time.Now()
				}
				if j.Status == "failed" {
					failed = time.Now()
					require.EqualValues(t, "runner_system_failure", j.FailureReason)
				}
			}
			require.True(t, grown.Before(failed))
			t.Logf("the script's last line was seen %s before GitLab's word", failed.Sub(grown).Round(time.Millisecond))
			require.Contains(t, string(trace(t, p.gitlab, run.Jobs[0])), "ERROR: Job failed (system failure): agent first was lost: nothing was heard of it since 2")

			network.Heal()
			p.until("nothing is left of the job on the agent", func() bool {
				left, err := os.ReadDir(filepath.Join(p.dir, "first", "jobs"))
				return err == nil && len(left) == 0
			})
			require.Equal(t, last, size(), "nothing was written after GitLab had heard")
			j, err := p.gitlab.Job(job)
			require.NoError(t, err)
			require.Equal(t, "failed", j.Status)
		})
	}
}

// Two agents on copies of one data folder: the second is refused for as long as the first answers, and takes nothing from it.
func TestACopiedDataFolderIsAClone(t *testing.T) {
	p := startProcesses(t, processOptions{config: "ping_period: 1s\n"})
	p.startAgent("first", 1)
	out, err := exec.Command("cp", "-a", filepath.Join(p.dir, "first"), filepath.Join(p.dir, "copy")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	gate := filepath.Join(p.dir, "gate")
	require.NoError(t, syscall.Mkfifo(gate, 0o600))
	run := pipeline(t, p.gitlab, project(t, p.gitlab, "group/clone"), fmt.Sprintf("job: {script: ['echo \"it runs\"; read line < %s']}", gate))
	waitForTrace(t, p.gitlab, run.Jobs[0].ID, "it runs\n")

	clone := func() *process {
		return p.start("switchyard-agent", "--server", p.listen, "--data", filepath.Join(p.dir, "copy"), "--name", "first", "--slots", "1")
	}
	p.agents["clone"] = clone()
	p.until("the clone is refused", func() bool {
		log := p.agents["clone"].log.String()
		return strings.Contains(log, "another agent process uses this agent's identity: agent first is already here from host") &&
			strings.Contains(log, "a data folder was copied?")
	})
	host, err := os.Hostname()
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(p.agents["clone"].log.String(), "host "+host+" (boot "), "both are named: %s", p.agents["clone"].log)
	require.NoError(t, os.WriteFile(gate, []byte("go\n"), 0o600))
	done := wait(t, p.gitlab, run)
	require.Equal(t, "success", done.Status, p.logs())
	requireWhole(t, done.Jobs[0])
	require.NotContains(t, p.agents["first"].log.String(), "level=WARN")

	// When the first is gone the other is as good as it was; it tries by itself once a minute.
	p.agents["clone"].signal(t, syscall.SIGTERM)
	p.agents["first"].signal(t, syscall.SIGKILL)
	p.agents["clone"] = clone()
	p.until("the clone is let in", func() bool { return strings.Contains(p.agents["clone"].log.String(), "connected") })
	run = pipeline(t, p.gitlab, project(t, p.gitlab, "group/after"), "job: {script: [echo again]}")
	require.Equal(t, "success", wait(t, p.gitlab, run).Status)
}
