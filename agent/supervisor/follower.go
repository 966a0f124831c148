package supervisor

import (
	"context"
	"sync"

	"github.com/switchyard-ci/switchyard/job/folder"
)

// follower follows one job to its end and brings it orders. Where the job's folder is decides which of the two
// implementations does it: local or remote. Its methods are for the job's goroutine.
type follower interface {
	// happenings brings what happens, one thing after the other; nothing comes after over.
	happenings() <-chan happening
	// send gives the job an order without waiting for what it does. folder.ErrGone: it is out of reach; what it is to know is
	// said again after connected.
	send(o folder.Order) error
	// close ends the following, not the job. All goroutines have ended when it returns, and nothing more is written into the
	// job's folder by them. It may be called again.
	close()
}

// happening is what a follower says.
type happening struct {
	what what
	ask  folder.CacheRequest // of asked
	why  error               // of over: what is known of the end of a job without a result; may be nil
}

type what int

const (
	// connected: orders reach the job from here on. It may come again: what was ordered before may be lost.
	connected what = iota + 1
	// begun: the fence stands. It comes once, and not if it was known before.
	begun
	// asked: the job asks for the URL of a cache. It may come again for the same question.
	asked
	// resulted: there is a result, but the job's process has not ended yet. It may be missing.
	resulted
	// over: no process runs the job any more, and its folder on this host says how it ended, or nothing ever will.
	over
)

// following is what both followers are made of.
type following struct {
	w      *work
	ctx    context.Context // ends with close
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	said   chan happening
}

func (w *work) following() *following {
	f := &following{w: w, said: make(chan happening)}
	f.ctx, f.cancel = context.WithCancel(w.leave)
	return f
}

func (f *following) happenings() <-chan happening { return f.said }

func (f *following) close() {
	f.cancel()
	f.tasks.Wait()
}

// say waits until it is heard, or nobody listens any more.
func (f *following) say(h happening) {
	select {
	case f.said <- h:
	case <-f.ctx.Done():
	}
}
