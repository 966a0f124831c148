// Package ciscripts tests the scripts in .ci with commands that only take notes.
package ciscripts

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/testbed"
)

// machine is a copy of one of the scripts in a tree of its own, and a PATH with nothing but what a test puts there.
type machine struct {
	t         *testing.T
	dir, path string
	script    string
}

// newMachine needs real commands of the machine by their names; the scripts find no others.
func newMachine(t *testing.T, script string, commands ...string) *machine {
	t.Helper()
	testbed.Need(t, testbed.Bash)
	m := &machine{t: t, dir: t.TempDir(), path: t.TempDir()}
	text, err := os.ReadFile(filepath.Join("..", "..", ".ci", script))
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(m.dir, ".ci"), 0o700))
	m.script = filepath.Join(m.dir, ".ci", script)
	require.NoError(t, os.WriteFile(m.script, text, 0o700))
	for _, command := range append(commands, "bash", "env") {
		found, err := exec.LookPath(command)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(found, filepath.Join(m.path, command)))
	}
	return m
}

// fake puts a command on the PATH.
func (m *machine) fake(command, script string) {
	m.t.Helper()
	require.NoError(m.t, os.WriteFile(filepath.Join(m.path, command), []byte("#!/usr/bin/env bash\n"+script), 0o700))
}

