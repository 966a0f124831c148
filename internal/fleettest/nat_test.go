package fleettest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/switchyard-ci/switchyard/internal/testbed"
)

// The addresses of the network (RFC 5737 and RFC 1918). All of them are in namespaces of their own.
const (
	planeAddress = "203.0.113.1"
	planeListens = planeAddress + ":7443"
	outerFirst   = "203.0.113.2"
	outerSecond  = "203.0.113.3"
	innerAddress = "192.168.77.1"
	agentAddress = "192.168.77.2"
)

// nat is three hosts: one where GitLab and the control plane are, one behind a router, and the router, which hides the
// latter's address. Each is a network namespace.
type nat struct {
	t                    *testing.T
	plane, router, agent string
	outer                string // the router's address towards the control plane
}

func newNAT(t *testing.T) *nat {
	t.Helper()
	testbed.Need(t, testbed.IPRoute2, testbed.IPTables)
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	prefix := fmt.Sprintf("switchyard-%d-%d-", os.Getpid(), time.Now().UnixNano())
	n := &nat{t: t, plane: prefix + "plane", router: prefix + "router", agent: prefix + "agent"}
	t.Cleanup(n.remove)
	for _, ns := range []string{n.plane, n.router, n.agent} {
		n.run("ip", "netns", "add", ns)
		n.run("ip", "-n", ns, "link", "set", "lo", "up")
	}
	n.run("ip", "-n", n.router, "link", "add", "outer", "type", "veth", "peer", "name", "eth0", "netns", n.plane)
	n.run("ip", "-n", n.router, "link", "add", "inner", "type", "veth", "peer", "name", "eth0", "netns", n.agent)
	for _, a := range [][3]string{
		{n.plane, "eth0", planeAddress}, {n.router, "inner", innerAddress}, {n.agent, "eth0", agentAddress},
	} {
		n.run("ip", "-n", a[0], "addr", "add", a[2]+"/24", "dev", a[1])
		n.run("ip", "-n", a[0], "link", "set", a[1], "up")
	}
	n.run("ip", "-n", n.router, "link", "set", "outer", "up")
	n.address(outerFirst)
	n.run("ip", "-n", n.agent, "route", "add", "default", "via", innerAddress)
	n.inRouter("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
	n.inRouter("iptables", "-w", "-t", "nat", "-A", "POSTROUTING", "-o", "outer", "-j", "MASQUERADE")
	return n
}

func (n *nat) run(name string, args ...string) {
	n.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(n.t, err, "%s %s: %s", name, strings.Join(args, " "), out)
}

func (n *nat) inRouter(args ...string) {
	n.t.Helper()
	n.run("ip", append([]string{"netns", "exec", n.router}, args...)...)
}

// remove ends what is left in the namespaces (a job whose test failed waits for ever) and removes them.
func (n *nat) remove() {
	for _, ns := range []string{n.agent, n.plane, n.router} {
		if _, err := os.Stat(filepath.Join("/run/netns", ns)); err != nil {
			continue
		}
		pids, err := exec.Command("ip", "netns", "pids", ns).Output()
		if err != nil {
			n.t.Errorf("list the processes of %s: %v", ns, err)
		}
		for pid := range bytes.FieldsSeq(pids) {
			if id, err := strconv.Atoi(string(pid)); err == nil && id != os.Getpid() {
				_ = syscall.Kill(id, syscall.SIGKILL)
			}
		}
		if out, err := exec.Command("ip", "netns", "del", ns).CombinedOutput(); err != nil {
			n.t.Errorf("remove %s: %v: %s", ns, err, out)
		}
	}
}

// address gives the router another address towards the control plane. Taking the old one away makes it forget every
// connection that it had translated to it.
func (n *nat) address(a string) {
	n.t.Helper()
	n.run("ip", "-n", n.router, "addr", "flush", "dev", "outer")
	n.run("ip", "-n", n.router, "addr", "add", a+"/24", "dev", "outer")
	n.outer = a
}

// cut lets nothing through any more, and tells nobody. mend undoes it.
func (n *nat) cut()  { n.inRouter("iptables", "-w", "-I", "FORWARD", "-j", "DROP") }
func (n *nat) mend() { n.inRouter("iptables", "-w", "-D", "FORWARD", "-j", "DROP") }

// inNamespace calls f on a thread that is in the namespace; what f opens stays there.
func inNamespace(ns string, f func() error) error {
	done := make(chan error)
	go func() { done <- visit(ns, f) }()
	return <-done
}

// visit may leave its goroutine locked to a thread that nobody else can use; the thread then ends with it.
func visit(ns string, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := os.Open(filepath.Join("/run/netns", ns))
	if err != nil {
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back)
	}
	runtime.UnlockOSThread()
	return err
}

