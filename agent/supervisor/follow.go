package supervisor

import (
	"errors"
	"fmt"
	"time"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// killPatience is added to the kill grace before the agent kills what was told to end.
var killPatience = 10 * time.Second

// lastWords is how long the end of a job that is dead is waited for: what it said last is on its way.
const lastWords = 2 * time.Second

// start starts the job's process and follows it to its end.
func (w *work) start() {
	if w.here() {
		w.follow(w.startLocal())
		return
	}
	w.followElsewhere()
}

// resume follows a job that an earlier process of the agent started, or may have.
func (w *work) resume() {
	if !w.find(w.life) {
		return
	}
	switch {
	case w.env == nil:
		w.die(errors.New("nothing is left of the job's environment"))
	case w.here():
		w.follow(w.followLocal())
	default:
		w.followElsewhere()
	}
}

func (w *work) followElsewhere() {
	f, err := w.followRemote()
	if err != nil {
		w.die(fmt.Errorf("the job cannot be followed: %w", err))
		return
	}
	w.follow(f)
}

// here says whether the job's folder is the one on this host.
func (w *work) here() bool {
	_, ok := w.env.LocalFolder()
	return ok
}

// follow watches a job until its process is gone and its result is settled, or the agent leaves. It closes f.
func (w *work) follow(f follower) {
	defer f.close()
	questions := newQuestions(w)
	defer questions.close()
	var (
		sent   orders           // what the job has been told on this connection
		doom   <-chan time.Time // when to kill what was told to stop
		linger <-chan time.Time // when to kill what has its result
		gone   <-chan time.Time // when to give up a job that is killed, or whose environment is gone
	)
	w.tell(f, &sent, &doom)
	discarded, lost := w.life.Done(), w.env.Done()
	for {
		select {
		case h := <-f.happenings():
			switch h.what {
			case connected:
				sent = orders{}
				w.tell(f, &sent, &doom)
			case begun:
				w.emit(w.leave, Fenced)
			case asked:
				questions.ask(h.ask)
			case resulted:
				if w.settle() {
					linger = time.After(endPatience)
				}
			case over:
				f.close()
				w.ended(h.why)
				return
			}
		case a := <-questions.answers:
			questions.answered(a)
			w.send(f, folder.Order{Kind: folder.OrderAnswer, Answer: a})
		case <-w.news:
			w.tell(f, &sent, &doom)
		case <-doom:
			if doom = w.kill("it was told to stop and did not"); doom == nil {
				gone = time.After(lastWords)
			}
		case <-linger:
			if linger = w.kill("it has its result but does not end"); linger == nil {
				gone = time.After(lastWords)
			}
		case <-lost:
			lost, gone = nil, time.After(lastWords)
		case <-gone:
			f.close()
			w.ended(nil)
			return
		case <-discarded:
			discarded = nil
			if w.leave.Err() != nil {
				return
			}
			if linger != nil {
				continue // it is about to end by itself
			}
			if doom = w.kill("it is not wanted any more"); doom == nil {
				return
			}
		}
	}
}

// ended settles the result of a job whose process is gone.
func (w *work) ended(why error) {
	if w.life.Err() != nil || w.settle() {
		return
	}
	switch gone := w.env.Err(); {
	case gone != nil:
		why = fmt.Errorf("the environment is gone: %w", gone)
	case why == nil:
		why = errNoResult
	}
	w.die(why)
}

// errNoResult is why a job without a result failed, if nothing more is known.
var errNoResult = errors.New("the job's process is gone and left no result")

// tell forwards orders to the job.
func (w *work) tell(f follower, sent *orders, doom *<-chan time.Time) {
	o := w.current()
	const kill = fleetv1.CancelMode_CANCEL_MODE_KILL
	if o.cancel == kill && *doom == nil {
		*doom = time.After(w.env.Job().KillGrace + killPatience)
	}
	if o.cancel > sent.cancel {
		sent.cancel = o.cancel
		order := folder.Order{Kind: folder.OrderCancelGraceful}
		if o.cancel == kill {
			order.Kind = folder.OrderCancelKill
		}
		w.send(f, order)
	}
	if !o.lease.Equal(sent.lease) {
		sent.lease = o.lease
		w.send(f, folder.Order{Kind: folder.OrderLease, Lease: max(time.Until(o.lease), time.Millisecond)})
	}
}

func (w *work) send(f follower, o folder.Order) {
	if err := f.send(o); err != nil && !errors.Is(err, folder.ErrGone) {
		w.log.Warn("cannot reach the job", "err", err)
	}
}
