package protocolmodel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
	"github.com/switchyard-ci/switchyard/controlplane/relay"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
	"github.com/switchyard-ci/switchyard/controlplane/store/sqlite"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// The times of the fleet: an agent stops its jobs at stopAfter, the control plane gives them up at lostAfter.
const (
	pingPeriod = 5 * time.Second
	stopAfter  = time.Minute
	lostAfter  = 90 * time.Second
	runnerName = "any"
)

// plane is one life of the control plane.
type plane struct {
	w      *world
	db     *sqlite.Store
	store  *mortalStore
	relay  *relay.Relay
	d      *dispatch.Dispatcher
	claims sync.WaitGroup
	ctx    context.Context // of the claims
	cancel context.CancelFunc
	calls  sync.WaitGroup // of FleetService
}

// mortalStore dies with its control plane: no write succeeds any more.
type mortalStore struct {
	store.Jobs
	dead atomic.Bool
}

var errDead = errors.New("the control plane was killed")

func (s *mortalStore) alive() error {
	if s.dead.Load() {
		return errDead
	}
	return nil
}

func (s *mortalStore) InsertJob(ctx context.Context, j store.NewJob) (store.Job, error) {
	if err := s.alive(); err != nil {
		return store.Job{}, err
	}
	return s.Jobs.InsertJob(ctx, j)
}

func (s *mortalStore) Reoffer(ctx context.Context, id, epoch int64, agent string) (int64, error) {
	if err := s.alive(); err != nil {
		return 0, err
	}
	return s.Jobs.Reoffer(ctx, id, epoch, agent)
}

func (s *mortalStore) StartJob(ctx context.Context, id, epoch int64, at time.Time) error {
	return errors.Join(s.alive(), s.ifAlive(func() error { return s.Jobs.StartJob(ctx, id, epoch, at) }))
}

func (s *mortalStore) FinishJob(ctx context.Context, id, epoch int64, r store.Result) error {
	return errors.Join(s.alive(), s.ifAlive(func() error { return s.Jobs.FinishJob(ctx, id, epoch, r) }))
}

func (s *mortalStore) DeleteJob(ctx context.Context, id int64) error {
	return errors.Join(s.alive(), s.ifAlive(func() error { return s.Jobs.DeleteJob(ctx, id) }))
}

func (s *mortalStore) ifAlive(do func() error) error {
	if s.dead.Load() {
		return nil
	}
	return do()
}

type identity struct{}

func (w *world) startPlane() {
	p := &plane{w: w, store: &mortalStore{}}
	var err error
	p.db, err = sqlite.Open(context.Background(), filepath.Join(w.dir, "store.db"), sealing.NewKey([32]byte{1}))
	w.must(err)
	p.store.Jobs = p.db
	runner := dispatch.Runner{Name: runnerName, URL: "http://gitlab", Executor: "shell", OutputLimit: 1 << 20, GitLab: w.gitlab}
	p.d, err = dispatch.New(dispatch.Config{
		Store: p.store, Runners: []dispatch.Runner{runner},
		Identity: func(ctx context.Context) (id, name string, err error) {
			id = ctx.Value(identity{}).(string)
			return id, id, nil
		},
		AgentName:  func(id string) string { return id },
		Retired:    func(store.Job) (dispatch.Runner, error) { return runner, nil },
		PingPeriod: pingPeriod, StopAfter: stopAfter, LostAfter: lostAfter, ComeBack: time.Second,
	})
	w.must(err)
	p.relay, err = relay.New(relay.Options{Dir: filepath.Join(w.dir, "spool"), Events: p.d, MinFree: 1})
	w.must(err)
	w.must(p.d.Start(context.Background(), p.relay))
	p.ctx, p.cancel = context.WithCancel(context.Background())
	w.plane = p
}

// stopPlane ends it; kill: nothing that it still wants to write or send is.
func (w *world) stopPlane(kill bool) {
	p := w.plane
	w.plane = nil
	p.store.dead.Store(kill)
	p.cancel()
	for _, l := range w.links {
		if kill && l.plane == p {
			l.breakPlane()
		}
	}
	p.d.Close()
	for _, l := range w.links {
		if l.plane == p {
			l.breakPlane()
		}
	}
	p.calls.Wait()
	p.d.Wait()
	p.claims.Wait()
	closing, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	w.must(p.relay.Close(closing))
	w.must(p.db.Close())
}

// claim is a poller's: with a slot, or without one as a watch does.
func (p *plane) claim(reserved bool) {
	p.claims.Go(func() {
		var r *dispatch.Reservation
		if reserved {
			var err error
			if r, err = p.d.Reserve(p.ctx, runnerName); err != nil {
				return
			}
		}
		id := p.w.gitlab.next()
		if id == 0 {
			if r != nil {
				r.Release()
			}
			return
		}
		if err := p.d.Claimed(context.Background(), runnerName, r, dispatch.Claim{
			Payload: []byte("{}"), Envelope: runnerapi.Envelope{ID: id, Token: "t"}, At: time.Now(),
		}); err != nil {
			p.w.gitlab.abandon(id)
		}
	})
}

