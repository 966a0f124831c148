package coordinator

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator/queue"
)

// RunnerType says for which projects a runner works.
type RunnerType string

// The types of runners.
const (
	InstanceRunner RunnerType = "instance_type"
	GroupRunner    RunnerType = "group_type"
	ProjectRunner  RunnerType = "project_type"
)

// RunnerOptions describe a runner. With the zero value it is an instance runner that takes tagged jobs only; set
// RunUntagged for one that takes all.
type RunnerOptions struct {
	Description string
	Type        RunnerType // empty: instance
	Group       string     // full path, of a group runner
	Projects    []string   // full paths, of a project runner
	Tags        []string
	RunUntagged bool
	// RefProtected: the runner takes only jobs of protected branches and tags.
	RefProtected bool
	// MaximumTimeout bounds the timeout of its jobs, in whole seconds; 0 does not.
	MaximumTimeout time.Duration
	// TokenTTL is how long each token of it is good for; 0 takes the coordinator's RunnerTokenTTL.
	TokenTTL time.Duration
	Paused   bool
}

// Runner is a runner of the coordinator.
type Runner struct {
	ID          int64
	Token       string
	ExpiresAt   time.Time // of the token; zero if it is good for ever
	Description string
	Type        RunnerType
	Tags        []string
	Paused      bool
	ContactedAt time.Time // the last authenticated request; zero if there was none
	Managers    []string  // the system ids that have used the token, sorted
}

// queueExpiry is how long a queue value lives (RUNNER_QUEUE_EXPIRY_TIME).
const queueExpiry = 60 * time.Minute

type runner struct {
	RunnerOptions
	id          int64
	prefix      string // of its tokens
	token       string
	tokenEnds   time.Time // the token is refused from then on; zero: never
	match       *queue.Runner
	contactedAt time.Time
	managers    map[string]time.Time

	// The queue value of X-GitLab-Last-Update: any change of it says that there may be a job.
	value     string
	expiresAt time.Time
	observed  bool          // someone knows the value, so a change must be seen
	changed   chan struct{} // closed at the next change
}

func (o *RunnerOptions) complete() error {
	setDefault(&o.Type, InstanceRunner)
	switch o.Type {
	case InstanceRunner:
	case GroupRunner:
		if o.Group == "" {
			return fmt.Errorf("a group runner needs a group")
		}
	case ProjectRunner:
		if len(o.Projects) == 0 {
			return fmt.Errorf("a project runner needs at least one project")
		}
	default:
		return fmt.Errorf("runner type %q: use instance_type, group_type or project_type", o.Type)
	}
	o.Tags = sortedUnique(o.Tags)
	if len(o.Tags) == 0 && !o.RunUntagged {
		return fmt.Errorf("a runner without tags that does not run untagged jobs can never run a job: add tags or set RunUntagged")
	}
	if o.MaximumTimeout < 0 {
		return fmt.Errorf("maximum timeout %s: must not be negative", o.MaximumTimeout)
	}
	if o.TokenTTL < 0 {
		return fmt.Errorf("token TTL %s: must not be negative", o.TokenTTL)
	}
	return nil
}

// AddRunner adds a runner, as creating one in GitLab's pages does: its token begins with glrt-.
func (c *Coordinator) AddRunner(o RunnerOptions) (Runner, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.addRunner(o, "glrt-")
	if err != nil {
		return Runner{}, err
	}
	return r.snapshot(), nil
}

func (c *Coordinator) addRunner(o RunnerOptions, prefix string) (*runner, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	r := &runner{
		RunnerOptions: o, id: c.id("runner"), prefix: prefix,
		managers: map[string]time.Time{}, changed: make(chan struct{}),
		match: &queue.Runner{Tags: o.Tags, RunUntagged: o.RunUntagged, Protected: o.RefProtected},
	}
	switch o.Type {
	case GroupRunner:
		r.match.Kind = queue.Group
		r.match.Namespaces = []int64{c.namespace(o.Group)}
	case ProjectRunner:
		r.match.Kind = queue.Project
		for _, path := range o.Projects {
			p := c.paths[path]
			if p == nil {
				return nil, fmt.Errorf("project %s: %w", path, ErrNotFound)
			}
			r.match.Projects = append(r.match.Projects, p.id)
		}
	}
	c.runners[r.id] = r
	c.giveToken(r)
	return r, nil
}

// Runner returns a runner.
func (c *Coordinator) Runner(id int64) (Runner, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.runners[id]
	if r == nil {
		return Runner{}, fmt.Errorf("runner %d: %w", id, ErrNotFound)
	}
	return r.snapshot(), nil
}

