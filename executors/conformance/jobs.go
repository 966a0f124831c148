//go:build unix

package conformance

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

func mkdir(path string) error { return os.Mkdir(path, 0o700) }

// succeeded checks that a job did.
func succeeded(t *testing.T, r folder.Result, trace string) {
	t.Helper()
	require.Equal(t, runnerapi.StateSuccess, r.State, "%s: %s\n%s", r.FailureReason, r.Message, trace)
}

func output(t *testing.T, p *place) {
	result, trace := p.finish(script(`printf 'a\tb  c\n\n  d'; printf 'e\n' >&2; echo "f"`))
	succeeded(t, result, trace)
	require.Contains(t, trace, "a\tb  c\n\n  de\nf\n")
	require.True(t, strings.HasSuffix(trace, "Job succeeded\x1b[0;m\n"), "%q", trace)
	require.False(t, result.StartedAt.IsZero() || result.FinishedAt.Before(result.StartedAt))
}

func exitCodes(t *testing.T, p *place) {
	for _, code := range []int{1, 42, 255} {
		result, trace := p.finish(script(fmt.Sprintf("exit %d", code), "echo never"))
		require.Equal(t, runnerapi.StateFailed, result.State)
		require.Equal(t, runnerapi.ReasonScriptFailure, result.FailureReason)
		require.Equal(t, code, result.ExitCode)
		require.NotContains(t, trace, "never\n")
	}
	if p.Executor.Features().Shell == "bash" {
		result, trace := p.finish(script("false | true", "echo never"))
		require.Equal(t, 1, result.ExitCode, "pipefail")
		require.NotContains(t, trace, "never\n")
	}
	result, trace := p.finish(script("exit 0", "echo never"))
	succeeded(t, result, trace)
}

func variables(t *testing.T, p *place) {
	values := map[string]string{
		"PLAIN": "plain", "EMPTY": "", "SPACES": "  two  spaces ", "QUOTES": `a'b"c` + "`d`", "DOLLAR": `$HOME ${HOME} $(id)`,
		"LINES": "one\ntwo\n", "BACKSLASH": `a\nb\\`, "UTF8": "grüße 🚃", "GLOB": "* ? [a]", "LONG": strings.Repeat("x", 40_000),
	}
	job := script()
	var commands []string
	for key, value := range values {
		job.Variables = append(job.Variables, runnerapi.Variable{Key: key, Value: value, Public: true, Raw: true})
		commands = append(commands, fmt.Sprintf(`printf '<%s:%%s>' "$(printf %%s "$%s" | od -An -v -tx1 | tr -d ' \n')"`, key, key))
	}
	job.Steps[0].Script = append(commands, `echo "<${EXPANDED}>"`, `test "$CI" = ci && test "$CI_JOB_STATUS" = running`)
	job.Variables = append(job.Variables,
		runnerapi.Variable{Key: "EXPANDED", Value: "[$PLAIN-${PLAIN}]", Public: true},
		runnerapi.Variable{Key: "CI", Value: "ci", Public: true})
	result, trace := p.finish(job)
	succeeded(t, result, trace)
	for key, value := range values {
		require.Contains(t, trace, "<"+key+":"+hex.EncodeToString([]byte(value))+">")
	}
	require.Contains(t, trace, "<[plain-plain]>")
}

func fileVariables(t *testing.T, p *place) {
	result, trace := p.finish(script(`echo "content: $(cat "$KUBECONFIG")"`, `ls -l "$KUBECONFIG" | cut -c1-10`),
		with(runnerapi.Variable{Key: "KUBECONFIG", Value: "a: $b\nc", File: true, Raw: true}))
	succeeded(t, result, trace)
	require.Contains(t, trace, "content: a: $b\nc\n")
}

func masking(t *testing.T, p *place) {
	result, trace := p.finish(
		script(`echo "it is $SECRET."`, `printf '%s' "${SECRET%?????}"; sleep 0.05; printf '%s\n' "${SECRET#????????}"`),
		with(runnerapi.Variable{Key: "SECRET", Value: "s3cr3t-value1", Masked: true, Raw: true}))
	succeeded(t, result, trace)
	require.NotContains(t, trace, "s3cr3t")
	require.Contains(t, trace, "it is [MASKED].")
	require.Equal(t, 2, strings.Count(trace, "[MASKED]"))
}

