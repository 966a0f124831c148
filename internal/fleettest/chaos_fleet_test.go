package fleettest

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite" // reads what a killed control plane has written down

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/faults"
)

// chaos is a fleet under a plan: two GitLabs behind faults, a control plane, agents behind networks of their own. All of
// it is driven by the test's goroutine.
type chaos struct {
	*processes
	plan     chaosPlan
	gitlabs  []*chaosGitLab
	networks []*faults.Network // of each agent

	planeUp  bool
	agentUp  [chaosAgents]bool
	later    []chaosLater
	journal  []string
	began    time.Time
	counts   map[chaosAction]int
	ended    []endedLog
	checked  [2]int64 // jobs up to this id have been looked at
	open     [2][]int64
	finished int64 // as of the last look
}

// endedLog is the log of a program that was ended.
type endedLog struct{ name, text string }

// chaosLater is something to do at a time.
type chaosLater struct {
	at time.Time
	do func()
}

func startChaos(t *testing.T, plan chaosPlan) *chaos {
	t.Helper()
	c := &chaos{plan: plan, began: time.Now(), counts: map[chaosAction]int{}}
	c.processes = &processes{t: t, dir: t.TempDir(), agents: map[string]*process{}, env: cleanEnvironment(t), emptyProfile: os.Geteuid() == 0}
	c.gitlabs = []*chaosGitLab{
		newChaosGitLab(t, "twophase", false, filepath.Join(c.dir, "marks-twophase")),
		newChaosGitLab(t, "legacy", true, filepath.Join(c.dir, "marks-legacy")),
	}
	address := freeAddress(t)
	config := fmt.Sprintf("listen: %s\ndata: ./plane\nping_period: 1s\nrunners:\n%s%s", address, c.gitlabs[0].config, c.gitlabs[1].config)
	require.NoError(t, os.WriteFile(c.config(), []byte(config), 0o600))
	t.Cleanup(c.end)
	c.startPlane()
	c.planeUp = true
	for i := range chaosAgents {
		n, err := faults.NewNetwork(address)
		require.NoError(t, err)
		c.networks = append(c.networks, n)
		c.listen = n.Addr()
		c.startAgent(agentName(i), chaosSlots)
		c.agentUp[i] = true
	}
	return c
}

func agentName(i int) string { return "agent-" + strconv.Itoa(i) }

func (c *chaos) note(format string, args ...any) {
	c.journal = append(c.journal, fmt.Sprintf("%7.2fs, %d jobs done: ", time.Since(c.began).Seconds(), c.finished)+fmt.Sprintf(format, args...))
}

// drive submits the jobs and takes steps until nearly all of them have ended, then lets the fleet be.
func (c *chaos) drive(jobs int) {
	c.t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	pipelines, submitted := 0, [2]int{}
	step, moved, last := c.plan.step(0, chaosAgents, 2), time.Now(), int64(-1)
	stepAt := int64(step.after)
	for calm := false; ; <-ticker.C {
		c.finished = 0
		for i, g := range c.gitlabs {
			done := g.Stats().Finished
			c.finished += done
			for submitted[0]+submitted[1] < jobs && int64(submitted[i])-done-int64(g.lostCount()) < chaosAhead {
				n := min(chaosPipeline, jobs-submitted[0]-submitted[1])
				g.submit(pipelines, c.plan.jobs(pipelines, n))
				pipelines++
				submitted[i] += n
			}
		}
		if c.finished != last {
			last, moved = c.finished, time.Now()
		}
		if quiet := time.Since(moved); quiet > patience || calm && quiet > 3*time.Minute {
			c.t.Fatalf("nothing has happened for %s:\n%s", quiet, c.unfinished())
		}
		c.doWhatIsDue(time.Now())
		switch {
		case submitted[0]+submitted[1] < jobs || c.finished < int64(jobs*93/100):
			if c.finished >= stepAt {
				c.take(step)
				step = c.plan.step(step.number+1, chaosAgents, 2)
				stepAt = c.finished + int64(step.after)
			}
		case !calm:
			calm = true
			c.calm()
		case len(c.later) == 0 && c.allEnded():
			return
		}
	}
}

func (c *chaos) doWhatIsDue(now time.Time) {
	due := c.later
	c.later = nil
	for _, l := range due {
		if now.Before(l.at) {
			c.later = append(c.later, l)
			continue
		}
		l.do()
	}
}

func (c *chaos) after(d time.Duration, do func()) {
	c.later = append(c.later, chaosLater{time.Now().Add(d), do})
}

