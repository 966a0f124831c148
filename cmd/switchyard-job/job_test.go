//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

const (
	cyan  = "\x1b[0K\x1b[36;1m"
	green = "\x1b[32;1m"
	red   = "\x1b[31;1m"
	warn  = "\x1b[0;33mWARNING: "
	reset = "\x1b[0;m"
)

func TestTheWholeTrace(t *testing.T) {
	j := newJob(t, "echo hi", "echo a\necho b")
	j.payload.Steps = append(j.payload.Steps, runnerapi.Step{Name: "Release it", Script: []string{"echo r"}})
	j.afterScript("echo $CI_JOB_STATUS")
	j.spec.Hostname = "the-host"
	here, err := os.Hostname()
	require.NoError(t, err)
	r := j.run()
	require.Equal(t, runnerapi.StateSuccess, r.State)
	section := func(name, description, text string) string {
		return "section_start:T:" + name + "\r\x1b[0K" + cyan + description + reset + reset + "\n" + text + "section_end:T:" + name + "\r\x1b[0K"
	}
	require.Equal(t, section("prepare_script", "Preparing environment", "Running on "+here+" via the-host...\n")+
		section("get_sources", "Getting source from Git repository",
			green+"Skipping Git repository setup"+reset+"\n"+green+"Skipping Git checkout"+reset+"\n"+green+"Skipping Git submodules setup"+reset+"\n")+
		section("step_script", `Executing "step_script" stage of the job script`,
			green+"$ echo hi"+reset+"\nhi\n"+green+"$ echo a # collapsed multi-line command"+reset+"\na\nb\n")+
		section("step_release_it", `Executing "step_release_it" stage of the job script`, green+"$ echo r"+reset+"\nr\n")+
		section("after_script", "Running after_script",
			green+"Running after script..."+reset+"\n"+green+"$ echo $CI_JOB_STATUS"+reset+"\nsuccess\n")+
		section("cleanup_file_variables", "Cleaning up project directory and file based variables", "")+
		green+"Job succeeded"+reset+"\n", j.plain())
	require.EqualValues(t, len(j.trace()), r.TraceLength)
	require.Equal(t, crc32.ChecksumIEEE([]byte(j.trace())), r.TraceCRC32)
	require.False(t, r.StartedAt.IsZero())
	require.False(t, r.FinishedAt.Before(r.StartedAt))
	require.Empty(t, j.log())
}

func TestWithoutSections(t *testing.T) {
	j := newJob(t, "echo hi")
	j.payload.Features.TraceSections = false
	j.run()
	require.NotContains(t, j.trace(), "section_")
	require.Contains(t, j.trace(), cyan+"Preparing environment"+reset+reset+"\nRunning on ")
}

func TestThePrefixCounts(t *testing.T) {
	j := newJob(t, "echo hi")
	prefix := []byte("Running with switchyard\n")
	f, err := folder.Make(j.dir)
	require.NoError(t, err)
	w, err := f.OpenPrefix()
	require.NoError(t, err)
	_, err = w.Write(prefix)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, f.Close())
	j.spec.PrefixLength, j.spec.PrefixCRC32 = int64(len(prefix)), crc32.ChecksumIEEE(prefix)
	r := j.run()
	require.Equal(t, crc32.ChecksumIEEE(append(prefix, j.trace()...)), r.TraceCRC32)
	whole, err := j.folder.OpenTrace()
	require.NoError(t, err)
	defer whole.Close()
	size, err := whole.Size()
	require.NoError(t, err)
	require.Equal(t, int64(len(prefix))+r.TraceLength, size)
}

func TestHowScriptsEnd(t *testing.T) {
	for script, code := range map[string]int{
		"true": 0, "exit 0": 0, "false": 1, "exit 3": 3, "exit 255": 255, "kill -9 $$": 137, "kill -SEGV $$": 139,
		"no-such-command-here": 127, "set +e; (exit 4)": 4, "(exit 5) | cat": 5, "exec sh -c 'exit 6'": 6, "if (": 2,
	} {
		t.Run(script, func(t *testing.T) {
			j := newJob(t, script)
			r := j.run()
			if code == 0 {
				require.Equal(t, runnerapi.StateSuccess, r.State)
				require.Zero(t, r.FailureReason)
				return
			}
			require.Equal(t, runnerapi.StateFailed, r.State)
			require.Equal(t, runnerapi.ReasonScriptFailure, r.FailureReason)
			if script == "if (" && r.ExitCode == 1 { // bash before 5.3
				code = 1
			}
			require.Equal(t, code, r.ExitCode)
			require.Empty(t, r.Message)
			require.True(t, strings.HasSuffix(j.trace(), fmt.Sprintf("%sERROR: Job failed: exit code %d%s\n", red, code, reset)), j.trace())
		})
	}
}

