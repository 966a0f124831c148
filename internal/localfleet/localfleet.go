// Package localfleet is a whole fleet in one process: the embedded GitLab behind an HTTP listener, a control plane behind
// a TLS listener, and agents that enrol with a join token, hold sessions and run jobs in processes of their own. Nothing
// in it is a stand-in. Everything is on the loopback interface, the embedded GitLab on the Docker Engine's if jobs run in
// containers, and below one private folder.
package localfleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/agent"
	"github.com/switchyard-ci/switchyard/controlplane"
	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

const (
	// tokenLife is how long the agents have to enrol.
	tokenLife = time.Hour
	// sweepPatience is how long processes of jobs may take to die of SIGKILL.
	sweepPatience = 30 * time.Second
)

// Fleet is a fleet that runs. Methods may be called concurrently.
type Fleet struct {
	options Options
	dir     string
	gitlab  *coordinator.Coordinator
	host    string // at which jobs reach gitlab
	url     string // of gitlab
	server  string // the control plane's address
	plane   *controlplane.Server
	http    *http.Server
	places  []executors.Executor
	runners []coordinator.Runner

	stopAgents, stopPlane context.CancelFunc
	serving               sync.WaitGroup // HTTP
	ruling                sync.WaitGroup // the control plane
	working               sync.WaitGroup // agents
	served                bool           // the control plane's Serve closes it

	failed chan struct{}
	mu     sync.Mutex
	err    error   // why failed is closed
	late   []error // of parts that were asked to end

	closeOnce sync.Once
	closeErr  error
}

// Start starts a fleet. Agents enrol in the background; jobs wait for them. ctx bounds the start only. Close must be
// called.
func Start(ctx context.Context, o Options) (*Fleet, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	f := &Fleet{options: o, failed: make(chan struct{})}
	var agents, plane context.Context
	agents, f.stopAgents = context.WithCancel(context.WithoutCancel(ctx))
	plane, f.stopPlane = context.WithCancel(context.WithoutCancel(ctx))
	if err := f.start(ctx, agents, plane); err != nil {
		return nil, errors.Join(fmt.Errorf("start a local fleet: %w", err), f.Close())
	}
	return f, nil
}

func (f *Fleet) start(ctx, agents, plane context.Context) error {
	dir, err := os.MkdirTemp(f.options.Dir, "switchyard-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	if f.dir, err = filepath.EvalSymlinks(dir); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	f.host = loopback
	if f.options.Docker != nil {
		if f.host, err = dockerHost(ctx); err != nil {
			return err
		}
	}
	f.options.Environ = withoutProxy(f.options.Environ, f.host)
	if err := f.startGitLab(ctx); err != nil {
		return err
	}
	if err := f.startControlPlane(ctx, plane); err != nil {
		return err
	}
	return f.startAgents(ctx, agents)
}

func (f *Fleet) startGitLab(ctx context.Context) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(f.host, "0"))
	if err != nil {
		return fmt.Errorf("listen for the embedded GitLab: %w", err)
	}
	f.url = "http://" + listener.Addr().String()
	o := f.options.Coordinator
	o.URL, o.Dir = f.url, f.dir
	if f.gitlab, err = coordinator.New(o); err != nil {
		return errors.Join(err, listener.Close())
	}
	f.http = &http.Server{Handler: f.gitlab.Handler(), ReadHeaderTimeout: time.Minute}
	f.serving.Go(func() {
		if err := f.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			f.fail("the embedded GitLab", err)
		}
	})
	if f.options.Prepare != nil {
		return f.options.Prepare(f.gitlab)
	}
	return nil
}

