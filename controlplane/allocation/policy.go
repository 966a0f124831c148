package allocation

import (
	"math"
	"strings"
	"time"
)

// Mode is the rule by which the next one to be served is chosen.
type Mode uint8

// The rules. Quotas and pauses hold under each of them.
const (
	// Fair shares slot-seconds by weight, level by level of the tree.
	Fair Mode = iota
	// GitLab serves the project with the fewest running jobs on instance runners, then the job with the lowest id, as
	// GitLab's own queue of instance runners does (app/services/ci/queue/pending_builds_strategy.rb). The jobs of group
	// and project runners are ordered by id. Weights, minimums, priorities and classes have no effect.
	GitLab
	// FIFO serves whoever has waited longest. Weights, minimums, priorities and classes have no effect.
	FIFO
)

var modes = [...]string{Fair: "fair", GitLab: "gitlab", FIFO: "fifo"}

func (m Mode) String() string {
	if int(m) < len(modes) {
		return modes[m]
	}
	return "unknown"
}

// ParseMode returns the mode with this name: fair, gitlab or fifo.
func ParseMode(name string) (Mode, bool) {
	for m, n := range modes {
		if n == name {
			return Mode(m), true
		}
	}
	return Fair, false
}

// MaxClass is the highest class that a job may be granted; 0 is what every job has.
const MaxClass = 7

// Policy is what an administrator decides. The zero value is Fair with the defaults that stand at the fields.
type Policy struct {
	Mode Mode
	// FirstGuess is how long a job is taken to last while none of its project has finished. 0 means 5 min.
	FirstGuess time.Duration
	// CreditCap bounds how far below the others' a node's account may fall, in slot-time per weight: so much can a node
	// catch up that was charged too much or could not be served. 0 means 1 h.
	CreditCap time.Duration
	// HalfLife is the time of being idle in which half of what a node was ahead of or behind the others is forgiven. 0
	// means 1 h.
	HalfLife time.Duration
	// Ageing is how long a job has to wait for one step of priority: a job of priority 3 is served before one of
	// priority 1 of its project that has waited less than two times Ageing longer. 0 means 5 min.
	Ageing time.Duration
	// ClassPatience is how long jobs of a lower class wait while a higher class takes every slot of their pool: after
	// that, one of them is served. 0 means 15 min.
	ClassPatience time.Duration
	// What a node of each kind has that Nodes or Runners says nothing about.
	Defaults struct{ GitLab, Group, Project, Runner Rule }
	// Nodes are the rules of single nodes by NodeName. "" is the whole fleet.
	Nodes map[string]Rule
	// Runners are the rules of single runners by their names here.
	Runners map[string]Rule
}

// Unlimited is the quota of a node that has none, even if the default has one.
const Unlimited = -1

// Rule is what holds for one node. A zero field is inherited from the default for nodes of its kind, and where that is
// zero too, there is no such limit.
type Rule struct {
	// Weight says how much of its parent's share a node gets, compared with its siblings. 0 means 1; it is brought into
	// the range 0.001 to 1000.
	Weight float64
	// Min is how many slots the node gets before others that have theirs.
	Min int
	// Soft is from how many slots on the node is served only if no sibling below its own quota waits.
	Soft int
	// Hard is how many slots the node never exceeds, claims under way included.
	Hard int
	// Paused nodes are not served; what runs goes on.
	Paused bool
}

// NodeName is the name of a GitLab (with an empty path), a group or a project in Policy.Nodes.
func NodeName(gitlab, path string) string {
	gitlab, path = strings.TrimRight(gitlab, "/"), strings.Trim(path, "/")
	if path == "" {
		return gitlab
	}
	return gitlab + "/" + path
}

// settings is a Policy in the units that decisions are made in.
type settings struct {
	mode                                                   Mode
	firstGuess, creditCap, halfLife, ageing, classPatience int64 // µs
}

func (p *Policy) settings() settings {
	or := func(d, standard time.Duration) int64 {
		if d <= 0 {
			d = standard
		}
		return d.Microseconds()
	}
	return settings{
		mode:       p.Mode,
		firstGuess: or(p.FirstGuess, 5*time.Minute), creditCap: or(p.CreditCap, time.Hour),
		halfLife: or(p.HalfLife, time.Hour), ageing: or(p.Ageing, 5*time.Minute),
		classPatience: or(p.ClassPatience, 15*time.Minute),
	}
}

// limits are a node's rule in the units that decisions are made in.
type limits struct {
	weight          int64 // thousandths
	min, soft, hard int32 // 0: none
	paused          bool
}

func (p *Policy) limits(k kind, name string) limits {
	var standard, own Rule
	switch k {
	case kindGitLab:
		standard = p.Defaults.GitLab
	case kindGroup:
		standard = p.Defaults.Group
	case kindProject:
		standard = p.Defaults.Project
	case kindRunner:
		standard = p.Defaults.Runner
	}
	if k == kindRunner {
		own = p.Runners[name]
	} else {
		own = p.Nodes[name]
	}
	slots := func(own, standard int) int32 {
		if own == 0 {
			own = standard
		}
		return int32(min(max(own, 0), math.MaxInt32))
	}
	weight := own.Weight
	if weight <= 0 {
		weight = standard.Weight
	}
	if weight <= 0 {
		weight = 1
	}
	return limits{
		weight: int64(math.Round(min(max(weight, 0.001), 1000) * 1000)),
		min:    slots(own.Min, standard.Min), soft: slots(own.Soft, standard.Soft), hard: slots(own.Hard, standard.Hard),
		paused: own.Paused || standard.Paused,
	}
}
