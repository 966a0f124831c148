// Package usage counts what projects have used of the fleet and how long their jobs waited for it: for people, not for
// decisions (those are allocation's, with accounts of their own). It is pure: it is told the time by its caller.
package usage

import (
	"container/list"
	"sort"
	"time"
)

// Long and Short are the times over which is counted.
const (
	Long  = 24 * time.Hour
	Short = time.Hour
)

const (
	// step is how exactly the begin of a window is kept: what was used in the step in which it lies counts in part.
	step  = 5 * time.Minute
	steps = int(Long/step) + 1
	hours = int(Long/time.Hour) + 1
	// maxProjects is how many projects are remembered; those that nothing was heard of for longest are forgotten.
	maxProjects = 10000
)

// Project names a project of a GitLab.
type Project struct {
	GitLab string // address
	ID     int64
}

// Job names a job of a GitLab.
type Job struct {
	GitLab string
	ID     int64
}

// Used is what a project has used in one window.
type Used struct {
	SlotSeconds float64
	Jobs        int           // that got a slot
	P50, P95    time.Duration // of their waiting; 0 if there were none. Exact to half a power of two
}

// Row is what is known of one project.
type Row struct {
	Project
	Path  string // as it was heard last
	Slots int    // that it has now
	Hour  Used
	Day   Used
}

// Book counts. It is not safe for concurrent use.
type Book struct {
	projects map[Project]*list.Element
	recent   list.List // of *account, the one heard of last in front
	running  map[Job]*slot
}

type slot struct {
	of    *account
	since time.Time
}

// account is what one project has used. Rings are indexed by the number of the step or hour, modulo their length.
type account struct {
	project Project
	path    string
	slots   int
	used    [steps]float32 // slot-seconds
	step    int64          // the newest in used
	waits   [hours]histogram
	hour    int64 // the newest in waits
}

// New returns an empty book.
func New() *Book {
	return &Book{projects: make(map[Project]*list.Element), running: make(map[Job]*slot)}
}

// Start notes that a job got a slot after it had waited.
func (b *Book) Start(now time.Time, j Job, p Project, path string, waited time.Duration) {
	a := b.account(p)
	a.path = path
	a.turn(now)
	a.waits[a.hour%int64(hours)].add(waited)
	b.begin(a, j, now)
}

// Resume notes that a job has had a slot since before the book was opened. Only what it uses from now on is counted.
func (b *Book) Resume(now time.Time, j Job, p Project, path string) {
	a := b.account(p)
	a.path = path
	b.begin(a, j, now)
}

func (b *Book) begin(a *account, j Job, now time.Time) {
	if b.running[j] == nil {
		a.slots++
		b.running[j] = &slot{a, now}
	}
}

// Finish notes that a job gave its slot back.
func (b *Book) Finish(now time.Time, j Job) {
	s := b.running[j]
	if s == nil {
		return
	}
	delete(b.running, j)
	s.of.slots--
	s.of.spend(s.since, now)
}

func (b *Book) account(p Project) *account {
	if at := b.projects[p]; at != nil {
		b.recent.MoveToFront(at)
		return at.Value.(*account)
	}
	for at := b.recent.Back(); at != nil && b.recent.Len() >= maxProjects; {
		oldest, before := at.Value.(*account), at.Prev()
		if oldest.slots == 0 {
			delete(b.projects, oldest.project)
			b.recent.Remove(at)
		}
		at = before
	}
	a := &account{project: p}
	b.projects[p] = b.recent.PushFront(a)
	return a
}

// turn makes the rings begin at now; what is older than their length goes.
func (a *account) turn(now time.Time) {
	if n := now.Unix() / int64(step/time.Second); n > a.step {
		for i := max(a.step+1, n-int64(steps)+1); i <= n; i++ {
			a.used[i%int64(steps)] = 0
		}
		a.step = n
	}
	if n := now.Unix() / 3600; n > a.hour {
		for i := max(a.hour+1, n-int64(hours)+1); i <= n; i++ {
			a.waits[i%int64(hours)] = histogram{}
		}
		a.hour = n
	}
}

// spend counts one slot from one time to another.
func (a *account) spend(from, to time.Time) {
	a.turn(to)
	if oldest := time.Unix((a.step-int64(steps)+1)*int64(step/time.Second), 0); from.Before(oldest) {
		from = oldest
	}
	for from.Before(to) {
		n := from.Unix() / int64(step/time.Second)
		end := time.Unix((n+1)*int64(step/time.Second), 0)
		if end.After(to) {
			end = to
		}
		a.used[n%int64(steps)] += float32(end.Sub(from).Seconds())
		from = end
	}
}

// in sums up the window that ends now.
func (a *account) in(now time.Time, window time.Duration) Used {
	a.turn(now)
	var u Used
	begin := now.Add(-window)
	first := begin.Unix() / int64(step/time.Second)
	for n := max(first, a.step-int64(steps)+1); n <= a.step; n++ {
		part := 1.0
		if n == first {
			part = float64((n+1)*int64(step/time.Second)-begin.Unix()) / step.Seconds()
		}
		u.SlotSeconds += part * float64(a.used[n%int64(steps)])
	}
	var waits histogram
	for n := max(begin.Unix()/3600, a.hour-int64(hours)+1); n <= a.hour; n++ {
		waits.join(&a.waits[n%int64(hours)])
	}
	u.Jobs, u.P50, u.P95 = waits.total(), waits.quantile(0.5), waits.quantile(0.95)
	return u
}

// Report returns a row for each project that has a slot or has used one in the last 24 h, the one that used most in the
// last hour first. Waiting times are those of the hours in which the window lies.
func (b *Book) Report(now time.Time) []Row {
	running := make(map[*account]time.Duration)
	runningHour := make(map[*account]time.Duration)
	for _, s := range b.running {
		running[s.of] += min(now.Sub(s.since), Long)
		runningHour[s.of] += min(now.Sub(s.since), Short)
	}
	rows := make([]Row, 0, len(b.projects))
	for at := b.recent.Front(); at != nil; at = at.Next() {
		a := at.Value.(*account)
		r := Row{Project: a.project, Path: a.path, Slots: a.slots, Hour: a.in(now, Short), Day: a.in(now, Long)}
		r.Hour.SlotSeconds += runningHour[a].Seconds()
		r.Day.SlotSeconds += running[a].Seconds()
		if r.Slots > 0 || r.Day.SlotSeconds > 0 || r.Day.Jobs > 0 {
			rows = append(rows, r)
		}
	}
	sort.SliceStable(rows, func(i, j int) bool {
		x, y := &rows[i], &rows[j]
		if x.Hour.SlotSeconds != y.Hour.SlotSeconds {
			return x.Hour.SlotSeconds > y.Hour.SlotSeconds
		}
		if x.Path != y.Path {
			return x.Path < y.Path
		}
		return x.ID < y.ID
	})
	return rows
}
