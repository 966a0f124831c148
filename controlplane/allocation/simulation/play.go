package simulation

import (
	"cmp"
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/allocation"
	"github.com/switchyard-ci/switchyard/controlplane/policy"
)

// Report is what came of a scenario, over all its seeds.
type Report struct {
	Scenario string          `json:"scenario"`
	Mode     string          `json:"mode"`
	Slots    int             `json:"slots"`
	Hours    float64         `json:"hours"`
	Seeds    int             `json:"seeds"`
	Jain     float64         `json:"jain"` // of what the projects with a backlog got by what was due to them, mean over the seeds
	Busy     float64         `json:"busy"` // part of the slots' time that was used
	Projects []ProjectReport `json:"projects"`

	// Timeline is of the first seed: per project (as in Projects) the mean number of its slots in each of equal parts of
	// the time.
	Timeline [][]float64 `json:"-"`
}

// ProjectReport is the part of one project, or of one of its loads. Waits are of the jobs that began, over all seeds.
type ProjectReport struct {
	Path        string  `json:"path"`
	Name        string  `json:"name,omitempty"`     // of its jobs
	Rule        string  `json:"rule,omitempty"`     // the policy's, that holds for them
	Class       string  `json:"class,omitempty"`    // which they have by that
	Priority    int     `json:"priority,omitempty"` // inside the project's share
	Backlog     bool    `json:"backlog,omitempty"`
	Weight      float64 `json:"weight"`
	Jobs        int     `json:"jobs"`          // that began
	Waiting     int     `json:"waiting"`       // that had not at the end; a backlog is not counted
	SlotSeconds float64 `json:"slot_seconds"`  // mean over the seeds
	Due         float64 `json:"due,omitempty"` // of a project with a backlog: its part by weights and quotas among those with one
	Share       float64 `json:"share"`         // of all slot-seconds used
	WaitP50     float64 `json:"wait_p50"`      // seconds
	WaitP95     float64 `json:"wait_p95"`
	WaitMax     float64 `json:"wait_max"`
}

// columns of the timeline: each wide enough for some jobs, so that shares can be seen, and not only jobs.
const columns = 96

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Play plays a scenario that Read has returned.
func Play(s Scenario) (Report, error) {
	seeds := max(s.Seeds, 1)
	r := Report{Scenario: s.Name, Mode: string(s.Policy.Mode), Slots: s.Slots, Hours: s.Duration.Hours(), Seeds: seeds}
	var waits [][]float64
	for i := range seeds {
		g, err := newGame(&s, s.Seed+uint64(i))
		if err != nil {
			return r, err
		}
		if err := g.play(); err != nil {
			return r, err
		}
		if i == 0 {
			waits = make([][]float64, len(g.projects))
			for _, p := range g.projects {
				r.Projects = append(r.Projects, ProjectReport{
					Path: p.path, Name: p.load.Facts.Job, Rule: p.rank.Rule, Class: p.rank.Class, Priority: p.rank.Priority,
					Backlog: p.load.Backlog, Weight: p.weight, Due: p.due,
				})
				r.Timeline = append(r.Timeline, p.timeline)
			}
		}
		used := make(map[int64]float64) // by project
		for _, p := range g.projects {
			used[p.id] += p.used
		}
		var shares []float64
		for n, p := range g.projects {
			total := &r.Projects[n]
			total.Jobs += len(p.waits)
			if !p.load.Backlog {
				total.Waiting += p.arrived - len(p.waits)
			}
			total.SlotSeconds += p.used / float64(seeds)
			waits[n] = append(waits[n], p.waits...)
			if p.load.Backlog && p.due > 0 {
				shares = append(shares, used[p.id]/p.due)
			}
			r.Busy += p.used / (s.Duration.Seconds() * float64(s.Slots) * float64(seeds))
		}
		r.Jain += Jain(shares) / float64(seeds)
	}
	for n := range r.Projects {
		p := &r.Projects[n]
		if r.Busy > 0 {
			p.Share = p.SlotSeconds / (r.Busy * s.Duration.Seconds() * float64(s.Slots))
		}
		slices.Sort(waits[n])
		p.WaitP50, p.WaitP95, p.WaitMax = quantile(waits[n], 0.5), quantile(waits[n], 0.95), quantile(waits[n], 1)
	}
	return r, nil
}

// Jain is the fairness index of Jain, Chiu and Hawe (1984): 1 if all have the same, 1/n if one has everything.
func Jain(x []float64) float64 {
	sum, squares := 0.0, 0.0
	for _, v := range x {
		sum += v
		squares += v * v
	}
	if squares == 0 {
		return 1
	}
	return sum * sum / (float64(len(x)) * squares)
}

// quantile of sorted values: the smallest that is not below a part q of them.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(max(int(math.Ceil(q*float64(len(sorted))))-1, 0), len(sorted)-1)]
}

