package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/switchyard-ci/switchyard/agent/uplink"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

const (
	// outgoing bounds the messages that wait to be sent. When the control plane does not read them the session is given
	// up: a new one says all that matters again.
	outgoing = 1024
	incoming = 64
)

var errNotRead = errors.New("the control plane does not read what is sent to it")

// link is one connection with its session stream. What comes in is read into in by a goroutine, what goes out is written
// by another; both end with the link.
type link struct {
	conn   *uplink.Conn
	stream grpc.BidiStreamingClient[fleetv1.SessionRequest, fleetv1.SessionResponse]
	in     chan *fleetv1.SessionResponse
	out    chan *fleetv1.SessionRequest
	done   chan error // why it ended; the first counts
	began  time.Time
	heard  atomic.Int64 // when something was heard last, in nanoseconds since began
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

// dial connects and opens the session's stream. It returns when that is done, which does not mean that the control plane
// has agreed to it.
func (a *Agent) dial(ctx context.Context) (*link, error) {
	if _, err := a.identity.Certificate(); err != nil {
		return nil, &uplink.Error{Kind: uplink.Clock, Text: err.Error(), Err: err}
	}
	conn, err := uplink.Dial(a.target(), a.identity.TLS())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := fleetv1.NewFleetServiceClient(conn).Session(ctx)
	if err != nil {
		cancel()
		return nil, errors.Join(conn.Explain(err), conn.Close())
	}
	l := &link{
		conn: conn, stream: stream, ctx: ctx, cancel: cancel, done: make(chan error, 2), began: time.Now(),
		in: make(chan *fleetv1.SessionResponse, incoming), out: make(chan *fleetv1.SessionRequest, outgoing),
	}
	l.tasks.Go(l.receive)
	l.tasks.Go(l.transmit)
	return l, nil
}

// hear notes a sign of life.
func (l *link) hear() { l.heard.Store(int64(time.Since(l.began))) }

// silence is how long nothing has been heard.
func (l *link) silence() time.Duration { return time.Since(l.began) - time.Duration(l.heard.Load()) }

func (l *link) receive() {
	for {
		m, err := l.stream.Recv()
		if err != nil {
			l.fail(l.conn.Explain(err))
			return
		}
		l.hear()
		select {
		case l.in <- m:
		case <-l.ctx.Done():
			return
		}
	}
}

func (l *link) transmit() {
	for {
		select {
		case m := <-l.out:
			if m == nil {
				_ = l.stream.CloseSend() // never fails
				return
			}
			if err := l.stream.Send(m); err != nil {
				return // receive says why
			}
		case <-l.ctx.Done():
			return
		}
	}
}

// fail ends the link with a reason; only the first counts.
func (l *link) fail(err error) {
	select {
	case l.done <- err:
	default:
	}
}

// send queues a message; nil is the last one. It does not block.
func (l *link) send(m *fleetv1.SessionRequest) {
	select {
	case l.out <- m:
	default:
		l.fail(errNotRead)
	}
}

// finish sends what is queued, says goodbye and waits for the other side's, but not for longer than patience. It is the
// last thing before close. It returns how the session ended, nil if it did not.
func (l *link) finish(patience time.Duration) error {
	l.send(nil)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case <-l.in: // too late
		case err := <-l.done:
			return err
		case <-timer.C:
			return nil
		}
	}
}

// close ends everything that the link has started.
func (l *link) close() error {
	l.cancel()
	l.tasks.Wait()
	if err := l.conn.Close(); err != nil {
		return fmt.Errorf("close the connection: %w", err)
	}
	return nil
}

// current is the connection of the session that is up, for calls that other goroutines make.
type current struct {
	mu      sync.Mutex
	conn    *uplink.Conn
	changed chan struct{}
}

func newCurrent() *current { return &current{changed: make(chan struct{})} }

func (c *current) set(conn *uplink.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
	close(c.changed)
	c.changed = make(chan struct{})
}

// get waits for a connection.
func (c *current) get(ctx context.Context) (*uplink.Conn, error) {
	for {
		c.mu.Lock()
		conn, changed := c.conn, c.changed
		c.mu.Unlock()
		if conn != nil {
			return conn, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
