// Package metrics shows what the control plane knows to Prometheus. Nothing is counted here: every figure is computed from
// what owns it when it is asked for.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/switchyard-ci/switchyard/controlplane/admin"
	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
	"github.com/switchyard-ci/switchyard/controlplane/usage"
)

// maxProjects is how many projects have figures of their own: those that used most in the last hour.
const maxProjects = 1000

// Fleet knows what goes on. *dispatch.Dispatcher is one.
type Fleet interface {
	// Agents returns the agents that are here or hold jobs.
	Agents() []dispatch.AgentStatus
	// Jobs returns the jobs that are claimed and not yet reported.
	Jobs() []dispatch.JobSnapshot
	// Usage returns what projects use, the one that used most in front.
	Usage() []dispatch.UsageRow
}

// Runners knows the configured runners. *controlplane.Server is one.
type Runners interface {
	// Runners returns what is known of each, in the order of the configuration.
	Runners() []admin.RunnerStatus
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("switchyard_"+name, help, labels, nil)
}

var (
	agents      = desc("agents", "Agents by state: online, draining or away (with jobs).", "state")
	agentSlots  = desc("agent_slots", "Slots of an agent.", "agent")
	agentLeases = desc("agent_slots_used", "Slots of an agent that are taken, by jobs and by claims under way.", "agent")
	jobs        = desc("jobs", "Jobs that are claimed and not yet reported, by state.", "state", "runner")

	runnerUp      = desc("runner_up", "1 if GitLab answers the runner as it should.", "runner")
	runnerSlots   = desc("runner_slots", "Jobs that the runner may have at once now.", "runner")
	claims        = desc("claims_total", "Requests for a job by what came of them: job, empty, conflict.", "runner", "result")
	watches       = desc("watches_total", "Requests that GitLab may hold until something changes.", "runner")
	throttled     = desc("throttled_total", "Answers 429 to requests for jobs.", "runner")
	failures      = desc("request_errors_total", "Requests for jobs that failed otherwise.", "runner")
	lastJob       = desc("runner_last_job_timestamp_seconds", "When GitLab last gave the runner a job.", "runner")
	tokenExpires  = desc("runner_token_expiry_timestamp_seconds", "When the runner's token expires.", "runner")
	projectSlots  = desc("project_slots", "Slots that a project has now.", "gitlab", "project")
	projectQueue  = desc("project_jobs_waiting", "Jobs of a project that are claimed and have no slot.", "gitlab", "project")
	projectShare  = desc("project_share", "A project's part of the fleet among those that run or wait now, from 0 to 1.", "gitlab", "project")
	projectWeight = desc("project_weight", "A project's weight among its siblings.", "gitlab", "project")
	projectQuota  = desc("project_quota_slots", "Slots that a project never exceeds.", "gitlab", "project")
	projectUsed   = desc("project_slot_seconds", "Slot-seconds that a project used in the last hour (1h) or day (24h).", "gitlab", "project", "window")
	projectMedian = desc("project_wait_p50_seconds", "How long half of a project's jobs waited for a slot at most.", "gitlab", "project", "window")
	projectWait   = desc("project_wait_p95_seconds", "How long 95 of 100 of a project's jobs waited for a slot at most.", "gitlab", "project", "window")
)

// New returns a collector over a control plane. It may be used concurrently.
func New(f Fleet, r Runners) prometheus.Collector { return collector{f, r, maxProjects} }

type collector struct {
	fleet    Fleet
	runners  Runners
	projects int // that have figures of their own
}

// Describe implements prometheus.Collector.
func (c collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		agents, agentSlots, agentLeases, jobs, runnerUp, runnerSlots, claims, watches, throttled, failures, lastJob, tokenExpires,
		projectSlots, projectQueue, projectShare, projectWeight, projectQuota, projectUsed, projectMedian, projectWait,
	} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	o := output{to}
	c.collectAgents(o)
	c.collectJobs(o)
	for _, r := range c.runners.Runners() {
		collectRunner(o, r)
	}
	rows := c.fleet.Usage()
	for _, row := range rows[:min(len(rows), c.projects)] {
		collectProject(o, row)
	}
}

type output struct{ to chan<- prometheus.Metric }

func (o output) gauge(d *prometheus.Desc, v float64, labels ...string) {
	o.to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (o output) count(d *prometheus.Desc, n uint64, labels ...string) {
	o.to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

func (c collector) collectAgents(o output) {
	states := map[string]int{"online": 0, "draining": 0, "away": 0}
	for _, a := range c.fleet.Agents() {
		state := "away"
		switch {
		case a.Online && a.Draining:
			state = "draining"
		case a.Online:
			state = "online"
		}
		states[state]++
		o.gauge(agentSlots, float64(a.Slots), a.Name)
		o.gauge(agentLeases, float64(a.UsedSlots), a.Name)
	}
	for state, n := range states {
		o.gauge(agents, float64(n), state)
	}
}

func (c collector) collectJobs(o output) {
	type group struct{ state, runner string }
	counts := make(map[group]int)
	for _, j := range c.fleet.Jobs() {
		counts[group{j.State, j.Runner}]++
	}
	for g, n := range counts {
		o.gauge(jobs, float64(n), g.state, g.runner)
	}
}

func collectRunner(o output, r admin.RunnerStatus) {
	p := r.Polling
	up := 0.0
	if p.ErrorSince.IsZero() {
		up = 1
	}
	o.gauge(runnerUp, up, p.Runner)
	o.gauge(runnerSlots, float64(r.Slots), p.Runner)
	o.count(claims, p.Counters.Jobs+p.Counters.WatchJobs, p.Runner, "job")
	o.count(claims, p.Counters.Empty, p.Runner, "empty")
	o.count(claims, p.Counters.Conflicts, p.Runner, "conflict")
	o.count(watches, p.Counters.Watches, p.Runner)
	o.count(throttled, p.Counters.Throttled, p.Runner)
	o.count(failures, p.Counters.Errors, p.Runner)
	if !p.LastJob.IsZero() {
		o.gauge(lastJob, seconds(p.LastJob), p.Runner)
	}
	if !r.Token.ExpiresAt.IsZero() {
		o.gauge(tokenExpires, seconds(r.Token.ExpiresAt), p.Runner)
	}
}

func collectProject(o output, r dispatch.UsageRow) {
	o.gauge(projectSlots, float64(r.Slots), r.GitLab, r.Path)
	o.gauge(projectQueue, float64(r.Waiting), r.GitLab, r.Path)
	o.gauge(projectShare, r.Share, r.GitLab, r.Path)
	o.gauge(projectWeight, max(r.Weight, 1), r.GitLab, r.Path)
	if r.Hard > 0 {
		o.gauge(projectQuota, float64(r.Hard), r.GitLab, r.Path)
	}
	for window, u := range map[string]usage.Used{"1h": r.Hour, "24h": r.Day} {
		o.gauge(projectUsed, u.SlotSeconds, r.GitLab, r.Path, window)
		if u.Jobs > 0 {
			o.gauge(projectMedian, u.P50.Seconds(), r.GitLab, r.Path, window)
			o.gauge(projectWait, u.P95.Seconds(), r.GitLab, r.Path, window)
		}
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
