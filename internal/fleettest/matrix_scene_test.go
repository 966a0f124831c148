//go:build linux

package fleettest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/switchyard-ci/switchyard/controlplane/admin"
	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/faults"
	"github.com/switchyard-ci/switchyard/internal/testbed"
)

// phase is where a job stands.
type phase string

const (
	claimed   phase = "claimed"   // its row is written, no agent has said yes
	accepted  phase = "accepted"  // an agent said yes; GitLab has it as running and the answer is on its way
	preparing phase = "preparing" // the agent has begun, the script has not
	running   phase = "running"
	uploading phase = "uploading" // the script is over, its artifacts are on their way
	finishing phase = "finishing" // the agent has the result, the control plane has not
	reporting phase = "reporting" // the control plane has the result, GitLab has not
)

var phases = []phase{claimed, accepted, preparing, running, uploading, finishing, reporting}

// first and second are the agents: second is there only in cells that start it.
const (
	first  = "first"
	second = "second"
)

// scene is a fleet of processes with one job, between a GitLab and a network that can be broken.
type scene struct {
	*processes
	options matrixOptions

	t        *testing.T
	phase    phase
	programs string // the folder of the agent's
	door     *door
	faults   *faults.GitLab
	holds    *holds
	network  *faults.Network
	project  coordinator.Project
	run      coordinator.Pipeline
	held     *hold

	marks            string   // folder of what the job writes down: prepared, begun
	preparation, end *os.File // named pipes that the job reads a line from
	reboots          int
	finished         []*process // that were killed
	backup           string     // of the control plane's folder
}

// matrixOptions are what the rows of the matrix differ in.
type matrixOptions struct {
	config      string // further keys of switchyard.yaml, top level
	coordinator coordinator.Options
	// host: the first agent and all that it starts are in a PID namespace: a host that can be lost and restarted.
	host bool
	// planeDisk and agentDisk: the data folder is a file system of its own, which can be full.
	planeDisk, agentDisk bool
	// backup: a copy of the control plane's folder is made before there is a job; backupClaimed: when it is claimed.
	backup, backupClaimed bool
}

const mib = 1 << 20

// The file systems of rows with a full disk: more than what is to be kept free (64 MiB at the control plane, a tenth at
// an agent).
const planeDiskSize, agentDiskSize = 256 * mib, 64 * mib

func newScene(t *testing.T, ip string, at phase, o matrixOptions) *scene {
	t.Helper()
	s := &scene{
		processes: &processes{t: t, dir: t.TempDir(), agents: map[string]*process{}, env: cleanEnvironment(t), listen: freeAddress(t)},
		t:         t, options: o, phase: at, programs: bin,
	}
	o.coordinator.URL, o.coordinator.Dir = "http://"+ip, t.TempDir()
	if o.coordinator.TraceInterval == 0 {
		o.coordinator.TraceInterval, o.coordinator.WatchedTraceInterval = time.Second, time.Second
	}
	var err error
	s.gitlab, err = coordinator.New(o.coordinator)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.gitlab.Close()) })
	s.holds = &holds{next: s.gitlab.Handler()}
	s.faults, err = faults.NewGitLab(http.HandlerFunc(s.holds.ServeHTTP))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.faults.Close()) })
	s.door = newDoor(t, ip, s.faults)
	t.Cleanup(s.door.shut)
	require.NoError(t, s.gitlab.SetURL(s.door.url()))
	s.network, err = faults.NewNetwork(s.listen)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.network.Close()) })

	s.marks = filepath.Join(s.dir, "marks")
	require.NoError(t, os.Mkdir(s.marks, 0o755))
	s.preparation, s.end = s.pipe("preparation"), s.pipe("end")
	s.disk("plane", o.planeDisk, planeDiskSize)
	s.disk(first, o.agentDisk, agentDiskSize)
	r, err := s.gitlab.AddRunner(coordinator.RunnerOptions{RunUntagged: true})
	require.NoError(t, err)
	hook := ""
	if at == preparing {
		hook = fmt.Sprintf("    post_get_sources_script: 'echo prepared >> %s/prepared; read line < %s; head -c %d /dev/zero | tr \"\\0\" -; echo'\n",
			s.marks, s.preparation.Name(), secondHalf)
	}
	config := fmt.Sprintf("listen: %s\ndata: ./plane\nping_period: 1s\n%srunners:\n  - name: runner\n    url: %s\n    token: %s\n    executor: shell\n%s",
		s.listen, o.config, s.door.url(), r.Token, hook)
	require.NoError(t, os.WriteFile(s.config(), []byte(config), 0o600))
	t.Cleanup(s.stop)
	s.startPlane()
	s.startFirst()
	s.addProject()
	return s
}

