package faults

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Direction is one or both ways of a [Network].
type Direction uint8

// The directions.
const (
	ToPlane  Direction = 1 << iota // what agents send
	ToAgents                       // what the control plane sends
	Both     = ToPlane | ToAgents
)

// Traffic counts what a [Network] has carried.
type Traffic struct {
	ToPlane, ToAgents int64 // bytes that were handed on
	Swallowed         int64 // bytes that a cut took, both ways
	Connections       int64 // accepted from agents
	Resets            int64 // connections that were reset here
}

// Network is a TCP proxy between agents and a control plane that can be cut. A cut is silent: bytes of that direction,
// and the end of a connection, vanish, nobody gets a RST, and what the other side sends still arrives. A connection that
// is opened during a cut hears nothing. Connections that lost something are reset when the cut is healed. It is safe
// for concurrent use. Make one with [NewNetwork], end it with Close.
type Network struct {
	target   string
	listener net.Listener
	ctx      context.Context // ends at Close
	cancel   context.CancelFunc
	work     sync.WaitGroup

	delay                                                atomic.Int64 // nanoseconds
	toPlane, toAgents, swallowed, connections, resetting atomic.Int64

	mu     sync.Mutex
	cut    Direction
	refuse bool
	links  map[*link]struct{}
}

// NewNetwork starts a proxy on a free loopback port in front of the control plane at target (host:port).
func NewNetwork(target string) (*Network, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the network: %w", err)
	}
	n := &Network{target: target, listener: l, links: map[*link]struct{}{}}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.work.Go(n.accept)
	return n, nil
}

// Addr is where agents dial (host:port).
func (n *Network) Addr() string { return n.listener.Addr().String() }

// Cut lets what goes in these directions vanish, in addition to what vanishes already.
func (n *Network) Cut(d Direction) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut |= d
}

// Heal ends all cuts. Connections that lost something meanwhile are reset, the others go on.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = 0
	for l := range n.links {
		if l.lost {
			n.reset(l)
		}
	}
}

// Reset resets all connections, on both sides.
func (n *Network) Reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for l := range n.links {
		n.reset(l)
	}
}

// Delay lets every byte that is sent from now on take that long, in each direction.
func (n *Network) Delay(d time.Duration) { n.delay.Store(int64(d)) }

// Refuse lets new connections be reset at once, or ends that.
func (n *Network) Refuse(refuse bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refuse = refuse
}

// Traffic returns the counters.
func (n *Network) Traffic() Traffic {
	return Traffic{
		ToPlane: n.toPlane.Load(), ToAgents: n.toAgents.Load(), Swallowed: n.swallowed.Load(),
		Connections: n.connections.Load(), Resets: n.resetting.Load(),
	}
}

// Close ends all connections and waits for everything that the network started.
func (n *Network) Close() error {
	n.mu.Lock()
	n.cancel()
	err := n.listener.Close()
	for l := range n.links {
		n.reset(l)
	}
	n.mu.Unlock()
	n.work.Wait()
	if err != nil {
		return fmt.Errorf("close the network: %w", err)
	}
	return nil
}

func (n *Network) accept() {
	for {
		conn, err := n.listener.Accept()
		if err != nil {
			if n.ctx.Err() != nil {
				return
			}
			wait(n.ctx, 10*time.Millisecond) // no descriptors left
			continue
		}
		n.connections.Add(1)
		n.mu.Lock()
		switch {
		case n.ctx.Err() != nil, n.refuse:
			n.resetting.Add(1)
			closeHard(conn)
		default:
			l := n.link(conn)
			if n.cut != 0 {
				l.lost = true // the handshake would not have come to its end
				n.work.Go(func() { n.swallow(l) })
			} else {
				n.work.Go(func() { n.carry(l) })
			}
		}
		n.mu.Unlock()
	}
}

// link notes a connection from an agent. mu is held.
func (n *Network) link(agent net.Conn) *link {
	l := &link{network: n, agent: agent}
	l.ctx, l.cancel = context.WithCancel(n.ctx)
	n.links[l] = struct{}{}
	return l
}

// swallow is a connection that was opened during a cut: nobody is on the other side until it is reset.
func (n *Network) swallow(l *link) {
	defer n.end(l)
	l.drain(l.agent)
	<-l.ctx.Done()
}

func (n *Network) carry(l *link) {
	defer n.end(l)
	plane, err := (&net.Dialer{}).DialContext(l.ctx, "tcp", n.target)
	if err != nil {
		n.mu.Lock()
		n.reset(l)
		n.mu.Unlock()
		return
	}
	n.mu.Lock()
	if l.ctx.Err() != nil {
		n.mu.Unlock()
		closeHard(plane)
		return
	}
	l.plane = plane
	n.mu.Unlock()
	var pumps sync.WaitGroup
	pumps.Go(func() { l.pump(l.agent, plane, ToPlane, &n.toPlane) })
	pumps.Go(func() { l.pump(plane, l.agent, ToAgents, &n.toAgents) })
	pumps.Wait()
	n.mu.Lock()
	lost := l.lost
	n.mu.Unlock()
	if lost {
		<-l.ctx.Done() // the side that has not heard of the end must not hear of it before the cut is healed
	}
}

// reset ends a connection by a RST on both sides. mu is held.
func (n *Network) reset(l *link) {
	if l.ctx.Err() == nil {
		n.resetting.Add(1)
	}
	l.cancel()
	closeHard(l.agent)
	if l.plane != nil {
		closeHard(l.plane)
	}
}

func (n *Network) end(l *link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l.cancel()
	_ = l.agent.Close()
	if l.plane != nil {
		_ = l.plane.Close()
	}
	delete(n.links, l)
}