func TestAStepThatFailsEndsTheSteps(t *testing.T) {
	j := newJob(t, "echo one; exit 7")
	j.payload.Steps = append(j.payload.Steps, runnerapi.Step{Name: "second", Script: []string{"echo two"}})
	j.afterScript("echo after $CI_JOB_STATUS", "exit 9")
	r := j.run()
	require.Equal(t, 7, r.ExitCode)
	require.NotContains(t, j.trace(), "step_second")
	require.Contains(t, j.trace(), "\nafter failed\n")
	require.Contains(t, j.trace(), warn+"after_script failed, but job will continue unaffected: exit code 9"+reset+"\n")
}

func TestAfterScriptFailures(t *testing.T) {
	j := newJob(t, "true")
	j.afterScript("exit 9")
	require.Equal(t, runnerapi.StateSuccess, j.run().State)

	j = newJob(t, "true")
	j.variable("AFTER_SCRIPT_IGNORE_ERRORS", "false")
	j.afterScript("exit 9")
	r := j.run()
	require.Equal(t, runnerapi.StateFailed, r.State)
	require.Equal(t, 9, r.ExitCode)

	j = newJob(t, "exit 2")
	j.variable("AFTER_SCRIPT_IGNORE_ERRORS", "false")
	j.afterScript("exit 9")
	require.Equal(t, 2, j.run().ExitCode)
}

func TestWhatIsNotSupportedIsRefusedByName(t *testing.T) {
	for name, change := range map[string]func(*testJob){
		"secrets":                        func(j *testJob) { j.payload.Secrets = map[string]json.RawMessage{"A": json.RawMessage(`{}`)} },
		"run":                            func(j *testJob) { j.payload.Run = `[{"script":"x"}]` },
		"inputs":                         func(j *testJob) { j.payload.Inputs = json.RawMessage(`[{"key":"a"}]`) },
		"hooks (post_build)":             func(j *testJob) { j.payload.Hooks = []runnerapi.Hook{{Name: "post_build", Script: []string{"x"}}} },
		`GIT_CLONE_PATH="/tmp/x" is not`: func(j *testJob) { j.variable("GIT_CLONE_PATH", "/tmp/x") },
		`variable "A=B": the key must`:   func(j *testJob) { j.variable("A=B", "") },
		`git_info.sha: "zz" is not the`:  func(j *testJob) { j.variable("GIT_STRATEGY", "fetch"); j.payload.GitInfo.SHA = "zz" },
		"secrets, run, which this runne": func(j *testJob) {
			j.payload.Secrets = map[string]json.RawMessage{"A": json.RawMessage(`{}`)}
			j.payload.Run = "[]"
		},
		"suspend_options":        func(j *testJob) { j.payload.SuspendOptions = json.RawMessage(`{"suspend_on_success":true}`) },
		"GIT_SUBMODULE_STRATEGY": func(j *testJob) { j.variable("GIT_STRATEGY", "fetch"); j.variable("GIT_SUBMODULE_STRATEGY", "some") },
	} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, "echo ran")
			change(j)
			j.payload.Features.FailureReasons = []runnerapi.FailureReason{runnerapi.ReasonConfiguration}
			r := j.run()
			require.Equal(t, runnerapi.StateFailed, r.State)
			require.Equal(t, runnerapi.ReasonConfiguration, r.FailureReason)
			require.Contains(t, r.Message, name)
			require.Contains(t, j.trace(), red+"ERROR: Job failed: "+r.Message+reset+"\n")
			require.NotContains(t, j.trace(), "ran\n")
			require.NoDirExists(t, j.builds, "nothing of the job has been done")
		})
	}
	t.Run("a GitLab that does not know the reason", func(t *testing.T) {
		j := newJob(t, "echo ran")
		j.payload.Run = "[]"
		require.Equal(t, runnerapi.ReasonScriptFailure, j.run().FailureReason)
	})
}

