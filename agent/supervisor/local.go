package supervisor

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// lookAgain is how often a job is looked at that runs but cannot be followed: its socket is not there yet, or broke.
const lookAgain = 250 * time.Millisecond

// local follows a job whose folder is on this host: by its control socket, its lock and, if this process of the agent
// started it, the end of its process.
type local struct {
	*following

	mu   sync.Mutex
	conn *connection // nil: there is none. Written by watch only
}

// startLocal starts switchyard-job.
func (w *work) startLocal() follower {
	l := &local{following: w.following()}
	ready, complaint := newReadiness(), &tail{}
	exited := make(chan error, 1)
	place := w.env.Job()
	l.tasks.Go(func() {
		code, err := w.env.Exec(l.ctx, executors.Command{
			Argv: []string{place.Binary, "run", place.Folder}, Stdout: ready, Stderr: complaint,
		})
		if err == nil {
			err = &exitError{code, complaint}
		}
		exited <- err
	})
	l.tasks.Go(func() { l.watch(ready.line, exited) })
	return l
}

// followLocal follows a job that was started before.
func (w *work) followLocal() follower {
	l := &local{following: w.following()}
	l.tasks.Go(func() { l.watch(nil, nil) })
	return l
}

// watch is the follower's goroutine. ready (nil: it is ready) is closed when the job can be followed; exited (nil: its
// process is not ours) brings why the process ended.
func (l *local) watch(ready <-chan struct{}, exited <-chan error) {
	defer l.drop()
	if ready == nil && !l.connect() && exited == nil && l.over(nil) {
		return
	}
	for {
		var (
			events <-chan folder.Event
			failed <-chan error
			again  <-chan time.Time
		)
		if l.conn != nil {
			events, failed = l.conn.events, l.conn.failed
		} else if ready == nil {
			again = time.After(lookAgain)
		}
		select {
		case <-ready:
			ready = nil
			l.say(happening{what: begun})
			l.connect()
		case e := <-events:
			l.heard(e)
		case err := <-failed:
			if !errors.Is(err, folder.ErrGone) && l.ctx.Err() == nil {
				l.w.log.Warn("lost sight of the job", "err", err)
			}
			l.drop()
			if exited == nil && l.over(nil) {
				return
			}
		case why := <-exited:
			exited, ready = nil, nil
			if l.ctx.Err() != nil || l.over(why) {
				return
			}
		case <-again:
			if size, err := l.w.trace.Size(); err == nil {
				l.w.grown(size)
			}
			if !l.connect() && exited == nil && l.over(nil) {
				return
			}
		case <-l.ctx.Done():
			return
		}
	}
}

func (l *local) heard(e folder.Event) {
	switch e.Kind {
	case folder.EventStage:
		l.w.log.Debug("stage", "stage", e.Stage)
	case folder.EventAsk:
		l.say(happening{what: asked, ask: e.Ask})
	case folder.EventResult:
		l.say(happening{what: resulted})
	case folder.EventTrace: // see connection
	}
}

// over says so if the job's process is gone. why is what is known of its end.
func (l *local) over(why error) bool {
	running, err := l.w.folder.Running()
	if err != nil {
		l.w.log.Warn("cannot look after the job", "err", err)
		return false
	}
	if !running {
		l.say(happening{what: over, why: why})
	}
	return !running
}

func (l *local) send(o folder.Order) error {
	l.mu.Lock()
	c := l.conn
	l.mu.Unlock()
	if c == nil {
		return folder.ErrGone
	}
	if err := c.Send(o); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return folder.ErrGone // dropped meanwhile
}

// connect returns false if nobody listens.
func (l *local) connect() bool {
	conn, err := l.w.folder.Follow(l.ctx)
	if err != nil {
		if !errors.Is(err, folder.ErrGone) && l.ctx.Err() == nil {
			l.w.log.Warn("cannot follow the job", "err", err)
		}
		return false
	}
	c := listen(conn, func(length int64) { l.w.grown(l.w.prefixLength + length) })
	l.mu.Lock()
	l.conn = c
	l.mu.Unlock()
	l.say(happening{what: connected})
	return true
}

func (l *local) drop() {
	l.mu.Lock()
	c := l.conn
	l.conn = nil
	l.mu.Unlock()
	if c != nil {
		c.close()
	}
}

// connection is the connection to a running job's control socket, read by a goroutine of its own. The trace's growth it
// handles itself, because that comes often; other events it passes on.
type connection struct {
	*folder.Follower
	events chan folder.Event
	failed chan error
	stop   chan struct{}
	ended  chan struct{}
}

func listen(conn *folder.Follower, grown func(length int64)) *connection {
	c := &connection{
		Follower: conn, events: make(chan folder.Event), failed: make(chan error, 1),
		stop: make(chan struct{}), ended: make(chan struct{}),
	}
	go func() {
		defer close(c.ended)
		for {
			e, err := conn.Next()
			if err != nil {
				c.failed <- err
				return
			}
			if e.Kind == folder.EventTrace {
				grown(e.TraceLength)
				continue
			}
			select {
			case c.events <- e:
			case <-c.stop:
				return
			}
		}
	}()
	return c
}

func (c *connection) close() {
	close(c.stop)
	_ = c.Close()
	<-c.ended
}
