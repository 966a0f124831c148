// Package polling asks GitLab for jobs: one [Poller] per runner.
//
// A poller claims only with a slot that the dispatcher reserved for it, and waits for work with a watch, a request that
// GitLab holds until its queue changes and that needs no slot. What may be sent when is decided by a pure state machine
// (machine.go); the rest of the package carries it out.
package polling

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// Defaults of Options.
const (
	DefaultCheckInterval = 3 * time.Second
	// DefaultRequestsPerMinute stays below the 2000 that GitLab allows a runner by default.
	DefaultRequestsPerMinute = 1800
	// DefaultBudgetPerMinute is for all runners of a GitLab together.
	DefaultBudgetPerMinute = 12000
	// ShutdownGrace is how long a Run that ends waits for claims in flight and for jobs that are being persisted.
	ShutdownGrace = time.Minute
)

// Client is what a poller needs of [client.Client].
type Client interface {
	// RequestJob asks for a job; see [client.Client.RequestJob].
	RequestJob(ctx context.Context, r runnerapi.JobRequest, lane client.Lane) (*client.RequestResult, error)
	// Verify asks whether GitLab knows the runner; see [client.Client.Verify].
	Verify(ctx context.Context, r runnerapi.VerifyRequest) (*runnerapi.VerifyResponse, error)
}

// Dispatcher gives slots and takes jobs. Its methods are called concurrently, by many pollers; it must outlive them.
type Dispatcher interface {
	// Reserve waits until the runner may use a slot; who gets the next one is the dispatcher's decision. A poller waits for
	// one slot at a time. It returns when ctx ends, then with an error and without a reservation; any other error makes the
	// poller wait and try again.
	Reserve(ctx context.Context, runner string) (Reservation, error)
	// Claimed takes a job over: when it returns nil the job is durable and r is used up. After an error the poller still
	// owns both and calls again, with the same job, until that succeeds. r is nil for a job that a watch brought: it has no
	// slot yet and is to be served before anyone gets another reservation for this runner.
	Claimed(ctx context.Context, runner string, r Reservation, c Claim) error
}

// Reservation is a slot that one claim may fill.
type Reservation interface {
	// Release gives the slot back, unused. It is called at most once and not after a successful Claimed.
	Release()
}

// Claim is a job as GitLab gave it away.
type Claim struct {
	Payload  []byte // the body of GitLab's 201; the receiver owns it
	Envelope runnerapi.Envelope
	ServerCA string // PEM, see client.RequestResult
	// TwoPhaseOffered says that the request offered two-phase commit: the job may still wait for its acknowledgement.
	TwoPhaseOffered bool
	CorrelationID   string
	ReceivedAt      time.Time
}

// Budget limits what all runners of one GitLab send it together.
type Budget struct{ limiter *rate.Limiter }

// NewBudget lets at most perMinute claims pass in any minute, half of them at once.
func NewBudget(perMinute int) *Budget {
	half := max(perMinute/2, 1)
	return &Budget{limiter: rate.NewLimiter(rate.Limit(float64(half)/60), half)}
}

// Options describe a runner. All fields without a default must be set.
type Options struct {
	Runner   string // its name in the registry
	SystemID string
	// Token returns the runner's token as it is now. It is called per request, also concurrently; see Poller.TokenChanged.
	Token func() string
	// Superseded says whether GitLab has given the runner another token than this one meanwhile; while that is being found
	// out it waits, at most until ctx ends. nil: the token never changes.
	Superseded func(ctx context.Context, token string) bool

	Client     Client
	Dispatcher Dispatcher
	// Info returns what the runner can do at the moment: what all of its agents can. It is called per request, also
	// concurrently.
	Info func() runnerapi.Info
	// Slots returns how many jobs the runner could be given at once: how many claims may be in flight at most. It is a
	// hint, must not block and may be nil.
	Slots func() int
	// Budget is shared by the runners of one GitLab; nil: no common limit.
	Budget *Budget

	// CheckInterval is the pause between claims that bring nothing, reached by doubling. 0: DefaultCheckInterval.
	CheckInterval time.Duration
	// RequestsPerMinute is the most requests of this runner that GitLab has to work on in any minute. 0:
	// DefaultRequestsPerMinute; negative: no limit.
	RequestsPerMinute int
	// Recovered returns a channel that is closed when GitLab works again after requests were held back; see
	// [client.Client.Recovered]. The poller need not wait longer than until then. nil: it does.
	Recovered func() <-chan struct{}
	// Fenced is closed when another control plane has taken over: no job can be persisted any more, so Run ends without
	// waiting for one. It may be nil.
	Fenced <-chan struct{}
	// Logger gets changes between working and failing; nil discards them.
	Logger *slog.Logger
}