func TestPayloadsAsGitLabWritesThem(t *testing.T) {
	j := newJob(t)
	j.raw = []byte(`{"id":7,"token":"t","allow_git_fetch":true,"job_info":{"id":7,"project_id":42,"new":{"a":[1]}},
		"git_info":{"repo_url":"http://gitlab.test/g/p.git","sha":"` + strings.Repeat("b", 40) + `","refspecs":[],"depth":20},
		"runner_info":{"timeout":60,"runner_session_url":null},"inputs":[],"variables":[{"key":"GIT_STRATEGY","value":"none","public":true,"masked":false}],
		"steps":[{"name":"script","script":["echo ran"],"timeout":60,"when":"on_success","allow_failure":false}],
		"image":{"name":null,"entrypoint":null},"services":[],"artifacts":null,"cache":[],"credentials":[],"dependencies":[{"id":1,"name":"a","token":"x"}],
		"features":{"trace_sections":true,"failure_reasons":[]},"secrets":{},"hooks":[],"run":"","policy_options":{"x":1},"something_new":{"y":[2,3]}}`)
	require.Equal(t, runnerapi.StateSuccess, j.run().State, j.trace())
	require.Contains(t, j.trace(), "\nran\n")
}

func TestAPayloadThatCannotBeRead(t *testing.T) {
	for _, raw := range []string{"", "{", `{"steps": 5}`, "[]"} {
		j := newJob(t)
		j.raw = []byte(raw)
		if raw == "" {
			j.raw = []byte(" ")
		}
		r := j.run()
		require.Equal(t, runnerapi.ReasonRunnerSystem, r.FailureReason)
		require.Contains(t, j.trace(), "ERROR: Job failed (system failure): read the job's payload: ")
	}
}

func TestAPayloadOfFiveMegabytes(t *testing.T) {
	// No program can be given that much, so the script only uses what the shell has built in; gitlab-runner's jobs too.
	copied := filepath.Join(t.TempDir(), "copy")
	j := newJob(t, `printf '%s' "$BIG" >`+copied+`; echo ${#V4999} $LAST`)
	big := strings.Repeat("0123456789'\"\\\n$é", 2<<20/17)
	j.variable("BIG", big, func(v *runnerapi.Variable) { v.Raw = true })
	for i := range 5000 {
		j.variable(fmt.Sprintf("V%d", i), strings.Repeat("x", 600))
	}
	j.variable("LAST", "last")
	began := time.Now()
	require.Equal(t, runnerapi.StateSuccess, j.run().State)
	require.Less(t, time.Since(began), 30*time.Second)
	require.Equal(t, "600 last\n", j.said())
	b, err := os.ReadFile(copied)
	require.NoError(t, err)
	require.Equal(t, crc32.ChecksumIEEE([]byte(big)), crc32.ChecksumIEEE(b), "the value differs")
}

func TestVariables(t *testing.T) {
	j := newJob(t, `printf '%s\0' "$A" "$B" "$RAW" "$EMPTY" "$(cat "$FILE")" "$FILE" "$REF" "$MULTI" "$CI_PROJECT_DIR" "$CI_BUILDS_DIR" "$CI_SERVER" \
		"$CI_JOB_STATUS" "$CI_CONCURRENT_ID" "$CI_CONCURRENT_PROJECT_ID" "$CI_JOB_TIMEOUT" "$CI_SHARED_ENVIRONMENT" "$CI_RUNNER_VERSION" "$CI_RUNNER_REVISION" \
		"$CI_RUNNER_SHORT_TOKEN" "$RUNNER_TEMP_PROJECT_DIR" "$ENVIRONMENT" "$OVER" "$CI_RUNNER_EXECUTABLE_ARCH" "$PATH" "$INHERITED" "$(stat -c %a "$FILE" 2>/dev/null || stat -f %Lp "$FILE")" "$(pwd)"`)
	j.env = []string{"INHERITED=yes", "GIT_DIR=/nowhere"}
	j.spec.Environment = []runnerapi.Variable{{Key: "ENVIRONMENT", Value: "of the runner"}, {Key: "OVER", Value: "runner"}}
	j.variable("A", "a b'c\"d\\e$$f")
	j.variable("B", "$A-${A}-$NONE")
	j.variable("RAW", "$A", func(v *runnerapi.Variable) { v.Raw = true })
	j.variable("EMPTY", "")
	j.variable("FILE", "content of $A\nline 2", file)
	j.variable("REF", "$FILE")
	j.variable("MULTI", "one\ntwo\n")
	j.variable("OVER", "first")
	j.variable("OVER", "job")
	j.variable("CI_JOB_STATUS", "overridden")
	j.variable("CI_RUNNER_VERSION", "forged")
	j.variable("PATH", "/job/path:/usr/bin:/bin")
	require.Equal(t, runnerapi.StateSuccess, j.run().State, j.trace())
	project := filepath.Join(j.builds, "abcdefghi", "1", "group", "project")
	values := strings.Split(j.said(), "\x00")
	a := "a b'c\"d\\e$f"
	require.Equal(t, []string{
		a, "a b'c\"d\\e$$f-a b'c\"d\\e$$f-", "$A", "", "content of a b'c\"d\\e$$f\nline 2", project + ".tmp/FILE", project + ".tmp/FILE", "one\ntwo\n", project, j.builds, "yes",
		"overridden", "3", "1", "600", "true", "1.2.3", "deadbeef",
		"abcdefghi", project + ".tmp", "of the runner", "job",
	}, values[:22])
	require.Contains(t, values[22], "/")
	require.Equal(t, []string{"/job/path:/usr/bin:/bin", "yes", "600", project, ""}, values[23:])
	require.NoFileExists(t, project+".tmp/FILE", "file variables do not outlive the job")
}

