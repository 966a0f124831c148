//go:build unix

// Package postgresql starts PostgreSQL servers for tests: each with a folder of its own, heard at a Unix socket in it,
// with fsync on, and gone with the test or the process that started it.
package postgresql

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/switchyard-ci/switchyard/internal/testbed"
)

// patience is how long a server may take to start or to stop.
const patience = time.Minute

// Server is a running server, or one that was stopped and can be started again.
type Server struct {
	dir      string // owned by the server's user; the socket is in it
	programs string
	identity *syscall.Credential // nil: this process's own
	schemas  atomic.Int64

	mu      sync.Mutex
	process *exec.Cmd
	ended   chan struct{} // closed when process has been waited for
	log     bytes.Buffer
}

// New makes a server, with a superuser postgres that needs no password, and starts it. Close removes it.
func New() (*Server, error) {
	programs, err := testbed.PostgreSQLPrograms()
	if err != nil {
		return nil, err
	}
	s := &Server{programs: programs}
	if os.Geteuid() == 0 { // as which PostgreSQL does not run
		if s.identity, err = unprivileged(); err != nil {
			return nil, err
		}
	}
	if s.dir, err = os.MkdirTemp("", "postgresql-"); err != nil {
		return nil, fmt.Errorf("make the server's folder: %w", err)
	}
	if err := s.create(); err != nil {
		_ = os.RemoveAll(s.dir)
		return nil, err
	}
	return s, nil
}

// Start is New for one test.
func Start(t testing.TB) *Server {
	t.Helper()
	testbed.Need(t, testbed.PostgreSQL)
	s, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("PostgreSQL:\n%s", s.Log())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// unprivileged is Debian's user for PostgreSQL, or nobody.
func unprivileged() (*syscall.Credential, error) {
	var last error
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			last = err
			continue
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32) // decimal on Unix
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("find a user for PostgreSQL: %w", last)
}

func (s *Server) create() error {
	if err := s.Own(s.dir); err != nil {
		return err
	}
	initdb := s.command("initdb", "--pgdata", s.data(), "--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--locale", "C",
		"--no-sync", "--no-instructions")
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return s.Start()
}

// Own gives a file or folder to the server's user.
func (s *Server) Own(path string) error {
	if s.identity == nil {
		return nil
	}
	if err := os.Chown(path, int(s.identity.Uid), int(s.identity.Gid)); err != nil {
		return fmt.Errorf("give %s to PostgreSQL: %w", path, err)
	}
	return nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// command makes a call of one of PostgreSQL's programs, which ends with this process.
func (s *Server) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.programs, program), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=" + s.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.identity}
	dieWithParent(cmd.SysProcAttr)
	return cmd
}

// Start starts a server that was stopped, and returns when it answers.
func (s *Server) Start() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		s.launch()
		for s.running() {
			ready := s.command("pg_isready", "--host", s.dir)
			out, err := ready.CombinedOutput()
			if err == nil {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("PostgreSQL does not answer: %w\n%s\n%s", err, out, s.Log())
			case <-ticker.C:
			}
		}
		// Children of a postmaster that was killed may be on their way out; until then none starts.
		select {
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not start:\n%s", s.Log())
		case <-ticker.C:
		}
	}
}

func (s *Server) launch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	cmd := s.command("postgres", "-D", s.data(), "-k", s.dir, "-c", "listen_addresses=", "-c", "fsync=on", "-c", "max_connections=200",
		"-c", "shared_buffers=32MB")
	cmd.Stdout, cmd.Stderr = (*serverLog)(s), (*serverLog)(s)
	cmd.WaitDelay = time.Second
	ended := make(chan struct{})
	s.process, s.ended = cmd, ended
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(&s.log, err)
		close(ended)
		return
	}
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
}

func (s *Server) running() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// serverLog writes to Server.log.
type serverLog Server

func (l *serverLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(p)
}

// Log is what the server has said so far.
func (s *Server) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// Stop ends the server by a signal and waits for it: SIGINT is a fast shutdown, SIGQUIT an immediate one (as pg_ctl stop
// -m immediate: a crash of which the server knows), SIGKILL a crash.
func (s *Server) Stop(signal syscall.Signal) error {
	if s.process.Process == nil || !s.running() {
		return nil
	}
	if err := s.process.Process.Signal(signal); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	select {
	case <-s.ended:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("PostgreSQL does not end:\n%s", s.Log())
	}
}

// Close stops the server and removes its folder.
func (s *Server) Close() error {
	if err := s.Stop(syscall.SIGQUIT); err != nil {
		return err
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove PostgreSQL's folder: %w", err)
	}
	return nil
}

// URL is how to connect to a schema of the database postgres; "" is public.
func (s *Server) URL(schema string) string {
	query := url.Values{"host": {s.dir}, "user": {"postgres"}, "sslmode": {"disable"}}
	if schema != "" {
		query.Set("search_path", schema)
	}
	return "postgres:///postgres?" + query.Encode()
}

// Schema makes an empty schema with a name of its own and returns the URL to connect to it.
func (s *Server) Schema() (string, error) {
	name := "test" + strconv.FormatInt(s.schemas.Add(1), 10)
	if _, err := s.SQL("CREATE SCHEMA " + name); err != nil {
		return "", err
	}
	return s.URL(name), nil
}

// SQL runs statements as the superuser and returns what psql prints of them, without headers.
func (s *Server) SQL(statements string) (string, error) {
	psql := s.command("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1",
		"--dbname", s.URL(""), "--command", statements)
	out, err := psql.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("psql: %w\n%s", err, out)
	}
	return string(bytes.TrimSpace(out)), nil
}

// Dump returns the SQL that Restore makes the schema of again.
func (s *Server) Dump(schema string) ([]byte, error) {
	dump := s.command("pg_dump", "--dbname", s.URL(""), "--schema", schema)
	var problem bytes.Buffer
	dump.Stderr = &problem
	out, err := dump.Output()
	if err != nil {
		return nil, fmt.Errorf("pg_dump: %w\n%s", err, problem.Bytes())
	}
	return out, nil
}

// Restore puts what Dump returned in the place of the schema.
func (s *Server) Restore(schema string, dump []byte) error {
	if _, err := s.SQL("DROP SCHEMA " + schema + " CASCADE"); err != nil {
		return err
	}
	psql := s.command("psql", "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", s.URL(""))
	psql.Stdin = bytes.NewReader(dump)
	if out, err := psql.CombinedOutput(); err != nil {
		return fmt.Errorf("psql: %w\n%s", err, out)
	}
	return nil
}
