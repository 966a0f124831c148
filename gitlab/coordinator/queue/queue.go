// Package queue is GitLab's queue of pending jobs and the order in which a runner is offered them
// (Ci::Queue::BuildQueueService, Ci::Queue::PendingBuildsStrategy and the tables ci_pending_builds and
// ci_running_builds). It does no I/O.
//
// Jobs that look alike to a runner (same tags, same protection) share a class, and in a class the jobs of a project
// share a lane that is sorted by id. What a runner gets first is then the best of a few lane heads, however many jobs
// are pending.
package queue

import (
	"iter"
	"slices"
	"strings"
)

// Entry is a row of ci_pending_builds: a pending job with what runners are matched by, as it was when the job became
// pending.
type Entry struct {
	Job     int64
	Project int64
	// Namespaces are the groups above the project, the root first; without them no group runner gets the job.
	Namespaces []int64
	// Instance: instance runners may take the job.
	Instance  bool
	Protected bool
	Tags      []string // sorted, unique
}

// Kind is the type of a runner.
type Kind uint8

// The types of runners.
const (
	Instance Kind = iota
	Group
	Project
)

// Runner is what the queue must know of a runner. A Runner does not change after its first use.
type Runner struct {
	Kind        Kind
	Namespaces  []int64  // of a group runner
	Projects    []int64  // of a project runner
	Tags        []string // sorted, unique
	RunUntagged bool
	Protected   bool // takes only jobs of protected refs
}

// Matches says whether the runner may take a job with these tags and this protection (Ci::Runner#matches_build?).
func (r *Runner) Matches(tags []string, protected bool) bool {
	if r.Protected && !protected {
		return false
	}
	if len(tags) == 0 {
		return r.RunUntagged
	}
	for _, t := range tags {
		if _, ok := slices.BinarySearch(r.Tags, t); !ok {
			return false
		}
	}
	return true
}

// Queue holds the pending jobs. It is not safe for concurrent use.
type Queue struct {
	classes map[string]*class
	entries map[int64]*item
	running map[int64]int // jobs that run on instance runners, by project
	byProj  map[int64][]*lane
}

type item struct {
	Entry
	class   *class
	removed bool
}

type class struct {
	tags      []string
	protected bool
	live      int             // pending jobs
	instance  fairHeap        // lanes of jobs that instance runners may take
	fair      map[int64]*lane // the same by project
	projects  map[int64]*lane // all jobs of a project
	groups    map[int64]*lane // all jobs below a namespace
}

// New makes an empty queue.
func New() *Queue {
	return &Queue{
		classes: map[string]*class{},
		entries: map[int64]*item{},
		running: map[int64]int{},
		byProj:  map[int64][]*lane{},
	}
}

// Len is the number of pending jobs.
func (q *Queue) Len() int { return len(q.entries) }

// Push adds a job; one that is already there stays as it is.
func (q *Queue) Push(e Entry) {
	if q.entries[e.Job] != nil {
		return
	}
	c := q.class(e.Tags, e.Protected)
	it := &item{Entry: e, class: c}
	q.entries[e.Job] = it
	c.live++
	if e.Instance {
		l := c.fair[e.Project]
		if l == nil {
			l = &lane{project: e.Project, at: -1, running: q.running[e.Project]}
			c.fair[e.Project] = l
			q.byProj[e.Project] = append(q.byProj[e.Project], l)
		}
		l.push(it)
		c.instance.fix(l)
	}
	laneOf(c.projects, e.Project).push(it)
	for _, ns := range e.Namespaces {
		laneOf(c.groups, ns).push(it)
	}
}

// Remove takes a job out; it returns false if the job is not there.
func (q *Queue) Remove(job int64) bool {
	it := q.entries[job]
	if it == nil {
		return false
	}
	delete(q.entries, job)
	it.removed = true
	c := it.class
	c.live--
	if l := c.fair[it.Project]; it.Instance {
		l.drop()
		c.instance.fix(l)
	}
	c.projects[it.Project].drop()
	for _, ns := range it.Namespaces {
		c.groups[ns].drop()
	}
	return true
}