func TestAProfileDoesNotOverrideVariables(t *testing.T) {
	j := newJob(t, `echo "$JAVA_HOME $FROM_PROFILE [$SEEN]"`)
	home := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(home, ".bash_profile"), []byte("export SEEN=$JAVA_HOME JAVA_HOME=/profile FROM_PROFILE=yes; cd /\n"), 0o600))
	j.env = []string{"HOME=" + home}
	j.spec.Login = true
	j.variable("JAVA_HOME", "/job")
	j.run()
	require.Equal(t, "/job yes []\n", j.said())
}

func TestVariablesThatShellsDoNotTake(t *testing.T) {
	j := newJob(t, "echo $GOOD")
	j.variable("1BAD", "x")
	j.variable("BAD-NAME", "x")
	j.variable("GOOD", "good")
	require.Equal(t, runnerapi.StateSuccess, j.run().State)
	require.Contains(t, j.trace(), warn+"These variables are not set, because shells do not take their names: 1BAD, BAD-NAME"+reset+"\n")
	require.Equal(t, "good\n", j.said())
}

func TestStateBetweenSteps(t *testing.T) {
	j := newJob(t, `echo "A=from script" >>$GITLAB_ENV; echo B=2 >>$GITLAB_ENV; export C=3; echo x >"$F"`)
	j.variable("F", "fresh", file)
	j.afterScript(`echo "[$A][$B][$C][$(cat $F)]"`)
	require.Equal(t, runnerapi.StateSuccess, j.run().State)
	require.Contains(t, j.trace(), "\n[from script][2][][fresh]\n")

	j = newJob(t, `rm -rf "$RUNNER_TEMP_PROJECT_DIR"`)
	j.variable("F", "again", file)
	j.afterScript(`cat $F`)
	require.Equal(t, runnerapi.StateSuccess, j.run().State)
	require.Contains(t, j.trace(), "$ cat $F"+reset+"\nagain")

	for _, instead := range []string{"mkfifo $GITLAB_ENV", "ln -s /etc/passwd $GITLAB_ENV", "mkdir $GITLAB_ENV"} {
		j = newJob(t, instead)
		j.payload.Steps = append(j.payload.Steps, runnerapi.Step{Name: "next", Script: []string{"echo no"}})
		r := j.run()
		require.Equal(t, runnerapi.StateFailed, r.State)
		require.Equal(t, runnerapi.ReasonScriptFailure, r.FailureReason)
		require.Contains(t, j.trace(), "ERROR: Job failed: $GITLAB_ENV must be a regular file")
	}
}

func TestSecretsAreMasked(t *testing.T) {
	j := newJob(t, `printf 'sec'; sleep 0.05; printf 'ret-'; sleep 0.05; echo value; echo "$TOKEN glpat-abc.def x=?private_token=zzz&y mytok-123"; echo done`)
	j.variable("SECRET", "secret-value", masked)
	j.variable("TOKEN", "job-token-0123456789")
	j.payload.GitInfo.RepoURL = "http://gitlab-ci-token:url-password@gitlab.test/group/project.git"
	j.payload.Features.TokenMaskPrefixes = []string{"mytok-"}
	j.afterScript("echo url-password $SECRET")
	j.payload.Steps[0].Name = "script"
	require.Equal(t, runnerapi.StateSuccess, j.run().State)
	require.Equal(t, "[MASKED]\n[MASKED] glpat-[MASKED] x=?private_token=[MASKED]&y mytok-[MASKED]\ndone\n", j.said())
	require.Contains(t, j.trace(), green+"$ echo [MASKED] $SECRET"+reset+"\n[MASKED] [MASKED]\n")
	for _, file := range []string{folder.TraceFile, folder.ResultFile, folder.LogFile, folder.StartedFile} {
		b, err := os.ReadFile(filepath.Join(j.dir, file))
		require.NoError(t, err)
		require.NotContains(t, string(b), "secret-value")
	}
}

