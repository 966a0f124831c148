package fleettest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/localfleet"
)

// patience bounds every wait; nothing comes near it unless it hangs.
const patience = 5 * time.Minute

// cleanEnvironment is what jobs begin with: the login profile of whoever runs the tests must not be part of them.
func cleanEnvironment(t testing.TB) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LC_ALL=C.UTF-8"}
}

// start starts a fleet that is gone, with every goroutine, when the test ends.
func start(t testing.TB, o localfleet.Options) *localfleet.Fleet {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	o.JobBinary, o.Dir, o.Environ = jobBinary(), t.TempDir(), cleanEnvironment(t)
	f, err := localfleet.Start(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, f.Close())
		require.NoError(t, f.Err())
		if _, ok := t.(*testing.T); ok {
			goleak.VerifyNone(t, leaks)
		}
	})
	return f
}

// project adds a project without a repository.
func project(t testing.TB, gitlab *coordinator.Coordinator, path string) coordinator.Project {
	t.Helper()
	p, err := gitlab.AddProject(t.Context(), coordinator.ProjectOptions{Path: path, MaxTrace: 1 << 30})
	require.NoError(t, err)
	return p
}

// pipeline runs a configuration whose jobs need no sources.
func pipeline(t testing.TB, gitlab *coordinator.Coordinator, p coordinator.Project, config string) coordinator.Pipeline {
	t.Helper()
	compiled, err := ciconfig.Compile(".gitlab-ci.yml", []byte("variables: {GIT_STRATEGY: none}\n"+config), ciconfig.Options{})
	require.NoError(t, err)
	run, err := gitlab.CreatePipeline(t.Context(), p.ID, coordinator.PipelineOptions{Config: compiled})
	require.NoError(t, err)
	return run
}

func wait(t testing.TB, gitlab *coordinator.Coordinator, run coordinator.Pipeline) coordinator.Pipeline {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	done, err := gitlab.Wait(ctx, run.ID)
	require.NoError(t, err)
	return done
}

func trace(t testing.TB, gitlab *coordinator.Coordinator, job coordinator.Job) []byte {
	t.Helper()
	r, err := gitlab.Trace(job.ID, 0)
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return b
}

// output is what stands in a trace between the echo of the script's last command and the end of its section.
func output(t testing.TB, trace []byte, command string) []byte {
	t.Helper()
	echo := []byte("$ " + command + "\x1b[0;m\n")
	begin := bytes.LastIndex(trace, echo)
	require.GreaterOrEqual(t, begin, 0, "the command is not echoed in:\n%q", limit(trace))
	rest := trace[begin+len(echo):]
	end := bytes.LastIndex(rest, []byte(":step_script\r\x1b[0K"))
	require.GreaterOrEqual(t, end, 0, "the section does not end in:\n%q", limit(rest))
	end = bytes.LastIndex(rest[:end], []byte("section_end:"))
	return rest[:end]
}

func limit(b []byte) []byte { return b[:min(len(b), 4000)] }

// requireWhole checks that GitLab has exactly the trace that the fleet says it sent.
func requireWhole(t testing.TB, job coordinator.Job) {
	t.Helper()
	require.True(t, job.Report.ChecksumOK, "job %d %s: checksum %s of %d bytes, GitLab has %d", job.ID, job.Name, job.Report.Checksum, job.Report.Bytesize, job.TraceSize)
	require.True(t, job.Report.SizeOK)
}

// requireIdle waits until the control plane holds no job: it lets go of one a moment after GitLab has the result.
func requireIdle(t testing.TB, f *localfleet.Fleet) {
	t.Helper()
	d := f.ControlPlane().Dispatcher()
	if !assert.Eventually(t, func() bool { return len(d.Jobs()) == 0 }, time.Minute, 5*time.Millisecond) {
		t.Fatalf("the control plane still holds %+v", d.Jobs())
	}
}

