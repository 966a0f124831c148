package postgres_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/conformance"
	"github.com/switchyard-ci/switchyard/controlplane/store/postgres"
	"github.com/switchyard-ci/switchyard/internal/testbed/postgresql"
)

func opened(t *testing.T, url string, o postgres.Options) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), url, key, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// A server that crashes: in a way that it knows of, and by SIGKILL.
func TestTheServerIsKilled(t *testing.T) {
	server := postgresql.Start(t)
	url, err := server.Schema()
	require.NoError(t, err)
	open := func() store.Store { return opened(t, url, postgres.Options{}) }
	signals := []syscall.Signal{syscall.SIGQUIT, syscall.SIGKILL}
	round := 0
	conformance.Interrupted(t, open(), open, 4, func() {
		require.NoError(t, server.Stop(signals[round%len(signals)]))
		round++
		require.NoError(t, server.Start())
	})
}

// All sessions are ended again and again, from the server's side.
func TestSessionsAreEnded(t *testing.T) {
	url := database(t)
	open := func() store.Store { return opened(t, url, postgres.Options{}) }
	conformance.Interrupted(t, open(), open, 30, func() {
		_, err := shared.SQL("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")
		require.NoError(t, err)
	})
}

// proxy is a way to the server that can be cut.
type proxy struct {
	t      *testing.T
	dir    string
	server string
	// cutCommits cuts a connection after every n-th COMMIT has passed; its answer is swallowed. 0: never.
	cutCommits atomic.Int64
	commits    atomic.Int64
	cut        atomic.Int64 // how many
	listener   net.Listener
	group      sync.WaitGroup
}

// newProxy returns the proxy and the URL to the same place through it.
func newProxy(t *testing.T, direct string) (p *proxy, through string) {
	t.Helper()
	u, err := url.Parse(direct)
	require.NoError(t, err)
	query := u.Query()
	dir, err := os.MkdirTemp("", "proxy-") //nolint:usetesting // a socket's path has a limit; a test's folder is named after the test
	require.NoError(t, err)
	const socket = ".s.PGSQL.5432"
	p = &proxy{t: t, dir: dir, server: filepath.Join(query.Get("host"), socket)}
	p.listener, err = net.Listen("unix", filepath.Join(dir, socket))
	require.NoError(t, err)
	p.group.Go(p.accept)
	t.Cleanup(func() {
		_ = p.listener.Close()
		p.group.Wait()
		require.NoError(t, os.RemoveAll(dir))
	})
	query.Set("host", dir)
	u.RawQuery = query.Encode()
	return p, u.String()
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.group.Go(func() { p.pass(client) })
	}
}

func (p *proxy) pass(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("unix", p.server)
	if err != nil {
		return
	}
	defer server.Close()
	var swallow atomic.Bool
	var group sync.WaitGroup
	group.Go(func() {
		defer client.Close()
		buffer := make([]byte, 64<<10)
		for {
			n, err := server.Read(buffer)
			if swallow.Load() && n > 0 { // the server has answered: it has committed
				p.cut.Add(1)
				return
			}
			if _, failed := client.Write(buffer[:n]); err != nil || failed != nil {
				return
			}
		}
	})
	buffer := make([]byte, 64<<10)
	for {
		n, err := client.Read(buffer)
		// pgx sends statements without arguments as they are.
		if every := p.cutCommits.Load(); every > 0 && bytes.Contains(buffer[:n], []byte("COMMIT")) && p.commits.Add(1)%every == 0 {
			swallow.Store(true)
		}
		if n > 0 {
			if _, failed := server.Write(buffer[:n]); failed != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	if c, ok := server.(*net.UnixConn); ok {
		_ = c.CloseWrite()
	}
	group.Wait()
	_, _ = io.Copy(io.Discard, server)
}

// The answers to commits are lost: what was committed is not done again.
func TestAnswersToCommitsAreLost(t *testing.T) {
	direct := database(t)
	p, through := newProxy(t, direct)
	s := opened(t, through, postgres.Options{})
	p.cutCommits.Store(3)
	ctx := t.Context()
	for n := range int64(40) {
		job, err := s.InsertJob(ctx, conformance.NewJob(n))
		require.NoError(t, err, "its own row is not somebody else's")
		epoch, err := s.Reoffer(ctx, job.ID, 1, "agent-2")
		require.NoError(t, err)
		require.EqualValues(t, 2, epoch)
		require.NoError(t, s.AppendAudit(ctx, store.AuditEntry{At: time.Now(), Actor: "once"}))
	}
	require.Greater(t, p.cut.Load(), int64(20))
	p.cutCommits.Store(0)
	jobs, err := s.LoadJobs(ctx)
	require.NoError(t, err)
	require.Len(t, jobs, 40)
	for _, job := range jobs {
		require.EqualValues(t, 2, job.Epoch)
	}
	log, err := s.Audit(ctx, 0, 1000)
	require.NoError(t, err)
	require.Len(t, log, 40)
}

// A database that does not come back is told in time, and the store goes on when it does.
func TestAServerThatIsAway(t *testing.T) {
	server := postgresql.Start(t)
	url, err := server.Schema()
	require.NoError(t, err)
	s := opened(t, url, postgres.Options{Patience: 200 * time.Millisecond})
	require.NoError(t, server.Stop(syscall.SIGINT))

	_, err = s.InsertJob(t.Context(), conformance.NewJob(1))
	require.ErrorContains(t, err, "the database cannot be reached")
	require.ErrorContains(t, s.Away(), "the database cannot be reached")
	_, err = s.LoadJobs(t.Context())
	require.ErrorContains(t, err, "the database cannot be reached")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.InsertJob(ctx, conformance.NewJob(1))
	require.ErrorIs(t, err, context.Canceled)
	_, err = postgres.Open(t.Context(), url, key, postgres.Options{Patience: 200 * time.Millisecond})
	require.ErrorContains(t, err, "the database cannot be reached")

	require.NoError(t, server.Start())
	require.Eventually(t, func() bool {
		_, err := s.InsertJob(t.Context(), conformance.NewJob(2))
		return err == nil
	}, time.Minute, 10*time.Millisecond)
	require.NoError(t, s.Away())
}

// Close does not wait for a database that is away.
func TestCloseWhileTheServerIsAway(t *testing.T) {
	server := postgresql.Start(t)
	url, err := server.Schema()
	require.NoError(t, err)
	s := opened(t, url, postgres.Options{Patience: time.Hour})
	require.NoError(t, server.Stop(syscall.SIGINT))
	done := make(chan error, 1)
	go func() {
		_, err := s.InsertJob(context.Background(), conformance.NewJob(1))
		done <- err
	}()
	require.NoError(t, s.Close())
	require.Error(t, <-done)
}