func TestSecretsAreNotInAnyCommandLine(t *testing.T) {
	j := newJob(t, `ps -eo args 2>/dev/null | grep -c "need[l]e-in-argv" || true; tr '\0' ' ' </proc/$$/cmdline 2>/dev/null; tr '\0' '\n' </proc/$PPID/environ 2>/dev/null | grep -c need[l]e || true`)
	j.variable("SECRET", "needle-in-argv")
	j.run()
	require.NotContains(t, j.said(), "needle")
	require.Contains(t, j.said(), "0\n")
	require.NotContains(t, j.said(), "1\n")
}

func TestOutputIsExact(t *testing.T) {
	for name, c := range map[string]struct{ script, want string }{
		"no newline at the end": {`printf x`, "x"},
		"carriage returns":      {`printf '10%%\r20%%\r\n'`, "10%\r20%\r\n"},
		"NUL":                   {`printf 'a\0b\n'`, "a\x00b\n"},
		"not UTF-8":             {`printf '\377\376\200a\303\n'`, "\xff\xfe\x80a\xc3\n"},
		"UTF-8":                 {`printf 'é😀\n'`, "é😀\n"},
		"order of the streams":  {`for i in 1 2 3 4 5 6 7 8 9; do echo o$i; echo e$i >&2; done`, "o1\ne1\no2\ne2\no3\ne3\no4\ne4\no5\ne5\no6\ne6\no7\ne7\no8\ne8\no9\ne9\n"},
		"/dev/stdout":           {`echo a >/dev/stdout; echo b >/dev/stderr; echo c | tee /dev/stderr >/dev/null`, "a\nb\nc\n"},
		"nothing":               {`:`, ""},
		"something like a mark": {`printf 'section_end:1:step_x\r\033[0K\n'`, "section_end:T:step_x\r\x1b[0K\n"},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, c.script)
			require.Equal(t, runnerapi.StateSuccess, j.run().State)
			require.Equal(t, c.want, j.said())
		})
	}
	t.Run("every byte", func(t *testing.T) {
		all := make([]byte, 0, 256*257)
		for i := range 256 {
			for k := range 257 {
				all = append(all, byte(i*k+k))
			}
		}
		path := filepath.Join(t.TempDir(), "bytes")
		require.NoError(t, os.WriteFile(path, all, 0o600))
		j := newJob(t, "cat "+path)
		j.run()
		require.Equal(t, crc32.ChecksumIEEE(all), crc32.ChecksumIEEE([]byte(j.said())), "the bytes differ")
	})
}

func TestAHundredMegabytes(t *testing.T) {
	line := "0123456789abcdef\x00\xff\r glpat missing é\n"
	j := newJob(t, "cat "+bigFile(t, line, 100<<20))
	r := j.run()
	require.Equal(t, runnerapi.StateSuccess, r.State)
	said := j.said()
	require.Len(t, said, 100<<20/len(line)*len(line))
	require.Equal(t, len(said)/len(line), strings.Count(said, line))
	require.Equal(t, crc32.ChecksumIEEE([]byte(j.trace())), r.TraceCRC32)
}

// bigFile is a file of about size bytes made of lines.
func bigFile(t testing.TB, line string, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "big")
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte(line), size/len(line)), 0o600))
	return path
}

func TestTheOutputLimit(t *testing.T) {
	j := newJob(t, "for i in 1 2 3 4 5 6 7 8 9; do printf '%01000d\\n' $i; done", "echo went on >"+filepath.Join(t.TempDir(), "proof"))
	j.spec.OutputLimit = 5000
	r := j.run()
	require.Equal(t, runnerapi.StateSuccess, r.State)
	notice := "\n\x1b[33;1mJob's log exceeded limit of 5000 bytes.\nJob execution will continue but no more output will be collected.\x1b[0;m\n"
	require.True(t, strings.HasSuffix(j.trace(), notice))
	require.EqualValues(t, 5000+len(notice), r.TraceLength)
	require.Equal(t, crc32.ChecksumIEEE([]byte(j.trace())), r.TraceCRC32)
}

