package polling

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeGitLab answers in virtual time, inside a synctest bubble.
type fakeGitLab struct {
	latency time.Duration
	hold    time.Duration // 0: answers at once

	mu       sync.Mutex
	value    int
	changed  chan struct{}
	jobs     []int64
	nextID   int64
	verify   func() error                    // nil: knows the token
	claim    func(ctx context.Context) error // before anything else happens to a claim; nil: nothing
	onWatch  func()                          // when a watch arrives; nil: nothing
	requests []runnerapi.JobRequest          // all
	verifies []runnerapi.VerifyRequest       // all
	watching int                             // held at the moment
	answers  map[int64]*client.RequestResult // of the jobs that were given away
}

func newFakeGitLab() *fakeGitLab {
	return &fakeGitLab{
		latency: 2 * time.Millisecond, hold: 50 * time.Second,
		changed: make(chan struct{}), answers: make(map[int64]*client.RequestResult),
	}
}

func (g *fakeGitLab) push(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for range n {
		g.nextID++
		g.jobs = append(g.jobs, g.nextID)
	}
	g.value++
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *fakeGitLab) Verify(_ context.Context, r runnerapi.VerifyRequest) (*runnerapi.VerifyResponse, error) {
	<-time.After(g.latency)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.verifies = append(g.verifies, r)
	if g.verify != nil {
		if err := g.verify(); err != nil {
			return nil, err
		}
	}
	return &runnerapi.VerifyResponse{ID: 1, Token: r.Token}, nil
}

func (g *fakeGitLab) RequestJob(ctx context.Context, r runnerapi.JobRequest, lane client.Lane) (*client.RequestResult, error) {
	start := time.Now()
	<-time.After(g.latency)
	if lane == client.LaneWatch && g.onWatch != nil {
		g.onWatch()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.requests = append(g.requests, r)
	if lane == client.LaneWatch && r.LastUpdate == strconv.Itoa(g.value) && g.hold > 0 {
		changed := g.changed
		g.watching++
		g.mu.Unlock()
		timer := time.NewTimer(g.hold)
		defer timer.Stop()
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		g.mu.Lock()
		g.watching--
		return &client.RequestResult{Held: time.Since(start)}, ctx.Err()
	}
	if g.claim != nil {
		claim := g.claim
		g.mu.Unlock()
		err := claim(ctx)
		g.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
	result := &client.RequestResult{Held: time.Since(start)}
	switch value := strconv.Itoa(g.value); {
	case r.LastUpdate == value || len(g.jobs) == 0:
		result.LastUpdate, result.HasLastUpdate = value, true
	default:
		id := g.jobs[0]
		g.jobs = g.jobs[1:]
		result.Status = client.JobReceived
		result.Payload = fmt.Appendf(nil, `{"id":%d,"token":"job-token"}`, id)
		result.Envelope = runnerapi.Envelope{ID: id, Token: "job-token"}
		result.ServerCA, result.CorrelationID = "pem", "correlation"
		g.answers[id] = result
	}
	return result, nil
}

func (g *fakeGitLab) count() (requests, verifies int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.requests), len(g.verifies)
}

// fakeDispatcher has slots and a disk.
type fakeDispatcher struct {
	slots chan struct{}

	mu      sync.Mutex
	disk    func(c Claim) error // nil: all is well
	claimed []Claim
	at      []time.Time
	without int // jobs that came without a reservation
}

func newFakeDispatcher(slots int) *fakeDispatcher {
	d := &fakeDispatcher{slots: make(chan struct{}, 1000)}
	for range slots {
		d.slots <- struct{}{}
	}
	return d
}

type fakeReservation struct {
	d    *fakeDispatcher
	once sync.Once
}

func (r *fakeReservation) Release() {
	released := false
	r.once.Do(func() { released = true; r.d.slots <- struct{}{} })
	if !released {
		panic("released twice, or after it was used up")
	}
}

func (d *fakeDispatcher) Reserve(ctx context.Context, _ string) (Reservation, error) {
	select {
	case <-d.slots:
		return &fakeReservation{d: d}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (d *fakeDispatcher) Claimed(ctx context.Context, _ string, r Reservation, c Claim) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if d.disk != nil {
		if err := d.disk(c); err != nil {
			return err
		}
	}
	d.claimed, d.at = append(d.claimed, c), append(d.at, time.Now())
	if r == nil {
		d.without++
	} else {
		r.(*fakeReservation).once.Do(func() {})
	}
	return nil
}

func (d *fakeDispatcher) setDisk(f func(c Claim) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disk = f
}

func (d *fakeDispatcher) jobs() []Claim {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.claimed
}

// bench is a poller that runs in a bubble.
type bench struct {
	*testing.T
	gitlab     *fakeGitLab
	dispatcher *fakeDispatcher
	poller     *Poller
	stop       context.CancelFunc
	result     chan error
	ended      bool
	log        *bytes.Buffer
}

func startBench(t *testing.T, slots int, change func(g *fakeGitLab, o *Options)) *bench {
	t.Helper()
	b := &bench{T: t, gitlab: newFakeGitLab(), dispatcher: newFakeDispatcher(slots), result: make(chan error, 1), log: new(bytes.Buffer)}
	o := Options{
		Runner: "everything", Token: func() string { return "glrt-secret" }, SystemID: "r_abcdefghijkl",
		Client: b.gitlab, Dispatcher: b.dispatcher,
		Info: func() runnerapi.Info {
			return runnerapi.Info{Name: "switchyard", Features: runnerapi.Features{Masking: true, TwoPhaseJobCommit: true}}
		},
		Logger: slog.New(slog.NewTextHandler(b.log, nil)),
	}
	if change != nil {
		change(b.gitlab, &o)
	}
	var err error
	b.poller, err = New(o)
	require.NoError(t, err)
	var ctx context.Context
	ctx, b.stop = context.WithCancel(t.Context())
	go func() { b.result <- b.poller.Run(ctx) }()
	t.Cleanup(func() {
		if !b.ended {
			_ = b.end()
		}
	})
	return b
}

// pass lets virtual time pass and waits until everybody has done what there was to do.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// end stops the poller and returns what Run said.
func (b *bench) end() error {
	b.stop()
	b.ended = true
	return <-b.result
}

var errDisk = errors.New("no space left on device")
