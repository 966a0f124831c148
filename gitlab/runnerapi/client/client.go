// Package client speaks GitLab's Runner API: it asks for jobs, reports their state and appends to their traces.
//
// It retries nothing: every call is at most one HTTP request, and its result says what GitLab answered and how long it wants
// to be left alone. Who calls decides what a retry may cost. While GitLab does not work a call fails at once, with a
// *TransportError around a *breaker.OpenError, and nothing is sent but one request at a time that finds out whether it
// works again. Redirects are not followed, because they
// turn a POST into a GET and carry tokens to another host; they are errors that name the new address.
package client

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/breaker"
)

// Lane says which connections a request for a job uses, so that held watches never stand in the way of claims.
type Lane int

// The lanes of [Client.RequestJob]. Reports and verifications have one of their own, which needs no name.
const (
	// LaneClaim is for requests that GitLab answers at once. One that lasts 2 minutes ends with an error.
	LaneClaim Lane = iota
	// LaneWatch is for requests that GitLab may hold. One that lasts 15 minutes ends with an error.
	LaneWatch

	laneReport
	laneCount
)

// How long one request of a lane may last, connecting and reading the answer included.
const (
	claimTimeout  = 2 * time.Minute
	watchTimeout  = 15 * time.Minute
	reportTimeout = 5 * time.Minute
	verifyTimeout = time.Minute
)

// maxConnectionAge is how long idle connections are used again before all of them are closed once: a load balancer gets
// its chance to move them, and changed certificates come into use.
const maxConnectionAge = 15 * time.Minute

// Options describe one GitLab and how to reach it.
type Options struct {
	// URL is GitLab's address as people know it, http or https, with or without a path ("https://example.com/gitlab").
	// Slashes and "/ci" at its end are ignored.
	URL string
	// CAFile names a PEM file, CA holds PEM: certificates that are trusted in addition to the system's. CAFile is read
	// again when it changed.
	CAFile string
	CA     []byte
	// CertFile and KeyFile name the PEM files of a client certificate; both or none. They are read again when they changed.
	CertFile string
	KeyFile  string
	// UserAgent is sent with each request. Empty: "switchyard (<Go version>; <os>/<arch>)".
	UserAgent string
	// RequestsPerSecond bounds all requests together; 0: DefaultRequestsPerSecond. A GitLab that answers 429 gets fewer.
	RequestsPerSecond float64
	// Breaker says when a GitLab that does not work is left alone.
	Breaker breaker.Settings
	// Logger gets one debug line per request, and when GitLab stops working and works again; nil discards it.
	Logger *slog.Logger
}

// Client talks to one GitLab. It belongs to no runner: tokens are arguments. All methods may be called concurrently.
type Client struct {
	base      url.URL // with the path ".../api/v4/"
	userAgent string
	logger    *slog.Logger
	tls       *tlsFiles
	now       func() time.Time
	serverCA  serverCA
	gate      *gate

	mu         sync.Mutex
	transports [laneCount]*http.Transport
	renewAt    time.Time // when idle connections are closed and files are looked at next
}

// New checks the options and reads the files that they name; it contacts nobody.
func New(o Options) (*Client, error) {
	base, err := baseURL(o.URL)
	if err != nil {
		return nil, fmt.Errorf("url %q: %w", redactURL(o.URL), err)
	}
	if err := checkProxy(base); err != nil {
		return nil, fmt.Errorf("reach %s: %w", base.Host, err)
	}
	files, err := newTLSFiles(o)
	if err != nil {
		return nil, err
	}
	c := &Client{
		base:      base,
		userAgent: o.UserAgent,
		logger:    o.Logger,
		tls:       files,
		now:       time.Now,
	}
	if c.userAgent == "" {
		c.userAgent = fmt.Sprintf("switchyard (%s; %s/%s)", runtime.Version(), runtime.GOOS, runtime.GOARCH)
	}
	if c.logger == nil {
		c.logger = slog.New(slog.DiscardHandler)
	}
	c.gate = newGate(o, c.URL(), c.now(), c.logger)
	c.serverCA.custom = files.custom()
	c.transports = newTransports(files.config())
	c.renewAt = c.now().Add(maxConnectionAge)
	return c, nil
}

// URL returns GitLab's address without "/api/v4/" and without a slash at its end: the key under which clients of one
// GitLab are the same.
func (c *Client) URL() string {
	u := c.base
	u.Path = u.Path[:len(u.Path)-len(apiPath)]
	return u.String()
}

// Close closes idle connections. Requests in flight go on.
func (c *Client) Close() {
	c.mu.Lock()
	transports := c.transports
	c.mu.Unlock()
	for _, t := range transports {
		t.CloseIdleConnections()
	}
}

// transport returns the lane's connections and renews all lanes when their time has come.
func (c *Client) transport(lane Lane) *http.Transport {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); !now.Before(c.renewAt) {
		c.renew(now)
	}
	return c.transports[lane]
}

// transportFailed makes a changed CA file count at once instead of after maxConnectionAge.
func (c *Client) transportFailed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tls.caChanged() {
		c.renew(c.now())
	}
}

func (c *Client) renew(now time.Time) {
	c.renewAt = now.Add(maxConnectionAge)
	old := c.transports
	changed, err := c.tls.reloadCA()
	if err != nil {
		// The certificates that are in use go on being used: a file that is being written is no reason to stop.
		c.logger.Warn("cannot read the changed CA file, the old certificates stay in use", "error", err)
	}
	if changed {
		c.transports = newTransports(c.tls.config())
	}
	for _, t := range old {
		t.CloseIdleConnections()
	}
}

// errNoToken is a programmer's error; GitLab would answer 403, which means something else.
var errNoToken = errors.New("no token was given")
