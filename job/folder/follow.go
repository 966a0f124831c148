//go:build unix

package folder

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"sync"
	"syscall"
	"time"
)

// ErrGone says that no process runs the job: there is nobody on the control socket, or it went away. Result then says
// how the job ended, or ErrNoResult that it never will.
var ErrGone = errors.New("no process runs the job")

// sendTimeout is how long a job may take to read an order. It reads them at once unless its host is frozen.
const sendTimeout = 5 * time.Second

// Follower is a connection to a running job's control socket. Next is for one goroutine; Send may be called by any.
type Follower struct {
	conn   net.Conn
	lines  *bufio.Reader
	ctx    context.Context
	stop   func() bool
	sendMu sync.Mutex
	queued []Event // parsed, not yet returned
}

// Follow connects to the job's control socket. It is for after `run` said that it is ready and for recovery; it does not
// wait for a socket. ErrGone: nothing listens there (a process that is only just starting does not listen yet either: it
// holds the lock, see Running). Ending ctx ends the connection, never the job.
func (f *Folder) Follow(ctx context.Context) (*Follower, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", f.SocketPath())
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, ErrGone
		}
		return nil, fmt.Errorf("connect to the job's control socket: %w", err)
	}
	w := &Follower{conn: conn, lines: bufio.NewReaderSize(conn, MaxLine+1), ctx: ctx}
	w.stop = context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	line, err := w.line()
	if err == nil {
		err = checkGreeting(line)
	}
	if err != nil {
		_ = w.Close()
		return nil, err
	}
	return w, nil
}

// Next returns the next event. Of trace lengths that have arrived already only the last is returned. It returns ErrGone
// when the process has ended, or the context's error.
func (w *Follower) Next() (Event, error) {
	for {
		if len(w.queued) > 0 && !w.trailing() {
			e := w.queued[0]
			w.queued = w.queued[1:]
			return e, nil
		}
		line, err := w.line()
		if err != nil {
			return Event{}, err
		}
		e, ok, err := parseEvent(line)
		if err != nil {
			return Event{}, fmt.Errorf("control socket: %w", err)
		}
		if !ok {
			continue
		}
		if n := len(w.queued); n > 0 && e.Kind == EventTrace && w.queued[n-1].Kind == EventTrace {
			w.queued[n-1] = e
			continue
		}
		w.queued = append(w.queued, e)
	}
}

// trailing says that the only event in hand is a trace length, and a whole line that may replace it has arrived.
func (w *Follower) trailing() bool {
	if len(w.queued) != 1 || w.queued[0].Kind != EventTrace {
		return false
	}
	b, _ := w.lines.Peek(w.lines.Buffered())
	return bytes.IndexByte(b, '\n') >= 0
}

// Cancel asks the job to stop: gracefully (after_script still runs), or at once.
func (w *Follower) Cancel(kill bool) error {
	if kill {
		return w.Send(Order{Kind: OrderCancelKill})
	}
	return w.Send(Order{Kind: OrderCancelGraceful})
}

// Lease sets the dead man's limit: the job stops unless another lease comes within d. d is at least a millisecond.
func (w *Follower) Lease(d time.Duration) error {
	return w.Send(Order{Kind: OrderLease, Lease: d})
}

// Answer answers a question of the job (EventAsk). An answer that does not fit into a line is an error.
func (w *Follower) Answer(a CacheAnswer) error {
	return w.Send(Order{Kind: OrderAnswer, Answer: a})
}

// Close ends the connection. The job goes on.
func (w *Follower) Close() error {
	w.stop()
	return w.conn.Close()
}

// Send gives the job an order. ErrGone: nobody takes it any more.
func (w *Follower) Send(o Order) error {
	line := AppendOrder(nil, o)
	if len(line) > MaxLine+1 {
		return fmt.Errorf("send an order to the job: it has %d bytes, more than the limit of %d", len(line)-1, MaxLine)
	}
	w.sendMu.Lock()
	defer w.sendMu.Unlock()
	err := w.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	if err == nil {
		_, err = w.conn.Write(line)
	}
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return ErrGone
	}
	if err != nil {
		return fmt.Errorf("send an order to the job: %w", err)
	}
	return nil
}

// line reads one line; it is valid until the next call.
func (w *Follower) line() ([]byte, error) {
	line, err := w.lines.ReadSlice('\n')
	switch {
	case err == nil && len(line) <= MaxLine:
		return line[:len(line)-1], nil
	case err == nil || errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("control socket: a line is longer than %d bytes", MaxLine)
	case w.ctx.Err() != nil:
		return nil, w.ctx.Err()
	case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
		return nil, ErrGone
	}
	return nil, fmt.Errorf("control socket: %w", err)
}
