package dockertest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/testbed"
)

// SSH starts an SSH server on 127.0.0.1 and returns the address of this machine's default engine through it, and the
// options that ssh needs for it. The test is skipped where there is none.
func SSH(t *testing.T) (host string, options []string) {
	t.Helper()
	testbed.Need(t, testbed.SSHD, testbed.SSH)
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skip("an engine by SSH needs docker's client on its host:", err)
	}
	program, err := exec.LookPath("sshd") // it wants to be called by its whole path
	require.NoError(t, err)
	if os.Getuid() != 0 {
		t.Skip("an SSH server of its own needs root")
	}
	dir := t.TempDir()
	for _, name := range []string{"host", "user"} {
		out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	public, err := os.ReadFile(filepath.Join(dir, "user.pub"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "authorized"), public, 0o600))
	require.NoError(t, os.MkdirAll("/run/sshd", 0o755)) // where it separates its privileges
	port := FreePort(t)
	config := fmt.Sprintf("Port %d\nListenAddress 127.0.0.1\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\n"+
		"PasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\nMaxStartups 100\nMaxSessions 100\n",
		port, filepath.Join(dir, "host"), filepath.Join(dir, "authorized"))
	file := filepath.Join(dir, "sshd_config")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	server := exec.Command(program, "-D", "-e", "-f", file)
	server.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	server.Stderr = log
	require.NoError(t, server.Start())
	t.Cleanup(func() {
		_ = syscall.Kill(-server.Process.Pid, syscall.SIGTERM)
		_ = server.Wait()
		_ = log.Close()
	})
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, 10*time.Second, 20*time.Millisecond)
	return "ssh://root@" + address, []string{
		"-i", filepath.Join(dir, "user"), "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
	}
}