// addProject adds a project; one with sources if the job is to be held when it has got them.
func (s *scene) addProject() {
	s.t.Helper()
	o := coordinator.ProjectOptions{Path: "group/matrix"}
	if s.phase == preparing {
		testbed.Need(s.t, testbed.Git)
		o.RepoDir = filepath.Join(s.dir, "repository")
		for _, args := range [][]string{
			{"init", "--quiet", "--initial-branch=main", o.RepoDir},
			{"-C", o.RepoDir, "-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "--allow-empty", "-m", "a"},
		} {
			cmd := exec.Command("git", args...)
			cmd.Env = s.env
			out, err := cmd.CombinedOutput()
			require.NoError(s.t, err, string(out))
		}
	}
	var err error
	s.project, err = s.gitlab.AddProject(s.t.Context(), o)
	require.NoError(s.t, err)
}

// secondHalf is how much the job prints once its end is opened: more than fits into what is left of a full disk's last page.
const secondHalf = 64 << 10

// pipe makes a named pipe that whoever reads from it can wait on.
func (s *scene) pipe(name string) *os.File {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	require.NoError(s.t, syscall.Mkfifo(path, 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { require.NoError(s.t, f.Close()) })
	return f
}

func (s *scene) open(pipe *os.File) {
	s.t.Helper()
	_, err := pipe.WriteString("go\n")
	require.NoError(s.t, err)
}

// disk mounts a small file system where a data folder will be.
func (s *scene) disk(name string, wanted bool, size int) {
	s.t.Helper()
	if !wanted {
		return
	}
	path := filepath.Join(s.dir, name)
	require.NoError(s.t, os.Mkdir(path, 0o700))
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "mode=0700,size="+strconv.Itoa(size)); err != nil {
		s.t.Skipf("needs a disk that is small: mount a tmpfs: %v", err)
	}
	s.t.Cleanup(func() { require.NoError(s.t, unix.Unmount(path, unix.MNT_DETACH)) })
}

// fill leaves no room on a disk: it is made as small as what is on it. empty makes it as large as it was.
func (s *scene) fill(name string) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	s.until("the disk is full", func() bool { // what is written meanwhile does not fit
		var st unix.Statfs_t
		require.NoError(s.t, unix.Statfs(path, &st))
		used := (st.Blocks - st.Bfree) * uint64(st.Bsize)
		return unix.Mount("tmpfs", path, "tmpfs", unix.MS_REMOUNT, "size="+strconv.FormatUint(used, 10)) == nil
	})
}

func (s *scene) empty(name string, size int) {
	s.t.Helper()
	require.NoError(s.t, unix.Mount("tmpfs", filepath.Join(s.dir, name), "tmpfs", unix.MS_REMOUNT, "size="+strconv.Itoa(size)))
}

// startFirst starts the first agent, whose connections go through the network, and waits for it.
func (s *scene) startFirst() {
	s.t.Helper()
	s.startMatrixAgent(first, s.network.Addr())
	s.untilOnline(first, true)
}

// startSecond starts an agent that the network's failures do not concern.
func (s *scene) startSecond() {
	s.t.Helper()
	s.startMatrixAgent(second, s.listen)
	s.untilOnline(second, true)
}

func (s *scene) startMatrixAgent(name, server string) {
	s.t.Helper()
	data := filepath.Join(s.dir, name)
	args := []string{"--server", server, "--data", data, "--name", name, "--slots", "1"}
	if _, err := os.Stat(filepath.Join(data, "agent.crt")); err != nil {
		var token string
		s.until("there is a join token", func() bool {
			return s.try(func(ctx context.Context, a adminv1.AdminServiceClient) error {
				answer, err := a.CreateJoinToken(ctx, &adminv1.CreateJoinTokenRequest{Uses: 1, Ttl: durationpb.New(time.Hour)})
				token = answer.GetToken()
				return err
			}) == nil
		})
		file := filepath.Join(s.dir, name+".token")
		require.NoError(s.t, os.WriteFile(file, []byte(token), 0o600))
		args = append(args, "--token-file", file)
	}
	if old := s.agents[name]; old != nil {
		s.finished = append(s.finished, old)
	}
	if s.options.host && name == first {
		s.agents[name] = s.startHost(args)
		return
	}
	s.agents[name] = s.runProgram(exec.Command(filepath.Join(s.programs, "switchyard-agent"), args...))
}

