// Package uplink is an agent's way to the control plane: connections, what their failures mean, and how long to wait
// before the next one.
package uplink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	// GetJob's answer may be compressed; registering the codec is what offers it.
	_ "google.golang.org/grpc/encoding/gzip"
)

// MaxPayload is the greatest payload that GetJob may bring, in bytes; MaxSettings is what may come with it.
const (
	MaxPayload  = 32 << 20
	MaxSettings = 4 << 20
)

const (
	connectTimeout = 10 * time.Second
	// writeBuffer is allocated only while there is something to write. At this size a trace frame of 256 KiB costs few
	// system calls.
	writeBuffer = 128 << 10
	readBuffer  = 16 << 10
	// lastWordPatience is how long an alert may take that was sent before the connection broke.
	lastWordPatience = 100 * time.Millisecond
)

// Target is where and how to connect.
type Target struct {
	// Address is host:port of the control plane.
	Address string
	// Dialer replaces TCP, for an agent in the control plane's own process. With nil the environment's HTTPS proxy is
	// used (HTTPS_PROXY, NO_PROXY).
	Dialer func(ctx context.Context) (net.Conn, error)
	// UserAgent is sent with every call.
	UserAgent string
}

// Conn is one connection. It is never re-established: who loses it closes it and dials again, so that a connection that
// is only half dead is got rid of too.
type Conn struct {
	*grpc.ClientConn
	address string
	record  *record
}

// Dial prepares a connection; it is made by the first call. Errors of calls should go through Explain.
func Dial(t Target, config *tls.Config) (*Conn, error) {
	rec := &record{}
	target := "dns:///" + t.Address
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(&recordingCredentials{credentials.NewTLS(config), rec}),
		grpc.WithUserAgent(t.UserAgent),
		grpc.WithWriteBufferSize(writeBuffer),
		grpc.WithReadBufferSize(readBuffer),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
	}
	if t.Dialer != nil {
		target = "passthrough:///" + t.Address
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return t.Dialer(ctx) }))
	}
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		return nil, fmt.Errorf("server address %q: %w", t.Address, err)
	}
	return &Conn{ClientConn: conn, address: t.Address, record: rec}, nil
}

// Explain turns the error of a call on this connection into an *Error. It returns nil for nil.
func (c *Conn) Explain(err error) error {
	if err == nil {
		return nil
	}
	return explain(c.address, err, c.record.get())
}

// record keeps what TLS had to say: gRPC passes it on as text only.
type record struct {
	mu  sync.Mutex
	err error
}

func (r *record) set(err error) {
	r.mu.Lock()
	r.err = err
	r.mu.Unlock()
}

func (r *record) get() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

type recordingCredentials struct {
	credentials.TransportCredentials
	record *record
}

func (c *recordingCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	below := &cork{Conn: raw}
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, below)
	if err != nil {
		c.record.set(err)
		return nil, nil, err //nolint:wrapcheck // gRPC looks at it
	}
	return &recordingConn{conn, below, c.record}, info, nil
}

func (c *recordingCredentials) Clone() credentials.TransportCredentials {
	return &recordingCredentials{c.TransportCredentials.Clone(), c.record}
}

// recordingConn keeps the server's TLS alert: in TLS 1.3 a client learns that its certificate was refused only when it
// reads after the handshake.
type recordingConn struct {
	net.Conn
	below  *cork
	record *record
}

// Write sends what TLS makes of b with one system call; TLS alone would use one for each of its records of 16 KiB.
func (c *recordingConn) Write(b []byte) (int, error) {
	c.below.hold()
	n, err := c.Conn.Write(b)
	if err = errors.Join(err, c.below.release()); err != nil {
		c.lastWord()
	}
	return n, err
}

// lastWord looks for the alert of a server that has hung up: writing often fails before reading does.
func (c *recordingConn) lastWord() {
	if err := c.SetReadDeadline(time.Now().Add(lastWordPatience)); err != nil {
		return
	}
	var b [1]byte
	_, _ = c.Read(b[:]) // the connection is dead: nobody misses the byte
}

// cork gathers writes between hold and release.
type cork struct {
	net.Conn
	mu     sync.Mutex
	held   bool
	buffer []byte
}

func (c *cork) hold() {
	c.mu.Lock()
	c.held = true
	c.mu.Unlock()
}

func (c *cork) release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = false
	if len(c.buffer) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.buffer)
	c.buffer = c.buffer[:0]
	return err //nolint:wrapcheck // it is a Write's
}

func (c *cork) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held {
		c.buffer = append(c.buffer, b...)
		return len(b), nil
	}
	return c.Conn.Write(b) //nolint:wrapcheck // it is a Write's
}

func (c *recordingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && isAlert(err) {
		c.record.set(err)
	}
	return n, err //nolint:wrapcheck // a Read must return io.EOF itself
}
