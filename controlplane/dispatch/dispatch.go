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
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/controlplane/relay"
	"github.com/switchyard-ci/switchyard/controlplane/store"
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
	// Identity says which agent a call comes from. Its error is a gRPC status.
	Identity func(ctx context.Context) (id, name string, err error)

	// PingPeriod is how often each side of a session pings.
	PingPeriod time.Duration
	// StopAfter is S: an agent that has had no answer for so long stops its jobs. LostAfter is L: after so long without a
	// word of an agent its jobs are reported as lost. L must exceed S by the time that stopping takes.
	StopAfter, LostAfter time.Duration
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
	Limit       int   // jobs at once; 0 for no limit
	OutputLimit int64 // bytes of trace per job
	ShortToken  string
	SystemID    string
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

	// stopping ends sessions and drivers; running is the context of the drivers' I/O.
	stopping context.Context
	stop     context.CancelFunc

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
}

// New makes a dispatcher. It does nothing before Start.
func New(cfg Config) (*Dispatcher, error) {
	cfg.PingPeriod = orDefault(cfg.PingPeriod, DefaultPingPeriod)
	cfg.StopAfter = orDefault(cfg.StopAfter, DefaultStopAfter)
	cfg.LostAfter = orDefault(cfg.LostAfter, DefaultLostAfter)
	cfg.ComeBack = orDefault(cfg.ComeBack, DefaultComeBack)
	if cfg.LostAfter <= cfg.StopAfter {
		return nil, fmt.Errorf("lost_after (%s) must be longer than stop_after (%s): an agent that is cut off has to stop its jobs before they are reported as lost",
			cfg.LostAfter, cfg.StopAfter)
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
	}
	d.stopping, d.stop = context.WithCancel(context.Background())
	for _, r := range cfg.Runners {
		if _, ok := d.runners[r.Name]; ok {
			return nil, fmt.Errorf("runner %q is configured twice", r.Name)
		}
		d.runners[r.Name] = &runner{
			Runner: r, pool: d.poolLocked(r.Executor, r.Selector),
			claims: make(map[*lease]struct{}), jobs: make(map[int64]*job),
		}
	}
	return d, nil
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
		if run == nil {
			d.log.Warn("a job's runner is no longer configured; the job is left to GitLab's time-out",
				"job", row.ID, "gitlab_job", row.GitLabJobID, "runner", row.Runner)
			continue
		}
		j := d.newJob(row, run)
		switch row.State {
		case store.JobClaimed:
			j.life = life{phase: confirming, epoch: row.Epoch, offers: 1, payload: true}
		case store.JobStarted:
			j.life = life{phase: started, epoch: row.Epoch, agent: row.Agent, confirmed: true, payload: true}
		case store.JobFinished:
			j.life = life{phase: finished, epoch: row.Epoch, agent: row.Agent, confirmed: true, result: row.Result}
		}
		if row.State != store.JobClaimed {
			if _, err := r.Open(row.ID, row.Epoch, j.target()); err != nil {
				return fmt.Errorf("take up the trace of job %d: %w", row.ID, err)
			}
		}
		d.mu.Lock()
		d.jobs[row.ID] = j
		if row.State != store.JobFinished {
			run.jobs[row.ID] = j
		}
		if row.Agent != "" && row.State != store.JobClaimed {
			a := d.agentLocked(row.Agent, "")
			a.lastSeen = time.Now()
			d.bindLocked(j, a)
			if row.State == store.JobStarted {
				j.lease = &lease{agent: a}
				a.leases[j.lease] = struct{}{}
				j.life.slot = true
			}
			d.awaitLocked(a)
		}
		d.beginLocked(j)
		d.mu.Unlock()
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

// Claimed takes over a job that GitLab handed out. When it returns nil the job is durable and will be run; the
// reservation, which may be nil, is used up. A job that is here already is not taken twice: that is no error either.
func (d *Dispatcher) Claimed(ctx context.Context, name string, res *Reservation, c Claim) error {
	d.mu.Lock()
	r := d.runners[name]
	var agentID string
	if res != nil && res.lease != nil {
		agentID = res.lease.agent.id
	}
	d.mu.Unlock()
	if r == nil {
		return fmt.Errorf("take over a job of runner %q: %w", name, ErrUnknownRunner)
	}
	e := c.Envelope
	row, err := d.cfg.Store.InsertJob(ctx, store.NewJob{
		Runner: name, GitLabURL: r.URL, GitLabJobID: e.ID, Token: e.Token, Payload: c.Payload,
		Envelope: store.Envelope{
			ProjectID: e.JobInfo.ProjectID, ProjectPath: e.JobInfo.ProjectFullPath, PipelineID: e.JobInfo.PipelineID,
			JobName: e.JobInfo.Name, Stage: e.JobInfo.Stage, Ref: e.GitInfo.Ref,
			Protected: e.GitInfo.Protected != nil && *e.GitInfo.Protected,
			Timeout:   time.Duration(e.RunnerInfo.Timeout) * time.Second, ServerCA: c.ServerCA,
		},
		Agent: agentID, ClaimedAt: c.At,
	})
	if errors.Is(err, store.ErrExists) {
		d.log.Warn("GitLab handed out a job that is here already", "runner", name, "gitlab_job", e.ID, "job", row.ID)
		if res != nil {
			res.Release()
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("store job %d of %s: %w", e.ID, r.URL, err)
	}
	j := d.newJob(row, r)
	j.life = life{phase: placing, epoch: row.Epoch, payload: true}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.jobs[row.ID] = j
	r.jobs[row.ID] = j
	if res != nil {
		if l := res.takeLocked(); l != nil {
			j.lease = l
			d.bindLocked(j, l.agent)
			j.life.agent, j.life.slot, j.life.bound = l.agent.id, true, true
			j.life.online = l.agent.session != nil && !l.agent.draining
		}
	}
	d.beginLocked(j)
	d.queueLocked(r)
	return nil
}

// Close ends all sessions and stops driving jobs; what is durable is taken up by the next Start. The relay is the
// caller's to close, after this; the gRPC server should be stopped gracefully, because the sessions' last words may still
// be on their way.
func (d *Dispatcher) Close() {
	d.mu.Lock()
	d.closed = true
	for _, a := range d.agents {
		if a.lost != nil {
			a.lost.Stop()
		}
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
