//go:build unix

package attach

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/job/folder"
)

// Serve writes the job's trace from the absolute offset on, its stages and its result to out, until the job has ended. It
// does the same for a job that has ended already. Lines of the control protocol that are read from in are passed on to the
// job; the end of in is not an end of anything. lease, unless it is 0, is passed on first.
//
// resulted says whether the job has a result. An error means that the job could not be followed; it has been written as a
// frame if that was possible. A read of in may go on after Serve has returned; whoever made in ends it.
func Serve(ctx context.Context, f *folder.Folder, offset int64, lease time.Duration, in io.Reader, out io.Writer) (resulted bool, err error) {
	s := &session{folder: f, out: &writer{w: out}, offset: offset}
	resulted, err = s.serve(ctx, lease, in)
	if err != nil {
		text := err.Error()
		if len(text) > maxSmall {
			text = text[:maxSmall]
		}
		_ = s.out.frame(Failed, []byte(text))
	}
	return resulted, err
}

type session struct {
	folder *folder.Folder
	out    *writer
	trace  *folder.Trace
	offset int64
	buf    []byte
	orders orders
}

func (s *session) serve(ctx context.Context, lease time.Duration, in io.Reader) (bool, error) {
	if s.offset < 0 {
		return false, fmt.Errorf("the offset is %d: it must not be negative", s.offset)
	}
	spec, err := s.folder.Spec()
	if err != nil {
		return false, err
	}
	if s.trace, err = s.folder.OpenTrace(); err != nil {
		return false, err
	}
	defer func() { _ = s.trace.Close() }()
	size, err := s.trace.Size()
	if err != nil {
		return false, err
	}
	if s.offset > size {
		return false, fmt.Errorf("the trace has %d bytes, so it cannot be read from %d on", size, s.offset)
	}
	if err := s.out.json(Hello, Greeting{Version: Version, Job: spec.Job, Epoch: spec.Epoch, Offset: s.offset}); err != nil {
		return false, err
	}
	s.buf = make([]byte, 8+MaxData)
	if err := s.follow(ctx, lease, in); err != nil {
		return false, err
	}
	return s.end()
}

// follow passes on what happens until the process that runs the job is gone.
func (s *session) follow(ctx context.Context, lease time.Duration, in io.Reader) error {
	w, err := s.connect(ctx)
	if err != nil || w == nil {
		return err
	}
	defer func() { _ = w.Close() }()
	if lease > 0 {
		if err := w.Lease(lease); err != nil && !errors.Is(err, folder.ErrGone) {
			return err
		}
	}
	s.orders.to(w)
	defer s.orders.to(nil)
	go s.orders.read(in)
	for {
		if err := s.copy(); err != nil {
			return err
		}
		e, err := w.Next()
		switch {
		case errors.Is(err, folder.ErrGone):
			return nil
		case err != nil:
			return err
		case e.Kind == folder.EventStage:
			if err := s.out.frame(Stage, []byte(e.Stage)); err != nil {
				return err
			}
		}
	}
}

// connect returns nil if no process runs the job.
func (s *session) connect(ctx context.Context) (*folder.Follower, error) {
	for range 2 {
		w, err := s.folder.Follow(ctx)
		if !errors.Is(err, folder.ErrGone) {
			return w, err
		}
		// It may have been about to listen. Running waits for that.
		if running, err := s.folder.Running(); err != nil || !running {
			return nil, err
		}
	}
	return nil, nil // it listens no more, but has not ended yet
}

// end waits for the end of the process and says how the job ended.
func (s *session) end() (bool, error) {
	lock, err := s.folder.WaitLock()
	if err != nil {
		return false, err
	}
	defer func() { _ = lock.Close() }()
	if err := s.copy(); err != nil {
		return false, err
	}
	result, err := s.folder.Result()
	switch {
	case errors.Is(err, folder.ErrNoResult):
		return false, s.out.frame(Gone, nil)
	case err != nil:
		return false, err
	}
	return true, s.out.json(Result, result)
}

// copy passes on what there is of the trace.
func (s *session) copy() error {
	for {
		n, err := s.trace.ReadAt(s.buf[8:], s.offset)
		if n > 0 {
			binary.BigEndian.PutUint64(s.buf, uint64(s.offset))
			if err := s.out.frame(Data, s.buf[:8+n]); err != nil {
				return err
			}
			s.offset += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// orders passes lines on to whatever follower there is.
type orders struct {
	mu sync.Mutex
	w  *folder.Follower
}

func (o *orders) to(w *folder.Follower) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.w = w
}

func (o *orders) read(in io.Reader) {
	lines := bufio.NewReaderSize(in, folder.MaxLine)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return
		}
		order, err := folder.ParseOrder(line[:len(line)-1])
		if err != nil {
			continue // of a later version
		}
		o.mu.Lock()
		if o.w != nil {
			_ = o.w.Send(order) // gone: then it has ended anyway
		}
		o.mu.Unlock()
	}
}
