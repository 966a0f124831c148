package supervisor

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/agent/uplink"
	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/folder"
)

const (
	// launchPatience is how long the environment may be out of reach before it is known whether the job began.
	launchPatience = 5 * time.Minute
	// touchPatience is how long it may be out of reach later. The job's own lease ends sooner.
	touchPatience = time.Hour
	// mostFailures is how often in a row the environment may be reached in vain.
	mostFailures = 6
	// steady is how long a stream must have lasted, muchTrace how much it must have brought, for the next attempt to come
	// quickly.
	steady    = 10 * time.Second
	muchTrace = 64 << 10
)

// remote follows a job whose folder is in its environment, out of this host's reach: by a stream of frames that is opened
// again whenever it breaks, into the job folder on this host, which becomes a copy.
//
// Whether the job was started is known for certain only by the copy of the fence. Without it the environment is asked by
// another launch, which starts the job unless that was done before; so it is done only if the job is still wanted, and
// never in another environment.
type remote struct {
	*following
	mirror *attach.Mirror

	mu     sync.Mutex
	stream *stream // through which orders reach the job; nil: none
}

// followRemote starts the job, unless that was done before, and follows it.
func (w *work) followRemote() (follower, error) {
	mirror, err := attach.OpenMirror(w.folder)
	if err != nil {
		return nil, err
	}
	r := &remote{following: w.following(), mirror: mirror}
	r.tasks.Go(func() {
		defer func() { _ = mirror.Close() }()
		r.watch()
	})
	return r, nil
}

// watch is the follower's goroutine: one stream after the other.
func (r *remote) watch() {
	backoff := uplink.Backoff{First: firstRetry, Most: lastRetry}
	touched, failures, told := time.Now(), 0, false
	for {
		if !r.mirror.Begun() && r.unwanted() {
			r.say(happening{what: over, why: errCanceled})
			return
		}
		began, from := time.Now(), r.mirror.Offset()
		s := r.open()
		err := s.run()
		if r.ctx.Err() != nil {
			return
		}
		if r.final(err) {
			r.say(happening{what: over, why: err})
			return
		}
		if r.w.killed.Load() { // there is nobody any more who could be asked
			r.say(happening{what: over, why: errNoResult})
			return
		}
		if s.greeted {
			touched = time.Now()
		}
		if s.greeted && time.Since(began) >= steady || r.mirror.Offset()-from >= muchTrace {
			failures, told = 0, false
			backoff.Reset()
		}
		if failure(err) {
			failures++
		}
		patience := touchPatience
		if !r.mirror.Begun() {
			patience = launchPatience
		}
		switch {
		case failures >= mostFailures:
			r.say(happening{what: over, why: err})
			return
		case time.Since(touched) >= patience:
			r.say(happening{what: over, why: fmt.Errorf("the job's environment has been out of reach for %s: %w", patience, err)})
			return
		case !told:
			r.w.log.Warn("lost touch with the job; trying again", "err", err)
			told = true
		}
		select {
		case <-time.After(backoff.Next()):
		case <-r.w.env.Done():
			r.say(happening{what: over, why: err})
			return
		case <-r.ctx.Done():
			return
		}
	}
}

// firstRetry and lastRetry are the first and the longest window in which a stream is opened again.
var (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// final says whether a stream's end is the job's.
func (r *remote) final(err error) bool {
	var (
		invalid *attach.InvalidError
		refused *refusedError
	)
	switch {
	case err == nil, errors.Is(err, errNoResult), errors.As(err, &invalid):
		return true
	case errors.As(err, &refused):
		return !r.mirror.Begun() // it cannot be started
	}
	return false
}

// failure says whether the environment was reached, but in vain: that is not repeated for long.
func failure(err error) bool {
	var (
		refused *refusedError
		exited  *exitError
	)
	return errors.As(err, &refused) || errors.As(err, &exited) || errors.Is(err, errDeaf)
}

// unwanted says that the job is not to be started any more.
func (r *remote) unwanted() bool {
	return r.w.current().cancel != 0 || r.w.life.Err() != nil || r.w.killed.Load()
}

// reach sets the stream that orders go to.
func (r *remote) reach(s *stream) {
	r.mu.Lock()
	r.stream = s
	r.mu.Unlock()
	if s != nil {
		r.say(happening{what: connected})
	}
}

func (r *remote) send(o folder.Order) error {
	r.mu.Lock()
	s := r.stream
	r.mu.Unlock()
	if s == nil {
		return folder.ErrGone
	}
	return s.order(o)
}

// refusedError is what the environment's switchyard-job says when it cannot go on.
type refusedError struct{ text string }

func (e *refusedError) Error() string { return cut(e.text, maxMessage) }
