package pipeline

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
)

func reasons() *rapid.Generator[string] {
	return rapid.SampledFrom([]string{
		"script_failure", "script_failure", "runner_system_failure", "scheduler_failure", "runner_provisioning_timeout",
		"missing_dependency_failure", "ci_quota_exceeded",
	})
}

func exitCodes() *rapid.Generator[int] { return rapid.IntRange(0, 3) }

func retries(t *rapid.T) *ciconfig.Retry {
	r := &ciconfig.Retry{Max: rapid.IntRange(0, 2).Draw(t, "max")}
	if rapid.Bool().Draw(t, "with reasons") {
		r.When = rapid.SliceOfN(rapid.OneOf(reasons(), rapid.Just("always")), 1, 2).Draw(t, "reasons")
	}
	if rapid.Bool().Draw(t, "with codes") {
		r.ExitCodes = rapid.SliceOfN(exitCodes(), 1, 2).Draw(t, "codes")
	}
	return r
}

// limitByTheBook is AutoRetry#max_allowed_retries as it is written in GitLab.
func limitByTheBook(r *ciconfig.Retry, reason string, exitCode int) int {
	overrides := map[string]bool{
		"ci_quota_exceeded": true, "no_matching_runner": true, "missing_dependency_failure": true,
		"forward_deployment_failure": true, "environment_creation_failure": true,
	}
	if overrides[reason] {
		return 0
	}
	if r != nil {
		when := r.When
		if when == nil && r.ExitCodes == nil {
			when = []string{"always"}
		}
		byReason := slices.Contains(when, reason) || slices.Contains(when, "always")
		byCode := exitCode != 0 && slices.Contains(r.ExitCodes, exitCode)
		if byReason || byCode {
			return r.Max
		}
	}
	return map[string]int{"scheduler_failure": 2, "runner_provisioning_timeout": 2}[reason]
}

// fail drops a job and compares what becomes of it with the rules. It returns the changes.
func (m *model) fail(t *rapid.T, p *Pipeline, job int, reason string, exitCode int) []Change {
	was, allowed, tries := p.JobStatus(job), m.allow[job], m.tries[job]
	d, err := p.Drop(job, reason, exitCode)
	if _, possible := Next(was, EventDrop, Guards{}); !possible {
		if err == nil {
			t.Fatalf("a job that is %s was dropped", was)
		}
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	allowed = allowed || slices.Contains(m.jobs[job].AllowFailureExitCodes, exitCode)
	again := was != Canceling && tries < limitByTheBook(m.jobs[job].Retry, reason, exitCode)
	if d.Failed != (was != Canceling) || d.Retried != again || d.Failed && d.AllowFailure != allowed {
		t.Fatalf("%s with %d from %s, retry %+v, %d times already: %+v", reason, exitCode, was, m.jobs[job].Retry, tries, d)
	}
	end := Change{job, was, Canceled}
	if d.Failed {
		end.To = Failed
	}
	if d.Changes[0] != end {
		t.Fatalf("%s from %s: %v", reason, was, d.Changes)
	}
	if !again {
		if len(d.Changes) != 1 || p.Retries(job) != tries {
			t.Fatalf("without a retry: %v, %d retries", d.Changes, p.Retries(job))
		}
		return d.Changes
	}
	if d.Changes[1] != (Change{job, Failed, Created}) || d.Changes[2] != (Change{job, Created, Pending}) || p.Retries(job) != tries+1 {
		t.Fatalf("a retry: %v, %d retries", d.Changes, p.Retries(job))
	}
	if p.AllowFailure(job) != m.jobs[job].AllowFailure {
		t.Fatal("the new attempt may fail because the old one may")
	}
	return d.Changes
}

// TestRetriesAreGitLabs lets jobs of random pipelines fail in all ways between other events.
func TestRetriesAreGitLabs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		stages, jobs := pipelines(t)
		p, err := New(stages, jobs)
		if err != nil {
			t.Fatal(err)
		}
		m := newModel(stages, jobs)
		p.Process(start)
		m.process()
		for range rapid.IntRange(1, 25).Draw(t, "events") {
			job := rapid.IntRange(0, len(jobs)-1).Draw(t, "job")
			action := rapid.SampledFrom([]string{"fail", "fail", "fail", "run", "success", "cancel", "play", "retry", "retryall"}).Draw(t, "action")
			var changes []Change
			if action == "fail" {
				changes = m.fail(t, p, job, reasons().Draw(t, "reason"), exitCodes().Draw(t, "code"))
			} else {
				changes = perform(p, action, job)
			}
			for _, c := range changes {
				if c.From.String() != m.status[c.Job] {
					t.Fatalf("%s of job %d: %v, but it was %s", action, job, c, m.status[c.Job])
				}
				m.status[c.Job] = c.To.String()
			}
			for i := range jobs {
				m.allow[i], m.tries[i] = p.AllowFailure(i), p.Retries(i)
			}
			p.Process(start.Add(time.Hour))
			m.process()
			compare(t, p, m, fmt.Sprintf("%s of job %d", action, job))
		}
	})
}

// A job that fails whatever happens is tried once and then as often as it says; what comes after it waits for the last.
func TestRetriesEnd(t *testing.T) {
	for limit := range 3 {
		p, err := New(2, []Job{
			{Name: "flaky", Retry: &ciconfig.Retry{Max: limit}, When: ciconfig.OnSuccess},
			{Name: "next", Stage: 1, When: ciconfig.OnFailure},
		})
		require.NoError(t, err)
		p.Process(start)
		for attempt := 0; ; attempt++ {
			require.Equal(t, Pending, p.JobStatus(0))
			require.Equal(t, Created, p.JobStatus(1))
			_, err := p.Fire(0, EventRun, Guards{})
			require.NoError(t, err)
			d, err := p.Drop(0, "script_failure", 1)
			require.NoError(t, err)
			p.Process(start)
			if !d.Retried {
				require.Equal(t, limit, attempt)
				break
			}
			require.Equal(t, Pending, p.Status(), "the pipeline goes on")
		}
		require.Equal(t, Failed, p.JobStatus(0))
		require.Equal(t, Pending, p.JobStatus(1))
	}
}

// What people retry counts, too.
func TestRetriesByHandCount(t *testing.T) {
	p, err := New(1, []Job{{Name: "flaky", Retry: &ciconfig.Retry{Max: 1}}})
	require.NoError(t, err)
	p.Process(start)
	_, err = p.Fire(0, EventSucceed, Guards{})
	require.NoError(t, err)
	_, err = p.Retry(0)
	require.NoError(t, err)
	d, err := p.Drop(0, "script_failure", 1)
	require.NoError(t, err)
	require.False(t, d.Retried)
	_, err = p.Drop(0, "script_failure", 1)
	require.Error(t, err, "it has failed already")
}
