package allocation

import (
	"errors"
	"time"
)

// Errors of calls about what the scheduler does not know, or knows to be otherwise. They are mistakes of the caller;
// nothing has changed.
var (
	ErrUnknownRunner = errors.New("unknown runner")
	ErrUnknownJob    = errors.New("unknown job")
	ErrNotWaiting    = errors.New("the job does not wait")
	ErrNotRunning    = errors.New("the job has no slot")
	ErrNoClaim       = errors.New("the runner has no claim under way")
)

// Scope is what a runner's registration in GitLab is for.
type Scope uint8

// The scopes. A runner whose scope is not known is taken for an instance runner.
const (
	InstanceRunner Scope = iota
	GroupRunner
	ProjectRunner
)

// Runner is one registration at a GitLab.
type Runner struct {
	Name   string
	GitLab string // its URL
	Scope  Scope
	Path   string // of the group or project that it is bound to; empty for an instance runner
	Pool   string // whose slots it uses
	Limit  int    // slots that it never exceeds, claims under way and waiting jobs included; 0: none
}

// Project is what a job says of its project. A project is known by its ID; Path (with its namespace) says where in the
// tree it is.
type Project struct {
	ID   int64
	Path string
}

// JobKey names a job.
type JobKey struct {
	GitLab string
	ID     int64
}

// Job is a job that a runner has claimed.
type Job struct {
	GitLab  string
	ID      int64
	Project Project
	Runner  string
	Name    string // as in .gitlab-ci.yml, for what has been learned of its length; may be empty
	// Class goes before everything else across projects; it is granted by the administrator only. 0 to MaxClass.
	Class int
	// Priority counts inside the job's project; a higher one is served first. See Policy.Ageing.
	Priority int
	// Since is when it began to wait; the zero time means now.
	Since time.Time
	// Committed jobs run already as far as GitLab knows: no quota and no pause holds them back, only their runner's limit.
	Committed bool
	// Held, if not empty, keeps the job from being served from the beginning, as Hold with this reason does.
	Held string
	// Factor is how much a second of the job's slot is charged; 0 means 1.
	Factor float64
}

// Key returns the job's name.
func (j *Job) Key() JobKey { return JobKey{j.GitLab, j.ID} }

// Decision says who gets the free slot.
type Decision struct {
	Runner string
	Claim  bool   // the runner may claim a job; otherwise Job gets the slot
	Job    JobKey // if it is no claim
}

// Scheduler decides. It is not safe for concurrent use. The times that it is told must not go back; one that does is
// taken for the last one.
type Scheduler struct {
	policy   Policy
	settings settings
	now      int64
	keeping  bool // what leaves a ranking now comes back to it at once

	root     *node
	nodes    map[nodeKey]*node
	projects map[projectKey]*node
	runners  map[string]*runner
	jobs     map[JobKey]*job
	pools    map[string]*pool
	bands    []*band
	domains  int
	spare    []*job
	restored *remembered // between Restore and the first Next
}

// runner is a Runner and what it has.
type runner struct {
	Runner
	pool       *pool
	leaf       *node
	limit      int // its own and the policy's
	wants      int
	wantsSince int64
	claims     []lease
	leases     int
	waiting    int
	queue      []*job // that wait and are not held
	gated      bool   // it is at its limit: its queue is in no ranking
	retired    bool
}

type lease struct {
	leaf       *node
	domain     int
	start      int64 // µs
	cost       int64 // charged so far, slot-µs
	factor     int64 // thousandths
	isInstance bool
}

type state uint8

const (
	queued state = iota
	parked       // its runner is at its limit
	held         // by Hold
	running
)

type job struct {
	key      JobKey
	project  *node
	runner   *runner
	band     *band
	name     string
	reason   string // of Hold
	class    int
	priority int
	commit   bool
	state    state
	since    int64
	order    int64
	pos      int32 // in its project's queue
	place    int32 // in its runner's
	lease    lease
}

// pool is a kind of slot. Pools whose slots may be the same ones are of one domain: their usage is one account.
type pool struct {
	name     string
	domain   int
	bands    [MaxClass + 2]*band // 0: committed jobs, then the classes from the highest down
	starving [MaxClass + 2]int64 // since when a band has been passed over; 0: it has not
}

// band is what waits in a pool with one class.
type band struct {
	index int
	rank  int // in pool.bands
	pool  *pool
}

const committed = 0 // the rank of jobs that nothing but their runner's limit holds back

// New returns a scheduler that knows nothing yet.
func New(p Policy) *Scheduler {
	s := &Scheduler{
		policy: p, settings: p.settings(),
		nodes: make(map[nodeKey]*node), projects: make(map[projectKey]*node), runners: make(map[string]*runner),
		jobs: make(map[JobKey]*job), pools: make(map[string]*pool),
	}
	s.root = s.node(kindFleet, "", nil)
	return s
}

func (s *Scheduler) tick(now time.Time) {
	s.now = max(s.now, now.UnixMicro())
}

func (s *Scheduler) pool(name string) *pool {
	p := s.pools[name]
	if p == nil {
		p = &pool{name: name, domain: s.domains}
		s.domains++
		s.pools[name] = p
	}
	return p
}

func (s *Scheduler) band(p *pool, rank int) *band {
	if p.bands[rank] == nil {
		p.bands[rank] = &band{index: len(s.bands), rank: rank, pool: p}
		s.bands = append(s.bands, p.bands[rank])
	}
	return p.bands[rank]
}

func (s *Scheduler) bandOf(j *job) *band {
	switch {
	case j.commit:
		return s.band(j.runner.pool, committed)
	case s.settings.mode != Fair:
		return s.band(j.runner.pool, MaxClass+1)
	}
	return s.band(j.runner.pool, MaxClass+1-j.class)
}

func scale(x, thousandths int64) int64 { return x/1000*thousandths + x%1000*thousandths/1000 }
