package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// openTerminal makes a pseudo-terminal: what is written to its slave can be read from its master.
func openTerminal(t *testing.T, columns, rows uint16) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("there are no pseudo-terminals here:", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	fd := int(master.Fd())
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}))
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

// onTerminal runs a command on a terminal and returns what it wrote there.
func onTerminal(t *testing.T, cmd *exec.Cmd, columns, rows uint16) string {
	t.Helper()
	master, slave := openTerminal(t, columns, rows)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.Env = append(cmd.Env, "TERM=xterm-256color")
	require.NoError(t, cmd.Start())
	require.NoError(t, slave.Close())
	out, err := io.ReadAll(master)
	if !errors.Is(err, syscall.EIO) { // that is how a terminal ends
		require.NoError(t, err)
	}
	_ = cmd.Wait()
	return string(out)
}

func TestRunOnATerminal(t *testing.T) {
	t.Parallel()
	project := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(project, ".gitlab-ci.yml"), []byte(`
stages: [one, two]
fine: {stage: one, script: [sleep 0.3]}
broken:
  stage: one
  script:
    - printf 'hostile \033[2J\033]0;owned\007\033[10Aoutput\n'
    - printf '\033[31mred\033[0m\n'
    - exit 7
never: {stage: two, script: [echo]}
`), 0o600))
	cmd := switchyard(t, "-C", project)
	out := onTerminal(t, cmd, 70, 20)
	require.Equal(t, 1, cmd.ProcessState.ExitCode())
	require.Contains(t, out, "\x1b[?2026h\x1b[?25l", "frames are drawn at once, without the cursor")
	require.Contains(t, out, "\x1b[36m●\x1b[0m")
	require.True(t, strings.HasSuffix(out, "\x1b[?7h\x1b[?25h"), "the terminal is left in order: %q", out[len(out)-40:])
	end := out[strings.Index(out, "\x1b[31m──"):]
	require.Contains(t, end, "hostile output")
	require.Contains(t, end, "\x1b[0;31mred\x1b[0m")
	require.Contains(t, end, "exit code 7")
	require.Regexp(t, `✗.* .*pipeline failed.* after [0-9.]+s: 1 of 3 jobs failed: broken`, end)
	for _, never := range []string{"\x1b[2J", "\x1b]"} {
		require.NotContains(t, out, never)
	}

	cmd = switchyard(t, "-C", project, "--plain")
	cmd.Env = append(cmd.Env, "NO_COLOR=1")
	out = onTerminal(t, cmd, 70, 20)
	require.NotContains(t, out, "\x1b")
	require.Contains(t, out, "broken │ hostile output\r\n")
}