// game is one seed's play.
type game struct {
	scenario *Scenario
	s        *allocation.Scheduler
	projects []*project // a load each
	events   events
	free     int
	now      time.Duration
	seq      int
}

// project is one project with one load.
type project struct {
	load     *Project
	path     string
	id       int64 // the same one for all loads of a project
	rank     policy.Ranking
	class    int
	weight   float64
	due      float64
	index    int
	lengths  *rand.Rand
	arrivals *rand.Rand
	arrived  int
	jobs     map[int64]*simulated // that wait or run
	waits    []float64
	used     float64
	timeline []float64
}

type simulated struct {
	arrived, began, length time.Duration
}

// event is an arrival (job 0: the next one of the project) or a finish.
type event struct {
	at      time.Duration
	seq     int
	project *project
	job     int64
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(e[i].at, e[j].at), cmp.Compare(e[i].seq, e[j].seq)) < 0
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

const (
	runnerName = "simulated"
	poolName   = "simulated"
	idRange    = 100_000_000 // ids of one project are together, and the first projects have the lowest
)

func newGame(s *Scenario, seed uint64) (*game, error) {
	rules := s.allocation()
	g := &game{scenario: s, s: allocation.New(rules), free: s.Slots}
	g.s.SetRunner(epoch, allocation.Runner{Name: runnerName, GitLab: s.GitLab, Pool: poolName})
	ids := make(map[string]int64)
	for i := range s.Projects {
		load := &s.Projects[i]
		for _, path := range load.paths() {
			index := len(g.projects)
			p := &project{
				load: load, path: path, weight: rule(&rules, s.GitLab, strings.ToLower(path), true).Weight, index: index,
				// A project's jobs are the same ones under each policy.
				lengths: rand.New(rand.NewPCG(seed, uint64(2*index))), arrivals: rand.New(rand.NewPCG(seed, uint64(2*index+1))),
				jobs: make(map[int64]*simulated), timeline: make([]float64, columns),
			}
			key := strings.ToLower(path)
			if ids[key] == 0 {
				ids[key] = int64(index + 1)
			}
			p.id = ids[key]
			facts := load.Facts
			facts.GitLab, facts.Project = s.GitLab, path
			var err error
			if p.rank, err = s.Policy.Rank(facts); err != nil {
				return nil, fmt.Errorf("ask the policy's rules about jobs of %s: %w", path, err)
			}
			class, granted := s.Policy.Class(p.rank.Class, s.GitLab, path)
			if !granted {
				p.rank.Class = policy.ClassNormal
			}
			p.class = class
			g.projects = append(g.projects, p)
		}
	}
	g.dues(&rules)
	return g, nil
}

// dues works out what part of the slots is due to each project with a backlog: its weight among its siblings with one, of
// what is due to its group, as far as quotas let it.
func (g *game) dues(rules *allocation.Policy) {
	d := dues{rules: rules, gitlab: g.scenario.GitLab, below: make(map[string][]string), given: make(map[string]float64)}
	seen := make(map[string]bool)
	for _, p := range g.projects {
		for path := strings.ToLower(p.path); p.load.Backlog && path != "" && !seen[path]; path = above(path) {
			seen[path] = true
			d.below[above(path)] = append(d.below[above(path)], path)
		}
	}
	slots := min(float64(g.scenario.Slots), d.most(""))
	d.give("", slots)
	for _, p := range g.projects {
		if p.load.Backlog && slots > 0 {
			p.due = d.given[strings.ToLower(p.path)] / slots
		}
	}
}

// dues is what is due to whom, in slots.
type dues struct {
	rules  *allocation.Policy
	gitlab string
	below  map[string][]string // paths of groups and projects with a backlog, by their group
	given  map[string]float64
}

func (d *dues) rule(path string) allocation.Rule {
	return rule(d.rules, d.gitlab, path, path != "" && len(d.below[path]) == 0)
}

// most is what a node can have at all.
func (d *dues) most(path string) float64 {
	r, limit := d.rule(path), math.Inf(1)
	switch {
	case r.Paused:
		return 0
	case r.Hard > 0:
		limit = float64(r.Hard)
	}
	if path != "" && len(d.below[path]) == 0 {
		return limit
	}
	sum := 0.0
	for _, child := range d.below[path] {
		sum += d.most(child)
	}
	return min(limit, sum)
}

