package coordinator

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator/artifacts"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/githttp"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/queue"
)

// Errors of the methods that take an id or a path.
var (
	ErrNotFound = errors.New("not found")
	ErrClosed   = errors.New("the coordinator is closed")
)

// Coordinator is an embedded GitLab. Make one with [New].
type Coordinator struct {
	opts    Options
	log     *slog.Logger
	dir     string
	store   *artifacts.Store
	handler http.Handler
	stats   counters
	buffers bufferPools
	// storageKey signs addresses of the object store.
	storageKey [32]byte

	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	work   sync.WaitGroup

	// mu guards everything below and what hangs on it. It is held for computation only, never for I/O.
	mu          sync.Mutex
	url         string
	lastID      map[string]int64
	projects    map[int64]*project
	paths       map[string]*project
	namespaces  map[string]int64
	users       map[string]int64 // id by login
	runners     map[int64]*runner
	tokens      map[string]*runner
	pipelines   map[int64]*pipelineRun
	jobs        map[int64]*job
	jobTokens   map[string]*job // of jobs that a runner may work on
	queue       *queue.Queue
	timers      timers
	doomed      []string      // files to remove
	doom        chan struct{} // there are some
	subscribers map[*subscriber]struct{}
}

// New makes a coordinator. Close must be called.
func New(o Options) (*Coordinator, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if o.Dir != "" {
		if err := os.MkdirAll(o.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the coordinator's folder: %w", err)
		}
	}
	dir, err := os.MkdirTemp(o.Dir, "coordinator-")
	if err != nil {
		return nil, fmt.Errorf("make the coordinator's folder: %w", err)
	}
	for _, sub := range []string{"repositories", "traces", "artifacts"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, errors.Join(fmt.Errorf("make the coordinator's folder: %w", err), os.RemoveAll(dir))
		}
	}
	c := &Coordinator{
		opts:        o,
		log:         o.Logger,
		dir:         dir,
		store:       artifacts.NewStore(filepath.Join(dir, "artifacts")),
		doom:        make(chan struct{}, 1),
		lastID:      map[string]int64{},
		projects:    map[int64]*project{},
		paths:       map[string]*project{},
		namespaces:  map[string]int64{},
		users:       map[string]int64{},
		runners:     map[int64]*runner{},
		tokens:      map[string]*runner{},
		pipelines:   map[int64]*pipelineRun{},
		jobs:        map[int64]*job{},
		jobTokens:   map[string]*job{},
		queue:       queue.New(),
		subscribers: map[*subscriber]struct{}{},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.timers.changed = make(chan struct{}, 1)
	_, _ = rand.Read(c.storageKey[:]) // never fails
	c.handler = c.routes(githttp.New(c.openRepository, o.Logger))
	if o.URL != "" {
		if err := c.SetURL(o.URL); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	c.work.Go(c.runTimers)
	c.work.Go(c.runRemover)
	return c, nil
}

// Close ends held requests, subscriptions and timers, and removes the coordinator's folder. The HTTP server that serves
// the handler must have been stopped or must be stopped next: requests after Close are answered by 503.
func (c *Coordinator) Close() error {
	c.mu.Lock()
	c.cancel() // no new goroutine from here on
	c.mu.Unlock()
	c.work.Wait()
	c.store.Close()
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("remove the coordinator's folder: %w", err)
	}
	return nil
}

// Handler serves /api/v4/ and the repositories of the projects below /<group>/<project>.git/.
func (c *Coordinator) Handler() http.Handler { return c.handler }

// SetURL sets the base of all addresses in job payloads: scheme, host, port, no path. Until it is called, a payload is
// made with the address that the runner's own request went to.
func (c *Coordinator) SetURL(base string) error {
	u, err := url.Parse(base)
	if err != nil {
		return fmt.Errorf("URL %q: %w", base, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf("URL %q: must be http:// or https:// with a host and without a path", base)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.url = u.Scheme + "://" + u.Host
	return nil
}

// id returns the next id of a kind.
func (c *Coordinator) id(kind string) int64 {
	c.lastID[kind]++
	return c.lastID[kind]
}

// token returns a new secret with a prefix of GitLab's.
func token(prefix string) string {
	var raw [18]byte
	_, _ = rand.Read(raw[:]) // never fails
	return prefix + base64.RawURLEncoding.EncodeToString(raw[:])
}

func (c *Coordinator) tracePath(job int64) string {
	return filepath.Join(c.dir, "traces", strconv.FormatInt(job, 10)+".log")
}

// wholeSeconds formats a duration as headers have it.
func wholeSeconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
