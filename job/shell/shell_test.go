//go:build unix

package shell_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/job/shell"
)

// shells are those that this machine has; bash and some sh are everywhere.
func shells(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for name, argv := range map[string][]string{
		"bash": {"bash"}, "bash as a login shell": {"bash", "-l"}, "sh": {"sh"}, "dash": {"dash"}, "busybox": {"busybox", "sh"},
	} {
		if _, err := exec.LookPath(argv[0]); err == nil {
			found[name] = argv
		}
	}
	require.Contains(t, found, "bash")
	require.Contains(t, found, "sh")
	return found
}

func run(t *testing.T, argv []string, s shell.Script) (output string, code int) {
	t.Helper()
	if s.Dir == "" {
		s.Dir = t.TempDir()
	}
	text, _ := s.Text()
	file := filepath.Join(t.TempDir(), "script")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	stdin, err := os.Open(file)
	require.NoError(t, err)
	defer stdin.Close()
	c := exec.Command(argv[0], argv[1:]...)
	c.Stdin = stdin
	c.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
	out, err := c.CombinedOutput()
	if c.ProcessState == nil {
		require.NoError(t, err)
	}
	return string(out), c.ProcessState.ExitCode()
}

func TestFrame(t *testing.T) {
	const g, r = "\x1b[32;1m", "\x1b[0;m"
	for name, argv := range shells(t) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, c := range []struct {
				name     string
				script   shell.Script
				output   string
				exitCode int
			}{
				{"nothing", shell.Script{}, "", 0},
				{"echoes", shell.Script{Commands: []string{"echo hi", " printf 'a\\nb' "}}, g + "$ echo hi" + r + "\nhi\n" + g + `$ printf 'a\nb'` + r + "\na\nb", 0},
				{"an empty command", shell.Script{Commands: []string{"", "echo x"}}, "\n" + g + "$ echo x" + r + "\nx\n", 0},
				{"more than a line", shell.Script{Commands: []string{"if true\nthen echo 'it'\"'s\"\nfi"}}, g + "$ if true # collapsed multi-line command" + r + "\nit's\n", 0},
				{"a notice", shell.Script{Notice: "Running after script...", Commands: []string{"true"}}, g + "Running after script..." + r + "\n" + g + "$ true" + r + "\n", 0},
				{"a failure ends it", shell.Script{Commands: []string{"false", "echo no"}}, g + "$ false" + r + "\n", 1},
				{"an exit code", shell.Script{Commands: []string{"exit 42", "echo no"}}, g + "$ exit 42" + r + "\n", 42},
				{"a subshell's code", shell.Script{Commands: []string{"(exit 7)"}}, g + "$ (exit 7)" + r + "\n", 7},
				{"the last code without errexit", shell.Script{Commands: []string{"set +e", "(exit 9)"}}, g + "$ set +e" + r + "\n" + g + "$ (exit 9)" + r + "\n", 9},
				{"errexit off goes on", shell.Script{Commands: []string{"set +e", "false", "echo on"}}, g + "$ set +e" + r + "\n" + g + "$ false" + r + "\n" + g + "$ echo on" + r + "\non\n", 0},
				{"codes are checked", shell.Script{CheckExitCodes: true, Commands: []string{"set +e", "(exit 5)", "echo on"}}, g + "$ set +e" + r + "\n" + g + "$ (exit 5)" + r + "\n", 5},
				{"no input", shell.Script{Commands: []string{"cat", "read x || echo eof"}}, g + "$ cat" + r + "\n" + g + "$ read x || echo eof" + r + "\neof\n", 0},
				{"state goes on", shell.Script{Commands: []string{"cd /", "f() { echo in $PWD; }", "f"}}, g + "$ cd /" + r + "\n" + g + "$ f() { echo in $PWD; }" + r + "\n" + g + "$ f" + r + "\nin /\n", 0},
				{"the folder", shell.Script{Dir: dir, Commands: []string{"pwd"}}, g + "$ pwd" + r + "\n" + dir + "\n", 0},
				{"noclobber is off", shell.Script{Dir: dir, Commands: []string{"echo 1 >x; echo 2 >x; cat x"}}, g + "$ echo 1 >x; echo 2 >x; cat x" + r + "\n2\n", 0},
				{"a trap at the end", shell.Script{Commands: []string{"trap 'echo bye' EXIT", "false"}}, g + "$ trap 'echo bye' EXIT" + r + "\n" + g + "$ false" + r + "\nbye\n", 1},
				{"parsed when its turn comes", shell.Script{Commands: []string{"echo first", "exit 3", "if ("}}, g + "$ echo first" + r + "\nfirst\n" + g + "$ exit 3" + r + "\n", 3},
				{"unset parameters", shell.Script{Commands: []string{"set -u", "echo a"}}, g + "$ set -u" + r + "\n" + g + "$ echo a" + r + "\na\n", 0},
				{"a heredoc", shell.Script{Commands: []string{"cat <<EOF\n$HOME_X 'q'\nEOF", "echo b"}}, g + "$ cat <<EOF # collapsed multi-line command" + r + "\n 'q'\n" + g + "$ echo b" + r + "\nb\n", 0},
			} {
				t.Run(c.name, func(t *testing.T) {
					output, code := run(t, argv, c.script)
					require.Equal(t, c.output, output)
					require.Equal(t, c.exitCode, code)
				})
			}
		})
	}
}

func TestPipefail(t *testing.T) {
	output, code := run(t, []string{"bash"}, shell.Script{Commands: []string{"(exit 3) | cat"}})
	require.Equal(t, 3, code, output)
}

