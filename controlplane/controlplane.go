// Package controlplane puts the control plane together: store, identities, dispatch, relay and one poller per runner,
// behind one gRPC server. It decides nothing itself.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/switchyard-ci/switchyard/controlplane/admin"
	"github.com/switchyard-ci/switchyard/controlplane/config"
	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
	"github.com/switchyard-ci/switchyard/controlplane/enrollment"
	"github.com/switchyard-ci/switchyard/controlplane/grpcserver"
	"github.com/switchyard-ci/switchyard/controlplane/polling"
	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/controlplane/relay"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Names in the data folder.
const (
	storeFile = "switchyard.db"
	keyFile   = "master.key"
	spoolDir  = "spool"
)

const (
	// stopPatience is how long a stopping control plane waits for reports that are under way.
	stopPatience = 20 * time.Second
	// flushPatience is how long agents may take to read the last words of their sessions.
	flushPatience = 2 * time.Second
)

// Config is what a control plane needs.
type Config struct {
	// Data is the folder of the store, the spool and the CA. The caller has made it (0700) and holds it for itself.
	Data string
	// Database is the store's, if that is not in the data folder.
	Database config.Database
	Runners  []Runner
	// PingPeriod, StopAfter and LostAfter are dispatch's; 0 takes its defaults.
	PingPeriod, StopAfter, LostAfter time.Duration
	// SpoolMaxSize and SpoolMinFree are the relay's MaxBytes and MinFree; 0 takes its defaults.
	SpoolMaxSize, SpoolMinFree int64
	// TracePace is the relay's Pace: how long output waits at most until it is sent to GitLab; 0 obeys GitLab.
	TracePace time.Duration
	Logger    *slog.Logger
}

// Server is a control plane.
type Server struct {
	cfg       Config
	log       *slog.Logger
	store     store.Store
	authority *enrollment.Authority
	dispatch  *dispatch.Dispatcher
	relay     *relay.Relay
	pollers   []*polling.Poller
	clients   *clients
	sharing   sharing
	drains    drains
	grpc      *grpc.Server
}

// Open opens the store and what else is in the data folder and takes up the jobs that are there. While another control
// plane leads in the store's database it waits. Nothing is claimed and no agent is served before Serve. The caller must
// call Serve or Close.
func Open(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, log: cfg.Logger}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) open(ctx context.Context) error {
	var err error
	if s.store, err = openStore(ctx, s.cfg, s.log); err != nil {
		return err
	}
	ca, err := enrollment.OpenCA(s.cfg.Data, time.Now)
	if err != nil {
		return err
	}
	if s.authority, err = enrollment.New(ctx, ca, s.store, s.log); err != nil {
		return err
	}
	if s.clients, err = newClients(s.cfg.Runners, s.log); err != nil {
		return err
	}
	runners := make([]dispatch.Runner, 0, len(s.cfg.Runners))
	for i, r := range s.cfg.Runners {
		systemID, err := s.store.SystemID(ctx, r.Name)
		if err != nil {
			return fmt.Errorf("system id of runner %q: %w", r.Name, err)
		}
		if err := s.clients.openKeeper(ctx, s.store, r, systemID,
			func() runnerapi.Info { return s.dispatch.Info(r.Name) }, func() { s.pollers[i].TokenChanged() }); err != nil {
			return err
		}
		runner, err := s.clients.dispatchRunner(r, systemID)
		if err != nil {
			return err
		}
		runners = append(runners, runner)
	}
	s.sharing.store = s.store
	rules, err := s.sharing.open(ctx)
	if err != nil {
		return err
	}
	s.drains.store = s.store
	if err := s.drains.open(ctx, func(id string) bool { _, ok := s.authority.Agent(id); return ok }); err != nil {
		return err
	}
	s.dispatch, err = dispatch.New(dispatch.Config{
		Policy: rules, Shares: s.sharing.shares.Body, Usage: s.sharing.usage.Body, Drained: s.drains.reasons(),
		Store: s.store, StoreAway: s.store.Away, Runners: runners, Identity: s.identity, AgentName: s.agentName, Retired: s.clients.retired,
		PingPeriod: s.cfg.PingPeriod, StopAfter: s.cfg.StopAfter, LostAfter: s.cfg.LostAfter, Logger: s.log,
	})
	if err != nil {
		return err
	}
	if s.relay, err = relay.New(relay.Options{Dir: filepath.Join(s.cfg.Data, spoolDir), Events: s.dispatch, Pace: s.cfg.TracePace, MaxBytes: s.cfg.SpoolMaxSize, MinFree: s.cfg.SpoolMinFree, Logger: s.log}); err != nil {
		return err
	}
	for i, r := range s.cfg.Runners {
		p, err := s.clients.poller(r, runners[i].SystemID, s.dispatch, s.store.Fenced())
		if err != nil {
			return err
		}
		s.pollers = append(s.pollers, p)
	}
	s.grpc, err = grpcserver.New(grpcserver.Options{
		TLS: s.authority.TLSConfig(), Log: s.log, Unvalidated: []string{dispatch.TraceMethod},
	})
	if err != nil {
		return err
	}
	fleetv1.RegisterEnrollmentServiceServer(s.grpc, s.authority)
	fleetv1.RegisterFleetServiceServer(s.grpc, s.dispatch)
	return s.dispatch.Start(ctx, s.relay)
}

