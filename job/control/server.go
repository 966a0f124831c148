//go:build unix

// Package control is the job's side of its control socket; package folder has the protocol and the other side.
package control

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/job/folder"
)

const (
	// maxConnections is how many may follow a job at once.
	maxConnections = 32
	// parting is how long a follower may take to read the last events once the job has ended.
	parting = time.Second
)

// Server tells followers what happens and takes their orders. Its methods may be called concurrently; only Ask and Close
// wait for followers.
type Server struct {
	listener net.Listener
	orders   func(folder.Order)
	log      *slog.Logger
	done     sync.WaitGroup
	ending   chan struct{} // closed by Close

	mu        sync.Mutex
	conns     map[*conn]struct{}
	stages    []string
	length    int64
	questions questions
	result    bool
	closed    bool
}

type conn struct {
	net.Conn
	wake chan struct{} // something is new; capacity 1
	gone chan struct{} // closed when nothing comes from the follower any more
}

// Listen opens the control socket of a folder whose lock this process holds; a socket that an earlier process left is
// replaced. orders is called with each order but answers, from several goroutines.
func Listen(f *folder.Folder, orders func(folder.Order), log *slog.Logger) (*Server, error) {
	path := f.SocketPath()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the old control socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	s := &Server{
		listener: l, orders: orders, log: log, conns: map[*conn]struct{}{}, questions: newQuestions(), ending: make(chan struct{}),
	}
	s.done.Go(s.accept)
	return s, nil
}

// Stage says that a stage begins.
func (s *Server) Stage(name string) { s.change(func() { s.stages = append(s.stages, name) }) }

// Trace says how long the trace file is.
func (s *Server) Trace(length int64) { s.change(func() { s.length = length }) }

// Result says that result.json is in place.
func (s *Server) Result() { s.change(func() { s.result = true }) }

// Close closes the socket, after each follower got what it has not read yet or a second for it. It is called once.
func (s *Server) Close() {
	close(s.ending)
	s.change(func() {
		s.closed = true
		for c := range s.conns {
			_ = c.SetWriteDeadline(time.Now().Add(parting))
		}
	})
	_ = s.listener.Close()
	s.done.Wait()
}

func (s *Server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	for c := range s.conns {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

func (s *Server) accept() {
	for {
		nc, err := s.listener.Accept()
		if err != nil {
			s.mu.Lock()
			closed := s.closed
			s.mu.Unlock()
			if !closed {
				s.log.Error("the control socket is lost", "error", err)
			}
			return
		}
		c := &conn{Conn: nc, wake: make(chan struct{}, 1), gone: make(chan struct{})}
		s.mu.Lock()
		full := len(s.conns) >= maxConnections || s.closed
		if !full {
			s.conns[c] = struct{}{}
			s.done.Go(func() { s.tell(c) })
			s.done.Go(func() { s.listen(c) })
		}
		s.mu.Unlock()
		if full {
			_ = nc.Close()
		}
	}
}

// tell writes events until the follower is gone or all is said.
func (s *Server) tell(c *conn) {
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		if len(s.conns) == 0 {
			s.questions.alone = time.Now()
		}
		s.mu.Unlock()
		_ = c.Close()
	}()
	line := folder.Greeting()
	told, length, asked := 0, int64(0), uint64(0)
	for first := true; ; first = false {
		s.mu.Lock()
		if first && len(s.stages) > 0 {
			told = len(s.stages) - 1 // only the stage it is in
		}
		for ; told < len(s.stages); told++ {
			line = folder.AppendEvent(line, folder.Event{Kind: folder.EventStage, Stage: s.stages[told]})
		}
		if s.length > length {
			length = s.length
			line = folder.AppendEvent(line, folder.Event{Kind: folder.EventTrace, TraceLength: length})
		}
		for _, q := range s.questions.open {
			if q.ID > asked {
				asked = q.ID
				line = folder.AppendEvent(line, folder.Event{Kind: folder.EventAsk, Ask: q.CacheRequest})
			}
		}
		last := s.result || s.closed
		if s.result {
			line = folder.AppendEvent(line, folder.Event{Kind: folder.EventResult})
		}
		s.mu.Unlock()

		if len(line) > 0 {
			if _, err := c.Write(line); err != nil {
				return
			}
		}
		line = line[:0]
		if last {
			return
		}
		select {
		case <-c.wake:
		case <-c.gone:
			return
		}
	}
}

// listen reads orders until the follower is gone.
func (s *Server) listen(c *conn) {
	defer close(c.gone)
	lines := bufio.NewReaderSize(c, folder.MaxLine+1)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return
		}
		order, err := folder.ParseOrder(line[:len(line)-1])
		if err != nil {
			s.log.Warn("an order on the control socket was not understood", "error", err)
			continue
		}
		if order.Kind == folder.OrderAnswer {
			s.answer(order.Answer)
			continue
		}
		s.orders(order)
	}
}