// startHost starts an agent in a PID namespace, with a boot id of its own.
func (s *scene) startHost(args []string) *process {
	s.t.Helper()
	s.reboots++
	boot := filepath.Join(s.dir, "boot-id")
	require.NoError(s.t, os.WriteFile(boot, fmt.Appendf(nil, "00000000-0000-4000-8000-%012d\n", s.reboots), 0o644))
	// The shell is the host's first process: it collects those whose parents are gone.
	const script = `mount --make-rprivate / && mount --bind "$0" /proc/sys/kernel/random/boot_id && { "$@" & wait; }`
	cmd := exec.Command("unshare", append([]string{
		"--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", script, boot, filepath.Join(s.programs, "switchyard-agent"),
	}, args...)...)
	return s.runProgram(cmd)
}

// runProgram starts a program.
func (s *scene) runProgram(cmd *exec.Cmd) *process {
	s.t.Helper()
	cmd.Dir, cmd.Env = s.dir, s.env
	x := &process{cmd: cmd, log: &lockedBuffer{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = x.log, x.log
	cmd.WaitDelay = time.Second
	require.NoError(s.t, cmd.Start())
	go func() {
		defer close(x.done)
		_ = cmd.Wait()
	}()
	return x
}

// child is the only child of a process, 0 if it has none.
func child(pid int) int {
	if pid == 0 {
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(fields[0])
	return n
}

// pid is an agent's, 0 if it does not run.
func (s *scene) pid(name string) int {
	x := s.agents[name]
	if x == nil {
		return 0
	}
	select {
	case <-x.done:
		return 0
	default:
	}
	if s.options.host && name == first {
		return child(child(x.cmd.Process.Pid))
	}
	return x.cmd.Process.Pid
}

// freeze stops an agent's process, all of it: a thread that runs at the moment does so until it is interrupted.
func (s *scene) freeze(name string) {
	s.t.Helper()
	s.send(name, syscall.SIGSTOP)
	s.until("the agent stands still", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.pid(name)))
		require.NoError(s.t, err)
		return len(threads) > 0 && !slices.ContainsFunc(threads, func(path string) bool {
			b, err := os.ReadFile(path)
			return err == nil && !strings.HasPrefix(string(b[strings.LastIndexByte(string(b), ')')+1:]), " T")
		})
	})
}

// thaw lets it go on; it does not mind that it is gone.
func (s *scene) thaw(name string) { s.send(name, syscall.SIGCONT) }

func (s *scene) send(name string, signal syscall.Signal) {
	if pid := s.pid(name); pid > 0 {
		_ = syscall.Kill(pid, signal)
	}
}

// killHost ends all processes of the first agent's host.
func (s *scene) killHost() {
	s.t.Helper()
	host := s.agents[first]
	require.NoError(s.t, syscall.Kill(child(host.cmd.Process.Pid), syscall.SIGKILL))
	s.ended(host)
}

func (s *scene) ended(x *process) {
	s.t.Helper()
	select {
	case <-x.done:
	case <-time.After(patience):
		s.t.Fatalf("%s does not end", x.cmd.Path)
	}
}

// try makes a call to the control plane, which may not answer yet.
func (s *scene) try(call func(context.Context, adminv1.AdminServiceClient) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := admin.Dial(ctx, filepath.Join(s.dir, "plane"), s.config())
	if err != nil {
		return err
	}
	defer conn.Close()
	return call(ctx, adminv1.NewAdminServiceClient(conn))
}