func largeOutput(t *testing.T, p *place) {
	const lines = 160_000 // of 64 bytes
	result, trace := p.finish(script(fmt.Sprintf(`awk 'BEGIN { for (i = 0; i < %d; i++) printf "%%063d\n", i }'`, lines)))
	succeeded(t, result, trace)
	_, rest, ok := strings.Cut(trace, "\n"+fmt.Sprintf("%063d\n", 0))
	require.True(t, ok)
	require.Greater(t, len(rest), (lines-1)*64)
	for i := 1; i < lines; i++ {
		if line := fmt.Sprintf("%063d\n", i); rest[(i-1)*64:i*64] != line {
			t.Fatalf("line %d is %q", i, rest[(i-1)*64:i*64])
		}
	}
}

func binaryOutput(t *testing.T, p *place) {
	var all strings.Builder
	for i := range 256 {
		all.WriteByte(byte(i))
	}
	var octal strings.Builder
	for i := range 256 {
		fmt.Fprintf(&octal, `\%03o`, i)
	}
	result, trace := p.finish(script(`printf 'begin'; printf '` + octal.String() + `'; printf 'end'`))
	succeeded(t, result, trace)
	require.Contains(t, trace, "begin"+all.String()+"end")
}

func outputLimit(t *testing.T, p *place) {
	const limit = 4096
	result, trace := p.finish(script(`i=0; while [ $i -lt 500 ]; do echo 0123456789012345; i=$((i+1)); done`, "exit 7"),
		func(_ *runnerapi.Job, s *folder.Spec) { s.OutputLimit = limit })
	require.Equal(t, 7, result.ExitCode, "the job goes on")
	require.Contains(t, trace, "exceeded limit of 4096 bytes")
	require.Less(t, len(trace), limit+300)
}

func concurrentJobs(t *testing.T, p *place) {
	var jobs []*running
	for range 4 {
		jobs = append(jobs, p.start(script(
			`echo "$CI_PROJECT_DIR" > mine; pwd`, `sleep 0.2; test "$(cat mine)" = "$CI_PROJECT_DIR"`, `echo "id $CI_CONCURRENT_PROJECT_ID"`,
		)))
	}
	var all sync.WaitGroup
	for _, r := range jobs {
		all.Go(func() { r.wait() })
	}
	all.Wait()
	for i, r := range jobs {
		succeeded(t, r.result(), r.text())
		require.Contains(t, r.text(), fmt.Sprintf("id %d\n", i))
	}
}

func cancelGracefully(t *testing.T, p *place) {
	nap := naps(t)
	r := p.start(script("echo begun; "+nap), after(`echo "after $CI_JOB_STATUS"`))
	r.awaitReady()
	r.await("begun")
	p.awaitProcesses(nap, 1)
	require.NoError(t, r.follow().Cancel(false))
	r.wait()
	result := r.result()
	require.Equal(t, runnerapi.StateFailed, result.State)
	require.Equal(t, runnerapi.ReasonCanceled, result.FailureReason)
	require.Contains(t, r.text(), "after canceled\n")
	p.gone(nap)
}

func cancelAtOnce(t *testing.T, p *place) {
	nap := naps(t)
	r := p.start(script(`trap 'echo deaf' TERM; echo begun; while :; do `+nap+`; done`), after("echo never"))
	r.awaitReady()
	r.await("begun")
	p.awaitProcesses(nap, 1)
	require.NoError(t, r.follow().Cancel(true))
	r.wait()
	require.Equal(t, runnerapi.StateFailed, r.result().State)
	require.NotContains(t, r.text(), "never\n")
	p.gone(nap)
}

func timeout(t *testing.T, p *place) {
	nap := naps(t)
	result, trace := p.finish(script("echo begun; "+nap), func(j *runnerapi.Job, _ *folder.Spec) { j.RunnerInfo.Timeout = 1 })
	require.Equal(t, runnerapi.ReasonExecutionTimeout, result.FailureReason, "%s", trace)
	require.Contains(t, trace, "execution took longer than 1s")
	p.gone(nap)
}

func leaseRunsOut(t *testing.T, p *place) {
	nap := naps(t)
	r := p.start(script("echo begun; "+nap), func(_ *runnerapi.Job, s *folder.Spec) { s.Lease = time.Minute })
	r.awaitReady()
	f := r.follow()
	p.awaitProcesses(nap, 1)
	require.NoError(t, f.Lease(300*time.Millisecond))
	r.wait()
	require.Equal(t, runnerapi.StateFailed, r.result().State)
	p.gone(nap)
}
