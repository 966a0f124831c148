//go:build unix

package job

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
	"github.com/switchyard-ci/switchyard/job/git"
	"github.com/switchyard-ci/switchyard/job/variables"
)

func read(values map[string]string) (settings, []string) {
	var job []runnerapi.Variable
	for k, v := range values {
		job = append(job, runnerapi.Variable{Key: k, Value: v})
	}
	flags, _, warnings := resolveFlags(job, nil)
	s, more := readSettings(func(k string) string { return values[k] }, flags, time.Hour)
	return s, append(warnings, more...)
}

func TestSettings(t *testing.T) {
	type values = map[string]string
	base, warnings := read(nil)
	require.Empty(t, warnings)
	require.Equal(t, settings{
		attempts:      1,
		cacheAttempts: 1, artifactAttempts: 1, sectionAttempts: 1, skipEmpty: true,
		ignoreAfter: true, afterTimeout: 5 * time.Minute, maskAllTokens: true, backOff: true,
	}, base)
	for name, c := range map[string]struct {
		values  values
		change  func(*settings)
		warning string
	}{
		"attempts":                  {values{"GET_SOURCES_ATTEMPTS": "3"}, func(s *settings) { s.attempts = 3 }, ""},
		"too many attempts":         {values{"GET_SOURCES_ATTEMPTS": "11"}, func(s *settings) { s.attempts = 10 }, "from 1 to 10"},
		"attempts, no number":       {values{"GET_SOURCES_ATTEMPTS": "x"}, func(*settings) {}, "from 1 to 10"},
		"timeouts":                  {values{"RUNNER_SCRIPT_TIMEOUT": "10m", "RUNNER_AFTER_SCRIPT_TIMEOUT": " 1h "}, func(s *settings) { s.scriptTimeout = 10 * time.Minute; s.afterTimeout = time.Hour }, ""},
		"a negative timeout":        {values{"RUNNER_SCRIPT_TIMEOUT": "-1s"}, func(*settings) {}, "Ignoring relative RUNNER_SCRIPT_TIMEOUT timeout: -1s"},
		"a malformed timeout":       {values{"RUNNER_AFTER_SCRIPT_TIMEOUT": "1"}, func(*settings) {}, "Ignoring malformed RUNNER_AFTER_SCRIPT_TIMEOUT timeout: 1"},
		"a timeout of nothing":      {values{"RUNNER_AFTER_SCRIPT_TIMEOUT": "0s"}, func(*settings) {}, ""},
		"too long a timeout":        {values{"RUNNER_SCRIPT_TIMEOUT": "2h"}, func(*settings) {}, "2h is longer than job timeout. Setting to job timeout"},
		"more attempts":             {values{"RESTORE_CACHE_ATTEMPTS": "2", "ARTIFACT_DOWNLOAD_ATTEMPTS": "3", "EXECUTOR_JOB_SECTION_ATTEMPTS": "4"}, func(s *settings) { s.cacheAttempts, s.artifactAttempts, s.sectionAttempts = 2, 3, 4 }, ""},
		"a flag that has no effect": {values{"FF_NETWORK_PER_BUILD": "false"}, func(*settings) {}, "FF_NETWORK_PER_BUILD=false has no effect: it is always so here"},
		"an unknown flag":           {values{"FF_NEW": "1"}, func(*settings) {}, "FF_NEW: this feature flag is not supported"},
		"an unknown flag, off":      {values{"FF_NEW": "false"}, func(*settings) {}, ""},
		"known flags":               {values{"FF_TIMESTAMPS": "1", "FF_SCRIPT_SECTIONS": "true", "FF_MASK_ALL_DEFAULT_TOKENS": "0"}, func(s *settings) { s.timestamps, s.sections, s.maskAllTokens = true, true, false }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			want := base
			c.change(&want)
			got, warnings := read(c.values)
			require.Equal(t, want, got)
			if c.warning == "" {
				require.Empty(t, warnings)
			} else {
				require.Len(t, warnings, 1)
				require.Contains(t, warnings[0], c.warning)
			}
		})
	}
}

func TestReasons(t *testing.T) {
	const (
		script   = runnerapi.ReasonScriptFailure
		system   = runnerapi.ReasonRunnerSystem
		timeout  = runnerapi.ReasonExecutionTimeout
		unknown  = runnerapi.ReasonUnknown
		image    = runnerapi.ReasonImagePull
		config   = runnerapi.ReasonConfiguration
		external = runnerapi.ReasonExternalDependency
		canceled = runnerapi.ReasonCanceled
	)
	for reason, want := range map[runnerapi.FailureReason]runnerapi.FailureReason{
		"": script, script: script, system: system, timeout: timeout, unknown: unknown, image: system, config: script, external: system,
		canceled: unknown, runnerapi.ReasonInterrupted: unknown, "something else": unknown,
	} {
		require.Equal(t, want, reasonFor(reason, nil), "%q", reason)
		if reason != "" {
			require.Equal(t, reason, reasonFor(reason, []runnerapi.FailureReason{"x", reason}))
		}
	}
}

func TestFailures(t *testing.T) {
	f := asFailure(errors.New("disk on fire"))
	require.Equal(t, "Job failed (system failure): disk on fire", f.line())
	f = asFailure(fmt.Errorf("get sources: %w", &git.ExitError{Command: "fetch", Code: 128}))
	require.Equal(t, 128, f.exitCode)
	require.Empty(t, f.reason)
	require.Equal(t, "Job failed: exit code 128", f.line())
	require.Same(t, errCanceled, asFailure(fmt.Errorf("wrapped: %w", errCanceled)))
	require.Len(t, shorten(strings.Repeat("é", 5000)), 4096+3)
	require.Equal(t, "short", shorten("short"))
}

