// Package dispatch owns the life of every job between the claim and the report: which agent holds it, in which epoch,
// since when, and what happens if the agent, the network or GitLab stops answering. Nobody else decides about a job.
//
// Three parts share one lock: the slots (who may claim, who gets what), the agents with their sessions, and one state
// machine per job (life.go). Whatever takes time - the store, GitLab, the relay - is done by a goroutine per job
// (drive.go), in the order in which the state machine asked for it and never under the lock.
package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/allocation"
	"github.com/switchyard-ci/switchyard/controlplane/cachestore"
	"github.com/switchyard-ci/switchyard/controlplane/placement"
	"github.com/switchyard-ci/switchyard/controlplane/policy"
	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/controlplane/relay"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/usage"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Defaults of Config.
const (
	DefaultPingPeriod = 10 * time.Second
	DefaultStopAfter  = 25 * time.Minute
	DefaultLostAfter  = 30 * time.Minute
	DefaultComeBack   = 2 * time.Second
)

// Config is what a Dispatcher needs. Zero durations take the defaults.
type Config struct {
	Store   store.Jobs
	Runners []Runner
	// StoreAway says why the store cannot be written to at the moment; see store.Store. nil: it always can.
	StoreAway func() error
	// Identity says which agent a call comes from. Its error is a gRPC status.
	Identity func(ctx context.Context) (id, name string, err error)
	// AgentName is what an agent is called. It must not block.
	AgentName func(id string) string
	// Retired makes a runner for jobs of the store whose runner is no longer configured, or has another GitLab by now: those
	// that have started are taken to their end, others are given back. Only its URL, GitLab, Info and OutputLimit matter.
	Retired func(store.Job) (Runner, error)

	// PingPeriod is how often each side of a session pings.
	PingPeriod time.Duration
	// StopAfter and LostAfter are the lease of the jobs of all runners that have none of their own.
	StopAfter, LostAfter time.Duration
	// Policy is that of fair usage; nil is policy.Default. SetPolicy changes it.
	Policy *policy.Policy
	// Shares are the accounts of fair usage that Dispatcher.Shares returned last; nil if there are none.
	Shares []byte
	// Usage is what Dispatcher.UsageSnapshot returned last; nil if there is nothing.
	Usage []byte
	// Drained are the agents that were drained before the start, by id: why. DrainAgent and UndrainAgent change it.
	Drained map[string]string

	// ComeBack is what agents are told to wait when the control plane stops.
	ComeBack time.Duration
	Logger   *slog.Logger
}

// Runner is a registration in GitLab as dispatch sees it.
type Runner struct {
	Name        string
	URL         string // of the GitLab
	Executor    string
	Selector    registry.Selector
	Scope       allocation.Scope // what it is registered for, as far as its token says
	Limit       int              // jobs at once; 0 for no limit
	OutputLimit int64            // bytes of trace per job
	// StopAfter is S: an agent that has had no answer for so long stops the runner's jobs. LostAfter is L: after so long
	// without a word of an agent they are reported as lost. L must exceed S by the time that stopping takes. Both are 0 for
	// those of Config.
	StopAfter, LostAfter time.Duration
	SystemID             string
	// ShortToken returns the short form of the runner's token, which may change; nil: it is not known. It must not block.
	ShortToken func() string
	// Settings are what its jobs are run with. Caches signs the URLs of those that are in an object store; nil: they stay
	// where the jobs run.
	Settings registry.Settings
	Caches   *cachestore.Store
	// ID returns GitLab's id of the runner, 0 as long as it is not known. It must not block.
	ID func() int64
	// Info is what GitLab is told of this control plane, without what depends on agents.
	Info runnerapi.Info
	// GitLab is where the runner's jobs are reported.
	GitLab relay.GitLab
}

// Claim is a job that GitLab has just handed out.
type Claim struct {
	Payload  []byte // the body of the 201
	Envelope runnerapi.Envelope
	ServerCA string // PEM; see store.Envelope
	At       time.Time
}

// TraceMethod is the full name of the call whose messages are checked by hand, not by the rules in the proto files.
const TraceMethod = fleetv1.FleetService_Trace_FullMethodName

// Dispatcher is the owner of all jobs. It serves FleetService. Its methods may be called concurrently.
type Dispatcher struct {
	fleetv1.UnimplementedFleetServiceServer

	cfg Config
	log *slog.Logger

	// stopping ends sessions, drivers and their I/O.
	stopping context.Context
	stop     context.CancelFunc

	room room

	sessions  sync.WaitGroup
	receivers sync.WaitGroup
	drivers   sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	relay   *relay.Relay
	runners map[string]*runner
	pools   map[string]*pool
	agents  map[string]*agent
	jobs    map[int64]*job
	// awaited are the jobs that wait for an agent to come back, by its id.
	awaited map[string][]*job
	known   map[allocation.JobKey]*job // the same

	drained map[string]string // why, by agent

	policy  *policy.Policy
	shares  *allocation.Scheduler
	book    *usage.Book
	warmth  placement.Warmth
	stalled map[*runner]struct{} // those with stalls

	// inserting are the jobs that are being stored.
	inserting map[allocation.JobKey]bool
}

