package fleettest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
)

// processes is a fleet as users run it: switchyard serve and switchyard-agent as processes of their own. Only GitLab is
// in this process.
type processes struct {
	t      testing.TB
	dir    string
	gitlab *coordinator.Coordinator
	server *http.Server
	listen string // of the control plane
	env    []string

	plane  *process
	agents map[string]*process

	emptyProfile bool
	namespaces   map[string]string
}

// process is a running program.
type process struct {
	cmd  *exec.Cmd
	log  *lockedBuffer
	done chan struct{} // closed when it has been waited for
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// processOptions are what tests and benchmarks differ in.
type processOptions struct {
	runners int
	// register makes projects and says which runners there are, by their descriptions, instead of runners.
	register    func(gitlab *coordinator.Coordinator) []coordinator.RunnerOptions
	config      string // further keys of switchyard.yaml, top level
	runnerKeys  string // further keys of each runner
	coordinator coordinator.Options
	// emptyProfile lets jobs log in with an empty /etc/profile, in a mount namespace of the agent's own, if this is root:
	// what a host's profile costs is not ours.
	emptyProfile bool
	// gitlab is where GitLab listens and listen where the control plane does; ports of the loopback if they are not set.
	gitlab net.Listener
	listen string
	// namespaces are the network namespaces that programs run in; those that are not in it run in the test's own.
	namespaces map[string]string
}

// startProcesses starts the embedded GitLab and a control plane with that many runners.
func startProcesses(t testing.TB, o processOptions) *processes {
	t.Helper()
	p := &processes{
		t: t, dir: t.TempDir(), agents: map[string]*process{}, env: cleanEnvironment(t), listen: o.listen,
		emptyProfile: o.emptyProfile && os.Geteuid() == 0, namespaces: o.namespaces,
	}
	var err error
	l := o.gitlab
	if l == nil {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
	}
	o.coordinator.URL, o.coordinator.Dir = "http://"+l.Addr().String(), t.TempDir()
	p.gitlab, err = coordinator.New(o.coordinator)
	require.NoError(t, err)
	p.server = &http.Server{Handler: p.gitlab.Handler(), ReadHeaderTimeout: time.Minute}
	go func() { _ = p.server.Serve(l) }()

	if p.listen == "" {
		p.listen = freeAddress(t)
	}
	var runners strings.Builder
	var register []coordinator.RunnerOptions
	if o.register != nil {
		register = o.register(p.gitlab)
	} else {
		for i := range max(o.runners, 1) {
			register = append(register, coordinator.RunnerOptions{Description: fmt.Sprintf("runner-%d", i), RunUntagged: true})
		}
	}
	for _, options := range register {
		r, err := p.gitlab.AddRunner(options)
		require.NoError(t, err)
		fmt.Fprintf(&runners, "  - name: %s\n    url: %s\n    token: %s\n    executor: shell\n%s", options.Description, o.coordinator.URL, r.Token, o.runnerKeys)
	}
	config := fmt.Sprintf("listen: %s\ndata: ./plane\n%srunners:\n%s", p.listen, o.config, runners.String())
	require.NoError(t, os.WriteFile(p.config(), []byte(config), 0o600))
	t.Cleanup(p.stop)
	p.startPlane()
	return p
}

func (p *processes) config() string { return filepath.Join(p.dir, "switchyard.yaml") }

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

func (p *processes) start(program string, args ...string) *process {
	p.t.Helper()
	cmd := exec.Command(filepath.Join(bin, program), args...)
	if p.emptyProfile && program == "switchyard-agent" {
		const script = `mount --make-rprivate / && mount --bind /dev/null /etc/profile && exec "$0" "$@"`
		cmd = exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, cmd.Path}, args...)...)
	}
	if ns := p.namespaces[program]; ns != "" {
		cmd = exec.Command("ip", append([]string{"netns", "exec", ns}, cmd.Args...)...)
	}
	cmd.Dir, cmd.Env = p.dir, p.env
	x := &process{cmd: cmd, log: &lockedBuffer{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = x.log, x.log
	cmd.WaitDelay = time.Second
	require.NoError(p.t, cmd.Start())
	go func() {
		defer close(x.done)
		_ = cmd.Wait()
	}()
	return x
}

// signal sends a signal and waits for the end.
func (x *process) signal(t testing.TB, s os.Signal) {
	t.Helper()
	require.NoError(t, x.cmd.Process.Signal(s))
	select {
	case <-x.done:
	case <-time.After(patience):
		t.Fatalf("%s does not end:\n%s", x.cmd.Path, x.log)
	}
}

func (p *processes) startPlane() {
	p.t.Helper()
	p.plane = p.start("switchyard", "serve", "-c", p.config())
	p.until("the control plane is up", func() bool {
		conn, err := net.Dial("unix", filepath.Join(p.dir, "plane", "admin.sock"))
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
}

// startAgent starts an agent; a name that was used before takes up that agent's folder.
func (p *processes) startAgent(name string, slots int) {
	p.t.Helper()
	data := filepath.Join(p.dir, name)
	args := []string{"--server", p.listen, "--data", data, "--name", name, "--slots", strconv.Itoa(slots)}
	if _, err := os.Stat(filepath.Join(data, "agent.crt")); err != nil {
		token := filepath.Join(p.dir, name+".token")
		out, err := exec.Command(filepath.Join(bin, "switchyard"), "agents", "token", "-c", p.config()).Output()
		require.NoError(p.t, err)
		require.NoError(p.t, os.WriteFile(token, out, 0o600))
		args = append(args, "--token-file", token)
	}
	p.agents[name] = p.start("switchyard-agent", args...)
	p.until("agent "+name+" is online", func() bool {
		out, err := exec.Command(filepath.Join(bin, "switchyard"), "agents", "list", "-c", p.config()).Output()
		return err == nil && bytes.Contains(out, []byte(name+"  online"))
	})
}

// until polls what other processes do.
func (p *processes) until(what string, is func() bool) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !is() {
		select {
		case <-ctx.Done():
			p.t.Fatalf("waited in vain: %s\n%s", what, p.logs())
		case <-ticker.C:
		}
	}
}

func (p *processes) logs() string {
	var b strings.Builder
	fmt.Fprintf(&b, "control plane:\n%s", p.plane.log)
	for name, a := range p.agents {
		fmt.Fprintf(&b, "agent %s:\n%s", name, a.log)
	}
	return b.String()
}

func (p *processes) stop() {
	for _, a := range p.agents {
		_ = a.cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, a := range p.agents {
		select {
		case <-a.done:
		case <-time.After(20 * time.Second):
			_ = a.cmd.Process.Kill()
			<-a.done
		}
	}
	_ = p.plane.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.plane.done:
	case <-time.After(30 * time.Second):
		_ = p.plane.cmd.Process.Kill()
		<-p.plane.done
	}
	if p.t.Failed() {
		p.t.Log(p.logs())
	}
	_ = p.server.Close()
	require.NoError(p.t, p.gitlab.Close())
}

// The first promise: whichever part is killed while jobs run, every job ends once, with the whole of its output, and its
// script began once.
func TestJobsOutliveTheirFleet(t *testing.T) {
	p := startProcesses(t, processOptions{config: "ping_period: 1s\n"})
	p.startAgent("first", 3)
	marks := filepath.Join(p.dir, "marks")
	require.NoError(t, os.Mkdir(marks, 0o755))
	gates := filepath.Join(p.dir, "gates")
	require.NoError(t, os.Mkdir(gates, 0o755))
	for i := range 3 {
		require.NoError(t, syscall.Mkfifo(filepath.Join(gates, strconv.Itoa(i+1)), 0o600))
	}
	run := pipeline(t, p.gitlab, project(t, p.gitlab, "group/survivors"), fmt.Sprintf(`
job:
  parallel: 3
  script:
    - 'echo begun >> %s/$CI_NODE_INDEX; echo "first half $CI_NODE_INDEX"; read line < %s/$CI_NODE_INDEX; echo "second half $CI_NODE_INDEX"'
`, marks, gates))
	for _, j := range run.Jobs {
		waitForTrace(t, p.gitlab, j.ID, "first half")
	}

	p.plane.signal(t, syscall.SIGKILL)
	p.startPlane()
	p.agents["first"].signal(t, syscall.SIGKILL)
	p.startAgent("first", 3)
	p.plane.signal(t, syscall.SIGTERM)
	p.agents["first"].signal(t, syscall.SIGQUIT)
	p.startPlane()
	p.startAgent("first", 3)

	for i := range run.Jobs { // the scripts are waiting for a line
		require.NoError(t, os.WriteFile(filepath.Join(gates, strconv.Itoa(i+1)), []byte("go\n"), 0o600))
	}
	done := wait(t, p.gitlab, run)
	require.Equal(t, "success", done.Status, p.logs())
	for i, j := range done.Jobs {
		requireWhole(t, j)
		require.Contains(t, string(trace(t, p.gitlab, j)), fmt.Sprintf("first half %d\nsecond half %d\n", i+1, i+1))
		begun, err := os.ReadFile(filepath.Join(marks, strconv.Itoa(i+1)))
		require.NoError(t, err)
		require.Equal(t, "begun\n", string(begun), "the script of job %d began once", i+1)
	}
	p.until("no folder of a job is left", func() bool {
		left, err := os.ReadDir(filepath.Join(p.dir, "first", "jobs"))
		return err == nil && len(left) == 0
	})
}
