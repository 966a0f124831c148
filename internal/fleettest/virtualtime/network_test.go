package virtualtime

import (
	"context"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/test/bufconn"
)

// direction is one or both ways of the network.
type direction int

const (
	up   direction = 1 << iota // to the control plane
	down                       // to the agents
	both = up | down
)

func (d direction) String() string { return [...]string{"none", "up", "down", "both"}[d] }

// network is between agents and a control plane. What it is cut for vanishes without a word, the end of a connection too.
type network struct {
	listener *bufconn.Listener
	delay    time.Duration // of each piece, in each direction

	ctx   context.Context // ends with close
	end   context.CancelFunc
	tasks sync.WaitGroup

	mu  sync.Mutex
	cut direction
}

func newNetwork(delay time.Duration) *network {
	n := &network{listener: bufconn.Listen(1 << 20), delay: delay}
	n.ctx, n.end = context.WithCancel(context.Background())
	return n
}

func (n *network) set(d direction) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = d
}

func (n *network) isCut(d direction) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut&d != 0
}

// dial is an agent's way to the control plane.
func (n *network) dial(ctx context.Context) (net.Conn, error) {
	plane, err := n.listener.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	agent, far := net.Pipe()
	n.tasks.Go(func() { n.carry(far, plane, up) })
	n.tasks.Go(func() { n.carry(plane, far, down) })
	return agent, nil
}

// carry brings what one side sends to the other, and its end. A connection that has lost something stays as it is: neither
// side hears of the other's end any more.
func (n *network) carry(from, to net.Conn, d direction) {
	stop := context.AfterFunc(n.ctx, func() {
		_ = from.Close()
		_ = to.Close()
	})
	defer stop()
	lost := false
	for {
		b := make([]byte, 32<<10)
		size, err := from.Read(b)
		select {
		case <-time.After(n.delay):
		case <-n.ctx.Done():
			return
		}
		lost = lost || n.isCut(d)
		if !lost && size > 0 {
			_, _ = to.Write(b[:size])
		}
		if err != nil {
			break
		}
	}
	if lost {
		<-n.ctx.Done()
		return
	}
	_ = to.Close()
}

func (n *network) close() {
	n.end()
	n.tasks.Wait()
}