func (s *scene) untilOnline(name string, online bool) {
	s.t.Helper()
	s.until(fmt.Sprintf("agent %s is online: %t", name, online), func() bool {
		var agents []*adminv1.Agent
		err := s.try(func(ctx context.Context, a adminv1.AdminServiceClient) error {
			answer, err := a.ListAgents(ctx, &adminv1.ListAgentsRequest{})
			agents = answer.GetAgents()
			return err
		})
		i := slices.IndexFunc(agents, func(a *adminv1.Agent) bool { return a.GetName() == name })
		return err == nil && online == (i >= 0 && agents[i].GetOnline())
	})
}

// jobs are those that the control plane holds; nil if it does not answer.
func (s *scene) jobs() (jobs []*adminv1.Job, err error) {
	err = s.try(func(ctx context.Context, a adminv1.AdminServiceClient) error {
		answer, err := a.ListJobs(ctx, &adminv1.ListJobsRequest{})
		jobs = answer.GetJobs()
		return err
	})
	return jobs, err
}

func (s *scene) untilState(states ...string) {
	s.t.Helper()
	s.until(fmt.Sprintf("the job is %v", states), func() bool {
		jobs, err := s.jobs()
		return err == nil && len(jobs) == 1 && slices.Contains(states, jobs[0].GetState())
	})
}

// until polls what other processes do.
func (s *scene) until(what string, is func() bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for !is() {
		select {
		case <-ctx.Done():
			s.t.Fatalf("waited in vain: %s", what)
		case <-ticker.C:
		}
	}
}

// arrived waits until a request is held.
func (s *scene) arrived(h *hold) {
	s.t.Helper()
	select {
	case <-h.arrived:
	case <-time.After(time.Minute):
		s.t.Fatal("the request that was to be held did not come")
	}
}

// lasts lets a failure that says nothing of itself go on for a while.
func (s *scene) lasts(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.t.Context().Done():
	}
}

// reach brings the job to the scene's phase.
func (s *scene) reach() {
	s.t.Helper()
	if s.options.backup {
		s.makeBackup()
	}
	switch s.phase {
	case claimed:
		s.claim()
		if s.options.backupClaimed {
			s.makeBackup()
		}
	case accepted:
		s.held = s.holds.hold(http.StatusOK, starts)
		s.create()
		s.arrived(s.held)
		s.untilState("accepted")
	case preparing:
		s.create()
		s.until("the job is being prepared", func() bool { return s.lines("prepared") == 1 })
	case running:
		s.begin()
	case uploading:
		s.held = s.holds.hold(0, uploads)
		s.begin()
		s.open(s.end)
		s.arrived(s.held)
	case finishing:
		s.begin()
		s.freeze(first)
		s.open(s.end)
		s.untilResult()
	case reporting:
		s.held = s.holds.hold(0, results)
		s.begin()
		s.open(s.end)
		s.arrived(s.held)
		s.untilState("finished")
	}
	if s.phase != claimed && s.phase != accepted {
		s.until("the control plane knows that the job runs", func() bool {
			jobs, err := s.jobs()
			return err == nil && len(jobs) == 1 && (jobs[0].GetStartedAt() != nil || jobs[0].GetState() == "finished")
		})
	}
}

// create makes the job, and a backup of its claim if the row needs one.
func (s *scene) create() {
	s.t.Helper()
	if s.options.backupClaimed {
		s.claim()
		s.makeBackup()
		s.thaw(first)
		return
	}
	s.createPipeline()
}

// claim makes the job and lets it be claimed while the agent cannot answer.
func (s *scene) claim() {
	s.t.Helper()
	answer := s.holds.hold(http.StatusCreated, claims)
	s.createPipeline()
	s.arrived(answer)
	s.freeze(first)
	answer.let <- true
	s.untilState("claimed", "offered")
}

func (s *scene) createPipeline() {
	s.t.Helper()
	strategy := "none"
	if s.phase == preparing {
		strategy = "fetch"
	}
	reports := "{}"
	if s.options.agentDisk { // there is something to say after the first upload
		reports = fmt.Sprintf("{junit: [%s]}", strings.Repeat("not-there-"+strings.Repeat("x", 200)+", ", 40))
	}
	s.run = pipeline(s.t, s.gitlab, s.project, fmt.Sprintf(`
job:
  variables: {GIT_STRATEGY: %[3]s}
  script:
    - 'pwd >> %[1]s/begun; echo content > file; echo "first half"; read line < %[2]s'
    - 'head -c %[4]d /dev/zero | tr "\\0" .; echo; echo "second half"'
  artifacts: {paths: [file], reports: %[5]s}
`, s.marks, s.end.Name(), strategy, secondHalf, reports))
}