// link is one connection of an agent: its session and its trace stream. Either end may take it for broken before the other
// does; what is under way then still arrives at the end that does not know.
type link struct {
	agent    *agent
	plane    *plane
	session  *wire[fleetv1.SessionRequest, fleetv1.SessionResponse]
	trace    *wire[fleetv1.TraceRequest, fleetv1.TraceResponse]
	sender   sync.WaitGroup
	closed   bool // by the agent
	ctx      context.Context
	cancel   context.CancelFunc // the agent's end
	welcomed bool
	began    time.Time
	heard    time.Time // by the agent
	pinged   time.Time
	seq      uint64
	pings    map[uint64]time.Time
	answers  chan *fleetv1.TraceResponse
}

// wire is a bidirectional stream, both directions of which are queues. The server's end is the grpc.ServerStream.
type wire[Req, Res any] struct {
	grpc.ServerStream
	ctx    context.Context // the server's end
	cancel context.CancelFunc
	toward chan *Req // what arrives at the server

	mu   sync.Mutex
	up   []*Req // on the way to the server
	down []*Res // on the way to the agent
}

func newWire[Req, Res any](agent string) *wire[Req, Res] {
	w := &wire[Req, Res]{toward: make(chan *Req)}
	w.ctx, w.cancel = context.WithCancel(context.WithValue(context.Background(), identity{}, agent))
	return w
}

func (w *wire[Req, Res]) Context() context.Context { return w.ctx }

func (w *wire[Req, Res]) Recv() (*Req, error) {
	select {
	case m := <-w.toward:
		return m, nil
	case <-w.ctx.Done():
		return nil, w.ctx.Err()
	}
}

func (w *wire[Req, Res]) Send(m *Res) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx.Err() != nil {
		return io.EOF
	}
	w.down = append(w.down, m)
	return nil
}

// RecvMsg is what Recv is made of on a real stream.
func (w *wire[Req, Res]) RecvMsg(m any) error {
	next, err := w.Recv()
	if err != nil {
		return err
	}
	proto.Reset(m.(proto.Message))
	proto.Merge(m.(proto.Message), any(next).(proto.Message))
	return nil
}

func (w *wire[Req, Res]) sendUp(m *Req) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.up = append(w.up, m)
}

func (w *wire[Req, Res]) count() (up, down int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.up), len(w.down)
}

// arrive hands the oldest message to the server, if that still listens.
func (w *wire[Req, Res]) arrive() {
	w.mu.Lock()
	m := w.up[0]
	w.up = w.up[1:]
	w.mu.Unlock()
	select {
	case w.toward <- m:
	case <-w.ctx.Done():
	}
}

func (w *wire[Req, Res]) takeDown() *Res {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.down[0]
	w.down = w.down[1:]
	return m
}

// traceClient is the agent's end of a trace stream.
type traceClient struct {
	grpc.ClientStream
	l      *link
	answer chan *fleetv1.TraceResponse
}

func (c *traceClient) Send(m *fleetv1.TraceRequest) error {
	if c.l.ctx.Err() != nil {
		return io.EOF
	}
	c.l.trace.sendUp(proto.CloneOf(m)) // the sender uses it again
	return nil
}

func (c *traceClient) Recv() (*fleetv1.TraceResponse, error) {
	select {
	case m := <-c.answer:
		return m, nil
	case <-c.l.ctx.Done():
		return nil, c.l.ctx.Err()
	}
}

// GoString is how a plan that failed names it.
func (l *link) GoString() string {
	return fmt.Sprintf("link of %s since %s", l.agent, l.began.Format("15:04:05.000"))
}

// openTrace is the call that opens the trace stream.
func (l *link) openTrace() {
	if l.trace.ctx.Err() != nil {
		return
	}
	l.plane.calls.Go(func() {
		defer l.trace.cancel()
		_ = l.plane.d.Trace(l.trace)
	})
}

// breakPlane ends the control plane's end: what was on the way to it is lost.
func (l *link) breakPlane() {
	l.session.cancel()
	l.trace.cancel()
}

// dead: nothing can move on it any more.
func (l *link) dead() bool { return l.closed && l.session.ctx.Err() != nil && l.trace.ctx.Err() != nil }

// open connects an agent with the control plane.
func (p *plane) open(a *agent) *link {
	l := &link{
		agent: a, plane: p, began: time.Now(), heard: time.Now(), pings: make(map[uint64]time.Time),
		answers: make(chan *fleetv1.TraceResponse), session: newWire[fleetv1.SessionRequest, fleetv1.SessionResponse](a.id), trace: newWire[fleetv1.TraceRequest, fleetv1.TraceResponse](a.id),
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	p.calls.Go(func() {
		defer l.session.cancel()
		_ = p.d.Session(l.session)
	})
	p.w.links = append(p.w.links, l)
	return l
}
