package client

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// limitUnacknowledged makes a connection fail when sent data stays unacknowledged: keep-alive probes are not sent then,
// and retransmission alone gives up after 15 minutes.
func limitUnacknowledged(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadPeerTimeout.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return failed
}
