package dispatch

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// lastWords is how long a stream that ends may take to send what is left to say.
const lastWords = time.Second

var errStopping = status.Error(codes.Unavailable, "the control plane is stopping")

// stream is what Session and Trace have in common: a half that receives and a half that sends, each a goroutine of its
// own, because either may hang in the network. Both end with the stream, soon after the handler has returned.
type stream struct {
	d    *Dispatcher
	ctx  context.Context
	end  context.CancelCauseFunc // the first reason counts
	sent chan struct{}           // closed when the sending half has ended
}

// open counts a stream in; close must follow. It fails once the control plane stops.
func (d *Dispatcher) open(ctx context.Context) (*stream, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errStopping
	}
	s := &stream{d: d, sent: make(chan struct{})}
	s.ctx, s.end = context.WithCancelCause(ctx)
	d.sessions.Add(1)
	return s, nil
}

// run starts both halves.
func (s *stream) run(receive, transmit func() error) {
	s.d.receivers.Go(func() { s.end(receive()) })
	s.d.receivers.Go(func() {
		defer close(s.sent)
		s.end(transmit())
	})
}

// wait returns why the stream ends, when it does. It calls act at each tick; an error of that ends the stream.
func (s *stream) wait(tick <-chan time.Time, act func(now time.Time) error) error {
	stop := context.AfterFunc(s.d.stopping, func() { s.end(errStopping) })
	defer stop()
	for {
		select {
		case now := <-tick:
			if err := act(now); err != nil {
				s.end(err)
			}
		case <-s.ctx.Done():
			switch err := context.Cause(s.ctx); {
			case errors.Is(err, io.EOF):
				return nil
			case errors.Is(err, context.Canceled): // the agent went: no fault of anybody's
				return status.FromContextError(context.Canceled).Err()
			default:
				return err
			}
		}
	}
}

// close counts the stream out. Its sending half has lastWords to come to its end; if it hangs it is left behind.
func (s *stream) close() {
	defer s.d.sessions.Done()
	s.end(nil)
	patience := time.NewTimer(lastWords)
	defer patience.Stop()
	select {
	case <-s.sent:
	case <-patience.C:
	}
}

// outbox is what waits to be sent on a session.
type outbox struct {
	mu    sync.Mutex
	queue []*fleetv1.SessionResponse
	limit int
	since time.Time     // when the sending of what was taken last began; zero if it is over
	ready chan struct{} // capacity 1
}

func newOutbox(limit int) outbox { return outbox{limit: limit, ready: make(chan struct{}, 1)} }

// widen lets more messages wait.
func (o *outbox) widen(by int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.limit += by
}

// put adds a message; false: too many wait already.
func (o *outbox) put(m *fleetv1.SessionResponse) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) >= o.limit {
		return false
	}
	o.queue = append(o.queue, m)
	select {
	case o.ready <- struct{}{}:
	default:
	}
	return true
}

// take waits for messages and returns all that are there; false: ctx has ended.
func (o *outbox) take(ctx context.Context) ([]*fleetv1.SessionResponse, bool) {
	o.mu.Lock()
	o.since = time.Time{}
	o.mu.Unlock()
	select {
	case <-o.ready:
	case <-ctx.Done():
		return nil, false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.queue
	o.queue, o.since = nil, time.Now()
	return all, true
}

// rest returns what waits, without waiting.
func (o *outbox) rest() []*fleetv1.SessionResponse {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.queue
	o.queue = nil
	return all
}

// stuck is how long the messages that were taken last have been in sending.
func (o *outbox) stuck(now time.Time) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		return 0
	}
	return now.Sub(o.since)
}