// Poller keeps one runner's requests going.
type Poller struct {
	o      Options
	logger *slog.Logger
	pause  chan bool     // the newest wish, if it was not seen yet
	token  chan struct{} // it changed, which was not seen yet

	mu     sync.Mutex
	status Status
}

// New checks the options; Run starts the poller.
func New(o Options) (*Poller, error) {
	switch {
	case o.Runner == "":
		return nil, errors.New("polling: the runner has no name")
	case o.Token == nil || o.Token() == "":
		return nil, fmt.Errorf("polling: runner %q has no token", o.Runner)
	case o.Client == nil || o.Dispatcher == nil || o.Info == nil:
		return nil, fmt.Errorf("polling: runner %q needs a client, a dispatcher and its info", o.Runner)
	case o.CheckInterval < 0:
		return nil, fmt.Errorf("polling: runner %q: the check interval is %s; it must not be negative", o.Runner, o.CheckInterval)
	}
	if o.Slots == nil {
		o.Slots = func() int { return maxWindow }
	}
	if o.CheckInterval == 0 {
		o.CheckInterval = DefaultCheckInterval
	}
	if o.RequestsPerMinute == 0 {
		o.RequestsPerMinute = DefaultRequestsPerMinute
	}
	if o.Superseded == nil {
		o.Superseded = func(context.Context, string) bool { return false }
	}
	if o.Recovered == nil {
		o.Recovered = func() <-chan struct{} { return nil }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Poller{
		o:      o,
		logger: o.Logger.With("runner", o.Runner),
		pause:  make(chan bool, 1),
		token:  make(chan struct{}, 1),
		status: Status{Runner: o.Runner, State: StateStarting},
	}, nil
}

// SetPaused stops claims and watches of the runner, or lets them go on. Signs of life are still sent, so that GitLab keeps
// the jobs that wait for it.
func (p *Poller) SetPaused(on bool) {
	for {
		select {
		case p.pause <- on:
			return
		default:
		}
		select {
		case <-p.pause: // an older wish
		default:
		}
	}
}

// TokenChanged makes the poller use the new token from now on, also in place of a held watch: GitLab would not end that
// one for a change. Claims that are in flight are awaited; what they bring is kept.
func (p *Poller) TokenChanged() {
	select {
	case p.token <- struct{}{}:
	default: // not seen yet
	}
}

// Status returns a snapshot.
func (p *Poller) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// Run asks for jobs until ctx ends; it may be called once. Then it sends nothing more, cancels a held watch, and waits up
// to ShutdownGrace for claims in flight and for the jobs that they bring to be persisted, because a claim that is cancelled
// may lose its job. It ends the same way, at once, when it is fenced. The error names what was lost; nil means nothing.
func (p *Poller) Run(ctx context.Context) error {
	work, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abort(nil)
	l := &loop{
		poller:  p,
		o:       &p.o,
		m:       newMachine(p.o.CheckInterval, p.o.RequestsPerMinute, time.Now(), rand.Float64),
		running: ctx,
		work:    work,
		events:  make(chan func(now time.Time)),
	}
	defer l.wg.Wait()

	wake := time.NewTimer(0)
	defer wake.Stop()
	done := ctx.Done()
	grace := time.NewTimer(0)
	grace.Stop()
	defer grace.Stop()
	recovered, fenced := p.o.Recovered(), p.o.Fenced
	for {
		select {
		case on := <-p.pause:
			l.m.pause(on)
		default:
		}
		now := time.Now()
		if at := l.act(now); at.IsZero() {
			wake.Stop()
		} else {
			wake.Reset(at.Sub(now))
		}
		l.publish(now)
		if l.m.stopping && l.m.idle() {
			return errors.Join(l.lost...)
		}
		select {
		case event := <-l.events:
			event(time.Now())
		case <-wake.C:
		case on := <-p.pause:
			l.m.pause(on)
		case <-p.token:
			l.m.tokenChanged()
		case <-recovered:
			recovered = p.o.Recovered()
			l.m.gitlabRecovered(time.Now())
		case <-done:
			done = nil
			l.m.stop()
			grace.Reset(ShutdownGrace)
		case <-fenced:
			fenced = nil
			l.m.stop()
			abort(errFenced)
		case <-grace.C:
			abort(errGraceOver)
		}
	}
}

var (
	errGraceOver = fmt.Errorf("the control plane stopped and waited %s for it", ShutdownGrace)
	errFenced    = errors.New("another control plane has taken over")
)
