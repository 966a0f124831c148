package dispatch

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// patient makes the control plane wait for agents that answer no pings for long.
func patient(c *Config) { c.PingPeriod = 6 * time.Hour }

// reserving tries to get a slot, without an end.
func (f *fleet) reserving(runner string) chan *Reservation {
	got := make(chan *Reservation, 1)
	ctx, cancel := context.WithCancel(context.Background())
	f.t.Cleanup(cancel)
	go func() {
		if r, err := f.d.Reserve(ctx, runner); err == nil {
			got <- r
		}
	}()
	return got
}

// With a real file system that is full: nothing is claimed, what runs is reported, and claiming goes on by itself.
func TestAFullDiskPausesClaimingAndNotReporting(t *testing.T) {
	dir := t.TempDir()
	spool := filepath.Join(dir, "spool")
	require.NoError(t, os.Mkdir(spool, 0o700))
	if err := unix.Mount("tmpfs", spool, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	defer func() { require.NoError(t, unix.Unmount(spool, 0)) }()
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		f := start(t, dir, g, patient)
		defer f.stop()
		a, _ := f.join("a", hello("1", 3))
		defer a.leave()
		id := f.claim("any")
		ref := a.begin()
		f.claim("any")
		second := a.begin()
		held, err := f.d.Reserve(t.Context(), "any")
		require.NoError(t, err)
		waiting := f.reserving("any") // it has looked at the disk and waits for a slot

		filler := filepath.Join(spool, "filler")
		b := make([]byte, 5<<20)
		require.Error(t, os.WriteFile(filler, b, 0o600), "until it is full")
		tr, err := a.client.Trace(a.ctx)
		require.NoError(t, err)
		trace := strings.Repeat("x", 100_000)
		require.NoError(t, tr.Send(&fleetv1.TraceRequest{Ref: second, Data: []byte(trace)}))
		synctest.Wait()
		require.ErrorContains(t, f.d.Full(), "disk is full")
		held.Release()
		time.Sleep(time.Hour)
		require.Empty(t, waiting, "a slot is free, but the disk is not")

		a.finish(ref, "")
		synctest.Wait()
		_, _, ok := g.result(id)
		require.True(t, ok, "a job without output is reported")

		require.NoError(t, os.Remove(filler))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.NoError(t, f.d.Full())
		require.Len(t, waiting, 1, "without anybody's doing")
		(<-waiting).Release()
		a.finish(second, trace)
		synctest.Wait()
		_, got, _ := g.result(id + 1)
		require.Len(t, got, len(trace))
	})
}

// fullStore is a store whose disk is full for as long as full is set.
type fullStore struct {
	store.Jobs
	full atomic.Bool
}

func (s *fullStore) err(doing string) error {
	if s.full.Load() {
		return fmt.Errorf("%s: %w", doing, store.ErrFull)
	}
	return nil
}

func (s *fullStore) InsertJob(ctx context.Context, j store.NewJob) (store.Job, error) {
	if err := s.err("insert"); err != nil {
		return store.Job{}, err
	}
	return s.Jobs.InsertJob(ctx, j)
}

func (s *fullStore) FinishJob(ctx context.Context, id, epoch int64, r store.Result) error {
	if err := s.err("finish"); err != nil {
		return err
	}
	return s.Jobs.FinishJob(ctx, id, epoch, r)
}

func (s *fullStore) DeleteJob(ctx context.Context, id int64) error {
	if err := s.err("delete"); err != nil {
		return err
	}
	return s.Jobs.DeleteJob(ctx, id)
}

func TestNothingIsClaimedWhileTheStoreIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Pointer[error]
		f := start(t, t.TempDir(), newGitLab(), func(c *Config) {
			patient(c)
			c.StoreAway = func() error {
				if err := away.Load(); err != nil {
					return *err
				}
				return nil
			}
		})
		defer f.stop()
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		why := errors.New("the database cannot be reached")
		away.Store(&why)
		waiting := f.reserving("any")
		time.Sleep(10 * roomCheck)
		require.Empty(t, waiting, "a slot is free, but a job could not be kept")
		require.ErrorIs(t, f.d.Full(), why)

		away.Store(nil)
		time.Sleep(2 * roomCheck)
		(<-waiting).Release()
	})
}

