package docker

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

const (
	firstPause   = 100 * time.Millisecond
	longestPause = 15 * time.Second
)

// watcher hears of what happens to containers, by one stream of the engine's events for all environments. The stream is
// open while there is an environment. When it was broken every container is looked at again.
type watcher struct {
	client *client.Client
	log    *slog.Logger

	mu      sync.Mutex
	members map[*environment]struct{}
	execs   map[string]chan int // by the exec's id; buffered
	stop    context.CancelFunc
	ended   chan struct{}
	live    chan struct{} // closed while the stream is open
	closed  bool
}

func newWatcher(c *client.Client, log *slog.Logger) *watcher {
	return &watcher{
		client: c, log: log, members: make(map[*environment]struct{}),
		execs: make(map[string]chan int), live: make(chan struct{}),
	}
}

// join has the environment be told of its containers. It waits until the stream is open, so that nothing is missed which
// happens to a container that is started afterwards; an engine that does not answer ends the wait with ctx or by the first
// failure: what is missed is looked up later.
func (w *watcher) join(ctx context.Context, v *environment) {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return
	}
	w.members[v] = struct{}{}
	if w.stop == nil {
		watching, stop := context.WithCancel(context.Background())
		w.stop, w.ended = stop, make(chan struct{})
		go w.watch(watching, w.ended)
	}
	live := w.live
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	select {
	case <-live:
	case <-ctx.Done():
	}
}

// leave is join's end. The stream ends with the last environment.
func (w *watcher) leave(v *environment) {
	w.mu.Lock()
	delete(w.members, v)
	ended := w.stopIfIdle()
	w.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

// stopIfIdle ends the stream if there is nobody for it, and returns what is closed then. The lock is held.
func (w *watcher) stopIfIdle() chan struct{} {
	if len(w.members) > 0 || w.stop == nil {
		return nil
	}
	w.stop()
	ended := w.ended
	w.stop, w.ended, w.live = nil, nil, make(chan struct{})
	return ended
}

func (w *watcher) close() {
	w.mu.Lock()
	w.closed = true
	clear(w.members)
	ended := w.stopIfIdle()
	w.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

// unknown stands for the exit code of an exec that may have ended unheard.
const unknown = -1

// exec returns a channel that gets the exit code of an exec, or unknown, for as long as forget was not called.
func (w *watcher) exec(id string) (code <-chan int, forget func()) {
	c := make(chan int, 1)
	w.mu.Lock()
	w.execs[id] = c
	w.mu.Unlock()
	return c, func() {
		w.mu.Lock()
		delete(w.execs, id)
		w.mu.Unlock()
	}
}

// watch keeps the stream open until ctx ends.
func (w *watcher) watch(ctx context.Context, ended chan struct{}) {
	defer close(ended)
	pause := firstPause
	for first := true; ; first = false {
		began := time.Now()
		err := w.stream(ctx, ended, first)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > longestPause {
			pause = firstPause
		}
		w.log.Warn("the connection to the Docker engine is lost; it is tried again", "err", err)
		wait := time.NewTimer(pause/2 + rand.N(pause)) // #nosec G404 -- no secret depends on it
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
		pause = min(2*pause, longestPause)
	}
}

// stream reads events until the connection breaks. first: nothing can have been missed.
func (w *watcher) stream(ctx context.Context, run chan struct{}, first bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	filters := make(client.Filters).Add("type", string(events.ContainerEventType)).
		Add("event", string(events.ActionDie), string(events.ActionDestroy), string(events.ActionExecDie))
	r := w.client.Events(ctx, client.EventsListOptions{Filters: filters})
	// The request has been answered, or failed.
	select {
	case err := <-r.Err:
		return err
	default:
	}
	w.mu.Lock()
	live := w.live
	members := slices.Collect(maps.Keys(w.members))
	current := w.ended == run
	w.mu.Unlock()
	if !current {
		return ctx.Err()
	}
	if !first {
		for _, v := range members {
			v.look(ctx)
		}
		w.askAgain()
		w.log.Info("the Docker engine is back")
	}
	select {
	case <-live:
	default:
		close(live)
	}
	defer w.dark(run)
	for {
		select {
		case m := <-r.Messages:
			w.happened(ctx, m)
		case err := <-r.Err:
			if err == nil {
				err = errors.New("the stream of events ended")
			}
			return err
		}
	}
}

// askAgain has those who wait for the end of an exec ask for it: it may have been missed.
func (w *watcher) askAgain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.execs {
		select {
		case c <- unknown:
		default:
		}
	}
}

// dark says that the stream is not open any more.
func (w *watcher) dark(run chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended == run {
		w.live = make(chan struct{})
	}
}

func (w *watcher) happened(ctx context.Context, m events.Message) {
	if m.Action == events.ActionExecDie {
		w.mu.Lock()
		c := w.execs[m.Actor.Attributes["execID"]]
		w.mu.Unlock()
		if code, err := strconv.Atoi(m.Actor.Attributes["exitCode"]); err == nil && c != nil {
			select {
			case c <- code:
			default: // it has it
			}
		}
		return
	}
	code := -1
	if n, err := strconv.Atoi(m.Actor.Attributes["exitCode"]); err == nil {
		code = n
	}
	w.mu.Lock()
	members := slices.Collect(maps.Keys(w.members))
	w.mu.Unlock()
	for _, v := range members {
		if slices.Contains(v.containers(), m.Actor.ID) {
			v.happened(ctx, m.Actor.ID, m.Action == events.ActionDestroy, code)
		}
	}
}

// gone says whether an error means that what was asked for does not exist.
func gone(err error) bool { return errdefs.IsNotFound(err) }
