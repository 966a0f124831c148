package postgres_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/conformance"
	"github.com/switchyard-ci/switchyard/controlplane/store/postgres"
)

// leaderEnv tells the test binary to be another control plane's store, and where.
const leaderEnv = "SWITCHYARD_STORE_THAT_LEADS"

// shortLease is for tests that wait until it has passed.
const shortLease = time.Second

// leaderChild belongs into TestMain: it leads, and says of each write how it went, until it is killed or fenced.
func leaderChild() {
	url := os.Getenv(leaderEnv)
	if url == "" {
		return
	}
	s, err := postgres.Open(context.Background(), url, key, postgres.Options{Holder: "the child", Lease: shortLease})
	for n := int64(1_000_000); err == nil; n++ {
		if _, err = s.InsertJob(context.Background(), conformance.NewJob(n)); err == nil {
			fmt.Println("inserted", n) //nolint:forbidigo // the child's way to tell its parent
		}
	}
	select {
	case <-s.Fenced():
	case <-time.After(time.Minute):
		fmt.Println("not told") //nolint:forbidigo // as above
	}
	fmt.Println("end", errors.Is(err, store.ErrFenced), err) //nolint:forbidigo // as above
	_ = s.Close()
	os.Exit(0)
}

// child is a leading process.
type child struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *bufio.Scanner
	last string
}

func lead(t *testing.T, url string) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")}
	c.cmd.Env = append(os.Environ(), leaderEnv+"="+url)
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	require.NoError(t, err)
	c.out = bufio.NewScanner(out)
	require.NoError(t, c.cmd.Start())
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
	})
	for range 20 {
		require.True(t, c.next(), "the child leads and writes")
	}
	return c
}

func (c *child) next() bool {
	if !c.out.Scan() {
		return false
	}
	c.last = c.out.Text()
	return true
}

// lines is a log that tests wait for.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) await(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return strings.Contains(l.b.String(), text)
	}, time.Minute, 5*time.Millisecond, "%s", text)
}

// standby opens a store in the background.
func standby(t *testing.T, url string, o postgres.Options) (log *lines, opened <-chan *postgres.Store) {
	log = &lines{}
	o.Logger = slog.New(slog.NewTextHandler(log, nil))
	stores := make(chan *postgres.Store, 1)
	go func() {
		s, err := postgres.Open(t.Context(), url, key, o)
		if err != nil {
			t.Error(err)
		}
		stores <- s
	}()
	return log, stores
}

func TestASecondOneWaits(t *testing.T) {
	url := database(t)
	first, err := postgres.Open(t.Context(), url, key, postgres.Options{Holder: "the first"})
	require.NoError(t, err)
	log, stores := standby(t, url, postgres.Options{Holder: "the second"})
	log.await(t, `another control plane leads; this one waits to take over" leader="the first"`)
	job, err := first.InsertJob(t.Context(), conformance.NewJob(1))
	require.NoError(t, err)

	// One that gives up waiting leaves nothing behind.
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error, 1)
	go func() {
		_, err := postgres.Open(ctx, url, key, postgres.Options{})
		gaveUp <- err
	}()
	cancel()
	require.ErrorIs(t, <-gaveUp, context.Canceled)

	require.NoError(t, first.Close())
	second := <-stores
	defer func() { require.NoError(t, second.Close()) }()
	jobs, err := second.LoadJobs(t.Context())
	require.NoError(t, err)
	require.Len(t, jobs, 1)
	require.Equal(t, job.ID, jobs[0].ID)
	other, err := second.InsertJob(t.Context(), conformance.NewJob(2))
	require.NoError(t, err)
	require.Greater(t, other.ID, job.ID)
	_, err = first.InsertJob(t.Context(), conformance.NewJob(3))
	require.ErrorIs(t, err, store.ErrClosed)
}

// The next takes over from a leader that is killed without waiting for its lease.
func TestTheLeaderIsKilled(t *testing.T) {
	url := database(t)
	c := lead(t, url)
	log, stores := standby(t, url, postgres.Options{Lease: time.Hour})
	log.await(t, `leader="the child"`)
	require.NoError(t, c.cmd.Process.Kill())
	for c.next() {
	}
	s := <-stores
	requireInserted(t, s, c.last)
	require.NoError(t, s.Close())
}

// requireInserted looks for the last job that a child said it had stored, and returns how many there are.
func requireInserted(t *testing.T, s store.Store, said string) int {
	t.Helper()
	var n int64
	_, err := fmt.Sscanf(said, "inserted %d", &n)
	require.NoError(t, err, "%q", said)
	jobs, err := s.LoadJobs(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, jobs[len(jobs)-1].GitLabJobID, n)
	return len(jobs)
}

// A leader that stands still, with its session open, loses the lead after a lease, and when it wakes up it writes nothing.
func TestAPausedLeaderWakesUp(t *testing.T) {
	for range 3 { // stopped at another moment each time
		url := database(t)
		c := lead(t, url)
		require.NoError(t, c.cmd.Process.Signal(syscall.SIGSTOP))
		s := opened(t, url, postgres.Options{Holder: "the next", Lease: shortLease})
		before, err := s.LoadJobs(t.Context())
		require.NoError(t, err)

		require.NoError(t, c.cmd.Process.Signal(syscall.SIGCONT))
		said := c.last
		for c.next() && !strings.HasPrefix(c.last, "end") {
			said = c.last
		}
		require.Contains(t, c.last, "end true ", "the child finds out that it is fenced")
		require.Equal(t, len(before), requireInserted(t, s, said), "nothing came after the takeover")
		require.NoError(t, s.Close())
	}
}

// A leader whose session was lost to another one finds out at its next write, or without one.
func TestAFencedStore(t *testing.T) {
	url := database(t)
	for _, idle := range []bool{true, false} {
		lease := time.Hour
		if idle {
			lease = shortLease
		}
		first := opened(t, url, postgres.Options{Holder: "the first", Lease: lease})
		job, err := first.InsertJob(t.Context(), conformance.NewJob(1))
		require.NoError(t, err)
		log, stores := standby(t, url, postgres.Options{Holder: "the second", Lease: time.Hour})
		log.await(t, `leader="the first"`)
		_, err = shared.SQL("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted")
		require.NoError(t, err)
		second := <-stores
		if second == nil {
			t.Fatal("the standby did not take over")
		}
		if idle {
			<-first.Fenced()
		}
		require.ErrorIs(t, first.StartJob(t.Context(), job.ID, 1, time.Now()), store.ErrFenced)
		<-first.Fenced()
		_, err = first.InsertJob(t.Context(), conformance.NewJob(2))
		require.ErrorIs(t, err, store.ErrFenced)
		jobs, err := second.LoadJobs(t.Context())
		require.NoError(t, err)
		require.Len(t, jobs, 1)
		require.Equal(t, store.JobClaimed, jobs[0].State)
		require.NoError(t, second.DeleteJob(t.Context(), job.ID))
		require.NoError(t, second.Close())
	}
}

// A leader that loses its session and gets it back before others goes on.
func TestALeaderThatComesBack(t *testing.T) {
	url := database(t)
	s := opened(t, url, postgres.Options{Lease: time.Hour})
	for n := range int64(5) {
		_, err := shared.SQL("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted")
		require.NoError(t, err)
		_, err = s.InsertJob(t.Context(), conformance.NewJob(n))
		require.NoError(t, err)
	}
	select {
	case <-s.Fenced():
		t.Fatal("nobody has taken over")
	default:
	}
}
