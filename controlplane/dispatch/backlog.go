package dispatch

import (
	"container/list"
	"iter"
)

// backlog is the jobs of a runner that have no slot, in the order in which they began to wait. All but most costs the same
// however many there are.
type backlog struct {
	order    list.List // of *job
	places   map[*job]*list.Element
	projects map[int64]int // how many of each, by the project's id
}

func newBacklog() backlog {
	return backlog{places: make(map[*job]*list.Element), projects: make(map[int64]int)}
}

func (b *backlog) len() int { return len(b.places) }

// add does nothing for a job that is in it.
func (b *backlog) add(j *job) {
	if b.places[j] == nil {
		b.places[j] = b.order.PushBack(j)
		b.projects[j.row.Envelope.ProjectID]++
	}
}

// remove does nothing for a job that is not in it.
func (b *backlog) remove(j *job) {
	place := b.places[j]
	if place == nil {
		return
	}
	b.order.Remove(place)
	delete(b.places, j)
	if project := j.row.Envelope.ProjectID; b.projects[project] > 1 {
		b.projects[project]--
	} else {
		delete(b.projects, project)
	}
}

// oldest returns nil if nobody waits.
func (b *backlog) oldest() *job {
	if first := b.order.Front(); first != nil {
		return first.Value.(*job)
	}
	return nil
}

// most is how many jobs the project has that has most. It costs O(projects).
func (b *backlog) most() int {
	n := 0
	for _, count := range b.projects {
		n = max(n, count)
	}
	return n
}

// all returns them from the oldest on. The job that it is at may be removed meanwhile, no other.
func (b *backlog) all() iter.Seq[*job] {
	return func(yield func(*job) bool) {
		for at := b.order.Front(); at != nil; {
			j, next := at.Value.(*job), at.Next()
			if !yield(j) {
				return
			}
			at = next
		}
	}
}