// take does what a step says; what is down already stays down.
func (c *chaos) take(s chaosStep) {
	c.t.Helper()
	name := agentName(s.agent)
	switch s.action {
	case killPlane, stopPlane:
		if !c.planeUp {
			return
		}
		c.note("%s", s)
		c.endPlane(s.action == killPlane)
		c.after(s.pause, func() {
			c.startPlane()
			c.planeUp = true
			c.note("the control plane is up")
		})
	case killAgent, stopAgent:
		if !c.agentUp[s.agent] {
			return
		}
		c.note("%s", s)
		signal := syscall.SIGKILL
		if s.action == stopAgent {
			signal = syscall.SIGQUIT
		}
		c.agentUp[s.agent] = false
		c.agents[name].signal(c.t, signal)
		c.keepLog(name, c.agents[name])
		c.after(s.pause, func() { c.resumeAgent(s.agent) })
	case cutNetwork:
		c.note("%s", s)
		c.networks[s.agent].Cut(s.direction)
		c.after(s.pause, c.networks[s.agent].Heal)
	case resetAgent:
		c.note("%s", s)
		c.networks[s.agent].Reset()
	case refuseAgent:
		c.note("%s", s)
		c.networks[s.agent].Refuse(true)
		c.networks[s.agent].Reset()
		c.after(s.pause, func() { c.networks[s.agent].Refuse(false) })
	case slowNetwork:
		c.note("%s", s)
		c.networks[s.agent].Delay(s.delay)
		c.after(s.pause+time.Second, func() { c.networks[s.agent].Delay(0) })
	case breakGitLab, healGitLab:
		c.note("%s", s)
		c.gitlabs[s.gitlab].proxy.Set(s.rules...)
	}
	c.counts[s.action]++
}

// endPlane ends the control plane and finds out which jobs it took with it.
func (c *chaos) endPlane(kill bool) {
	c.t.Helper()
	signal := syscall.SIGTERM
	if kill {
		signal = syscall.SIGKILL
	}
	c.planeUp = false
	c.plane.signal(c.t, signal)
	c.keepLog("control plane", c.plane)
	c.until("the requests of the dead control plane have ended", func() bool {
		return c.gitlabs[0].proxy.Connections()+c.gitlabs[1].proxy.Connections() == 0
	})
	kept := c.rows()
	for _, g := range c.gitlabs {
		forgotten := g.planeIsDead(kept[g.proxy.URL()])
		if len(forgotten) == 0 {
			continue
		}
		c.note("%s: jobs %v were claimed and not written down", g.name, forgotten)
		if !kill {
			c.t.Fatalf("%s: a control plane that stops has not written down jobs %v", g.name, forgotten)
		}
	}
}

// resumeAgent starts an agent that is known, and does not wait until it is heard.
func (c *chaos) resumeAgent(i int) {
	name := agentName(i)
	c.agents[name] = c.start("switchyard-agent", "--server", c.networks[i].Addr(), "--data", filepath.Join(c.dir, name), "--name", name,
		"--slots", strconv.Itoa(chaosSlots))
	c.agentUp[i] = true
	c.note("%s is up", name)
}

func (c *chaos) keepLog(name string, x *process) {
	text := x.log.String()
	c.ended = append(c.ended, endedLog{name, text})
	if strings.Contains(text, "panic: ") || strings.Contains(text, "fatal error: ") {
		c.t.Fatalf("%s has failed:\n%s", name, lastOf(text, chaosTail))
	}
}

const chaosTail = 6 << 10

func lastOf(text string, most int) string { return text[max(0, len(text)-most):] }

// calm ends all faults.
func (c *chaos) calm() {
	c.note("no more faults")
	for _, g := range c.gitlabs {
		g.proxy.Set()
	}
	for _, n := range c.networks {
		n.Delay(0)
	}
}

// allEnded looks for jobs that have not ended, those that were lost aside.
func (c *chaos) allEnded() bool {
	ended := true
	for i, g := range c.gitlabs {
		for {
			if _, err := g.Job(c.checked[i] + 1); err != nil {
				break
			}
			c.checked[i]++
			c.open[i] = append(c.open[i], c.checked[i])
		}
		c.open[i] = slices.DeleteFunc(c.open[i], func(id int64) bool {
			job, err := g.Job(id)
			require.NoError(c.t, err)
			return job.Finished() || g.legacy && g.whyLost(id) != ""
		})
		ended = ended && len(c.open[i]) == 0
	}
	return ended
}

func (c *chaos) unfinished() string {
	c.allEnded()
	var b strings.Builder
	for i, g := range c.gitlabs {
		for _, id := range c.open[i] {
			job, _ := g.Job(id)
			fmt.Fprintf(&b, "%s: %+v\n%s", g.name, job, c.said(fmt.Sprintf(" gitlab_job=%d ", id)))
		}
	}
	out, err := exec.Command(filepath.Join(bin, "switchyard"), "jobs", "list", "-c", c.config()).CombinedOutput()
	fmt.Fprintf(&b, "jobs list (%v):\n%s", err, out)
	return b.String()
}

