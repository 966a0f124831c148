package faults

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// link is a connection through a [Network].
type link struct {
	network      *Network
	agent, plane net.Conn        // plane is nil until it is dialled; guarded by the network's mu, as is lost
	ctx          context.Context // ends when the link is reset
	cancel       context.CancelFunc
	lost         bool // something of it vanished
}

// chunk is what was read at once; no data is the end of the stream.
type chunk struct {
	due  time.Time
	data *[]byte
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// pump carries one direction until its source has ended or the link is reset.
func (l *link) pump(from, to net.Conn, d Direction, counter *atomic.Int64) {
	// The bytes that are on their way during a delay: at most 64 pieces.
	way := make(chan chunk, 64)
	var writer sync.WaitGroup
	writer.Go(func() { l.deliver(way, to, d, counter) })
	defer writer.Wait()
	defer close(way)
	for {
		b := buffers.Get().(*[]byte)
		n, err := from.Read((*b)[:cap(*b)])
		*b = (*b)[:n]
		due := time.Now().Add(time.Duration(l.network.delay.Load()))
		if n > 0 {
			select {
			case way <- chunk{due, b}:
			case <-l.ctx.Done():
				return
			}
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) {
			select {
			case way <- chunk{due: due}:
			case <-l.ctx.Done():
			}
			return
		}
		l.broken(d)
		return
	}
}

// deliver hands on what was read, when it is due and unless the direction is cut.
func (l *link) deliver(way <-chan chunk, to net.Conn, d Direction, counter *atomic.Int64) {
	for c := range way {
		if left := time.Until(c.due); left > 0 {
			wait(l.ctx, left)
		}
		if l.vanishes(d) {
			if c.data != nil {
				l.network.swallowed.Add(int64(len(*c.data)))
				buffers.Put(c.data)
			}
			continue
		}
		if c.data == nil {
			if tcp, ok := to.(*net.TCPConn); ok {
				_ = tcp.CloseWrite()
			}
			continue
		}
		n, err := to.Write(*c.data)
		counter.Add(int64(n))
		buffers.Put(c.data)
		if err != nil {
			// The reader of this direction has gone, which the writer would hear of the other way.
			l.broken(Both &^ d)
		}
	}
}

// vanishes says whether a direction is cut for this link: once something has vanished, what follows it must not arrive,
// as TCP has no gaps.
func (l *link) vanishes(d Direction) bool {
	l.network.mu.Lock()
	defer l.network.mu.Unlock()
	if l.network.cut&d != 0 {
		l.lost = true
		return true
	}
	return false
}

// broken ends the link after one side has reset it, so that the other hears of it, unless what goes in direction d
// vanishes.
func (l *link) broken(d Direction) {
	l.network.mu.Lock()
	defer l.network.mu.Unlock()
	if l.network.cut&d != 0 {
		l.lost = true
		return
	}
	l.network.reset(l)
}

// drain reads and counts until the connection ends.
func (l *link) drain(conn net.Conn) {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	for {
		n, err := conn.Read((*b)[:cap(*b)])
		l.network.swallowed.Add(int64(n))
		if err != nil {
			return
		}
	}
}
