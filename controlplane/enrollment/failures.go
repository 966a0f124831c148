package enrollment

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/peer"
)

// How often Enroll may fail for one address: failureBurst times at once, then once per failureInterval.
const (
	failureBurst    = 10
	failureInterval = 5 * time.Second
	// addressLimit is of how many addresses failures are remembered. When more fail at once all others share one count.
	addressLimit = 4096
)

// failures counts failed attempts to enrol, so that nobody can guess tokens or keep the store busy with trying.
type failures struct {
	now func() time.Time

	mu     sync.Mutex
	byAddr map[netip.Prefix]*rate.Limiter
	others *rate.Limiter
}

func newFailures(now func() time.Time) *failures {
	return &failures{now: now, byAddr: make(map[netip.Prefix]*rate.Limiter), others: newFailureLimiter()}
}

func newFailureLimiter() *rate.Limiter {
	return rate.NewLimiter(rate.Every(failureInterval), failureBurst)
}

// wait returns how long the address has to wait before it may try again; 0: not at all.
func (f *failures) wait(addr netip.Prefix) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	limiter, known := f.byAddr[addr]
	if !known && len(f.byAddr) >= addressLimit {
		limiter = f.others
	}
	if limiter == nil {
		return 0
	}
	missing := 1 - limiter.TokensAt(f.now())
	return max(0, time.Duration(missing*float64(failureInterval)))
}

// add notes a failure.
func (f *failures) add(addr netip.Prefix) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	limiter := f.byAddr[addr]
	if limiter == nil {
		limiter = f.place(addr, now)
	}
	limiter.AllowN(now, 1)
}

// place makes a count for an address, if need be in the room of those whose failures are long ago.
func (f *failures) place(addr netip.Prefix, now time.Time) *rate.Limiter {
	if len(f.byAddr) >= addressLimit {
		for addr, limiter := range f.byAddr {
			if limiter.TokensAt(now) >= failureBurst {
				delete(f.byAddr, addr)
			}
		}
	}
	if len(f.byAddr) >= addressLimit {
		return f.others
	}
	limiter := newFailureLimiter()
	f.byAddr[addr] = limiter
	return limiter
}

// peerAddress is what failures are counted by: an IPv4 address, the /64 network of an IPv6 address; zero for a peer
// without an IP address.
func peerAddress(ctx context.Context) netip.Prefix {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Prefix{}
	}
	tcp, ok := p.Addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	prefix, err := addr.Prefix(bits)
	if err != nil { // not an address
		return netip.Prefix{}
	}
	return prefix
}
