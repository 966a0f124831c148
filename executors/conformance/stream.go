//go:build unix

package conformance

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// stream is a `switchyard-job launch` or `attach` in an environment whose job folder is elsewhere.
type stream struct {
	orders io.Writer     // its standard input
	hello  chan struct{} // closed when it has answered

	mu   sync.Mutex
	news chan struct{} // closed, and replaced, when something has come
	err  error         // nothing comes any more: folder.ErrGone after the job's end
	asks []folder.CacheRequest
}

// open starts one. r.ready is closed when the job has started, r.ended gets how the command ended.
func (r *running) open(command string) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r.drop = cancel
	place := r.env.Job()
	in, orders := io.Pipe()
	frames, out := io.Pipe()
	s := &stream{orders: orders, hello: make(chan struct{}), news: make(chan struct{})}
	r.stream = s
	argv := []string{place.Binary, command, place.Folder, "--offset", strconv.FormatInt(r.mirror.Offset(), 10)}
	ended := r.ended
	read := make(chan struct{})
	go func() {
		code, err := r.env.Exec(ctx, executors.Command{Argv: argv, Stdin: in, Stdout: out})
		_ = out.Close()
		_ = orders.Close()
		_ = in.Close()
		<-read
		ended <- exit{code, err}
	}()
	go func() {
		defer close(read)
		s.come(r.read(s, frames))
		_ = frames.Close()
	}()
	if command == "launch" {
		payload, err := r.folder.Payload()
		require.NoError(r.t, err)
		require.NoError(r.t, attach.WriteHeader(orders, r.mirror.Spec(), payload))
	}
}

// read copies what comes until the job has ended.
func (r *running) read(s *stream, from io.Reader) error {
	frames := attach.NewReader(from, r.mirror.Offset())
	for {
		f, err := frames.Next()
		if err != nil {
			return err
		}
		if f.Kind == attach.Ask {
			s.mu.Lock()
			s.asks = append(s.asks, f.Ask)
			s.mu.Unlock()
			s.come(nil)
			continue
		}
		known := r.mirror.Begun()
		if err := r.mirror.Apply(f); err != nil {
			return err
		}
		if f.Kind == attach.Hello {
			close(s.hello)
		}
		switch {
		case f.Kind == attach.Result || f.Kind == attach.Gone:
			return folder.ErrGone
		case f.Kind == attach.Failed:
			return errors.New(f.Text)
		case r.mirror.Begun() && !known:
			close(r.ready)
		}
		s.come(nil)
	}
}

func (s *stream) come(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	close(s.news)
	s.news = make(chan struct{})
}

// following is a connection to a job, wherever its folder is.
type following struct {
	*folder.Follower // if it is on this host
	stream           *stream
}

// Cancel stops the job.
func (f *following) Cancel(kill bool) error {
	if f.stream == nil {
		return f.Follower.Cancel(kill)
	}
	o := folder.Order{Kind: folder.OrderCancelGraceful}
	if kill {
		o.Kind = folder.OrderCancelKill
	}
	return f.order(o)
}

// Lease sets the dead man's limit.
func (f *following) Lease(d time.Duration) error {
	if f.stream == nil {
		return f.Follower.Lease(d)
	}
	return f.order(folder.Order{Kind: folder.OrderLease, Lease: d})
}

// asked waits for a question about a cache.
func (f *following) asked() (folder.CacheRequest, error) {
	if f.stream == nil {
		for {
			e, err := f.Next()
			if err != nil || e.Kind == folder.EventAsk {
				return e.Ask, err
			}
		}
	}
	for {
		news := f.news()
		f.stream.mu.Lock()
		asks := f.stream.asks
		f.stream.mu.Unlock()
		if len(asks) > 0 {
			return asks[0], nil
		}
		if err := f.next(news); err != nil {
			return folder.CacheRequest{}, err
		}
	}
}

// answer answers it.
func (f *following) answer(a folder.CacheAnswer) error {
	if f.stream == nil {
		return f.Answer(a)
	}
	return f.order(folder.Order{Kind: folder.OrderAnswer, Answer: a})
}

func (f *following) order(o folder.Order) error {
	_, err := f.stream.orders.Write(folder.AppendOrder(nil, o))
	return err
}

// news is to be asked for before a look at what next is to be waited for.
func (f *following) news() <-chan struct{} {
	if f.stream == nil {
		return nil
	}
	f.stream.mu.Lock()
	defer f.stream.mu.Unlock()
	return f.stream.news
}

// next waits until something has come since news was asked for. folder.ErrGone: the job has ended.
func (f *following) next(news <-chan struct{}) error {
	if f.stream == nil {
		_, err := f.Next()
		return err
	}
	f.stream.mu.Lock()
	err := f.stream.err
	f.stream.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-news:
		return nil
	case <-time.After(patience):
		return errors.New("nothing comes from the job")
	}
}

func (f *following) close() {
	if f.stream == nil {
		_ = f.Close()
	}
}
