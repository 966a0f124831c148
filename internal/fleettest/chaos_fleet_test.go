package fleettest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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
		c.nobodyHasGone()
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

// nobodyHasGone looks for programs that ended without having been told to.
func (c *chaos) nobodyHasGone() {
	c.t.Helper()
	gone := func(name string, x *process) {
		select {
		case <-x.done:
			c.t.Fatalf("%s has ended by itself (%s):\n%s", name, x.cmd.ProcessState, lastOf(x.log.String(), chaosTail))
		default:
		}
	}
	if c.planeUp {
		gone("the control plane", c.plane)
	}
	for i, up := range c.agentUp {
		if up {
			gone(agentName(i), c.agents[agentName(i)])
		}
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
