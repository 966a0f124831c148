package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/switchyard-ci/switchyard/agent/datadir"
	"github.com/switchyard-ci/switchyard/agent/identity"
	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/supervisor"
	"github.com/switchyard-ci/switchyard/agent/tracestream"
	"github.com/switchyard-ci/switchyard/agent/uplink"
	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/internal/buildinfo"
)

// Agent is one agent. Run it once; Drain and CancelJobs may be called at any time, by anyone.
type Agent struct {
	config Config
	log    *slog.Logger

	draining   chan struct{} // closed by Drain
	cancelling chan struct{} // closed by CancelJobs
	drainOnce  sync.Once
	cancelOnce sync.Once

	// Set by Run.
	dir      *datadir.Dir
	identity *identity.Identity
	bootID   string
	current  *current
	traces   *tracestream.Sender
	jobs     *supervisor.Config
	events   chan supervisor.Event
	room     func() error // why no more jobs fit on the disk
	tasks    sync.WaitGroup
}

// New checks the configuration; its errors name the field.
func New(c Config) (*Agent, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Agent{
		config: c, log: c.Log, draining: make(chan struct{}), cancelling: make(chan struct{}),
		bootID: uuid.NewString(), current: newCurrent(), traces: tracestream.New(), events: make(chan supervisor.Event, 64),
	}, nil
}

// Drain makes the agent take no more jobs, finish those that it has, get them reported, and return from Run.
func (a *Agent) Drain() { a.drainOnce.Do(func() { close(a.draining) }) }

// CancelJobs is Drain for those in a hurry: jobs that run are cancelled (their after_script still runs), and Run returns
// when the control plane has their results and traces.
func (a *Agent) CancelJobs() {
	a.Drain()
	a.cancelOnce.Do(func() { close(a.cancelling) })
}

// Run is the agent's life: it takes the data folder, enrols if needed, takes up jobs of an earlier run and serves until
// it is drained or ctx ends. Both are no errors. When ctx ends Run returns at once and jobs that run go on by themselves;
// the next Run in the same folder finds them. All goroutines have ended when it returns.
//
// Errors: a *datadir.InUseError, *identity.RefusedError, *identity.ExpiredError, an *uplink.Error of enrolment that a
// retry cannot heal, an executor's, or one about files.
func (a *Agent) Run(ctx context.Context) (err error) {
	ctx, leave := context.WithCancel(ctx)
	defer func() {
		leave()
		a.tasks.Wait()
		if a.dir != nil {
			err = errors.Join(err, a.dir.Close())
		}
	}()
	if a.dir, err = datadir.Open(ctx, a.config.Data); err != nil {
		return err
	}
	if a.room == nil {
		a.room = func() error { return a.dir.Room(a.config.Spool.MinFree) }
	}
	known := make(map[string]executors.Executor)
	for _, x := range a.config.Executors {
		if err := x.Check(ctx); err != nil {
			return err
		}
		known[x.Name()] = x
	}
	if ok, err := a.identify(ctx); err != nil || !ok {
		return err
	}
	fleet := sha256.Sum256([]byte(a.identity.ID))
	a.jobs = &supervisor.Config{
		Jobs: a.dir.Jobs(), CopyOf: a.dir.CopyOf(), Fleet: hex.EncodeToString(fleet[:4]), JobBinary: a.config.JobBinary, Executors: known,
		Fetch: a.fetch, Sign: a.sign, Traces: a.traces, Events: a.events, Log: a.log,
		TraceShare: a.config.Spool.share(a.config.Slots),
	}
	recovered, err := supervisor.Recover(ctx, a.jobs, a.tasks.Go)
	if err != nil {
		return err
	}
	l := newLoop(ctx, a)
	for _, r := range recovered {
		l.ledger.Restore(r.Intent.Ref(), r.Phase, r.Fenced)
		l.jobs[r.Intent.Ref()] = r.Job
		a.log.Info("took up a job of an earlier run", "job", r.Intent.Job, "epoch", r.Intent.Epoch, "name", r.Intent.JobName,
			"project", r.Intent.ProjectPath, "state", stateName(r.Phase))
	}
	l.run()
	return nil
}

// identify loads the agent's identity or gets one. ok is false if the agent was told to leave meanwhile.
func (a *Agent) identify(ctx context.Context) (ok bool, err error) {
	a.identity, err = identity.Load(a.dir.Path())
	if err == nil {
		if _, err := a.identity.Certificate(); err != nil {
			return false, err
		}
		return true, nil
	}
	if !errors.Is(err, identity.ErrNotEnrolled) {
		return false, err
	}
	if a.config.Token == nil {
		return false, fmt.Errorf("%w: a join token is needed once (--token-file; `switchyard agents token` prints one)", err)
	}
	token, err := a.config.Token()
	if err != nil {
		return false, err
	}
	backoff := uplink.Backoff{First: 100 * time.Millisecond, Most: 30 * time.Second}
	for told := false; ; told = true {
		a.identity, err = identity.Enroll(ctx, a.dir.Path(), a.target(), token, a.config.Name)
		if err == nil {
			a.log.Info("enrolled", "agent", a.identity.Name, "id", a.identity.ID)
			return true, nil
		}
		if failed := (*uplink.Error)(nil); !errors.As(err, &failed) || failed.Kind != uplink.Unavailable {
			return false, err
		}
		if !told && ctx.Err() == nil {
			a.log.Warn("cannot enrol yet; trying again until it works", "err", err)
		}
		select {
		case <-time.After(backoff.Next()):
		case <-a.draining:
			return false, nil
		case <-ctx.Done():
			return false, nil
		}
	}
}

func (a *Agent) target() uplink.Target {
	return uplink.Target{
		Address: a.config.Server, Dialer: a.config.Dialer,
		UserAgent: "switchyard-agent/" + buildinfo.Version(),
	}
}

// hostID is the same for as long as the agent's data folder stays where it is on its host, and says nothing else about
// either. A copy of the folder has another one, also on the same host. It is empty if the host has no name of its own.
func hostID(dir *datadir.Dir) string {
	var host string
	// Containers often have no machine id; what takes its place is new with each boot.
	for _, file := range []string{"/etc/machine-id", "/proc/sys/kernel/random/boot_id"} {
		if b, err := os.ReadFile(file); err == nil && len(strings.TrimSpace(string(b))) > 0 {
			host = strings.TrimSpace(string(b))
			break
		}
	}
	place, err := dir.Place()
	if host == "" || err != nil {
		return ""
	}
	digest := sha256.Sum256([]byte("switchyard host id\x00" + host + "\x00" + place))
	return hex.EncodeToString(digest[:16])
}

func stateName(p ledger.Phase) string {
	return strings.ToLower(strings.TrimPrefix(p.State().String(), "JOB_STATE_"))
}