func TestTrace(t *testing.T) {
	output, code := run(t, []string{"bash"}, shell.Script{Trace: true, Commands: []string{"echo $((1+1))"}})
	require.Equal(t, 0, code)
	require.Contains(t, output, "+ echo 2\n")
}

func TestLogoutCannotFailAJob(t *testing.T) {
	home := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(home, ".bash_logout"), []byte("false\n"), 0o600))
	s := shell.Script{Dir: home, Commands: []string{"echo done"}}
	text, _ := s.Text()
	c := exec.Command("bash", "-l")
	c.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
	c.Stdin = bytes.NewReader(text)
	out, err := c.CombinedOutput()
	require.NoError(t, err, string(out))
}

func TestSections(t *testing.T) {
	output, code := run(t, []string{"sh"}, shell.Script{Section: "script_step", Commands: []string{"echo 1", "echo 2\necho $# 3"}})
	require.Equal(t, 0, code)
	require.Regexp(t, `(?s)\nsection_start:\d+:section_script_step_1\[hide_duration=true,collapsed=true\]\r\x1b\[0K\x1b\[32;1m\$ echo 2\necho \$# 3\x1b\[0;m\nsection_end:\d+:section_script_step_1\r\x1b\[0K\n2\n0 3\n$`, output)
}

func TestValuesAreExact(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	values := []string{"", "'", "''", `\`, `\n`, "\n", "a\n\n", "$HOME", "`id`", "$(id)", "!!", "\x01\x7f\x81\x88\xff", "-n", "*", "~", "é\xc3"}
	for range 200 {
		b := make([]byte, r.IntN(40))
		for i := range b {
			b[i] = byte(1 + r.IntN(255))
		}
		values = append(values, string(b))
	}
	var exports []shell.Export
	want := ""
	show := "for v in"
	for i, v := range values {
		key := fmt.Sprintf("V%d", i)
		exports = append(exports, shell.Export{Key: key, Value: v})
		show += ` "$` + key + `"`
		want += v + "\x00"
	}
	for name, argv := range shells(t) {
		t.Run(name, func(t *testing.T) {
			output, code := run(t, argv, shell.Script{Exports: exports, Commands: []string{show + `; do printf '%s\0' "$v"; done`}})
			require.Equal(t, 0, code, output)
			_, got, _ := strings.Cut(output, "\x1b[0;m\n")
			require.Equal(t, want, got)
		})
	}
}

func TestValuesHaveNoLimit(t *testing.T) {
	for name, argv := range shells(t) {
		t.Run(name, func(t *testing.T) {
			exports := []shell.Export{{Key: "BIG", Value: strings.Repeat("0123456789abcde\n", 5<<20/16)}}
			output, code := run(t, argv, shell.Script{Exports: exports, Commands: []string{`echo ${#BIG}`}})
			require.Equal(t, 0, code)
			require.Contains(t, output, "\n5242880\n")
		})
	}
}

func TestNamesThatNoShellCanAssign(t *testing.T) {
	for name, argv := range shells(t) {
		t.Run(name, func(t *testing.T) {
			s := shell.Script{Commands: []string{"echo $OK"}}
			bad := []string{"1X", "A-B", "A B", "é", "UID", "PPID", "EUID", "SHELLOPTS", "BASHOPTS", "BASH_VERSINFO"}
			for _, key := range bad {
				s.Exports = append(s.Exports, shell.Export{Key: key, Value: "1"})
			}
			s.Exports = append(s.Exports, shell.Export{Key: "OK", Value: "fine"})
			_, leftOut := s.Text()
			require.Equal(t, bad, leftOut)
			output, code := run(t, argv, s)
			require.Equal(t, 0, code)
			require.Contains(t, output, "\nfine\n")
		})
	}
}

func TestAssignments(t *testing.T) {
	lines := shell.Assignments([]byte("A=1\n  B=two words  \n\nC='x'\nD=last"))
	require.Equal(t, []string{"A=1", "B=two words", "C='x'", "D=last"}, lines)
	output, code := run(t, []string{"sh"}, shell.Script{Assignments: lines, Commands: []string{`echo "$A|$B|$C|$D"`}})
	require.Equal(t, 0, code)
	require.Contains(t, output, "\n1|two words|'x'|last\n")
	output, code = run(t, []string{"bash"}, shell.Script{Assignments: []string{"a b=1"}, Commands: []string{"echo went on"}})
	require.Equal(t, 1, code)
	require.NotContains(t, output, "went on")
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "myshell")
	require.NoError(t, os.WriteFile(fake, []byte("#!/bin/sh\n"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "not-executable"), nil, 0o644))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "folder"), 0o755))

	s, err := shell.Find([]string{"not-executable", "folder", "/no/such/shell", "myshell", "sh"}, true, dir)
	require.NoError(t, err)
	require.Equal(t, shell.Shell{Path: fake, Argv: []string{"myshell"}}, s)
	s, err = shell.Find([]string{"bash"}, true, "")
	require.NoError(t, err)
	require.Equal(t, []string{"bash", "-l"}, s.Argv)
	s, err = shell.Find([]string{"/bin/sh"}, true, "")
	require.NoError(t, err)
	require.Equal(t, shell.Shell{Path: "/bin/sh", Argv: []string{"sh"}}, s)
	_, err = shell.Find([]string{"fish", "zsh-none"}, false, "relative:"+dir)
	require.ErrorContains(t, err, "no shell found: looked for fish, zsh-none in relative:"+dir)
}
