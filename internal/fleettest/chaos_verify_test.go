package fleettest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
)

// verify looks at every job of both GitLabs.
func (c *chaos) verify(jobs int) {
	c.t.Helper()
	var wrong []error
	names := 0
	for _, g := range c.gitlabs {
		names += len(g.wanted)
		attempts, reported := map[string][]coordinator.Job{}, int64(0)
		for id := int64(1); ; id++ {
			job, err := g.Job(id)
			if errors.Is(err, coordinator.ErrNotFound) {
				break
			}
			require.NoError(c.t, err)
			attempts[job.Name] = append(attempts[job.Name], job)
			if job.Report.State != "" {
				reported++
			}
			if err := g.check(job); err != nil {
				wrong = append(wrong, err)
			}
		}
		assert.Equal(c.t, reported, g.Stats().Finished, "%s: jobs with a result, and results that were accepted", g.name)
		assert.Zero(c.t, g.Stats().StuckDropped, g.name)
		assert.Zero(c.t, g.Stats().BadChecksums, g.name)
		for name, want := range g.wanted {
			if err := g.checkAttempts(want, attempts[name]); err != nil {
				wrong = append(wrong, fmt.Errorf("%s: %s: %w", g.name, name, err))
			}
		}
	}
	assert.Equal(c.t, jobs, names)
	if len(wrong) > 0 {
		c.t.Errorf("%d jobs are wrong, such as:\n%v", len(wrong), errors.Join(wrong[:min(len(wrong), 5)]...))
	}
}

// checkAttempts: a job is tried once more for every attempt that nobody had and for `retry`.
func (g *chaosGitLab) checkAttempts(want wantedJob, attempts []coordinator.Job) error {
	if len(attempts) == 0 {
		return errors.New("it was never made")
	}
	last := attempts[len(attempts)-1]
	switch why := g.whyLost(last.ID); {
	case last.Retried:
		return fmt.Errorf("the attempt after job %d is missing", last.ID)
	case why != "" && !g.legacy && len(attempts) < want.retry.most():
		return fmt.Errorf("job %d was lost (%s) and not tried again", last.ID, why)
	case why == "" && want.retry == retryOnce && len(attempts) < 2:
		return fmt.Errorf("job %d failed and was not tried again", last.ID)
	}
	return nil
}

// check holds a job that has ended, or was lost, against what was wanted of it.
func (g *chaosGitLab) check(job coordinator.Job) error {
	want, known := g.wanted[job.Name]
	if !known {
		return fmt.Errorf("%s: job %d %q is nobody's", g.name, job.ID, job.Name)
	}
	fail := func(format string, args ...any) error {
		text, _ := g.traceOf(job)
		return fmt.Errorf("%s: job %d (%s, attempt %d, status %s %s, lost: %q): %s\n%+v\n%q", g.name, job.ID, job.Name, job.Attempt, job.Status,
			job.FailureReason, g.whyLost(job.ID), fmt.Sprintf(format, args...), job, limit(text))
	}
	begun, err := os.ReadFile(filepath.Join(g.marks, strconv.FormatInt(job.ID, 10)))
	if err != nil && !os.IsNotExist(err) {
		return fail("%v", err)
	}
	starts := strings.Count(string(begun), "begun\n")
	if g.whyLost(job.ID) != "" {
		switch {
		case starts != 0:
			return fail("it was started though nobody has it")
		case g.legacy && (job.Status != "running" || job.Updates+job.Patches != 0):
			return fail("nobody has it, but it did not stay as it was")
		case !g.legacy && job.FailureReason != "runner_provisioning_timeout":
			return fail("nobody has it, but it did not expire")
		}
		return nil
	}
	if starts != 1 {
		return fail("its script began %d times", starts)
	}
	status, reason := "success", ""
	if want.exit != 0 {
		status, reason = "failed", "script_failure"
	}
	if job.Status != status || string(job.FailureReason) != reason || job.ExitCode != want.exit || job.Report.State != status {
		return fail("it should have ended with %s, exit code %d", status, want.exit)
	}
	if !job.Report.ChecksumOK || !job.Report.SizeOK {
		return fail("its trace is not the one that was reported")
	}
	text, err := g.traceOf(job)
	if err != nil {
		return fail("%v", err)
	}
	return sameOutput(text, want, job.ID, fail)
}

func sameOutput(text []byte, want wantedJob, job int64, fail func(string, ...any) error) error {
	t := string(text)
	_, rest, ok := strings.Cut(t, "$ "+want.script+"\x1b[0;m\n")
	if !ok {
		return fail("its command is not in its trace:\n%q", limit(text))
	}
	end := strings.LastIndex(rest, ":step_script\r\x1b[0K")
	if end < 0 {
		return fail("the section of its script does not end:\n%q", limit(text))
	}
	end = strings.LastIndex(rest[:end], "section_end:")
	if got, expected := rest[:end], strings.ReplaceAll(want.output, "$CI_JOB_ID", strconv.FormatInt(job, 10)); got != expected {
		return fail("its output is\n%q\nand not\n%q", limit([]byte(got)), limit([]byte(expected)))
	}
	return nil
}

// traceOf reads a trace.
func (g *chaosGitLab) traceOf(job coordinator.Job) ([]byte, error) {
	r, err := g.Trace(job.ID, 0)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}