func TestAThousandJobsOverThreeAgents(t *testing.T) {
	f := start(t, localfleet.Options{Agents: 3, Slots: 4})
	const projects, jobs = 4, 256
	want := map[string]string{}
	runs := make([]coordinator.Pipeline, 0, projects)
	for p := range projects {
		var config strings.Builder
		config.WriteString("work:\n  parallel: 200\n")
		fmt.Fprintf(&config, "  script:\n    - %s\n", script(p))
		config.WriteString("more:\n  parallel: 56\n")
		fmt.Fprintf(&config, "  script:\n    - %s\n", script(p))
		runs = append(runs, pipeline(t, f.GitLab(), project(t, f.GitLab(), fmt.Sprintf("group/project-%d", p)), config.String()))
		want[fmt.Sprintf("group/project-%d", p)] = fmt.Sprintf("%d", p)
	}
	total := 0
	for p, run := range runs {
		done := wait(t, f.GitLab(), run)
		require.Equal(t, "success", done.Status)
		for _, job := range done.Jobs {
			requireWhole(t, job)
			got := output(t, trace(t, f.GitLab(), job), strings.Trim(script(p), "'"))
			node := job.Name[strings.LastIndex(job.Name, " ")+1:]
			index, _, _ := strings.Cut(node, "/")
			require.Equal(t, fmt.Sprintf("project %d job %s \xff\xfe\x80 caf\xc3\n", p, index), string(got), job.Name)
			total++
		}
	}
	require.Equal(t, projects*jobs, total)
	stats := f.GitLab().Stats()
	require.Zero(t, stats.BadChecksums)
	requireIdle(t, f)
	for _, a := range f.ControlPlane().Dispatcher().Agents() {
		require.Zero(t, a.UsedSlots, a.Name)
	}
}

// script prints invalid UTF-8 after something that tells the job.
func script(project int) string {
	return fmt.Sprintf(`'printf "project %d job %%s \377\376\200 caf\303\n" $CI_NODE_INDEX'`, project)
}

func TestEveryByteArrives(t *testing.T) {
	f := start(t, localfleet.Options{Runners: []localfleet.Runner{{
		RunnerOptions: coordinator.RunnerOptions{RunUntagged: true}, OutputLimit: 256 << 20,
	}}})
	// 100 MB of a pattern with NUL, carriage returns, invalid UTF-8 and no end of line where the section ends.
	const unit = "plain\x00nul\rreturn\xff\xfeinvalid\xc3\n"
	const command = `for i in 1 2 3 4 5; do cat pattern pattern pattern pattern; done; printf "no newline"`
	run := pipeline(t, f.GitLab(), project(t, f.GitLab(), "group/bytes"), `
big:
  script:
    - for i in $(seq 1024); do printf "plain\000nul\rreturn\377\376invalid\303\n"; done > block
    - for i in $(seq 190); do cat block; done > pattern
    - '`+command+`'
`)
	done := wait(t, f.GitLab(), run)
	require.Equal(t, "success", done.Status)
	requireWhole(t, done.Jobs[0])
	want := append(bytes.Repeat([]byte(unit), 1024*190*5*4), "no newline"...)
	require.Greater(t, len(want), 100_000_000)
	got := output(t, trace(t, f.GitLab(), done.Jobs[0]), command)
	require.True(t, bytes.Equal(want, got), "%d bytes differ from the %d that were printed", len(got), len(want))
}

func TestPayloadsOfTomorrow(t *testing.T) {
	f := start(t, localfleet.Options{Coordinator: coordinator.Options{
		DecoratePayload: func(_ int64, payload map[string]any) error {
			payload["field_of_tomorrow"] = map[string]any{"deep": []int{1, 2, 3}}
			payload["job_info"].(map[string]any)["another"] = "x"
			payload["variables"] = append(payload["variables"].([]any), map[string]any{
				"key": "HUGE", "value": strings.Repeat("0123456789abcdef", 5<<20/16), "public": true, "masked": false, "of_tomorrow": true,
			})
			return nil
		},
	}})
	run := pipeline(t, f.GitLab(), project(t, f.GitLab(), "group/tomorrow"), `
job:
  script:
    - 'echo "${#HUGE} bytes"'
`)
	done := wait(t, f.GitLab(), run)
	require.Equal(t, "success", done.Status, string(limit(trace(t, f.GitLab(), done.Jobs[0]))))
	require.Equal(t, "5242880 bytes\n", string(output(t, trace(t, f.GitLab(), done.Jobs[0]), `echo "${#HUGE} bytes"`)))
}