// SetPaused pauses a runner or lets it go on. A paused one gets no jobs; those that it has go on.
func (c *Coordinator) SetPaused(runnerID int64, paused bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.runners[runnerID]
	if r == nil {
		return fmt.Errorf("runner %d: %w", runnerID, ErrNotFound)
	}
	r.Paused = paused
	r.tick(time.Now())
	return nil
}

// SetTags replaces a runner's tags. Jobs that it has go on.
func (c *Coordinator) SetTags(runnerID int64, tags []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.runners[runnerID]
	if r == nil {
		return fmt.Errorf("runner %d: %w", runnerID, ErrNotFound)
	}
	changed := r.RunnerOptions
	changed.Tags = tags
	if err := changed.complete(); err != nil {
		return err
	}
	match := *r.match // the queue keeps what it was given
	match.Tags = changed.Tags
	r.RunnerOptions, r.match = changed, &match
	r.tick(time.Now())
	return nil
}

// ResetToken gives a runner a new token; the old one is refused from now on.
func (c *Coordinator) ResetToken(runnerID int64) (Runner, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.runners[runnerID]
	if r == nil {
		return Runner{}, fmt.Errorf("runner %d: %w", runnerID, ErrNotFound)
	}
	c.resetToken(r)
	return r.snapshot(), nil
}

func (c *Coordinator) resetToken(r *runner) {
	delete(c.tokens, r.token)
	c.giveToken(r)
	r.expiresAt, r.observed = time.Time{}, false // the value belongs to the token
}

// giveToken makes a token for a runner that has none. Its life begins now.
func (c *Coordinator) giveToken(r *runner) {
	r.token, r.tokenEnds = token(r.prefix), time.Time{}
	if ttl := cmp.Or(r.TokenTTL, c.opts.RunnerTokenTTL); ttl > 0 {
		r.tokenEnds = time.Now().Add(ttl)
	}
	c.tokens[r.token] = r
}

// byToken returns the runner with a token that has not expired, or nil.
func (c *Coordinator) byToken(token string, now time.Time) *runner {
	r := c.tokens[token]
	if r == nil || !r.tokenEnds.IsZero() && !now.Before(r.tokenEnds) {
		return nil
	}
	return r
}

// RemoveRunner deletes a runner; jobs that it has go on and can be reported.
func (c *Coordinator) RemoveRunner(runnerID int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.runners[runnerID]
	if r == nil {
		return fmt.Errorf("runner %d: %w", runnerID, ErrNotFound)
	}
	c.removeRunner(r)
	return nil
}

func (c *Coordinator) removeRunner(r *runner) {
	delete(c.runners, r.id)
	delete(c.tokens, r.token)
	r.tick(time.Now())
}

func (r *runner) snapshot() Runner {
	s := Runner{
		ID: r.id, Token: r.token, ExpiresAt: r.tokenEnds, Description: r.Description, Type: r.Type, Tags: slices.Clone(r.Tags), Paused: r.Paused,
		ContactedAt: r.contactedAt,
	}
	for m := range r.managers {
		s.Managers = append(s.Managers, m)
	}
	slices.Sort(s.Managers)
	return s
}

// legacyManager is what a request without a system id is filed under.
const legacyManager = "<legacy>"

// maxManagers bounds what a client can make the coordinator remember.
const maxManagers = 10_000

// heartbeat notes a request of the runner.
func (r *runner) heartbeat(systemID string, now time.Time) {
	r.contactedAt = now
	setDefault(&systemID, legacyManager)
	if _, known := r.managers[systemID]; known || len(r.managers) < maxManagers {
		r.managers[systemID] = now
	}
}

// queueValue is the present queue value, a new one if there is none or it has expired (ensure_runner_queue_value).
func (r *runner) queueValue(now time.Time) string {
	if !now.Before(r.expiresAt) {
		r.renewValue(now)
	}
	r.observed = true
	return r.value
}

// isQueueValue says whether a value is the present one; unlike queueValue it makes none.
func (r *runner) isQueueValue(v string, now time.Time) bool {
	return now.Before(r.expiresAt) && r.value == v
}

// tick changes the queue value (tick_runner_queue). A value that no one has seen since the last change need not be
// changed again.
func (r *runner) tick(now time.Time) {
	if !r.observed {
		return
	}
	r.renewValue(now)
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *runner) renewValue(now time.Time) {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails
	r.value, r.expiresAt, r.observed = hex.EncodeToString(raw[:]), now.Add(queueExpiry), false
}

func sortedUnique(list []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(list)))
}
