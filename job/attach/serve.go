//go:build unix

package attach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/switchyard-ci/switchyard/job/folder"
)

// ErrLeft says that whoever attached is gone. The job goes on.
var ErrLeft = errors.New("standard input has ended: whoever attached is gone")

// Serve writes the job's trace from the absolute offset on, its stages, its questions and its result to out, until the job
// has ended. It does the same for a job that has ended already. Lines of the control protocol that are read from in are
// passed on to the job; lease, unless it is 0, is passed on first. The end of in ends Serve with ErrLeft: it is how a lost
// caller shows, and the job takes only so many followers.
//
// resulted says whether the job has a result. An error means that the job could not be followed; it has been written as a
// frame if that was possible. A read of in may go on after Serve has returned; whoever made in ends it.
func Serve(ctx context.Context, f *folder.Folder, offset int64, lease time.Duration, in io.Reader, out io.Writer) (resulted bool, err error) {
	s := &session{folder: f, out: &writer{w: out}, offset: offset}
	resulted, err = s.serve(ctx, lease, in)
	if err != nil && !errors.Is(err, ErrLeft) {
		s.out.fail(err)
	}
	return resulted, err
}

type session struct {
	folder *folder.Folder
	out    *writer
	trace  *folder.Trace
	base   int64 // the absolute offset of the first byte that is in this folder
	offset int64 // of the next byte to write
}

func (s *session) serve(ctx context.Context, lease time.Duration, in io.Reader) (bool, error) {
	if s.offset < 0 {
		return false, fmt.Errorf("the offset is %d: it must not be negative", s.offset)
	}
	spec, err := s.folder.Spec()
	if err != nil {
		return false, err
	}
	if spec.PrefixElsewhere {
		s.base = spec.PrefixLength
	}
	if s.trace, err = s.folder.OpenTrace(); err != nil {
		return false, err
	}
	defer func() { _ = s.trace.Close() }()
	// If it is about to start, that is waited for; then the fence stands, or will not.
	running, err := s.folder.Running()
	if err != nil {
		return false, err
	}
	if err := s.greet(spec); err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	orders := newOrders()
	defer orders.close()
	go orders.read(in, func() { cancel(ErrLeft) })
	if running {
		if done, resulted, err := s.follow(ctx, lease, orders); done || err != nil {
			return resulted, err
		}
	}
	return s.end()
}

func (s *session) greet(spec folder.Spec) error {
	size, err := s.trace.Size()
	if err != nil {
		return err
	}
	switch {
	case s.offset < s.base:
		return fmt.Errorf("the trace is kept here from byte %d on, so it cannot be read from %d on", s.base, s.offset)
	case s.offset > s.base+size:
		return fmt.Errorf("the trace has %d bytes, so it cannot be read from %d on", s.base+size, s.offset)
	}
	g := Greeting{Version: Version, Job: spec.Job, Epoch: spec.Epoch, Offset: s.offset}
	started, err := s.folder.Started()
	switch {
	case err == nil:
		g.Started = &started
	case !errors.Is(err, folder.ErrNotStarted):
		return err
	}
	return s.out.json(Hello, g)
}

// follow passes on what happens until the job has its result (done) or the process that runs it is gone.
func (s *session) follow(ctx context.Context, lease time.Duration, orders *orders) (done, resulted bool, err error) {
	w, err := s.folder.Follow(ctx)
	if errors.Is(err, folder.ErrGone) { // it listens no more, but has not ended yet
		return false, false, nil
	}
	if err != nil {
		return false, false, cause(ctx, err)
	}
	defer func() { _ = w.Close() }()
	if lease > 0 {
		if err := w.Lease(lease); err != nil && !errors.Is(err, folder.ErrGone) {
			return false, false, err
		}
	}
	orders.to(w)
	for {
		if err := s.copy(); err != nil {
			return false, false, err
		}
		e, err := w.Next()
		switch {
		case errors.Is(err, folder.ErrGone):
			return false, false, nil
		case err != nil:
			return false, false, cause(ctx, err)
		case e.Kind == folder.EventStage && len(e.Stage) > 0 && len(e.Stage) <= maxStage:
			err = s.out.frame(Stage, []byte(e.Stage))
		case e.Kind == folder.EventAsk:
			err = s.out.json(Ask, e.Ask)
		case e.Kind == folder.EventResult:
			// All of it is on the disk before it is said, so its process need not be waited for.
			resulted, err = s.result()
			return resulted, resulted, err
		}
		if err != nil {
			return false, false, err
		}
	}
}

// cause is why a context ended, if that is the reason of err.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// end waits for the end of the process and says how the job ended.
func (s *session) end() (bool, error) {
	lock, err := s.folder.WaitLock()
	if err != nil {
		return false, err
	}
	defer func() { _ = lock.Close() }()
	resulted, err := s.result()
	if err != nil || resulted {
		return resulted, err
	}
	return false, s.out.frame(Gone, nil)
}

// result writes the rest of the trace and the result, if there is one.
func (s *session) result() (bool, error) {
	if err := s.copy(); err != nil {
		return false, err
	}
	result, err := s.folder.Result()
	if errors.Is(err, folder.ErrNoResult) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, s.out.json(Result, result)
}

// copy passes on what there is of the trace.
func (s *session) copy() error {
	for {
		n, err := s.trace.ReadAt(s.out.room(), s.offset-s.base)
		if n > 0 {
			if err := s.out.trace(s.offset, n); err != nil {
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