func TestAKillAtTheEndOfTheLeaseIsNoCancel(t *testing.T) {
	for left, want := range map[time.Duration]string{
		15 * time.Minute:       "canceled",
		3 * time.Second:        "canceled",
		100 * time.Millisecond: "the runner lost touch with its control plane for longer than 20m0s, so the job was stopped",
		0:                      "the runner lost touch with its control plane for longer than 20m0s, so the job was stopped",
	} {
		synctest.Test(t, func(t *testing.T) {
			j := New(Options{Log: slog.New(slog.DiscardHandler)})
			j.Order(folder.Order{Kind: folder.OrderLease, Lease: 20*time.Minute - time.Millisecond})
			<-time.After(20*time.Minute - time.Millisecond - left)
			j.Order(folder.Order{Kind: folder.OrderCancelKill})
			require.Equal(t, want, asFailure(context.Cause(j.ctx)).message)
		})
	}
	j := New(Options{Log: slog.New(slog.DiscardHandler)})
	j.Order(folder.Order{Kind: folder.OrderCancelKill})
	require.ErrorIs(t, context.Cause(j.ctx), errCanceled)
}

func TestProjectFolders(t *testing.T) {
	for url, want := range map[string]string{
		"https://u:p@gitlab.example.com/group/sub/project.git": "/b/group/sub/project",
		"https://gitlab.example.com:8443/relative/g/p":         "/b/relative/g/p",
		"file:///srv/git/project.git":                          "/b/project-9",
		"https://h/../../etc/cron.d":                           "/b/etc/cron.d",
		"https://h/a/../b":                                     "/b/b",
		"https://h/a%2f..%2f..%2fb":                            "/b/b",
		"https://h/":                                           "/b/project-9",
		"https://h":                                            "/b/project-9",
		"https://h/a\x00b":                                     "/b/project-9",
		"git@host:group/project.git":                           "/b/project-9",
		"":                                                     "/b/project-9",
	} {
		s := folder.Spec{BuildsDir: "/b", ConcurrentProjectID: 2, Runner: folder.Runner{ShortToken: "tok"}}
		p := runnerapi.Job{JobInfo: runnerapi.JobInfo{ProjectID: 9}, GitInfo: runnerapi.GitInfo{RepoURL: url}}
		require.Equal(t, want, s.ProjectDir(&p), url)
		s.SharedBuildsDir = true
		require.Equal(t, "/b/tok/2"+strings.TrimPrefix(want, "/b"), s.ProjectDir(&p), url)
	}
}

func TestStageNames(t *testing.T) {
	for step, want := range map[string]string{"script": "script", "Release": "release", "a b\nc:\r": "a_b_c__", "é": "_", "x-1": "x-1"} {
		require.Equal(t, want, stageName(step))
	}
}

func TestRetryDelays(t *testing.T) {
	for attempt, most := range map[int]time.Duration{0: 5 * time.Second, 1: 7500 * time.Millisecond, 9: 192216796875, 100: 5 * time.Minute} {
		for range 50 {
			d := retryDelay(attempt)
			require.LessOrEqual(t, d, most)
			require.GreaterOrEqual(t, d, most/2)
		}
	}
}

func TestWhatGitIsGivenFits(t *testing.T) {
	j := &Job{Options: Options{
		Environment: []string{"PATH=/bin", "HOME=/h", "CI=inherited"},
		Spec:        folder.Spec{BuildsDir: "/b"},
		Payload: []byte(`{"variables":[{"key":"CI","value":"true"},{"key":"HUGE","value":"` + strings.Repeat("x", 70_000) + `"}` +
			strings.Repeat(`,{"key":"BIG","value":"`+strings.Repeat("y", 60_000)+`"}`, 3) + `,{"key":"GIT_SSL_NO_VERIFY","value":"1"}]}`),
	}}
	_, _, err := j.read()
	require.NoError(t, err)
	env := j.sources.Environment
	require.Contains(t, env, "CI=true")
	require.NotContains(t, env, "CI=inherited")
	require.Contains(t, env, "PATH=/bin")
	require.Contains(t, env, "GIT_SSL_NO_VERIFY=1")
	for _, kv := range env {
		require.False(t, strings.HasPrefix(kv, "HUGE="))
	}
}

func TestProxiesOfTheEnvironment(t *testing.T) {
	vars, err := variables.New([]runnerapi.Variable{{Key: "https_proxy", Value: "http://job:1"}, {Key: "OTHER", Value: "x"}})
	require.NoError(t, err)
	j := &Job{Options: Options{Environment: []string{
		"HTTPS_PROXY=http://host:1", "HTTP_PROXY=http://host:2", "HTTP_PROXY=http://host:3", "no_proxy=.example.com", "CACHE_FALLBACK_KEY=k",
	}}, vars: vars}
	for key, want := range map[string]string{
		"HTTPS_PROXY": "", "https_proxy": "http://job:1", "HTTP_PROXY": "http://host:3", "http_proxy": "",
		"NO_PROXY": "", "no_proxy": ".example.com", "CACHE_FALLBACK_KEY": "", "OTHER": "x",
	} {
		require.Equal(t, want, j.value(key), key)
	}
}
