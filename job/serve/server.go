//go:build unix

package serve

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/switchyard-ci/switchyard/job/process"
	"github.com/switchyard-ci/switchyard/job/shell"
)

const (
	maxConnections = 64
	helloTimeout   = 5 * time.Second
	// patience is how long what was killed may take to be gone.
	patience = 10 * time.Second
)

// Server runs programs for clients that know the token.
type Server struct {
	// Token opens it; it must not be empty.
	Token string
	// Group owns the programs.
	Group *process.Group
	// Environment is the programs' base environment.
	Environment []string
	Log         *slog.Logger
}

// Listen opens the socket for everyone on the machine: the client may have another uid, and it is the token that counts. A
// socket that is there is replaced.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the old socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open the socket: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("open the socket: %w", err)
	}
	return l, nil
}

// Serve serves until ctx ends. It then stops all programs, with a grace of that length, and returns when none is left.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener, grace time.Duration) error {
	if s.Token == "" {
		return errors.New("serve: the token is empty")
	}
	var conns sync.WaitGroup
	slots := make(chan struct{}, maxConnections)
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var err error
	for {
		var c *net.UnixConn
		if c, err = l.AcceptUnix(); err != nil {
			break
		}
		select {
		case slots <- struct{}{}:
			conns.Go(func() {
				defer func() { <-slots }()
				s.serve(ctx, c)
			})
		default:
			_ = c.Close()
		}
	}
	if ctx.Err() != nil {
		err = nil
	}
	if !s.Group.StopAll(grace, patience) {
		s.Log.Error("processes outlived SIGKILL")
	}
	_ = l.Close()
	conns.Wait()
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

func (s *Server) serve(ctx context.Context, c *net.UnixConn) {
	defer func() { _ = c.Close() }()
	if err := s.greet(c); err != nil {
		s.Log.Warn("a client was refused", "error", err)
		_ = send(c, message{Error: err.Error()})
		return
	}
	p, command, err := s.start(c)
	if err != nil {
		s.Log.Warn("a program was not started", "error", err)
		_ = send(c, message{Error: err.Error()})
		return
	}
	// Signals come until the client is gone.
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			m, open, err := receive(c, maxHello)
			for _, f := range open {
				_ = f.Close()
			}
			if err != nil || m.Signal == nil {
				return
			}
			s.signal(p, *m.Signal)
		}
	}()
	defer func() {
		_ = c.Close()
		<-gone
	}()
	select {
	case <-p.Done():
		_ = c.SetWriteDeadline(time.Now().Add(helloTimeout))
		if err := send(c, message{Exit: &Exit{Code: p.Exit().Code}}); err != nil {
			s.Log.Warn("a client was gone before it could be told the exit code", "error", err)
		}
	case <-gone:
		if command.KillWithClient {
			s.Log.Warn("the client is gone: what it started is killed")
			s.Group.KillAll(patience)
		}
	case <-ctx.Done(): // Serve stops the program
		<-p.Done()
		_ = c.SetWriteDeadline(time.Now().Add(helloTimeout))
		_ = send(c, message{Exit: &Exit{Code: p.Exit().Code}})
	}
}

func (s *Server) greet(c *net.UnixConn) error {
	if err := c.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	m, open, err := receive(c, maxHello)
	for _, f := range open {
		_ = f.Close()
	}
	if err != nil {
		return fmt.Errorf("read the client's hello: %w", err)
	}
	if m.Hello == nil || subtle.ConstantTimeCompare([]byte(m.Hello.Token), []byte(s.Token)) != 1 {
		return errors.New("the token is wrong")
	}
	if m.Hello.Version != Version {
		return fmt.Errorf("the client speaks version %d of the protocol, this server %d: both must be of the same version of switchyard-job", m.Hello.Version, Version)
	}
	return send(c, message{Hello: &hello{Version: Version}})
}

func (s *Server) start(c *net.UnixConn) (*process.Process, *Command, error) {
	m, open, err := receive(c, maxMessage)
	defer func() {
		for _, f := range open {
			_ = f.Close()
		}
	}()
	if err != nil {
		return nil, nil, fmt.Errorf("read the command: %w", err)
	}
	if m.Exec == nil || len(open) != files {
		return nil, nil, fmt.Errorf("read the command: %w", errProtocol)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return nil, nil, err
	}
	env := append(append([]string(nil), s.Environment...), m.Exec.Env...)
	found, err := shell.Find(m.Exec.Shells, m.Exec.Login, lookup(env, "PATH"))
	if err != nil {
		return nil, nil, err
	}
	p, err := s.Group.Start(process.Command{
		Path: found.Path, Argv: found.Argv, Env: env, Dir: m.Exec.Dir, Stdin: open[0], Stdout: open[1], Stderr: open[2],
	})
	if err != nil {
		return nil, nil, err
	}
	if err := send(c, message{Started: &Started{PID: p.PID, Shell: found.Path}}); err != nil {
		s.Log.Warn("a client was gone before it could be told that its program runs", "error", err)
	}
	return p, m.Exec, nil
}

func (s *Server) signal(p *process.Process, g signal) {
	if g.Number < 1 || g.Number > 64 {
		return
	}
	if g.All {
		s.Group.SignalAll(syscall.Signal(g.Number))
		return
	}
	if err := s.Group.Signal(p, syscall.Signal(g.Number)); err != nil {
		s.Log.Warn("a signal was not sent", "error", err)
	}
}

// lookup finds a variable in an environment; the last one wins.
func lookup(env []string, key string) string {
	value := ""
	for _, kv := range env {
		if len(kv) > len(key) && kv[len(key)] == '=' && kv[:len(key)] == key {
			value = kv[len(key)+1:]
		}
	}
	return value
}