// New makes a dispatcher. It does nothing before Start.
func New(cfg Config) (*Dispatcher, error) {
	cfg.PingPeriod = orDefault(cfg.PingPeriod, DefaultPingPeriod)
	cfg.StopAfter = orDefault(cfg.StopAfter, DefaultStopAfter)
	cfg.LostAfter = orDefault(cfg.LostAfter, DefaultLostAfter)
	cfg.ComeBack = orDefault(cfg.ComeBack, DefaultComeBack)
	if err := checkLease(cfg.StopAfter, cfg.LostAfter); err != nil {
		return nil, err
	}
	if cfg.Store == nil || cfg.Identity == nil || cfg.AgentName == nil || cfg.Retired == nil {
		return nil, errors.New("dispatch needs a store, and to be told of identities and of retired runners")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Dispatcher{
		cfg:     cfg,
		log:     cfg.Logger,
		runners: make(map[string]*runner),
		pools:   make(map[string]*pool),
		agents:  make(map[string]*agent),
		jobs:    make(map[int64]*job),
		known:   make(map[allocation.JobKey]*job),
		drained: make(map[string]string),
		policy:  cfg.Policy,
		book:    usage.New(),
		stalled: make(map[*runner]struct{}),

		awaited:   make(map[string][]*job),
		inserting: make(map[allocation.JobKey]bool),
	}
	maps.Copy(d.drained, cfg.Drained)
	if d.policy == nil {
		d.policy = policy.Default()
	}
	d.stopping, d.stop = context.WithCancel(context.Background())
	for _, r := range cfg.Runners {
		if _, ok := d.runners[r.Name]; ok {
			return nil, fmt.Errorf("runner %q is configured twice", r.Name)
		}
		if err := r.completeLease(cfg); err != nil {
			return nil, err
		}
		d.runners[r.Name] = newRunner(r, d.poolLocked(r.Executor, r.Selector))
	}
	d.shares = allocation.New(d.policy.Allocation(d.gitlabs()))
	return d, d.restoreShares()
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// Start takes up the jobs of the store: those that have not started are confirmed with GitLab and offered anew, those
// that have are awaited from their agents, results that GitLab does not have are reported.
func (d *Dispatcher) Start(ctx context.Context, r *relay.Relay) error {
	rows, err := d.cfg.Store.LoadJobs(ctx)
	if err != nil {
		return fmt.Errorf("load jobs: %w", err)
	}
	d.relay = r
	for _, row := range rows {
		run := d.runners[row.Runner]
		if run == nil || run.URL != row.GitLabURL {
			d.log.Warn("a job's runner is no longer configured; the job ends, and no other follows", "job", row.ID,
				"gitlab", row.GitLabURL, "gitlab_job", row.GitLabJobID, "runner", row.Runner, "state", row.State)
			retired, err := d.cfg.Retired(row)
			if err == nil {
				err = retired.completeLease(d.cfg)
			}
			if err != nil {
				return fmt.Errorf("take up job %d of runner %q, which is no longer configured: %w", row.ID, row.Runner, err)
			}
			run = newRunner(retired, nil)
		}
		if err := d.takeUp(row, run); err != nil {
			return err
		}
	}
	if n, err := r.Sweep(); err != nil {
		return fmt.Errorf("sweep the spool: %w", err)
	} else if n > 0 {
		d.log.Info("removed traces of jobs that are not ours any more", "count", n)
	}
	if len(rows) > 0 {
		d.log.Info("took up jobs", "count", len(rows))
	}
	return nil
}

// takeUp goes on with a job of the store.
func (d *Dispatcher) takeUp(row store.Job, r *runner) error {
	l := life{agent: row.Agent}
	switch row.State {
	case store.JobClaimed:
		l = life{phase: confirming, payload: true, ran: true, found: true}
		if r.pool == nil {
			l.hopeless = fmt.Sprintf("runner %q is no longer configured in the control plane", row.Runner)
		}
	case store.JobStarted:
		l.phase, l.slot, l.confirmed, l.payload = started, true, true, true
	case store.JobFinished:
		l.phase, l.result = finished, row.Result
	}
	j := d.newJob(row, r, l)
	d.mu.Lock()
	d.enterLocked(j) // before the relay has something to tell about it
	d.mu.Unlock()
	if row.State != store.JobClaimed {
		if err := d.openTrace(j, row.Epoch); err != nil {
			return fmt.Errorf("take up the trace of job %d: %w", row.ID, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if j.life.phase == confirming {
		d.awaitedLocked(j)
	}
	if r.pool != nil {
		d.rankLocked(j)
	}
	if l.agent != "" {
		a := d.agentLocked(l.agent, d.cfg.AgentName(l.agent))
		if a.lastSeen.IsZero() { // nothing is known of the time before
			a.lastSeen, a.unheard = time.Now(), true
		}
		j.bindLocked(a)
		if l.slot {
			j.unheard = true
			j.lease = &lease{agent: a, runner: r}
			a.leases[j.lease], r.leases[j.lease] = struct{}{}, struct{}{}
			d.resumeLocked(j)
		}
		d.awaitJobLocked(a, j)
	}
	d.applyLocked(j, event{kind: evBegin})
	return nil
}

// Claimed takes over a job that GitLab handed out. When it returns nil the job is durable and will be run; the
// reservation, which may be nil, is used up. A job that is here already is not taken twice: that is no error either.
func (d *Dispatcher) Claimed(ctx context.Context, name string, res *Reservation, c Claim) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.runners[name]
	if r == nil {
		return fmt.Errorf("take over a job of runner %q: %w", name, ErrUnknownRunner)
	}
	row := newRow(r, c)
	j := d.newJob(store.Job{
		Runner: row.Runner, GitLabURL: row.GitLabURL, GitLabJobID: row.GitLabJobID, Envelope: row.Envelope, ClaimedAt: row.ClaimedAt,
	}, r, life{})
	key, rules := j.key(), d.policy
	d.mu.Unlock()
	d.rank(rules, j) // rules may take their time
	d.mu.Lock()
	if d.policy != rules {
		d.rank(d.policy, j)
	}
	if d.inserting[key] || d.known[key] != nil {
		d.twiceLocked(r, res, c)
		return nil
	}
	d.inserting[key] = true
	d.seatLocked(j, res.takeLocked())
	if j.lease != nil {
		row.Agent = j.lease.agent.id
	}
	d.mu.Unlock()
	stored, err := d.cfg.Store.InsertJob(ctx, row)
	_ = d.stored(err)
	d.mu.Lock()
	delete(d.inserting, key)
	known := errors.Is(err, store.ErrExists)
	if known && stored.State != store.JobClaimed || err != nil && !known {
		if l := d.unseatLocked(j); l != nil {
			res.giveLocked(l)
		}
		if known {
			d.twiceLocked(r, res, c)
			return nil
		}
		return fmt.Errorf("store job %d of %s: %w", c.Envelope.ID, r.URL, err)
	}
	// A row that is known although nobody drives it is from a call whose answer was lost.
	j.row = stored
	j.life = life{
		phase: placing, epoch: stored.Epoch, dice: rand.Float64, payload: true, fresh: !known, ran: known,
		probe: !known && r.twoPhase.wantsProbe(time.Now()),
	}
	if l := j.lease; l != nil {
		j.life.slot, j.life.agent = true, l.agent.id
		j.life.online = l.agent.takesJobs()
	}
	d.enterLocked(j)
	d.applyLocked(j, event{kind: evBegin})
	if r.careful {
		d.serveRunnerLocked(r) // the claim has ended: the next one may begin
	}
	return nil
}

func newRow(r *runner, c Claim) store.NewJob {
	e := c.Envelope
	return store.NewJob{
		Runner: r.Name, GitLabURL: r.URL, GitLabJobID: e.ID, Token: e.Token, Payload: c.Payload,
		Envelope: store.Envelope{
			ProjectID: e.JobInfo.ProjectID, ProjectPath: e.JobInfo.ProjectFullPath, PipelineID: e.JobInfo.PipelineID,
			JobName: e.JobInfo.Name, Stage: e.JobInfo.Stage, Ref: e.GitInfo.Ref,
			Protected: e.GitInfo.Protected != nil && *e.GitInfo.Protected, Tag: e.GitInfo.RefType == "tag",
			Queued:      time.Duration(max(e.JobInfo.TimeInQueueSeconds, 0) * float64(time.Second)),
			Environment: e.Origin.Environment, Source: e.Origin.Source, User: e.Origin.User,
			Timeout: time.Duration(e.RunnerInfo.Timeout) * time.Second, ServerCA: c.ServerCA,
			StopAfter: r.StopAfter, LostAfter: r.LostAfter,
		},
		ClaimedAt: c.At,
	}
}

func (d *Dispatcher) twiceLocked(r *runner, res *Reservation, c Claim) {
	d.log.Warn("GitLab handed out a job that is here already", "runner", r.Name, "gitlab_job", c.Envelope.ID)
	if l := res.takeLocked(); l != nil {
		d.releaseLocked(l)
	}
}

// Close ends all sessions and stops driving jobs; what is durable is taken up by the next Start. The relay is the
// caller's to close, after this; the gRPC server should be stopped gracefully, because the sessions' last words may still
// be on their way.
func (d *Dispatcher) Close() {
	d.mu.Lock()
	d.closed = true
	for _, a := range d.agents {
		a.lost.stop()
	}
	for _, j := range d.jobs {
		if j.timer != nil {
			j.timer.Stop()
		}
	}
	d.mu.Unlock()
	d.stop()
	d.sessions.Wait()
	d.drivers.Wait()
}

// Wait returns when every goroutine that served a stream has ended: after the gRPC server has stopped.
func (d *Dispatcher) Wait() { d.receivers.Wait() }
