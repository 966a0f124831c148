package dockertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"
)

// startPatience is how long an engine may take to answer or to end.
const startPatience = time.Minute

// Daemon is an engine of a test's own, with all its files in a folder of its own. It touches no firewall. Its default
// network is a bridge of its own too: an engine that is told to have none, or that is restarted
// with address pools of its own, removes the one of the machine's engine.
type Daemon struct {
	t    *testing.T
	dir  string
	args []string
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{}
}

// NewDaemon starts an engine with more arguments; whatever it leaves is removed with the test. The test is skipped where
// there is no dockerd or the test's user may not start one.
func NewDaemon(t *testing.T, args ...string) *Daemon {
	t.Helper()
	if _, err := exec.LookPath("dockerd"); err != nil {
		t.Skip("an engine of its own needs dockerd:", err)
	}
	if os.Getuid() != 0 {
		t.Skip("an engine of its own needs root")
	}
	// The paths of its sockets are limited in length.
	dir, err := os.MkdirTemp("", "sy-dockerd-") //nolint:usetesting // t.TempDir's paths are too long
	require.NoError(t, err)
	bridge := makeBridge(t)
	d := &Daemon{t: t, dir: dir, args: append([]string{
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"),
		"-H", "unix://" + socket(dir), "--bridge", bridge, "--iptables=false", "--ip-masq=false",
		"--config-file", filepath.Join(dir, "daemon.json"),
		// Where the machine has a containerd it is used.
		"--containerd-namespace", filepath.Base(dir), "--containerd-plugins-namespace", filepath.Base(dir) + "-plugins",
	}, args...)}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}"), 0o600))
	d.log, err = os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	t.Cleanup(d.remove)
	d.Start()
	return d
}

// makeBridge makes a bridge that is removed with the test.
func makeBridge(t *testing.T) string {
	t.Helper()
	n := rand.IntN(1 << 16)
	name := fmt.Sprintf("sy-br-%04x", n)
	ip := func(args ...string) {
		t.Helper()
		out, err := exec.Command("ip", args...).CombinedOutput()
		require.NoError(t, err, "ip %v: %s", args, out)
	}
	ip("link", "add", "name", name, "type", "bridge")
	t.Cleanup(func() { ip("link", "del", name) })
	ip("address", "add", fmt.Sprintf("10.214.%d.%d/28", n>>8, n&0xf0|1), "dev", name)
	ip("link", "set", name, "up")
	return name
}

func socket(dir string) string { return filepath.Join(dir, "docker.sock") }

// Host is its address.
func (d *Daemon) Host() string { return "unix://" + socket(d.dir) }

// Dir is a folder for files of the test that go with the engine.
func (d *Daemon) Dir() string { return d.dir }

// Start starts it and waits until it answers.
func (d *Daemon) Start() {
	d.t.Helper()
	d.cmd = exec.Command("dockerd", d.args...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	require.NoError(d.t, d.cmd.Start())
	d.done = make(chan struct{})
	go func(c *exec.Cmd, done chan struct{}) {
		defer close(done)
		_ = c.Wait()
	}(d.cmd, d.done)
	c, err := client.New(client.WithHost(d.Host()))
	require.NoError(d.t, err)
	defer c.Close()
	answers := func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := c.Ping(ctx, client.PingOptions{})
		return err == nil
	}
	require.Eventually(d.t, func() bool { return d.ended() || answers() }, startPatience, 50*time.Millisecond)
	require.False(d.t, d.ended(), "dockerd ended: %s", d.Log())
}

func (d *Daemon) ended() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// Stop ends it in order. Without --live-restore that ends its containers.
func (d *Daemon) Stop() { d.signal(syscall.SIGTERM) }

// Kill ends it at once, and its containerd with it.
func (d *Daemon) Kill() {
	d.signal(syscall.SIGKILL)
	// Where process 1 reaps nobody, the dead containerd would be taken for a living one.
	_ = os.Remove(filepath.Join(d.dir, "exec", "containerd", "containerd.pid"))
}

func (d *Daemon) signal(s syscall.Signal) {
	d.t.Helper()
	require.NoError(d.t, d.cmd.Process.Signal(s))
	select {
	case <-d.done:
	case <-time.After(startPatience):
		d.t.Fatalf("dockerd does not end: %s", d.Log())
	}
}

// Log is what it has to say.
func (d *Daemon) Log() string {
	b, err := os.ReadFile(d.log.Name())
	if err != nil {
		return err.Error()
	}
	const most = 8 << 10
	return string(b[max(0, len(b)-most):])
}

// remove ends what runs and removes the folder, what is mounted in it first.
func (d *Daemon) remove() {
	if !d.ended() {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-d.done:
		case <-time.After(startPatience):
			_ = d.cmd.Process.Kill()
			<-d.done
		}
	}
	d.killLeftovers()
	_ = d.log.Close()
	if b, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range bytes.Lines(b) {
			if f := strings.Fields(string(line)); len(f) > 4 && strings.HasPrefix(f[4], d.dir) {
				_ = syscall.Unmount(f[4], syscall.MNT_DETACH)
			}
		}
	}
	if err := os.RemoveAll(d.dir); err != nil {
		d.t.Errorf("what an engine of the test's own has left: %v", err)
	}
}

// killLeftovers kills the processes that name the folder: containerd, and the keepers of containers that outlived the engine.
func (d *Daemon) killLeftovers() {
	find := func() (pids []int) {
		names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil || !bytes.Contains(b, []byte(filepath.Base(d.dir))) {
				continue
			}
			var pid int
			if _, err := fmt.Sscanf(filepath.Base(filepath.Dir(name)), "%d", &pid); err == nil && pid != os.Getpid() {
				pids = append(pids, pid)
			}
		}
		return pids
	}
	left := func() bool {
		pids := find()
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return len(pids) == 0
	}
	limit := time.Now().Add(10 * time.Second)
	for !left() && time.Now().Before(limit) {
		<-time.After(20 * time.Millisecond) // nothing tells of the end of others' children
	}
}

// Load gives it an image of another engine.
func (d *Daemon) Load(from *client.Client, image string) {
	d.t.Helper()
	to, err := client.New(client.WithHost(d.Host()))
	require.NoError(d.t, err)
	defer to.Close()
	saved, err := from.ImageSave(d.t.Context(), []string{image})
	require.NoError(d.t, err)
	defer saved.Close()
	loaded, err := to.ImageLoad(d.t.Context(), saved, client.ImageLoadWithQuiet(true))
	require.NoError(d.t, err)
	_, err = new(bytes.Buffer).ReadFrom(loaded)
	require.NoError(d.t, errors.Join(err, loaded.Close()))
}
