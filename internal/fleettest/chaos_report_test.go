package fleettest

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/internal/faults"
)

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

const chaosTail = 6 << 10

func lastOf(text string, most int) string { return text[max(0, len(text)-most):] }
