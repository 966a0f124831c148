// Package policy reads the fleet's policy of fair usage: who gets which share, which jobs go first, and how agents are
// chosen. It is pure: it is given a text and answers with what the text says, or with every mistake and its place.
package policy

import (
	"errors"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/controlplane/allocation"
	"github.com/switchyard-ci/switchyard/controlplane/placement"
	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// MaxSize is the longest text of a policy, in bytes.
const MaxSize = 1 << 20

// Limits of a policy.
const (
	maxNodes    = 20000
	maxRunners  = 1000
	maxRules    = 200
	maxClasses  = allocation.MaxClass + 1
	maxWeight   = 1000
	maxSlots    = 1000000
	maxPriority = 1000
	maxHold     = 100000
	maxAhead    = 5 * time.Minute
	longest     = 30 * 24 * time.Hour
)

// Mode is how slots are shared.
type Mode string

// The modes.
const (
	// Fair shares slot-seconds by weight over the tree of groups and projects.
	Fair Mode = "fair"
	// GitLab is GitLab's own rule for instance runners: the project with the fewest running jobs, then the oldest job.
	GitLab Mode = "gitlab"
	// FIFO serves jobs in the order of their arrival.
	FIFO Mode = "fifo"
)

// ClassNormal is the class of jobs that no rule gives another.
const ClassNormal = "normal"

// Policy is what a policy says, with the defaults of what it leaves out. It is not changed once made; any number of
// goroutines may use it.
type Policy struct {
	Mode Mode
	// Ageing is the time of waiting after which a job's priority counts one step higher.
	Ageing time.Duration
	// ClassPatience is how long jobs of lower classes wait at most while a higher one takes every slot.
	ClassPatience time.Duration
	// Credit is how much slot-time a project can catch up that was charged too much or could not be served.
	Credit time.Duration
	// HalfLife is the time in which half of what a project has used beyond the others is forgiven.
	HalfLife time.Duration
	// FirstGuess is how long a project's jobs are taken to last before any has ended.
	FirstGuess time.Duration

	// Classes are the classes of jobs, the one that goes first in front. ClassNormal is always among them.
	Classes []string
	// Projects and Groups are what holds for every project and group that Nodes says nothing else about.
	Projects, Groups Share
	Nodes            []Node
	Runners          []Runner
	// Places is how agents are chosen; the first that names a runner, or names none, counts.
	Places []Place

	rules []rule

	runners  map[string]Runner
	places   map[string]Place // of the runners that Places names
	granting map[string][]Node
}

// Unlimited is a quota, or the lack of a minimum, that a node has although the defaults say otherwise.
const Unlimited = allocation.Unlimited

// Share is what a node of the tree may have. What is 0 is not said: the default for such nodes counts, and without one
// the weight is 1 and nothing is limited.
type Share struct {
	// Weight is the part of the slots in relation to its siblings'.
	Weight int
	// Guaranteed is the number of slots up to which it goes before others.
	Guaranteed int
	// Soft is the number of slots from which it comes after others, Hard the number that it never exceeds.
	Soft, Hard int
	// Paused: nothing of it starts.
	Paused bool
}

// Node is a group or project with a share of its own.
type Node struct {
	// GitLab is the address of its GitLab; empty: the path is meant on each.
	GitLab string
	// Path is the full path of the group or project; empty: the whole GitLab.
	Path string
	Share
	// Classes are those that jobs below it may have. A class that goes before ClassNormal has no effect on a job that is
	// below no node which grants it; others need no grant.
	Classes []string
}

// Runner is what holds for a runner of the control plane's configuration.
type Runner struct {
	Name string
	Share
	// Group or Project is what the runner is registered for in GitLab, which its claims are charged to; both empty: it is an
	// instance runner, or nobody has said.
	Group, Project string
	// Hold is how many claimed jobs that may not start now are kept at most before the runner stops claiming.
	Hold int
	// Ahead is how many jobs of one project may be claimed without a slot; none more are while the oldest of the runner's
	// waiting jobs has waited for AheadFor.
	Ahead    int
	AheadFor time.Duration
}

// DefaultHold is Runner.Hold where the policy says nothing.
const DefaultHold = 3

// Place is how agents are chosen for the jobs of some runners.
type Place struct {
	Runners  []string // names; none: all
	Strategy placement.Strategy
	// Warm says whether an agent that has built the project before is preferred, WarmWait how long a job lets others pass
	// while such an agent is busy. A slot that nobody else wants is never left idle for that.
	Warm     bool
	WarmWait time.Duration
}

// Default is the policy of a fleet that was given none.
func Default() *Policy {
	p := &Policy{
		Mode: Fair, Ageing: 5 * time.Minute, ClassPatience: 15 * time.Minute, Credit: time.Hour, HalfLife: time.Hour,
		FirstGuess: 5 * time.Minute, Classes: []string{ClassNormal},
		Places: []Place{{Strategy: placement.Spread, Warm: true}},
	}
	return p.index()
}

// Parse reads a policy. name is what the text is called in messages. The error is yamlform.Problems: all mistakes, each
// with its place. Warnings come with a policy and with an error alike.
func Parse(name string, text []byte) (*Policy, []yamlform.Problem, error) {
	if len(text) > MaxSize {
		return nil, nil, yamlform.Problems{{File: name, Message: "it has more than 1024 KiB", Hint: "give shares to groups instead of to each of their projects"}}
	}
	r, root, err := yamlform.Parse(name, text)
	if errors.Is(err, yamlform.ErrEmpty) {
		return nil, nil, yamlform.Problems{{File: name, Message: "it is empty", Hint: "{} is the policy that leaves everything to the defaults"}}
	}
	if err != nil {
		return nil, nil, err
	}
	p := Read(r, root, "")
	if err := r.Err(); err != nil {
		return nil, r.Warnings(), err
	}
	return p, r.Warnings(), nil
}

// Read reads a policy that is part of a file; path is where it stands there, for messages. Mistakes and warnings go to the
// form: with mistakes the policy is not to be used.
func Read(form *yamlform.Reader, node *yaml.Node, path string) *Policy {
	return (&reading{Reader: form}).policy(yamlform.Resolve(node), path).index()
}

// WithMode returns the same policy with another way of sharing slots.
func (p *Policy) WithMode(m Mode) *Policy {
	other := *p
	other.Mode = m
	return &other
}

// NeedsGrant says whether jobs may have the class only where a node grants it: it goes before ClassNormal.
func (p *Policy) NeedsGrant(class string) bool { return needsGrant(p.Classes, class) }

func needsGrant(classes []string, class string) bool {
	return slices.Index(classes, class) < slices.Index(classes, ClassNormal)
}

// Runner returns what the policy says of a runner, with defaults if it says nothing.
func (p *Policy) Runner(name string) Runner {
	if r, ok := p.runners[name]; ok {
		return r
	}
	return Runner{Name: name, Hold: DefaultHold}
}

// Place returns how agents are chosen for a runner's jobs.
func (p *Policy) Place(runner string) Place {
	if place, ok := p.places[runner]; ok {
		return place
	}
	for _, place := range p.Places {
		if len(place.Runners) == 0 {
			return place
		}
	}
	return Place{Strategy: placement.Spread, Warm: true}
}

// index makes what is looked up for each job quick to find.
func (p *Policy) index() *Policy {
	p.runners, p.places, p.granting = make(map[string]Runner), make(map[string]Place), make(map[string][]Node)
	for _, r := range p.Runners {
		p.runners[r.Name] = r
	}
	for _, place := range p.Places {
		if len(place.Runners) == 0 {
			break
		}
		for _, name := range place.Runners {
			if _, ok := p.places[name]; !ok {
				p.places[name] = place
			}
		}
	}
	for _, n := range p.Nodes {
		for _, class := range n.Classes {
			p.granting[class] = append(p.granting[class], n)
		}
	}
	return p
}