func (n *nat) listen(address string) (l net.Listener) {
	n.t.Helper()
	require.NoError(n.t, inNamespace(n.plane, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}))
	return l
}

// socket is a line of /proc/PID/net/tcp and its like.
type socket struct {
	protocol      string
	local, remote netip.AddrPort
	listens       bool // TCP, or UDP without a peer
}

// sockets are those of the whole network namespace of a process.
func sockets(t *testing.T, pid int) []socket {
	t.Helper()
	var all []socket
	for _, protocol := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, protocol))
		require.NoError(t, err)
		for line := range strings.Lines(string(b)) {
			fields := strings.Fields(line)
			if fields[0] == "sl" {
				continue
			}
			s := socket{protocol: protocol, local: endpoint(t, fields[1]), remote: endpoint(t, fields[2])}
			s.listens = fields[3] == "0A" || strings.HasPrefix(protocol, "udp") && s.remote.Port() == 0
			all = append(all, s)
		}
	}
	return all
}

// endpoint reads the kernel's form: words of the address as they are in memory, and the port.
func endpoint(t *testing.T, text string) netip.AddrPort {
	t.Helper()
	address, port, ok := strings.Cut(text, ":")
	require.True(t, ok, text)
	b, err := hex.DecodeString(address)
	require.NoError(t, err)
	for i := 0; i+4 <= len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	require.True(t, ok, text)
	p, err := strconv.ParseUint(port, 16, 16)
	require.NoError(t, err)
	return netip.AddrPortFrom(a, uint16(p))
}

func listening(all []socket) []socket {
	var found []socket
	for _, s := range all {
		if s.listens {
			found = append(found, s)
		}
	}
	return found
}

// natted is a fleet whose agent is behind the router.
type natted struct {
	*processes
	*nat
	t *testing.T
}

// steps is a job that says a word, waits for a line, says the next, and so on; what it said is in a file, too.
type steps struct {
	f    *natted
	name string
	job  int64
	next int // the gate that it waits at
	end  func()
}

func (f *natted) said(name string) string { return filepath.Join(f.dir, name+".said") }

func (f *natted) gate(name, word string) string { return filepath.Join(f.dir, name+"."+word) }

var words = [...]string{"one", "two", "three"}

// begin runs a job of three steps and waits for the first word.
func (f *natted) begin(name string) *steps {
	f.t.Helper()
	for _, word := range words {
		require.NoError(f.t, syscall.Mkfifo(f.gate(name, word), 0o600))
	}
	run := pipeline(f.t, f.gitlab, project(f.t, f.gitlab, "group/"+name), fmt.Sprintf(`
job:
  script:
    - 'for word in one two three; do echo "word $word"; echo $word >> %s; read line < %s; done; echo "the end"'
`, f.said(name), f.gate(name, "$word")))
	s := &steps{f: f, name: name, job: run.Jobs[0].ID}
	s.end = func() {
		f.t.Helper()
		done := wait(f.t, f.gitlab, run)
		require.Equal(f.t, "success", done.Status, f.logs())
		requireWhole(f.t, done.Jobs[0])
		require.Contains(f.t, string(trace(f.t, f.gitlab, done.Jobs[0])), "word one\nword two\nword three\nthe end\n")
		said, err := os.ReadFile(f.said(name))
		require.NoError(f.t, err)
		require.Equal(f.t, "one\ntwo\nthree\n", string(said), "the script ran once")
	}
	waitForTrace(f.t, f.gitlab, s.job, "word one")
	return s
}

// on lets the job go on to its next word.
func (s *steps) on() {
	s.f.t.Helper()
	require.NoError(s.f.t, os.WriteFile(s.f.gate(s.name, words[s.next]), []byte("go\n"), 0o600))
	s.next++
}

// hasSaid waits until the job, wherever it is, has said a word.
func (s *steps) hasSaid(word string) {
	s.f.t.Helper()
	s.f.until("the job says "+word, func() bool {
		said, err := os.ReadFile(s.f.said(s.name))
		return err == nil && bytes.HasSuffix(said, []byte(word+"\n"))
	})
}

// step is a subtest; what fails in it is its own.
func (f *natted) step(name string, body func(t *testing.T)) {
	whole := f.t
	whole.Run(name, func(t *testing.T) {
		f.t, f.nat.t, f.processes.t = t, t, t
		defer func() { f.t, f.nat.t, f.processes.t = whole, whole, whole }()
		body(t)
	})
}