func TestTimestamps(t *testing.T) {
	j := newJob(t, "echo one; printf two")
	j.variable("FF_TIMESTAMPS", "true")
	j.run()
	const at = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z `
	require.Regexp(t, `(?s)^`+at+`00O section_start:\d+:prepare_script\r`, j.trace())
	require.Regexp(t, `(?s)\n`+at+`01O one\n`+at+`01O two\n`+at+`00O[ +]section_end:\d+:step_script\r`, j.trace())
	require.Regexp(t, at+`00O[ +].*Job succeeded`+"\x1b\\[0;m\n$", j.trace())
}

func TestSettingsThatCannotBeUnderstood(t *testing.T) {
	j := newJob(t, "true")
	j.variable("AFTER_SCRIPT_IGNORE_ERRORS", "perhaps")
	j.variable("RUNNER_SCRIPT_TIMEOUT", "soon")
	j.variable("FF_SOMETHING_UNHEARD_OF", "true")
	j.variable("FF_USE_FASTZIP", "true")
	require.Equal(t, runnerapi.StateSuccess, j.run().State)
	for _, line := range []string{
		`AFTER_SCRIPT_IGNORE_ERRORS: expected bool, got "perhaps", using default value: true`, "Ignoring malformed RUNNER_SCRIPT_TIMEOUT timeout: soon",
		"FF_SOMETHING_UNHEARD_OF: this feature flag is not supported and has no effect",
	} {
		require.Contains(t, j.trace(), warn+line+reset+"\n")
	}
	require.NotContains(t, j.trace(), "FASTZIP")
}

func TestShells(t *testing.T) {
	j := newJob(t, "echo ${BASH_VERSION:-none}", `echo 'a\nb'`)
	j.spec.Shells = []string{"sh"}
	require.Equal(t, runnerapi.StateSuccess, j.run().State)

	j = newJob(t, "echo no")
	j.spec.Shells = []string{"no-such-shell", "neither"}
	r := j.run()
	require.Equal(t, runnerapi.ReasonRunnerSystem, r.FailureReason)
	require.Contains(t, r.Message, "prepare environment: no shell found: looked for no-such-shell, neither in ")
	require.NotContains(t, j.trace(), "get_sources")
}

func TestHooks(t *testing.T) {
	up := newRepository(t)
	j := newJob(t, "cat before after file")
	up.use(j)
	j.payload.Hooks = []runnerapi.Hook{
		{Name: "pre_get_sources_script", Script: []string{"mkdir -p $CI_PROJECT_DIR.tmp; echo before >$CI_PROJECT_DIR.tmp/before"}},
		{Name: "post_get_sources_script", Script: []string{"mv ../project.tmp/before .", "echo after >after"}},
	}
	require.Equal(t, runnerapi.StateSuccess, j.run().State, j.trace())
	require.Equal(t, "before\nafter\nthree", j.said())

	j = newJob(t, "echo ran")
	up.use(j)
	j.payload.Hooks = []runnerapi.Hook{{Name: "pre_get_sources_script", Script: []string{"exit 12"}}}
	r := j.run()
	require.Equal(t, 12, r.ExitCode)
	require.NotContains(t, j.trace(), "Fetching")
}

func TestADeepFolder(t *testing.T) {
	j := newJob(t, "echo hi")
	j.dir = filepath.Join(filepath.Dir(j.dir), strings.Repeat("deep", 50))
	j.start()
	require.Equal(t, runnerapi.StateSuccess, j.result().State)
}

func TestTheReleaseStep(t *testing.T) {
	j := newJob(t, "true")
	j.variable("TAG", "v1")
	j.payload.Steps = append(j.payload.Steps, runnerapi.Step{Name: "release", Script: []string{`echo "tag '$TAG'"`}})
	j.run()
	require.Contains(t, j.trace(), green+`$ echo "tag 'v1'"`+reset+"\ntag 'v1'\n")
}

func TestDebugTrace(t *testing.T) {
	j := newJob(t, "echo $((40+2))")
	j.variable("CI_DEBUG_TRACE", "true")
	j.variable("SECRET", "secret-value", masked)
	j.run()
	require.Contains(t, j.trace(), "+ echo 42\n")
	require.NotContains(t, j.trace(), "secret-value")
}