// await polls what needs agents that may wait up to half a minute before they connect again.
func (c *chaos) await(what string, is func() bool) {
	c.t.Helper()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for began := time.Now(); !is(); <-ticker.C {
		if time.Since(began) > patience {
			c.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// settle waits until the control plane has let go of every job and the agents have removed their folders.
func (c *chaos) settle() {
	c.t.Helper()
	c.await("the control plane has let go of all jobs", func() bool {
		out, err := exec.Command(filepath.Join(bin, "switchyard"), "jobs", "list", "-o", "json", "-c", c.config()).Output()
		return err == nil && !bytes.Contains(out, []byte(`"epoch"`)) && !bytes.Contains(out, []byte(`"state"`))
	})
	c.await("no folder of a job is left", func() bool {
		for i := range chaosAgents {
			left, err := os.ReadDir(filepath.Join(c.dir, agentName(i), "jobs"))
			if err != nil || len(left) != 0 {
				return false
			}
		}
		return true
	})
}

// verify looks at every job of both GitLabs.
func (c *chaos) verify(jobs int) {
	c.t.Helper()
	var wrong []error
	names := 0
	for _, g := range c.gitlabs {
		names += len(g.wanted)
		attempts, reported := map[string][]coordinator.Job{}, int64(0)
		for id := int64(1); ; id++ {
			job, err := g.Job(id)
			if errors.Is(err, coordinator.ErrNotFound) {
				break
			}
			require.NoError(c.t, err)
			attempts[job.Name] = append(attempts[job.Name], job)
			if job.Report.State != "" {
				reported++
			}
			if err := g.check(job); err != nil {
				wrong = append(wrong, err)
			}
		}
		assert.Equal(c.t, reported, g.Stats().Finished, "%s: jobs with a result, and results that were accepted", g.name)
		assert.Zero(c.t, g.Stats().StuckDropped, g.name)
		assert.Zero(c.t, g.Stats().BadChecksums, g.name)
		for name, want := range g.wanted {
			if err := g.checkAttempts(want, attempts[name]); err != nil {
				wrong = append(wrong, fmt.Errorf("%s: %s: %w", g.name, name, err))
			}
		}
	}
	assert.Equal(c.t, jobs, names)
	if len(wrong) > 0 {
		c.t.Errorf("%d jobs are wrong, such as:\n%v", len(wrong), errors.Join(wrong[:min(len(wrong), 5)]...))
	}
}

// checkAttempts: a job is tried once more for every attempt that nobody had and for `retry`.
func (g *chaosGitLab) checkAttempts(want wantedJob, attempts []coordinator.Job) error {
	if len(attempts) == 0 {
		return errors.New("it was never made")
	}
	last := attempts[len(attempts)-1]
	switch why := g.whyLost(last.ID); {
	case last.Retried:
		return fmt.Errorf("the attempt after job %d is missing", last.ID)
	case why != "" && !g.legacy && len(attempts) < want.retry.most():
		return fmt.Errorf("job %d was lost (%s) and not tried again", last.ID, why)
	case why == "" && want.retry == retryOnce && len(attempts) < 2:
		return fmt.Errorf("job %d failed and was not tried again", last.ID)
	}
	return nil
}

// nothingIsLeft stops the programs and looks for what they should have removed.
func (c *chaos) nothingIsLeft() {
	c.t.Helper()
	for _, a := range c.agents {
		a.signal(c.t, syscall.SIGTERM)
	}
	c.plane.signal(c.t, syscall.SIGTERM)
	for gitlab, jobs := range c.rows() {
		assert.Empty(c.t, jobs, "rows of jobs of %s", gitlab)
	}
	assert.Zero(c.t, c.countPayloads(), "payloads in the store")
	err := filepath.WalkDir(filepath.Join(c.dir, "plane", "spool"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !chaosSpoolKeeps(d.Name()) {
			c.t.Errorf("left in the spool: %s", path)
		}
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		require.NoError(c.t, err)
	}
	assert.Empty(c.t, c.processesOf(), "processes that were started for this fleet")
}

// chaosSpoolKeeps are files of the spool that belong to no job: the log of checkpoints of all, the room that is kept free.
func chaosSpoolKeeps(name string) bool { return name == "checkpoints" || name == "reserve" }

// processesOf are the living processes that have the fleet's folder in their environment or command line.
func (c *chaos) processesOf() []string {
	var found []string
	for _, kind := range []string{"environ", "cmdline"} {
		files, err := filepath.Glob("/proc/[0-9]*/" + kind)
		require.NoError(c.t, err)
		for _, file := range files {
			if b, err := os.ReadFile(file); err == nil && bytes.Contains(b, []byte(c.dir)) {
				found = append(found, file+": "+string(limit(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))))
			}
		}
	}
	return found
}

// rows returns the jobs that stand in the store of a control plane that has ended, by the address of their GitLab.
func (c *chaos) rows() map[string]map[int64]bool {
	c.t.Helper()
	found := map[string]map[int64]bool{}
	c.query("SELECT gitlab_url, gitlab_job_id FROM jobs", func(scan func(...any) error) error {
		var address string
		var job int64
		if err := scan(&address, &job); err != nil {
			return err
		}
		u, err := url.Parse(address)
		if err != nil {
			return err
		}
		base := u.Scheme + "://" + u.Host
		if found[base] == nil {
			found[base] = map[int64]bool{}
		}
		found[base][job] = true
		return nil
	})
	return found
}

func (c *chaos) countPayloads() int {
	c.t.Helper()
	n := 0
	c.query("SELECT count(*) FROM payloads", func(scan func(...any) error) error { return scan(&n) })
	return n
}

// query asks a copy of the store, so that nothing of the control plane's is touched.
func (c *chaos) query(statement string, row func(scan func(...any) error) error) {
	c.t.Helper()
	dir, err := os.MkdirTemp(c.dir, "store-")
	require.NoError(c.t, err)
	defer os.RemoveAll(dir)
	for _, suffix := range []string{"", "-wal"} {
		err := copyFile(filepath.Join(c.dir, "plane", "switchyard.db"+suffix), filepath.Join(dir, "copy.db"+suffix))
		if suffix == "" || !errors.Is(err, fs.ErrNotExist) {
			require.NoError(c.t, err)
		}
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "copy.db"))
	require.NoError(c.t, err)
	defer db.Close()
	rows, err := db.QueryContext(c.t.Context(), statement)
	require.NoError(c.t, err)
	defer rows.Close()
	for rows.Next() {
		require.NoError(c.t, row(rows.Scan))
	}
	require.NoError(c.t, rows.Err())
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// end stops what still runs.
func (c *chaos) end() {
	for _, n := range c.networks {
		n.Heal()
	}
	running := make([]*process, 0, chaosAgents+1)
	for _, a := range c.agents {
		running = append(running, a)
	}
	if c.plane != nil {
		running = append(running, c.plane)
	}
	for _, x := range running {
		_ = x.cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, x := range running {
		select {
		case <-x.done:
		case <-time.After(10 * time.Second):
			_ = x.cmd.Process.Kill()
			<-x.done
		}
	}
	if c.t.Failed() {
		c.explain()
	}
	for _, n := range c.networks {
		assert.NoError(c.t, n.Close())
	}
}

// explain logs what has happened, and the end of every log.
func (c *chaos) explain() {
	c.t.Logf("SWITCHYARD_CHAOS_SEED=%d\n%s", c.plan.seed, strings.Join(c.journal, "\n"))
	logs := c.ended
	for name, x := range c.agents {
		logs = append(logs, endedLog{name, x.log.String()})
	}
	if c.plane != nil {
		logs = append(logs, endedLog{"control plane", c.plane.log.String()})
	}
	for _, l := range logs[max(0, len(logs)-12):] {
		c.t.Logf("---- %s:\n%s", l.name, lastOf(l.text, chaosTail))
	}
}

// said returns the lines about some text in the logs of all programs that have ended, and of the control plane.
func (c *chaos) said(text string) string {
	var b strings.Builder
	for _, l := range append(slices.Clone(c.ended), endedLog{"control plane", c.plane.log.String()}) {
		for line := range strings.Lines(l.text) {
			if strings.Contains(line, text) {
				b.WriteString("\t" + l.name + ": " + line)
			}
		}
	}
	return lastOf(b.String(), chaosTail)
}

func (c *chaos) report(jobs int, took time.Duration) {
	injected := map[faults.Kind]int{}
	lost := 0
	for _, g := range c.gitlabs {
		for kind, n := range g.proxy.Injected() {
			injected[kind] += n
		}
		lost += g.lostCount()
	}
	var traffic faults.Traffic
	for _, n := range c.networks {
		t := n.Traffic()
		traffic.Connections += t.Connections
		traffic.Resets += t.Resets
		traffic.Swallowed += t.Swallowed
	}
	c.t.Logf("%d jobs in %s: %.1f jobs/s; steps: %v; faults of GitLab: %v; claims that nobody got: %d; connections: %d, reset: %d, bytes swallowed: %d",
		jobs, took.Round(time.Millisecond), float64(jobs)/took.Seconds(), c.counts, injected, lost, traffic.Connections, traffic.Resets, traffic.Swallowed)
}

// traceOf reads a trace.
func (g *chaosGitLab) traceOf(job coordinator.Job) ([]byte, error) {
	r, err := g.Trace(job.ID, 0)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}