// Serve serves agents on l and claims jobs, until ctx ends or something fails for good. Then it stops in order: no more
// claims, sessions told to come back, reports that are under way finished, everything closed. Jobs that run go on. The
// error is store.ErrFenced if another control plane has taken over; then nothing more is reported either.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve agents on %s: %w", l.Addr(), err)
		}
		return nil
	})
	claiming, stopped := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() error {
		<-ctx.Done()
		stopped()
		return nil
	})
	group.Go(func() error {
		select {
		case <-s.store.Fenced():
			return fmt.Errorf("this control plane stops: %w", store.ErrFenced)
		case <-ctx.Done():
			return nil
		}
	})
	var polls sync.WaitGroup
	for _, k := range s.clients.keepers {
		polls.Go(func() { k.Run(claiming) })
	}
	polls.Go(func() { s.saveShares(claiming) })
	lost := make([]error, len(s.pollers))
	for i, p := range s.pollers {
		polls.Go(func() { lost[i] = p.Run(claiming) })
	}
	group.Go(func() error {
		polls.Wait() // a claim under way is awaited: it may carry a job
		<-ctx.Done()
		return errors.Join(append(lost, s.Close())...)
	})
	return group.Wait()
}

// Close releases everything; what is durable is taken up by the next Open.
func (s *Server) Close() error {
	var errs []error
	if s.dispatch != nil {
		s.dispatch.Close()
	}
	if s.grpc != nil {
		force := time.AfterFunc(flushPatience, s.grpc.Stop)
		s.grpc.GracefulStop()
		force.Stop()
	}
	if s.dispatch != nil {
		s.dispatch.Wait()
	}
	if s.relay != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
		defer cancel()
		select {
		case <-s.store.Fenced():
			cancel() // to report is another's business now
		default:
		}
		errs = append(errs, s.relay.Close(ctx))
	}
	if s.clients != nil {
		s.clients.close()
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	return errors.Join(errs...)
}

// identity names the agent that makes a call.
func (s *Server) identity(ctx context.Context) (id, name string, err error) {
	if id, err = s.authority.Identity(ctx); err != nil {
		return "", "", err
	}
	return id, s.agentName(id), nil
}

// agentName is the id of an agent that is not a member any more.
func (s *Server) agentName(id string) string {
	if a, ok := s.authority.Agent(id); ok {
		return a.Name
	}
	return id
}

// Authority gives out join tokens.
func (s *Server) Authority() *enrollment.Authority { return s.authority }

// Dispatcher knows agents and jobs.
func (s *Server) Dispatcher() *dispatch.Dispatcher { return s.dispatch }

// Runners returns what is known of each runner, in the order of the configuration.
func (s *Server) Runners() []admin.RunnerStatus {
	jobs := make(map[string]int)
	for _, j := range s.dispatch.Jobs() {
		jobs[j.Runner]++
	}
	all := make([]admin.RunnerStatus, 0, len(s.pollers))
	for i, r := range s.cfg.Runners {
		keeper := s.clients.keepers[r.Name]
		all = append(all, admin.RunnerStatus{
			URL: r.URL, Executor: r.Executor, Limit: r.Limit, GitLabID: s.clients.ids[r.Name].Load(),
			Jobs: jobs[r.Name], Slots: s.dispatch.Slots(r.Name), TwoPhase: s.dispatch.TwoPhase(r.Name),
			Polling: s.pollers[i].Status(), Token: keeper.Status(), ShortToken: registry.ShortToken(keeper.Token()),
			UnreachableSince: s.clients.byGitLab[gitlabOf(r)].Unreachable(),
		})
	}
	return all
}

// RotateToken gives a runner a new token; see [tokens.Keeper.Rotate].
func (s *Server) RotateToken(ctx context.Context, runner string) error {
	keeper := s.clients.keepers[runner]
	if keeper == nil {
		return fmt.Errorf("runner %q: %w", runner, admin.ErrUnknownRunner)
	}
	return keeper.Rotate(ctx)
}