// run returns the exit code and what the script wrote.
func (m *machine) run(env ...string) (int, string) {
	m.t.Helper()
	cmd := exec.CommandContext(m.t.Context(), filepath.Join(m.path, "bash"), m.script)
	cmd.Dir = m.t.TempDir()
	cmd.Env = append(env, "PATH="+m.path)
	out, err := cmd.CombinedOutput()
	if err != nil {
		var exit *exec.ExitError
		require.ErrorAs(m.t, err, &exit, "%s", out)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func lastLine(out string) string {
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	return lines[len(lines)-1]
}

// The steps of .ci/run all run, and one that fails is not lost among those that succeed.
func TestRun(t *testing.T) {
	const takesNotes = `target=$3
echo "$*" >>"$NOTES"
[[ ,$FAIL, == *,$target,* ]] && exit 2
[[ $target == unit && -z $SILENT ]] && echo '5 passed, 0 failed, 1 skipped' >"${4#TEST_SUMMARY=}"
exit 0
`
	m := newMachine(t, "run", "dirname", "mkdir", "rm", "cat")
	m.fake("make", takesNotes)
	notes := filepath.Join(t.TempDir(), "notes")
	steps := func() string {
		text, err := os.ReadFile(notes)
		require.NoError(t, err)
		require.NoError(t, os.Remove(notes))
		return strings.ReplaceAll(string(text), "--no-print-directory --keep-going ", "")
	}
	all := "testbed\nbuild\nlint\nunit TEST_SUMMARY=build/test-summary\n"

	code, out := m.run("NOTES=" + notes)
	require.Zero(t, code, out)
	require.Equal(t, "5 passed, 0 failed, 1 skipped", lastLine(out))
	require.Equal(t, all, steps())

	code, out = m.run("NOTES="+notes, "FAIL=lint")
	require.Equal(t, 1, code)
	require.Contains(t, out, "== lint: FAILED")
	require.Contains(t, out, "\nfailed: lint\n")
	require.Equal(t, "5 passed, 0 failed, 1 skipped", lastLine(out))
	require.Equal(t, all, steps())

	// The summary of the run before is not taken for this one's.
	code, out = m.run("NOTES="+notes, "FAIL=build,unit", "SILENT=1")
	require.Equal(t, 1, code)
	require.Contains(t, out, "\nfailed: build,unit,no count of the tests\n")
	require.Equal(t, "0 passed, 1 failed, 0 skipped", lastLine(out))
	steps()

	code, _ = m.run("NOTES="+notes, "SILENT=1")
	require.Equal(t, 1, code, "no test has run")
	steps()
}

func TestRunRequiresComponents(t *testing.T) {
	m := newMachine(t, "run", "dirname", "mkdir", "rm", "cat")
	m.fake("make", `echo "required: $SWITCHYARD_REQUIRE"`)
	_, out := m.run()
	require.Contains(t, out, "required: git,bash,docker,busybox,git-lfs,zip,unzip,zstd,sshd,ssh,iproute2,iptables,postgresql\n")
	_, out = m.run("SWITCHYARD_REQUIRE=git")
	require.Contains(t, out, "required: git\n")
}

const allThere = "testbed: git git-lfs bash docker busybox zip unzip zstd sshd ssh iproute2 iptables postgresql gcc: all there\n"

// newTestbed is a machine on which all components but some are there: `go` answers for the engine, once there is a file
// of its name on the PATH.
func newTestbed(t *testing.T, without ...string) *machine {
	t.Helper()
	m := newMachine(t, "testbed.sh", "dirname", "mkdir", "cp", "tail")
	m.fake("go", `[[ -e $(dirname "$0")/engine ]]`)
	for _, command := range []string{"git", "git-lfs", "engine", "busybox", "zip", "unzip", "zstd", "sshd", "ssh", "ip", "iptables", "initdb", "gcc"} {
		if !slices.Contains(without, command) {
			m.fake(command, "")
		}
	}
	return m
}

func TestTestbedWithAllThere(t *testing.T) {
	code, out := newTestbed(t).run("SWITCHYARD_REQUIRE=git,bash,docker")
	require.Zero(t, code, out)
	require.Equal(t, allThere, out)
}

func TestTestbedNamesWhatIsMissing(t *testing.T) {
	m := newTestbed(t, "git", "engine")
	code, out := m.run()
	require.Zero(t, code, out)
	const missing = "testbed: git is missing: its tests skip\ntestbed: docker is missing: its tests skip\n"
	require.Equal(t, missing, out)

	code, out = m.run("SWITCHYARD_REQUIRE=bash,git")
	require.Equal(t, 1, code)
	require.Equal(t, "testbed: git is missing, and SWITCHYARD_REQUIRE lists it\ntestbed: docker is missing: its tests skip\n", out)

	// Debian, but nobody who may install.
	m.fake("apt-get", "echo never >&2")
	m.fake("id", "echo 1000")
	_, out = m.run()
	require.Equal(t, missing, out)
}

func TestTestbedInstallsOnDebianAsRoot(t *testing.T) {
	m := newTestbed(t, "git", "gcc")
	m.fake("id", "echo 0")
	m.fake("apt-get", `echo "apt-get $*"
[[ $2 != install ]] || { cp "$BIN/id" "$BIN/git"; cp "$BIN/id" "$BIN/gcc"; }
`)
	code, out := m.run("BIN="+m.path, "SWITCHYARD_REQUIRE=git,bash")
	require.Zero(t, code, out)
	require.Equal(t, `testbed: installing git gcc libc6-dev
apt-get -q update
apt-get -q install -y --no-install-recommends git gcc libc6-dev
`+allThere, out)
}

func TestTestbedStartsAnEngine(t *testing.T) {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		t.Skip("systemd starts engines here")
	}
	m := newTestbed(t, "engine")
	m.fake("id", "echo 0")
	m.fake("apt-get", "echo never")
	m.fake("dockerd", "")
	m.fake("rm", "") // of numbers of engines that have ended, on the machine of the tests
	m.fake("setsid", `[[ $* == "--fork dockerd" ]] && cp "$BIN/id" "$BIN/engine"`)
	code, out := m.run("BIN=" + m.path)
	require.Zero(t, code, out)
	require.Equal(t, "testbed: starting dockerd in a session of its own; it logs to build/dockerd.log\n"+allThere, out)

	m = newTestbed(t, "engine")
	m.fake("id", "echo 0")
	m.fake("apt-get", "echo never")
	m.fake("dockerd", "")
	m.fake("rm", "")
	m.fake("setsid", "echo 'no room'")
	code, out = m.run("SWITCHYARD_REQUIRE=docker")
	require.Equal(t, 1, code)
	require.Contains(t, out, "no room\ntestbed: docker is missing, and SWITCHYARD_REQUIRE lists it\n")
}

func TestTestbedWhereInstallingFails(t *testing.T) {
	m := newTestbed(t, "git")
	m.fake("id", "echo 0")
	m.fake("apt-get", "echo 'no network' >&2; exit 100")
	code, out := m.run("SWITCHYARD_REQUIRE=git")
	require.Equal(t, 1, code)
	require.Equal(t, "testbed: installing git\nno network\ntestbed: apt-get failed\ntestbed: git is missing, and SWITCHYARD_REQUIRE lists it\n", out)
}