func TestAFullStorePausesClaimingAndNotReporting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		disk := &fullStore{}
		f := start(t, t.TempDir(), g, func(c *Config) {
			disk.Jobs = c.Store
			c.Store = disk
			patient(c)
		})
		defer f.stop()
		a, _ := f.join("a", hello("1", 3))
		defer a.leave()
		id := f.claim("any")
		ref := a.begin()
		inHand, err := f.d.Reserve(t.Context(), "any")
		require.NoError(t, err)

		disk.full.Store(true)
		claim := Claim{Payload: []byte(`{"id":1}`), Envelope: runnerapi.Envelope{ID: 500, Token: "t"}, At: time.Now()}
		require.ErrorIs(t, f.d.Claimed(t.Context(), "any", inHand, claim), store.ErrFull)
		waiting := f.reserving("gpu")
		more := f.reserving("any")
		time.Sleep(storeCheck - time.Second)
		require.ErrorIs(t, f.d.Full(), store.ErrFull)
		require.Empty(t, more, "no runner claims, although two slots are free")
		require.Empty(t, waiting)

		tr, err := a.client.Trace(a.ctx)
		require.NoError(t, err)
		require.NoError(t, tr.Send(&fleetv1.TraceRequest{Ref: ref, Data: []byte("hello\n")}))
		a.report(ref, fleetv1.JobState_JOB_STATE_FINISHED, &fleetv1.Result{
			State: "success", TraceLength: 6, TraceCrc32: crc32.ChecksumIEEE([]byte("hello\n")),
		})
		time.Sleep(10 * time.Second)
		u, trace, ok := g.result(id)
		require.True(t, ok, "a result that cannot be written down is reported")
		require.Equal(t, "success", u.State)
		require.Equal(t, "hello\n", trace)
		rows, err := f.store.LoadJobs(t.Context())
		require.NoError(t, err)
		require.Equal(t, store.JobStarted, rows[0].State)

		disk.full.Store(false)
		require.NoError(t, f.d.Claimed(t.Context(), "any", inHand, claim), "the poller tries again")
		require.NoError(t, f.d.Full())
		time.Sleep(2 * roomCheck)
		(<-more).Release()
		time.Sleep(retryMost * 2)
		synctest.Wait()
		for _, j := range f.d.Jobs() {
			require.NotEqual(t, ref.GetJob(), j.Job, "the row is deleted")
		}
		next := a.next()
		for next.GetForget() == nil {
			require.Nil(t, next.GetReportAck(), "the agent is not told that its result is written down")
			next = a.next()
		}
		require.Equal(t, ref.GetJob(), next.GetForget().GetRef().GetJob())
	})
}

func TestAPauseForAFullStoreEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab(), patient)
		defer f.stop()
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		require.Error(t, f.d.stored(store.ErrFull))
		got := f.reserving("any")
		time.Sleep(storeCheck / 2)
		require.Empty(t, got)
		time.Sleep(storeCheck/2 + 2*roomCheck)
		synctest.Wait()
		require.Len(t, got, 1, "the next claim finds out whether there is room")
		(<-got).Release()
	})
}

// The agent hears that its result is safe only when the last byte of its trace is synced, wherever GitLab is.
func TestAResultIsAcknowledgedWhenItsTraceIsSafe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		g.patched = http.StatusBadGateway
		f := start(t, t.TempDir(), g, patient)
		defer f.stop()
		a, _ := f.join("a", hello("1", 2))
		defer a.leave()
		for _, late := range []bool{false, true} {
			f.claim("any")
			ref := a.begin()
			g.mu.Lock()
			g.answer = func(int64, string) client.UpdateResult { return answerWith(http.StatusBadGateway, "") }
			g.mu.Unlock()
			tr, err := a.client.Trace(a.ctx)
			require.NoError(t, err)
			require.NoError(t, tr.Send(&fleetv1.TraceRequest{Ref: ref, Data: []byte("hello ")}))
			a.report(ref, fleetv1.JobState_JOB_STATE_FINISHED, &fleetv1.Result{
				State: "success", TraceLength: 12, TraceCrc32: crc32.ChecksumIEEE([]byte("hello world\n")),
			})
			synctest.Wait()
			require.Zero(t, f.d.Agents()[0].UsedSlots, "the slot is free at once")
			began := time.Now()
			if !late {
				time.Sleep(tracePatience / 2)
				require.NoError(t, tr.Send(&fleetv1.TraceRequest{Ref: ref, Offset: 6, Data: []byte("world\n")}))
			}
			require.Equal(t, fleetv1.JobState_JOB_STATE_FINISHED, a.next().GetReportAck().GetState())
			p := f.relay.Progress(ref.GetJob(), ref.GetEpoch())
			if late {
				require.Equal(t, tracePatience, time.Since(began), "but not for ever")
				continue
			}
			require.True(t, p.Complete)
			require.EqualValues(t, 12, p.Received)
			require.Less(t, time.Since(began), tracePatience)
			g.mu.Lock()
			g.answer = nil
			g.mu.Unlock()
		}
	})
}