func (f *Fleet) startControlPlane(ctx, life context.Context) error {
	o := f.options
	var runners []controlplane.Runner
	for _, r := range o.Runners {
		registered, err := f.gitlab.AddRunner(r.RunnerOptions)
		if err != nil {
			return fmt.Errorf("runner %q: %w", r.Name, err)
		}
		f.runners = append(f.runners, registered)
		runners = append(runners, controlplane.Runner{
			Runner: registry.Runner{
				Name: r.Name, URL: f.url, Token: registered.Token, Executor: o.executor(), Limit: r.Limit, OutputLimit: r.OutputLimit,
				Settings: r.Settings,
			},
			CheckInterval: r.CheckInterval, RequestsPerMinute: r.RequestsPerMinute,
		})
	}
	data := filepath.Join(f.dir, "control-plane")
	if err := os.Mkdir(data, 0o700); err != nil {
		return fmt.Errorf("make the control plane's folder: %w", err)
	}
	var err error
	f.plane, err = controlplane.Open(ctx, controlplane.Config{
		Data: data, Runners: runners, PingPeriod: o.PingPeriod, StopAfter: o.StopAfter, LostAfter: o.LostAfter,
		TracePace: o.TracePace, Logger: o.Logger,
	})
	if err != nil {
		return fmt.Errorf("open the control plane: %w", err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(loopback, "0"))
	if err != nil {
		return fmt.Errorf("listen for agents: %w", err)
	}
	f.server = listener.Addr().String()
	f.served = true
	f.ruling.Go(func() {
		f.ended(life, "the control plane", f.plane.Serve(life, listener))
	})
	return nil
}

func (f *Fleet) startAgents(ctx, life context.Context) error {
	o := f.options
	token, _, err := f.plane.Authority().NewJoinToken(ctx, o.Agents, tokenLife)
	if err != nil {
		return err
	}
	for i := range o.Agents {
		name := fmt.Sprintf("local-%d", i+1)
		data := filepath.Join(f.dir, "agents", name)
		place, err := f.place(data)
		if err != nil {
			return err
		}
		f.places = append(f.places, place)
		a, err := agent.New(agent.Config{
			Server: f.server, Data: data, Name: name, Slots: o.Slots, JobBinary: o.JobBinary, Log: o.Logger.With("of", name),
			Token:     func() (jointoken.Token, error) { return token, nil },
			Executors: []executors.Executor{place},
		})
		if err != nil {
			return err
		}
		f.working.Go(func() {
			f.ended(life, "agent "+name, a.Run(life))
		})
	}
	return nil
}

var errUnasked = errors.New("nobody asked it to")

// ended notes how a part ended, which it is to do when its life does.
func (f *Fleet) ended(life context.Context, part string, err error) {
	switch {
	case life.Err() == nil && err == nil:
		f.fail(part, errUnasked)
	case life.Err() == nil:
		f.fail(part, err)
	case err != nil:
		f.mu.Lock()
		defer f.mu.Unlock()
		f.late = append(f.late, fmt.Errorf("%s: %w", part, err))
	}
}

// fail notes the first part that ended by itself.
func (f *Fleet) fail(part string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = fmt.Errorf("%s has ended: %w", part, err)
		close(f.failed)
	}
}

// Failed is closed when a part of the fleet has ended by itself; Err says why.
func (f *Fleet) Failed() <-chan struct{} { return f.failed }

// Err is nil as long as Failed is not closed.
func (f *Fleet) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// GitLab is the embedded GitLab.
func (f *Fleet) GitLab() *coordinator.Coordinator { return f.gitlab }

// ControlPlane is the control plane.
func (f *Fleet) ControlPlane() *controlplane.Server { return f.plane }

// Runners are those of the options, as the embedded GitLab knows them.
func (f *Fleet) Runners() []coordinator.Runner { return f.runners }

// URL is the embedded GitLab's address.
func (f *Fleet) URL() string { return f.url }

// Dir is the fleet's folder.
func (f *Fleet) Dir() string { return f.dir }

// Close ends the fleet: agents leave, processes of jobs that still run are killed, the control plane and the embedded
// GitLab stop, the folder is removed. No goroutine of the fleet is left when it returns. Further calls return the same.
func (f *Fleet) Close() error {
	f.closeOnce.Do(func() { f.closeErr = f.close() })
	return f.closeErr
}

func (f *Fleet) close() error {
	var errs []error
	f.stopAgents()
	f.working.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), sweepPatience)
	defer cancel()
	for _, place := range f.places {
		errs = append(errs, place.Sweep(ctx, func(string) bool { return false }))
	}
	for _, place := range f.places {
		if c, ok := place.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	f.stopPlane()
	if f.gitlab != nil {
		// Now, because it answers the requests that it holds: the control plane gives up none that may bring a job.
		errs = append(errs, f.gitlab.Close())
	}
	f.ruling.Wait()
	if f.plane != nil && !f.served {
		errs = append(errs, f.plane.Close())
	}
	if f.http != nil {
		errs = append(errs, f.http.Close())
	}
	f.serving.Wait()
	if f.dir != "" {
		errs = append(errs, removeAll(f.dir))
	}
	if err := errors.Join(append(errs, f.late...)...); err != nil {
		return fmt.Errorf("close the local fleet: %w", err)
	}
	return nil
}

// removeAll removes a folder, also where a job has left folders that cannot be written to, as Go's module cache is.
func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if entry == nil || !entry.IsDir() {
			return nil
		}
		if err != nil || os.Chmod(path, 0o700) != nil {
			return filepath.SkipDir
		}
		return nil
	})
	return errors.Join(err, os.RemoveAll(dir))
}
