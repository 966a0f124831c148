package enrollment

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/peer"
)

func address(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 32)
}

func TestFailuresOfOneAddressAreNotThoseOfOthers(t *testing.T) {
	now := time.Now()
	f := newFailures(func() time.Time { return now })
	for range failureBurst {
		require.Zero(t, f.wait(address(1)))
		f.add(address(1))
	}
	require.Equal(t, failureInterval, f.wait(address(1)))
	require.Zero(t, f.wait(address(2)))

	now = now.Add(failureInterval / 2)
	require.Equal(t, failureInterval/2, f.wait(address(1)))
	now = now.Add(failureInterval / 2)
	require.Zero(t, f.wait(address(1)))
	f.add(address(1))
	require.Equal(t, failureInterval, f.wait(address(1)))
}

func TestManyAddressesShareWhatIsLeft(t *testing.T) {
	now := time.Now()
	f := newFailures(func() time.Time { return now })
	for n := range addressLimit {
		f.add(address(n))
	}
	const stranger = addressLimit + 1
	for n := range failureBurst {
		require.Zero(t, f.wait(address(stranger)))
		f.add(address(stranger + n))
	}
	require.Len(t, f.byAddr, addressLimit)
	require.Equal(t, failureInterval, f.wait(address(stranger+failureBurst)), "strangers share one count")
	require.Zero(t, f.wait(address(0)))

	now = now.Add(failureInterval * failureBurst)
	f.add(address(stranger))
	require.Len(t, f.byAddr, 1, "those whose failures are long ago are forgotten")
}

func TestPeerAddress(t *testing.T) {
	for from, want := range map[string]string{
		"192.0.2.7":            "192.0.2.7/32",
		"::ffff:192.0.2.7":     "192.0.2.7/32",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
		"fe80::1%eth0":         "fe80::/64",
	} {
		addr := netip.MustParseAddr(from)
		ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 1))})
		require.Equal(t, want, peerAddress(ctx).String())
	}
	require.Zero(t, peerAddress(t.Context()))
	require.Zero(t, peerAddress(peer.NewContext(t.Context(), &peer.Peer{Addr: &net.UnixAddr{Name: "x"}})))
}
