package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// maxOrders is how many orders may wait for an environment that does not take them.
const maxOrders = 64

// stream is one `switchyard-job launch` or `attach` in the environment.
type stream struct {
	r       *remote
	launch  bool // the job may have to be started
	ctx     context.Context
	cancel  context.CancelCauseFunc
	orders  chan folder.Order
	greeted bool // the environment has answered; for after run
}

func (r *remote) open() *stream {
	s := &stream{r: r, launch: !r.mirror.Begun(), orders: make(chan folder.Order, maxOrders)}
	s.ctx, s.cancel = context.WithCancelCause(r.ctx)
	return s
}

// order says an order as soon as those before it are said.
func (s *stream) order(o folder.Order) error {
	select {
	case s.orders <- o:
		return nil
	default:
		s.cancel(errDeaf)
		return errDeaf
	}
}

var errDeaf = errors.New("the job's environment takes no orders")

// run follows the job until the stream ends. nil: the job has a result, and the folder on this host has it.
func (s *stream) run() error {
	in, orders := io.Pipe()
	frames, out := io.Pipe()
	var (
		tasks     sync.WaitGroup
		execErr   error
		feedErr   error
		complaint tail
	)
	command := executors.Command{Argv: s.argv(), Stdin: in, Stdout: out, Stderr: &complaint}
	tasks.Go(func() {
		code, err := s.r.w.env.Exec(s.ctx, command)
		if err == nil {
			err = &exitError{code, &complaint}
		}
		execErr = err
		_ = out.Close()
		_ = in.Close()
	})
	tasks.Go(func() { feedErr = s.feed(orders) })
	err := s.read(frames)
	s.r.reach(nil)
	s.cancel(nil)
	_ = frames.Close()
	_ = orders.Close()
	tasks.Wait()
	switch {
	case !errors.Is(err, attach.ErrEnded):
		return err
	case feedErr != nil:
		return feedErr
	case !errors.Is(context.Cause(s.ctx), context.Canceled): // it was given up
		return context.Cause(s.ctx)
	}
	return fmt.Errorf("%w: %w", err, execErr)
}

func (s *stream) argv() []string {
	place := s.r.w.env.Job()
	command := "attach"
	if s.launch {
		command = "launch"
	}
	argv := []string{place.Binary, command, place.Folder, "--offset", strconv.FormatInt(s.r.mirror.Offset(), 10)}
	if lease := s.r.w.current().lease; !lease.IsZero() {
		argv = append(argv, "--lease", max(time.Until(lease), time.Millisecond).String())
	}
	return argv
}

// feed writes what standard input brings: for launch the job, then orders until the stream ends.
func (s *stream) feed(to io.Writer) error {
	if s.launch {
		// What is written from here on may start the job, so that is written down before: for good, and while the
		// environment is busy with the command.
		if err := writeLaunched(s.r.w.dir); err != nil {
			s.cancel(err)
			return err
		}
		payload, err := s.r.w.folder.Payload()
		if err != nil {
			s.cancel(err)
			return err
		}
		if attach.WriteHeader(to, s.r.mirror.Spec(), payload) != nil {
			return nil //nolint:nilerr // the stream's end says more
		}
	}
	for {
		select {
		case o := <-s.orders:
			if _, err := to.Write(folder.AppendOrder(nil, o)); err != nil {
				return nil //nolint:nilerr // see above
			}
		case <-s.ctx.Done():
			return nil
		}
	}
}

// read brings frames to where they belong.
func (s *stream) read(from io.Reader) error {
	frames := attach.NewReader(from, s.r.mirror.Offset())
	for {
		f, err := frames.Next()
		if err != nil {
			return err
		}
		known := s.r.mirror.Begun()
		if err := s.r.mirror.Apply(f); err != nil {
			return err
		}
		switch f.Kind {
		case attach.Hello:
			s.greeted = true
			if s.r.mirror.Begun() && !known {
				s.r.say(happening{what: begun})
			}
			s.r.reach(s)
		case attach.Stage:
			s.r.w.log.Debug("stage", "stage", f.Stage)
		case attach.Data:
			s.r.w.grown(s.r.mirror.Offset())
		case attach.Ask:
			s.r.say(happening{what: asked, ask: f.Ask})
		case attach.Result:
			return nil
		case attach.Gone:
			return errNoResult
		case attach.Failed:
			return &refusedError{f.Text}
		}
	}
}
