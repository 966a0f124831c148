// Package relay takes traces and results from the fleet to GitLab. Bytes that an agent sends are written to a spool on
// disk, one append-only file per job, and reported from there: PATCHes at the pace that GitLab asks for, signs of life
// while there is nothing to say, the rest and the result at the end, again and again until GitLab has them or wants
// nothing more of the job (package report has the rules). Each job is reported independently of all others.
//
// A spool is never cut before GitLab has the job's result: GitLab may ask for any byte again.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/relay/spool"
)

// Errors that callers branch on.
var (
	// ErrNotOpen: Open was not called for the job, or with another epoch, or Forget was.
	ErrNotOpen = errors.New("job is not open in the relay")
	// ErrClosed: the relay is closed.
	ErrClosed = errors.New("relay is closed")
	// ErrStale: the relay holds a later epoch of the job.
	ErrStale = errors.New("stale epoch")
)

const (
	maxSyncInterval    = time.Second
	defaultWindow      = 4 << 20
	defaultConcurrency = 64
	defaultMinFree     = 64 << 20
)

// Options of New. Zero values take the defaults.
type Options struct {
	// Dir is the folder of the spool, made with mode 0700 if it is missing. Nobody else writes there.
	Dir    string
	Events Events
	Logger *slog.Logger // nil discards
	// SyncInterval is the longest time between a byte's arrival and the start of its sync; at most and by default 1 s.
	SyncInterval time.Duration
	// Pace makes output wait for at most this long until it is sent to GitLab, whatever GitLab asks for; 0 obeys GitLab.
	Pace time.Duration
	// Window is how far beyond Written an agent may send, in bytes; default 4 MiB.
	Window int64
	// Concurrency is the number of requests at once per Target.Instance; default 64.
	Concurrency int
	// MaxBytes is the quota of the whole spool; 0 means none. MinFree bytes are left free on its file system; default
	// 64 MiB. Where one is reached no more bytes are taken, and reporting goes on.
	MaxBytes, MinFree int64
}

func (o *Options) check() error {
	switch {
	case o.Dir == "":
		return errors.New("the relay needs a folder for its spool")
	case o.Events == nil:
		return errors.New("the relay needs somebody to tell its events to")
	case o.SyncInterval < 0 || o.SyncInterval > maxSyncInterval:
		return fmt.Errorf("sync interval %s: must be at most %s", o.SyncInterval, maxSyncInterval)
	case o.Pace < 0:
		return fmt.Errorf("pace %s: must not be negative", o.Pace)
	case o.Window < 0 || o.Concurrency < 0 || o.MaxBytes < 0 || o.MinFree < 0:
		return fmt.Errorf("window %d, concurrency %d, quota %d, free space %d: none may be negative", o.Window, o.Concurrency, o.MaxBytes, o.MinFree)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.SyncInterval == 0 {
		o.SyncInterval = maxSyncInterval
	}
	if o.Window == 0 {
		o.Window = defaultWindow
	}
	if o.Concurrency == 0 {
		o.Concurrency = defaultConcurrency
	}
	if o.MinFree == 0 {
		o.MinFree = defaultMinFree
	}
	return nil
}

// Relay reports jobs to GitLab. All methods may be called concurrently.
type Relay struct {
	o     Options
	log   *slog.Logger
	spool *spool.Spool
	sync  *syncer
	room  *room
	work  gate
	quit  chan struct{} // closed by Close
	rand  func() float64

	watchers sync.WaitGroup // of lanes

	ctx    context.Context // of the requests
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	jobs   map[int64]*job
	lanes  map[string]*lane
}

// New opens the spool. Nothing is sent before Open.
func New(o Options) (*Relay, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	s, strangers, err := spool.Open(o.Dir, o.MaxBytes, o.MinFree)
	if err != nil {
		return nil, fmt.Errorf("open the spool %s: %w", o.Dir, err)
	}
	if len(strangers) > 0 {
		o.Logger.Warn("the spool's folder holds files that are not the spool's; they are left alone", "folder", o.Dir, "files", strangers)
	}
	r := &Relay{o: o, log: o.Logger, spool: s, rand: rand.Float64, jobs: make(map[int64]*job), lanes: make(map[string]*lane), quit: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.sync = newSyncer(r)
	r.room = newRoom(r)
	if err := s.Look(); err != nil {
		r.room.missing(err)
	}
	return r, nil
}

// Err returns why the spool takes no bytes at the moment (disk full, quota), or nil.
func (r *Relay) Err() error { return r.spool.Err() }

// Bytes returns the length of all spooled traces together.
func (r *Relay) Bytes() int64 { return r.spool.Bytes() }

// Sweep removes the spools that New found and that were not opened since, and returns their number; what was opened is
// synced, all at once. To be called once, after all jobs of the store were opened.
func (r *Relay) Sweep() (int, error) {
	if err := r.sync.flush(); err != nil {
		r.log.Error("traces are not safe from a loss of power", "error", err)
	}
	var errs []error
	jobs := r.spool.Untaken()
	for _, job := range jobs {
		if err := r.spool.Discard(job); err != nil {
			errs = append(errs, err)
		}
	}
	return len(jobs) - len(errs), errors.Join(errs...)
}

// Close stops the reporting and takes no more bytes. Requests that are under way are awaited until ctx ends, then cut
// off; all bytes are synced. Jobs whose report has not ended are taken up by the next relay on the same folder.
func (r *Relay) Close(ctx context.Context) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	jobs := r.all()
	r.mu.Unlock()

	done := r.work.shut()
	close(r.quit)
	defer r.watchers.Wait()
	r.room.stop()
	select {
	case <-done:
	case <-ctx.Done():
		r.cancel()
		<-done
	}
	r.cancel()
	err := r.sync.close()
	for _, j := range jobs {
		j.close()
	}
	return errors.Join(err, r.spool.Close())
}

// all must be called with mu held.
func (r *Relay) all() []*job {
	jobs := make([]*job, 0, len(r.jobs))
	for _, j := range r.jobs {
		jobs = append(jobs, j)
	}
	return jobs
}

// gate counts what runs in the background, and stops letting more in.
type gate struct {
	mu     sync.Mutex
	n      int
	closed chan struct{} // made by shut, closed when n is 0
}

// enter returns false after shut; else leave must follow.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed != nil {
		return false
	}
	g.n++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n--; g.n == 0 && g.closed != nil {
		close(g.closed)
	}
}

func (g *gate) shut() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed == nil {
		g.closed = make(chan struct{})
		if g.n == 0 {
			close(g.closed)
		}
	}
	return g.closed
}

// open is false after shut.
func (g *gate) open() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed == nil
}