// online says whether the control plane has a session of the agent.
func (f *natted) online() bool {
	out, err := exec.Command(filepath.Join(bin, "switchyard"), "agents", "list", "-c", f.config()).Output()
	return err == nil && bytes.Contains(out, []byte("hidden  online"))
}

// noticed waits until both sides have given the session up, each because it heard nothing for two ping periods.
func (f *natted) noticed(plane, agent int) {
	f.t.Helper()
	began := time.Now()
	for who, x := range map[string]struct {
		log    *lockedBuffer
		from   int
		phrase string
	}{
		"the control plane": {f.processes.plane.log, plane, "nothing was heard of the agent for"},
		"the agent":         {f.agents["hidden"].log, agent, "has not been heard for two ping periods"},
	} {
		f.until(who+" gives the session up", func() bool { return strings.Contains(x.log.String()[x.from:], x.phrase) })
		f.t.Logf("%s had given the session up %s after the cut", who, time.Since(began).Round(10*time.Millisecond))
	}
	require.False(f.t, f.online())
}

func (f *natted) comesBack() {
	f.t.Helper()
	f.until("the agent comes back", f.online)
}

func (f *natted) logged() (plane, agent int) {
	return len(f.processes.plane.log.String()), len(f.agents["hidden"].log.String())
}

// An agent whose address nobody can reach enrols, runs jobs, is cut off without a word in the middle of them and comes
// back by itself, from another address, too. Each job's script runs once and its trace is whole.
func TestAgentBehindNAT(t *testing.T) {
	n := newNAT(t)
	p := startProcesses(t, processOptions{
		config: "ping_period: 1s\n", gitlab: n.listen(planeAddress + ":8080"), listen: planeListens,
		namespaces: map[string]string{"switchyard": n.plane, "switchyard-agent": n.agent},
	})
	p.startAgent("hidden", 2)
	f := &natted{processes: p, nat: n, t: t}

	f.step("nothing listens on the agent, and nobody can reach it", func(t *testing.T) {
		job := f.begin("listens")
		all := sockets(t, p.agents["hidden"].cmd.Process.Pid)
		require.Empty(t, listening(all), "sockets that listen in the agent's namespace while a job runs")
		remotes := make(map[netip.AddrPort]bool)
		for _, s := range all {
			remotes[s.remote] = true
		}
		require.Contains(t, remotes, netip.MustParseAddrPort(planeListens), "the agent has dialled")

		plane := sockets(t, p.plane.cmd.Process.Pid)
		require.NotEmpty(t, listening(plane), "the control plane listens: a socket that does is seen")
		peers := make(map[netip.Addr]bool)
		for _, s := range plane {
			peers[s.remote.Addr()] = true
		}
		require.Contains(t, peers, netip.MustParseAddr(outerFirst), "it sees the router's address")
		require.NotContains(t, peers, netip.MustParseAddr(agentAddress), "and never the agent's")
		err := inNamespace(n.plane, func() error {
			_, err := net.Dial("tcp", agentAddress+":22")
			return err
		})
		require.ErrorIs(t, err, syscall.ENETUNREACH)
		job.on()
		job.on()
		job.on()
		job.end()
	})

	f.step("cut off and let through again", func(t *testing.T) {
		job := f.begin("cut")
		before, beforeAgent := f.logged()
		n.cut()
		job.on()
		job.hasSaid("two")
		f.noticed(before, beforeAgent)
		job.on()
		job.hasSaid("three")
		n.mend()
		f.comesBack()
		waitForTrace(t, p.gitlab, job.job, "word three")
		job.on()
		job.end()
	})

	f.step("cut off until the router has forgotten the connection and has another address", func(t *testing.T) {
		job := f.begin("forgotten")
		before, beforeAgent := f.logged()
		n.cut()
		f.noticed(before, beforeAgent)
		job.on()
		job.hasSaid("two")
		n.address(outerSecond)
		n.mend()
		f.comesBack()
		waitForTrace(t, p.gitlab, job.job, "word two")
		job.on()
		job.on()
		job.end()
	})

	f.step("the router's address changes under a session that both sides take for alive", func(t *testing.T) {
		job := f.begin("moved")
		before, _ := f.logged()
		n.address(outerFirst)
		f.until("the agent joins anew", func() bool {
			return strings.Contains(p.plane.log.String()[before:], "agent joined")
		})
		f.comesBack()
		job.on()
		waitForTrace(t, p.gitlab, job.job, "word two")
		job.on()
		job.on()
		job.end()
	})

	p.until("no folder of a job is left", func() bool {
		left, err := os.ReadDir(filepath.Join(p.dir, "hidden", "jobs"))
		return err == nil && len(left) == 0
	})
}