// AddRunning counts n more (or fewer) jobs of the project as running on instance runners. Only these count in the fair
// order; jobs on group and project runners do not.
func (q *Queue) AddRunning(project int64, n int) {
	q.running[project] += n
	if q.running[project] <= 0 {
		delete(q.running, project)
	}
	for _, l := range q.byProj[project] {
		l.running = q.running[project]
		l.of.fix(l)
	}
}

// Running is the number of jobs of the project that run on instance runners.
func (q *Queue) Running(project int64) int { return q.running[project] }

// Size is the number of pending jobs that the runner may take.
func (q *Queue) Size(r *Runner) int {
	n := 0
	for _, c := range q.classes {
		if !r.Matches(c.tags, c.protected) {
			continue
		}
		switch r.Kind {
		case Instance:
			for _, l := range c.instance.lanes {
				n += l.live
			}
		case Group:
			n += c.groupSize(r.Namespaces)
		case Project:
			for _, p := range r.Projects {
				n += c.projects[p].size()
			}
		}
	}
	return n
}

// groupSize counts what is below any of the namespaces; nested ones share jobs, so more than one is counted by hand.
func (c *class) groupSize(namespaces []int64) int {
	if len(namespaces) == 1 {
		return c.groups[namespaces[0]].size()
	}
	seen := map[int64]bool{}
	for _, ns := range namespaces {
		for it := range c.groups[ns].all() {
			seen[it.Job] = true
		}
	}
	return len(seen)
}

// Best is the first of Candidates, found without looking at the rest.
func (q *Queue) Best(r *Runner) (job int64, ok bool) {
	var best cursor
	for _, c := range q.classes {
		if !r.Matches(c.tags, c.protected) {
			continue
		}
		for l := range c.heads(r) {
			cur := cursor{items: l.items[l.head:], running: l.running}
			if !ok || compareCursors(cur, best) < 0 {
				best, ok = cur, true
			}
		}
	}
	if !ok {
		return 0, false
	}
	return best.items[0].Job, true
}

// Candidates returns up to n jobs that the runner may take, best first: for an instance runner by the number of jobs of
// the project that run on instance runners and then by id, for the others by id.
func (q *Queue) Candidates(r *Runner, n int) []int64 {
	var m merge
	for _, c := range q.classes {
		if !r.Matches(c.tags, c.protected) {
			continue
		}
		lanes := c.heads(r)
		if r.Kind == Instance {
			lanes = slices.Values(c.instance.lanes)
		}
		for l := range lanes {
			m.cursors = append(m.cursors, cursor{items: l.items[l.head:], running: l.running})
		}
	}
	return m.first(n)
}

// heads yields the non-empty lanes of a class from which a runner draws; of the lanes for instance runners only the
// best one.
func (c *class) heads(r *Runner) iter.Seq[*lane] {
	return func(yield func(*lane) bool) {
		keys, lanes := r.Projects, c.projects
		switch r.Kind {
		case Instance:
			if len(c.instance.lanes) > 0 {
				yield(c.instance.lanes[0])
			}
			return
		case Group:
			keys, lanes = r.Namespaces, c.groups
		}
		for _, k := range keys {
			if l := lanes[k]; l.size() > 0 && !yield(l) {
				return
			}
		}
	}
}

func (q *Queue) class(tags []string, protected bool) *class {
	key := strings.Join(tags, "\x00")
	if protected {
		key += "\x00\x00"
	}
	c := q.classes[key]
	if c == nil {
		if len(q.classes) >= manyClasses {
			q.sweep()
		}
		c = &class{
			tags: tags, protected: protected,
			fair: map[int64]*lane{}, projects: map[int64]*lane{}, groups: map[int64]*lane{},
		}
		q.classes[key] = c
	}
	return c
}

// manyClasses is when empty classes are removed: jobs whose tags are like no other's must not make the queue slow.
const manyClasses = 64

func (q *Queue) sweep() {
	for key, c := range q.classes {
		if c.live > 0 {
			continue
		}
		delete(q.classes, key)
		for project, l := range c.fair {
			q.byProj[project] = slices.DeleteFunc(q.byProj[project], func(x *lane) bool { return x == l })
		}
	}
}
