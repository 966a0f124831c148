//go:build linux

package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// pipes starts a program and returns its standard input and the lines of its standard output.
func pipes(t *testing.T, c *exec.Cmd) (io.WriteCloser, *bufio.Reader) {
	t.Helper()
	in, err := c.StdinPipe()
	require.NoError(t, err)
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		_ = c.Wait()
	})
	return in, bufio.NewReader(out)
}

func TestHoldAndServeMeet(t *testing.T) {
	dir := t.TempDir()
	socket, token, volume := filepath.Join(dir, "s"), filepath.Join(dir, "token"), filepath.Join(dir, "volume")
	require.NoError(t, os.Mkdir(volume, 0o700))

	// The server begins first, as the image's entrypoint has it: without arguments, before there is a token.
	server := program(t)
	server.Env = append(server.Env, "SWITCHYARD_SERVE_SOCKET="+socket, "SWITCHYARD_SERVE_TOKEN_FILE="+token)
	_, served := pipes(t, server)

	holder := program(t, "hold", "--open", volume+":"+dir, "--socket", socket, "--token-file", token)
	in, held := pipes(t, holder)
	_, err := io.WriteString(in, "the-token\n")
	require.NoError(t, err)
	for _, r := range []*bufio.Reader{served, held} {
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		require.True(t, strings.HasSuffix(line, " ready\n"), line)
	}
	require.NoFileExists(t, token)
	info, err := os.Stat(volume)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o777), info.Mode().Perm())

	require.NoError(t, in.Close())
	require.NoError(t, holder.Process.Signal(syscall.SIGTERM))
	require.NoError(t, holder.Wait(), "the end of a container that is stopped")

	j := newJob(t, `env | grep -c ^SWITCHYARD_SERVE || true`)
	j.spec.ScriptSocket, j.spec.ScriptToken = socket, "the-token"
	j.spec.Executor = "docker"
	require.Zero(t, j.run().ExitCode, j.trace())
	require.Equal(t, "0\n", j.said(), "the server's own variables are not the script's")
}

func TestHoldFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Symlink("/", filepath.Join(dir, "link")))
	c := program(t, "hold", "--open", filepath.Join(dir, "link"))
	out, err := c.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "open a volume to everyone")
}

func TestInstall(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		out, err := program(t, "install", dir).CombinedOutput()
		require.NoError(t, err, string(out))
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, entries, 1)
		installed := program(t, "version")
		installed.Path = filepath.Join(dir, "switchyard-job")
		out, err = installed.Output()
		require.NoError(t, err)
		require.Contains(t, string(out), "switchyard-job ")
	}
	out, err := program(t, "install", filepath.Join(dir, "missing")).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "install this program")
}