// give deals slots out among the children of a node: by weight, but what is guaranteed first, and last what is over a soft
// quota.
func (d *dues) give(path string, slots float64) {
	type claim struct{ weight, guaranteed, soft, most, low, high float64 }
	claims := make([]claim, len(d.below[path]))
	guaranteed, soft, level := 0.0, 0.0, 0.0
	for i, child := range d.below[path] {
		r, c := d.rule(child), &claims[i]
		c.weight, c.most = r.Weight, d.most(child)
		c.guaranteed, c.soft = min(float64(r.Min), c.most), c.most
		if r.Soft > 0 {
			c.soft = min(float64(r.Soft), c.most)
		}
		guaranteed, soft, level = guaranteed+c.guaranteed, soft+c.soft, max(level, slots/c.weight)
	}
	for i := range claims {
		switch c := &claims[i]; {
		case guaranteed > slots:
			c.low, c.high = 0, c.guaranteed
		case soft < slots:
			c.low, c.high = c.soft, c.most
		default:
			c.low, c.high = c.guaranteed, c.soft
		}
	}
	part := func(level float64, c claim) float64 { return max(c.low, min(level*c.weight, c.high)) }
	least := 0.0
	for range 100 { // until the level is found at which all is dealt out
		half, sum := (least+level)/2, 0.0
		for _, c := range claims {
			sum += part(half, c)
		}
		if sum < slots {
			least = half
		} else {
			level = half
		}
	}
	for i, child := range d.below[path] {
		d.given[child] = part(level, claims[i])
		d.give(child, d.given[child])
	}
}

func above(path string) string { return path[:max(strings.LastIndexByte(path, '/'), 0)] }

func (g *game) push(at time.Duration, p *project, job int64) {
	g.seq++
	heap.Push(&g.events, event{at, g.seq, p, job})
}

func (g *game) play() error {
	for _, p := range g.projects {
		g.push(p.load.Start, p, 0)
	}
	for len(g.events) > 0 && g.events[0].at <= g.scenario.Duration {
		// What happens at one moment has happened before somebody is served.
		g.now = g.events[0].at
		for len(g.events) > 0 && g.events[0].at == g.now {
			e := heap.Pop(&g.events).(event)
			var err error
			if e.job == 0 {
				err = g.arrivals(e.project)
			} else {
				err = g.finish(e.project, e.job)
			}
			if err != nil {
				return err
			}
		}
		if err := g.serve(); err != nil {
			return err
		}
	}
	g.now = g.scenario.Duration
	for _, p := range g.projects {
		for _, j := range p.jobs {
			if j.began >= 0 {
				p.use(j.began, g.now, g.scenario.Duration)
			}
		}
	}
	return nil
}

// arrivals brings a project's next jobs.
func (g *game) arrivals(p *project) error {
	number := 1
	switch {
	case p.load.Jobs > 0:
		number = p.load.Jobs
	case p.load.Backlog:
		number = 2 // one is taken, one is there still
	default:
		next := g.now + time.Duration(p.arrivals.ExpFloat64()*float64(p.load.Every))
		if p.load.Stop == 0 || next < p.load.Stop {
			g.push(next, p, 0)
		}
	}
	for range number {
		if err := g.arrive(p, g.now); err != nil {
			return err
		}
	}
	return nil
}

func (g *game) arrive(p *project, since time.Duration) error {
	p.arrived++
	id := int64(p.index+1)*idRange + int64(p.arrived)
	length := float64(p.load.Length)
	if !p.load.Fixed {
		length *= min(p.lengths.ExpFloat64(), 5)
	}
	p.jobs[id] = &simulated{arrived: since, began: -1, length: max(time.Duration(length), time.Millisecond)}
	return g.s.Arrive(epoch.Add(g.now), allocation.Job{
		GitLab: g.scenario.GitLab, ID: id, Project: allocation.Project{ID: p.id, Path: strings.ToLower(p.path)}, Runner: runnerName,
		Name: p.load.Facts.Job, Priority: p.rank.Priority, Class: p.class, Since: epoch.Add(since),
	})
}

func (g *game) serve() error {
	for g.free > 0 {
		d, ok := g.s.Next(epoch.Add(g.now), poolName)
		if !ok {
			return nil
		}
		if err := g.s.Start(epoch.Add(g.now), d.Job); err != nil {
			return err
		}
		g.free--
		p := g.projects[d.Job.ID/idRange-1]
		j := p.jobs[d.Job.ID]
		j.began = g.now
		p.waits = append(p.waits, (g.now - j.arrived).Seconds())
		g.push(g.now+j.length, p, d.Job.ID)
		if p.load.Backlog {
			if err := g.arrive(p, p.load.Start); err != nil { // it has been there since the start, nobody looked
				return err
			}
		}
	}
	return nil
}

func (g *game) finish(p *project, id int64) error {
	j := p.jobs[id]
	delete(p.jobs, id)
	p.use(j.began, g.now, g.scenario.Duration)
	g.free++
	return g.s.Finish(epoch.Add(g.now), allocation.JobKey{GitLab: g.scenario.GitLab, ID: id})
}

// use notes that the project had a slot for a time.
func (p *project) use(from, to, all time.Duration) {
	p.used += (to - from).Seconds()
	width := all / columns
	if width <= 0 {
		return
	}
	for c := int(from / width); c < columns && time.Duration(c)*width < to; c++ {
		begin, end := max(from, time.Duration(c)*width), min(to, time.Duration(c+1)*width)
		p.timeline[c] += float64(end-begin) / float64(width)
	}
}
