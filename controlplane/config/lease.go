package config

import (
	"fmt"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// What stands between an agent's limit and the control plane's report. A job that is told to stop has a kill grace
// (executors' defaults: at most 30 s), the agent kills what is still there 10 s later, and killing takes its time, too. The
// clocks of two hosts may differ by a thousandth, which is ten times what quartz is good for.
const (
	stopTime     = 50 * time.Second
	driftDivisor = 1000

	shortestLease = 10 * time.Second
	longestLease  = 24 * time.Hour
	longestLoss   = 25 * time.Hour
)

// leastLoss is the shortest lost_after that goes with a stop_after.
func leastLoss(stopAfter time.Duration) time.Duration {
	return stopAfter + stopTime + stopAfter/driftDivisor
}

// fleetLease reads the lease of all jobs. Whoever runs a small fleet may know better how fast jobs stop: what is too short
// is only said.
func (r *reader) fleetLease(n *yaml.Node, path string) (stopAfter, lostAfter time.Duration) {
	stopAfter, lostAfter = r.lease(n, path, time.Second)
	if stopAfter > 0 && lostAfter-stopAfter < time.Minute {
		r.Warn(yamlform.Resolve(n), path, fmt.Sprintf("lost_after is only %s longer than stop_after", lostAfter-stopAfter),
			"a job that stops slowly may still run when GitLab retries it; leave a minute or more between them")
	}
	return stopAfter, lostAfter
}

// runnerLease reads the lease of one runner's jobs.
func (r *reader) runnerLease(n *yaml.Node, path string) (stopAfter, lostAfter time.Duration) {
	stopAfter, lostAfter = r.lease(n, path, shortestLease)
	if least := leastLoss(stopAfter); stopAfter > 0 && lostAfter < least {
		r.Problem(yamlform.Resolve(n), path, fmt.Sprintf("lost_after (%s) is too short for a stop_after of %s", lostAfter, stopAfter),
			fmt.Sprintf("make it %s or more: an agent that is cut off may need %s to stop a job, and clocks differ by up to a thousandth", least, stopTime))
		return 0, 0
	}
	return stopAfter, lostAfter
}

// lease reads both times; they are 0 if there is something to complain about.
func (r *reader) lease(n *yaml.Node, path string, shortest time.Duration) (stopAfter, lostAfter time.Duration) {
	n = yamlform.Resolve(n)
	if !r.Mapping(n, path, yamlform.Fields{
		"stop_after": func(n *yaml.Node, p string) { stopAfter = r.Duration(n, p, shortest, longestLease) },
		"lost_after": func(n *yaml.Node, p string) { lostAfter = r.Duration(n, p, shortest, longestLoss) },
	}) {
		return 0, 0
	}
	switch {
	case (yamlform.Value(n, "stop_after") == nil) != (yamlform.Value(n, "lost_after") == nil):
		r.Problem(n, path, "has only one of stop_after and lost_after", "set both or neither")
		return 0, 0
	case stopAfter == 0 || lostAfter == 0: // said already, or neither is set
		return 0, 0
	case lostAfter <= stopAfter:
		r.Problem(n, path, fmt.Sprintf("lost_after (%s) is not longer than stop_after (%s)", lostAfter, stopAfter),
			"an agent that is cut off needs time to stop its jobs before they are reported as lost")
		return 0, 0
	}
	return stopAfter, lostAfter
}