func TestFailuresAreReportedAsGitLabKnowsThem(t *testing.T) {
	f := start(t, localfleet.Options{Slots: 4})
	run := pipeline(t, f.GitLab(), project(t, f.GitLab(), "group/failures"), `
exit:
  script: [echo before, exit 42]
allowed:
  allow_failure: true
  script: [exit 1]
slow:
  timeout: 2 seconds
  script: [sleep 100]
masked:
  script: ['echo "$CI_JOB_TOKEN"']
after:
  script: ['false']
  after_script: ['echo "status $CI_JOB_STATUS"']
`)
	done := wait(t, f.GitLab(), run)
	require.Equal(t, "failed", done.Status)
	jobs := map[string]coordinator.Job{}
	for _, j := range done.Jobs {
		jobs[j.Name] = j
		requireWhole(t, j)
	}
	require.Equal(t, "script_failure", string(jobs["exit"].FailureReason))
	require.Equal(t, 42, jobs["exit"].ExitCode)
	require.Contains(t, string(trace(t, f.GitLab(), jobs["exit"])), "ERROR: Job failed: exit code 42")
	require.Equal(t, "failed", jobs["allowed"].Status)
	require.Equal(t, "job_execution_timeout", string(jobs["slow"].FailureReason), string(trace(t, f.GitLab(), jobs["slow"])))
	require.Contains(t, string(trace(t, f.GitLab(), jobs["slow"])), "execution took longer than 2s seconds")
	require.Equal(t, "success", jobs["masked"].Status)
	require.Equal(t, "[MASKED]\n", string(output(t, trace(t, f.GitLab(), jobs["masked"]), `echo "$CI_JOB_TOKEN"`)))
	require.Contains(t, string(trace(t, f.GitLab(), jobs["after"])), "status failed")
}

// waitForTrace returns when a job's trace contains text.
func waitForTrace(t testing.TB, gitlab *coordinator.Coordinator, job int64, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, gitlab.WatchTrace(job))
	var size int64
	for {
		var ended bool
		var err error
		size, ended, err = gitlab.WaitTrace(ctx, job, size)
		require.NoError(t, err)
		r, err := gitlab.Trace(job, 0)
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		if bytes.Contains(b, []byte(text)) {
			return
		}
		require.False(t, ended, "the job ended without %q:\n%s", text, limit(b))
	}
}

func TestCancelFromGitLab(t *testing.T) {
	f := start(t, localfleet.Options{Slots: 2, TracePace: 100 * time.Millisecond, KillGrace: 2 * time.Second, Coordinator: coordinator.Options{
		TraceInterval: time.Second, WatchedTraceInterval: time.Second,
	}})
	run := pipeline(t, f.GitLab(), project(t, f.GitLab(), "group/cancel"), `
graceful:
  script: [echo running, 'while sleep 0.1; do echo tick; done']
  after_script: ['echo "after: $CI_JOB_STATUS"']
killed:
  script: [echo running, 'while sleep 0.1; do echo tick; done']
  after_script: ['echo "after: $CI_JOB_STATUS"']
`)
	for _, j := range run.Jobs {
		waitForTrace(t, f.GitLab(), j.ID, "running\n")
		_, err := f.GitLab().Cancel(j.ID, j.Name == "killed")
		require.NoError(t, err)
	}
	done := wait(t, f.GitLab(), run)
	require.Equal(t, "canceled", done.Status)
	for _, j := range done.Jobs {
		after := strings.Contains(string(trace(t, f.GitLab(), j)), "after: canceled")
		require.Equal(t, j.Name == "graceful", after, j.Name)
	}
	requireIdle(t, f)
}