func (s *scene) begin() {
	s.t.Helper()
	s.create()
	s.until("the script runs", func() bool { return s.lines("begun") == 1 })
}

// leave lets the job go on from its phase.
func (s *scene) leave() {
	s.t.Helper()
	switch s.phase {
	case claimed, finishing:
		s.thaw(first)
	case accepted, uploading, reporting:
		if s.held != nil {
			s.held.let <- true
		}
	case preparing:
		s.open(s.preparation)
	case running:
	}
	s.open(s.end)
}

// mark is what the job wrote down.
func (s *scene) mark(name string) []string {
	b, err := os.ReadFile(filepath.Join(s.marks, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(s.t, err)
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

func (s *scene) lines(name string) int { return len(s.mark(name)) }

// untilResult waits until the job has ended on the first agent's host.
func (s *scene) untilResult() {
	s.t.Helper()
	s.until("the job has a result", func() bool {
		found, err := filepath.Glob(filepath.Join(s.dir, first, "jobs", "*", "job", "result.json"))
		return err == nil && len(found) == 1
	})
}

// makeBackup copies the control plane's folder. Nothing is written there meanwhile, so that it needs not be stopped: its
// agent is idle or frozen.
func (s *scene) makeBackup() {
	s.t.Helper()
	s.backup = filepath.Join(s.dir, "backup")
	out, err := exec.Command("cp", "-a", filepath.Join(s.dir, "plane"), s.backup).CombinedOutput()
	require.NoError(s.t, err, string(out))
}

// restore puts the backup in the place of the control plane's folder.
func (s *scene) restore() {
	s.t.Helper()
	require.NoError(s.t, os.RemoveAll(filepath.Join(s.dir, "plane")))
	require.NoError(s.t, os.Rename(s.backup, filepath.Join(s.dir, "plane")))
}

// leftovers are the processes of jobs that work or are described in the scene's folder.
func (s *scene) leftovers() []string {
	var left []string
	entries, err := os.ReadDir("/proc")
	require.NoError(s.t, err)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		cwd, _ := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		text := strings.ReplaceAll(string(cmdline), "\x00", " ")
		isJob := strings.Contains(text, "switchyard-job run "+s.dir) || strings.HasPrefix(cwd, s.dir+"/")
		if isJob {
			left = append(left, fmt.Sprintf("%d %s in %s", pid, text, cwd))
		}
	}
	return left
}

func (s *scene) logs() string {
	var b strings.Builder
	fmt.Fprintf(&b, "control plane:\n%s", s.plane.log)
	for name, a := range s.agents {
		fmt.Fprintf(&b, "agent %s:\n%s", name, a.log)
	}
	for _, a := range s.finished {
		fmt.Fprintf(&b, "before, %s:\n%s", a.cmd.Path, a.log)
	}
	if s.run.ID != 0 {
		if now, err := s.gitlab.Pipeline(s.run.ID); err == nil {
			for _, j := range append(now.Jobs, now.Retried...) {
				fmt.Fprintf(&b, "job %d is %s %s\n", j.ID, j.Status, j.FailureReason)
				if r, err := s.gitlab.Trace(j.ID, 0); err == nil {
					text, _ := io.ReadAll(r)
					fmt.Fprintf(&b, "%s\n", text)
				}
			}
		}
	}
	return b.String()
}

// stop ends all processes.
func (s *scene) stop() {
	if s.t.Failed() {
		s.t.Log(s.logs())
	}
	for name := range s.agents {
		s.thaw(name)
		s.send(name, syscall.SIGQUIT)
	}
	for _, a := range s.agents {
		select {
		case <-a.done:
		case <-time.After(20 * time.Second):
			_ = a.cmd.Process.Kill()
			s.ended(a)
		}
	}
	s.door.shut()
	_ = s.plane.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.plane.done:
	case <-time.After(30 * time.Second):
		_ = s.plane.cmd.Process.Kill()
		s.ended(s.plane)
	}
	for _, left := range s.leftovers() { // of a cell that failed
		pid, _ := strconv.Atoi(strings.Fields(left)[0])
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}
