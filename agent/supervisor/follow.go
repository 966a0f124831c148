package supervisor

import (
	"errors"
	"fmt"
	"time"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/job/folder"
)

const (
	// lookAgain is how often a job is looked at that runs but cannot be followed: its socket is not there yet, or broke.
	lookAgain = 250 * time.Millisecond
	// killPatience is added to the kill grace before the agent kills what was told to end.
	killPatience = 10 * time.Second
)

// follower is the connection to a running job, read by a goroutine of its own. The trace's growth it handles itself;
// other events it passes on.
type follower struct {
	*folder.Follower
	events chan folder.Event
	failed chan error
	stop   chan struct{}
	ended  chan struct{}
}

// connect returns nil if nobody listens.
func (w *work) connect() *follower {
	conn, err := w.folder.Follow(w.leave)
	if err != nil {
		if !errors.Is(err, folder.ErrGone) && w.leave.Err() == nil {
			w.log.Warn("cannot follow the job", "err", err)
		}
		return nil
	}
	f := &follower{
		Follower: conn, events: make(chan folder.Event), failed: make(chan error, 1),
		stop: make(chan struct{}), ended: make(chan struct{}),
	}
	go func() {
		defer close(f.ended)
		for {
			e, err := conn.Next()
			if err != nil {
				f.failed <- err
				return
			}
			if e.Kind == folder.EventTrace { // the only one that comes often
				w.grown(w.prefixLength + e.TraceLength)
				continue
			}
			select {
			case f.events <- e:
			case <-f.stop:
				return
			}
		}
	}()
	return f
}

func (f *follower) close() {
	close(f.stop)
	_ = f.Close()
	<-f.ended
}

// follow watches a job that runs until its process is gone and its result is settled, or the agent leaves. ready (nil: it
// is ready) is closed when the job can be followed; ended (nil: its process is not ours) brings why the process ended.
func (w *work) follow(ready <-chan struct{}, ended <-chan error) {
	var (
		f      *follower
		events <-chan folder.Event
		failed <-chan error
		sent   orders           // what the job has been told on this connection
		doom   <-chan time.Time // when to kill what was told to stop
		linger <-chan time.Time // when to kill what has its result
	)
	drop := func() {
		if f != nil {
			f.close()
			f, events, failed, sent = nil, nil, nil, orders{}
		}
	}
	defer drop()
	connect := func() {
		if f = w.connect(); f != nil {
			events, failed = f.events, f.failed
			w.tell(f, &sent, &doom)
		}
	}
	ticker := time.NewTicker(lookAgain)
	defer ticker.Stop()
	if ready == nil {
		connect()
		if f == nil && ended == nil && w.over(nil) {
			return
		}
	}
	discarded, lost := w.life.Done(), w.env.Done()
	for {
		select {
		case <-ready:
			ready = nil
			w.emit(w.leave, Fenced)
			connect()
		case e := <-events:
			switch e.Kind {
			case folder.EventStage:
				w.log.Debug("stage", "stage", e.Stage)
			case folder.EventResult:
				if w.settle() {
					linger = time.After(endPatience)
				}
			}
		case err := <-failed:
			if !errors.Is(err, folder.ErrGone) && w.leave.Err() == nil {
				w.log.Warn("lost sight of the job", "err", err)
			}
			drop()
			if ended == nil && w.over(nil) {
				return
			}
		case why := <-ended:
			ended, ready = nil, nil
			if w.leave.Err() != nil || w.over(why) {
				return
			}
		case <-ticker.C:
			if f != nil || ready != nil {
				continue
			}
			if size, err := w.trace.Size(); err == nil {
				w.grown(size)
			}
			if connect(); f == nil && ended == nil && w.over(nil) {
				return
			}
		case <-w.news:
			w.tell(f, &sent, &doom)
		case <-doom:
			doom = w.kill("it was told to stop and did not")
		case <-linger:
			linger = w.kill("it has its result but does not end")
		case <-lost:
			lost = nil
			w.die(fmt.Sprintf("the environment is gone: %v", w.env.Err()))
			if ended == nil {
				return
			}
		case <-discarded:
			discarded = nil
			if w.leave.Err() != nil {
				return
			}
			if linger != nil {
				continue // it is about to end by itself
			}
			doom = w.kill("it is not wanted any more")
			if ended == nil && doom == nil {
				return
			}
		}
	}
}

// tell forwards orders to the job.
func (w *work) tell(f *follower, sent *orders, doom *<-chan time.Time) {
	o := w.current()
	const kill = fleetv1.CancelMode_CANCEL_MODE_KILL
	if o.cancel == kill && *doom == nil {
		*doom = time.After(w.env.Job().KillGrace + killPatience)
	}
	if f == nil {
		return
	}
	var err error
	if o.cancel > sent.cancel {
		err = f.Cancel(o.cancel == kill)
		sent.cancel = o.cancel
	}
	if left := time.Until(o.lease); !o.lease.Equal(sent.lease) && left > 0 {
		err = errors.Join(err, f.Lease(left))
		sent.lease = o.lease
	}
	if err != nil && !errors.Is(err, folder.ErrGone) {
		w.log.Warn("cannot reach the job", "err", err)
	}
}

// over says whether the job's process is gone, and settles the result then. why is what is known of its end.
func (w *work) over(why error) bool {
	running, err := w.folder.Running()
	if err != nil {
		w.log.Warn("cannot look after the job", "err", err)
		return false
	}
	if running {
		return false
	}
	if w.life.Err() != nil || w.settle() {
		return true
	}
	text := "the job's process is gone and left no result"
	if why != nil {
		text = why.Error()
	}
	w.die(text)
	return true
}
