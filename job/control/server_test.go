//go:build unix

package control_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/job/control"
	"github.com/switchyard-ci/switchyard/job/folder"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T) *folder.Folder {
	t.Helper()
	f, err := folder.Make(filepath.Join(t.TempDir(), strings.Repeat("x", 100)))
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func listen(t *testing.T, f *folder.Folder, orders func(folder.Order)) *control.Server {
	t.Helper()
	s, err := control.Listen(f, orders, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return s
}

func next(t *testing.T, w *folder.Follower) folder.Event {
	t.Helper()
	e, err := w.Next()
	require.NoError(t, err)
	return e
}

func TestFollowersHearAll(t *testing.T) {
	f := open(t)
	s := listen(t, f, nil)
	s.Stage("prepare_script")
	s.Stage("get_sources")
	s.Trace(5)
	w, err := f.Follow(context.Background())
	require.NoError(t, err)
	defer w.Close()
	require.Equal(t, folder.Event{Kind: folder.EventStage, Stage: "get_sources"}, next(t, w))
	require.Equal(t, folder.Event{Kind: folder.EventTrace, TraceLength: 5}, next(t, w))
	s.Stage("step_script")
	require.Equal(t, folder.Event{Kind: folder.EventStage, Stage: "step_script"}, next(t, w))
	s.Trace(9)
	s.Result()
	require.Equal(t, folder.Event{Kind: folder.EventTrace, TraceLength: 9}, next(t, w))
	require.Equal(t, folder.Event{Kind: folder.EventResult}, next(t, w))
	_, err = w.Next()
	require.ErrorIs(t, err, folder.ErrGone)
	s.Close()
	_, err = f.Follow(context.Background())
	require.ErrorIs(t, err, folder.ErrGone)
}

func TestOrdersArrive(t *testing.T) {
	f := open(t)
	orders := make(chan folder.Order)
	s := listen(t, f, func(o folder.Order) { orders <- o })
	defer s.Close()
	w, err := f.Follow(context.Background())
	require.NoError(t, err)
	defer w.Close()
	require.NoError(t, w.Lease(time.Minute))
	require.Equal(t, folder.Order{Kind: folder.OrderLease, Lease: time.Minute}, <-orders)
	require.NoError(t, w.Cancel(false))
	require.Equal(t, folder.Order{Kind: folder.OrderCancelGraceful}, <-orders)
	require.NoError(t, w.Cancel(true))
	require.Equal(t, folder.Order{Kind: folder.OrderCancelKill}, <-orders)
}

func TestAFollowerThatDoesNotReadHoldsNothingUp(t *testing.T) {
	f := open(t)
	s := listen(t, f, nil)
	lazy, err := f.Follow(context.Background())
	require.NoError(t, err)
	defer lazy.Close()
	quick, err := f.Follow(context.Background())
	require.NoError(t, err)
	defer quick.Close()
	heard := make(chan int64, 1)
	go func() {
		last := int64(0)
		for {
			e, err := quick.Next()
			if err != nil {
				heard <- last
				return
			}
			last = e.TraceLength
		}
	}()
	const n = 200_000
	for i := range int64(n) {
		s.Trace(i + 1)
		if i%100 == 0 {
			s.Stage(fmt.Sprintf("stage_%d_%s", i, strings.Repeat("x", 500)))
		}
	}
	s.Trace(n + 1)
	began := time.Now()
	s.Close()
	require.Less(t, time.Since(began), 10*time.Second)
	require.EqualValues(t, n+1, <-heard)
}

func TestNonsenseIsIgnored(t *testing.T) {
	f := open(t)
	orders := make(chan folder.Order, 1)
	s := listen(t, f, func(o folder.Order) { orders <- o })
	defer s.Close()
	c, err := net.Dial("unix", f.SocketPath())
	require.NoError(t, err)
	_, err = c.Write([]byte("what\n\nlease x\n" + strings.Repeat("y", folder.MaxLine+1)))
	require.NoError(t, err)
	b := make([]byte, 100)
	for err == nil {
		_, err = c.Read(b) // the line that is too long ends it
	}
	require.NoError(t, c.Close())
	w, err := f.Follow(context.Background())
	require.NoError(t, err)
	defer w.Close()
	require.NoError(t, w.Cancel(true))
	require.Equal(t, folder.OrderCancelKill, (<-orders).Kind)
}

func TestConnectionsAreLimited(t *testing.T) {
	f := open(t)
	s := listen(t, f, nil)
	defer s.Close()
	refused := 0
	for range 40 {
		w, err := f.Follow(context.Background())
		if err != nil {
			require.ErrorIs(t, err, folder.ErrGone)
			refused++
			continue
		}
		t.Cleanup(func() { _ = w.Close() })
	}
	require.Equal(t, 8, refused)
}

func TestAnOldSocketIsReplaced(t *testing.T) {
	f := open(t)
	l, err := net.Listen("unix", f.SocketPath())
	require.NoError(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	s := listen(t, f, nil)
	defer s.Close()
	w, err := f.Follow(context.Background())
	require.NoError(t, err)
	require.NoError(t, w.Close())
}
