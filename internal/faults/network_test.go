package faults

import (
	"bufio"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// wire is a network with the two ends of one connection through it.
type wire struct {
	*Network
	agent, plane net.Conn
	listener     net.Listener
}

func newWire(t *testing.T) wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	n, err := NewNetwork(l.Addr().String())
	require.NoError(t, err)
	w := wire{Network: n, listener: l}
	t.Cleanup(func() {
		require.NoError(t, n.Close())
		l.Close()
	})
	w.agent, w.plane = w.connect(t)
	return w
}

func (w wire) connect(t *testing.T) (agent, plane net.Conn) {
	t.Helper()
	agent = w.dial(t)
	plane, err := w.listener.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { plane.Close() })
	require.NoError(t, plane.SetDeadline(time.Now().Add(time.Minute)))
	return agent, plane
}

func (w wire) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", w.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	return conn
}

func say(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	_, err := io.WriteString(from, text)
	require.NoError(t, err)
	got := make([]byte, len(text))
	_, err = io.ReadFull(to, got)
	require.NoError(t, err)
	require.Equal(t, text, string(got))
}

// requireReset reads until the end, which must be a RST.
func requireReset(t *testing.T, conn net.Conn) {
	t.Helper()
	_, err := conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

// requireNothing checks that nothing comes, neither bytes nor an end: it can only look for a while.
func requireNothing(t *testing.T, conn net.Conn) {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err := conn.Read(make([]byte, 1))
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	require.True(t, timeout.Timeout())
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
}

// requireRefused dials: the RST may come before the dialer has returned.
func (w wire) requireRefused(t *testing.T) {
	t.Helper()
	conn, err := net.Dial("tcp", w.Addr())
	if err != nil {
		require.ErrorIs(t, err, syscall.ECONNRESET)
		return
	}
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	requireReset(t, conn)
}

func (w wire) untilSwallowed(t *testing.T, bytes int64) {
	t.Helper()
	require.Eventually(t, func() bool { return w.Traffic().Swallowed >= bytes }, time.Minute, time.Millisecond)
}

func TestTheNetworkCarriesBothWaysAndEnds(t *testing.T) {
	w := newWire(t)
	say(t, w.agent, w.plane, "hello")
	say(t, w.plane, w.agent, "welcome")
	require.NoError(t, w.agent.(*net.TCPConn).CloseWrite())
	_, err := w.plane.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	say(t, w.plane, w.agent, "still")
	require.NoError(t, w.plane.Close())
	_, err = w.agent.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, Traffic{ToPlane: 5, ToAgents: 12, Connections: 1}, w.Traffic())
}

func TestAResetOfOneSideReachesTheOther(t *testing.T) {
	w := newWire(t)
	say(t, w.agent, w.plane, "hello")
	closeHard(w.plane)
	requireReset(t, w.agent)
}

func TestACutOneWayLeavesTheOther(t *testing.T) {
	for _, c := range []struct {
		direction Direction
		ends      func(wire) (muted, heard net.Conn)
	}{
		{ToPlane, func(w wire) (net.Conn, net.Conn) { return w.agent, w.plane }},
		{ToAgents, func(w wire) (net.Conn, net.Conn) { return w.plane, w.agent }},
	} {
		w := newWire(t)
		muted, heard := c.ends(w)
		w.Cut(c.direction)
		_, err := io.WriteString(muted, "in vain")
		require.NoError(t, err)
		w.untilSwallowed(t, 7)
		say(t, heard, muted, "can you hear me?")
		require.NoError(t, muted.Close())
		requireNothing(t, heard)
		w.Heal()
		requireReset(t, heard)
		require.EqualValues(t, 1, w.Traffic().Resets)
	}
}

func TestWhatLostNothingOutlivesTheCut(t *testing.T) {
	w := newWire(t)
	otherAgent, otherPlane := w.connect(t)
	w.Cut(Both)
	_, err := io.WriteString(w.agent, "in vain")
	require.NoError(t, err)
	w.untilSwallowed(t, 7)
	late := w.dial(t)
	_, err = io.WriteString(late, "anybody?")
	require.NoError(t, err)
	w.untilSwallowed(t, 15)
	requireNothing(t, late)
	w.Heal()
	requireReset(t, w.agent)
	requireReset(t, w.plane)
	requireReset(t, late)
	say(t, otherAgent, otherPlane, "quiet")
	say(t, otherPlane, otherAgent, "me too")
}

func TestResetAndRefuse(t *testing.T) {
	w := newWire(t)
	say(t, w.agent, w.plane, "hello")
	w.Reset()
	requireReset(t, w.agent)
	requireReset(t, w.plane)
	w.Refuse(true)
	w.requireRefused(t)
	w.Refuse(false)
	agent, plane := w.connect(t)
	say(t, agent, plane, "again")
}

func TestNobodyAtTheTarget(t *testing.T) {
	w := newWire(t)
	require.NoError(t, w.listener.Close())
	w.requireRefused(t)
}

func TestDelayIsLatency(t *testing.T) {
	w := newWire(t)
	const delay = 20 * time.Millisecond
	w.Delay(delay)
	began := time.Now()
	say(t, w.agent, w.plane, "hello")
	say(t, w.plane, w.agent, "welcome")
	require.GreaterOrEqual(t, time.Since(began), 2*delay)

	// Much data is on its way at the same time.
	const size = 8 << 20
	var sender sync.WaitGroup
	sender.Go(func() {
		b := bufio.NewWriter(w.agent)
		for range size {
			if b.WriteByte('x') != nil {
				return
			}
		}
		_ = b.Flush()
	})
	n, err := io.CopyN(io.Discard, w.plane, size)
	require.NoError(t, err)
	require.EqualValues(t, size, n)
	sender.Wait()
}
