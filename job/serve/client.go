//go:build unix

package serve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"
)

// Remote is a program that a server runs.
type Remote struct {
	conn    *net.UnixConn
	started Started
	done    chan struct{}
	exit    Exit
	err     error
}

// ErrLost says that the server went away while the program ran.
var ErrLost = errors.New("the connection to where the script runs was lost")

// Dial connects to a server and shows it the token. A server whose socket is not there yet is waited for until ctx ends,
// because nothing announces that a container has come so far.
func Dial(ctx context.Context, path, token string) (*net.UnixConn, error) {
	var d net.Dialer
	var c net.Conn
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		var err error
		c, err = d.DialContext(ctx, "unix", path)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("connect to where the script runs: %w", err)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("connect to where the script runs: %w", err)
		}
	}
	conn := c.(*net.UnixConn)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := send(conn, message{Hello: &hello{Version: Version, Token: token}}); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect to where the script runs: %w", err)
	}
	if _, err := answer(conn, func(m message) bool { return m.Hello != nil }); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect to where the script runs: %w", err)
	}
	return conn, nil
}

// Start runs a program over a connection that Dial made, and owns the connection from then on. The files stay the
// caller's.
func Start(conn *net.UnixConn, c Command, stdin, stdout, stderr *os.File) (*Remote, error) {
	if err := send(conn, message{Exec: &c}, stdin, stdout, stderr); err != nil {
		_ = conn.Close()
		return nil, err
	}
	m, err := answer(conn, func(m message) bool { return m.Started != nil })
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	r := &Remote{conn: conn, started: *m.Started, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		defer func() { _ = conn.Close() }()
		m, err := answer(conn, func(m message) bool { return m.Exit != nil })
		if err != nil {
			r.err = fmt.Errorf("%w: %w", ErrLost, err)
			return
		}
		r.exit = *m.Exit
	}()
	return r, nil
}

func answer(conn *net.UnixConn, expected func(message) bool) (message, error) {
	m, open, err := receive(conn, maxMessage)
	for _, f := range open {
		_ = f.Close()
	}
	switch {
	case err != nil:
		return message{}, fmt.Errorf("read the answer: %w", err)
	case m.Error != "":
		return message{}, errors.New(m.Error)
	case !expected(m):
		return message{}, errProtocol
	}
	return m, nil
}

// Started says what runs.
func (r *Remote) Started() Started { return r.started }

// Done is closed when the program has ended or the server is lost.
func (r *Remote) Done() <-chan struct{} { return r.done }

// Exit is how it ended; only valid once Done is closed. The error is ErrLost.
func (r *Remote) Exit() (Exit, error) { return r.exit, r.err }

// Signal sends a signal to the program's process group, or to everything that the server has started.
func (r *Remote) Signal(s syscall.Signal, all bool) error {
	return send(r.conn, message{Signal: &signal{Number: int(s), All: all}})
}

// Close gives the program up; the server kills it if it was asked to.
func (r *Remote) Close() {
	_ = r.conn.Close()
	<-r.done
}
