// Package transfer moves large files over HTTP for a job's stages: downloads that go on where a connection broke, ranges
// at the same time, retries with an end, and errors that tell no secret. It knows nothing of caches and artifacts.
package transfer

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
)

const (
	dialTimeout         = 30 * time.Second
	tlsHandshakeTimeout = 10 * time.Second
	idleConnTimeout     = 90 * time.Second
	// continueTimeout is how long a server that was asked whether it wants the body may think about it.
	continueTimeout = 2 * time.Second
	maxHeader       = 64 << 10
	maxRedirects    = 10
)

// Options describe how servers are reached.
type Options struct {
	// CA is PEM of certificates that are trusted in addition to the system's; it may be empty.
	CA string
	// Value returns a variable of the job, "" if there is none. HTTPS_PROXY, HTTP_PROXY and NO_PROXY are asked for, then
	// the same in lower case; the environment of this process is not looked at. nil means that there are no proxies.
	Value func(key string) string
	// UserAgent is sent with each request.
	UserAgent string
	// ResponseHeader is how long the header of an answer may take once the request is written; 0 is no limit.
	ResponseHeader time.Duration
}

// Client sends requests over connections of its own. It may be used concurrently.
type Client struct {
	transport *http.Transport
	follow    http.Client
	direct    http.Client
	userAgent string
}

// New makes a client; it contacts nobody. It fails if the CA is no certificate or a proxy's address is none.
func New(o Options) (*Client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CA != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM([]byte(o.CA)) {
			return nil, errors.New("the CA for the server's certificate holds no certificate in PEM form: correct the runner's CA file")
		}
		config.RootCAs = pool
	}
	proxy, err := proxies(o.Value)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{
		Timeout:         dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 5 * time.Second, Count: 3},
	}
	// HTTP/2, with its small frames and windows, makes uploads dearer.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	c := &Client{userAgent: o.UserAgent, transport: &http.Transport{
		Proxy:                  proxy,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    tlsHandshakeTimeout,
		ResponseHeaderTimeout:  o.ResponseHeader,
		ExpectContinueTimeout:  continueTimeout,
		IdleConnTimeout:        idleConnTimeout,
		MaxIdleConnsPerHost:    mostConnections,
		MaxResponseHeaderBytes: maxHeader,
		Protocols:              protocols,
		DisableCompression:     true, // lengths and ranges are those of what is stored
		WriteBufferSize:        64 << 10,
		ReadBufferSize:         64 << 10,
	}}
	c.follow = http.Client{Transport: c.transport, CheckRedirect: checkRedirect}
	c.direct = http.Client{Transport: c.transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Do sends a request and follows redirects. Another host than the first gets none of the request's headers but those that
// say what is wanted. Errors are *Transient, or the end of the request's context; the URL in them has no query.
func (c *Client) Do(req *http.Request) (*http.Response, error) { return c.do(&c.follow, req) }

// Send sends a request and follows no redirects. Its errors are those of Do.
func (c *Client) Send(req *http.Request) (*http.Response, error) { return c.do(&c.direct, req) }

func (c *Client) do(client *http.Client, req *http.Request) (*http.Response, error) {
	if c.userAgent != "" {
		req.Header.Set("User-Agent", c.userAgent)
	}
	if req.Header.Get(requestID) == "" {
		req.Header.Set(requestID, newRequestID())
	}
	resp, err := client.Do(req)
	if err == nil {
		return resp, nil
	}
	if cause := context.Cause(req.Context()); cause != nil {
		return nil, cause
	}
	u := CleanURL(req.URL.String())
	if e, ok := errors.AsType[*url.Error](err); ok {
		u, err = CleanURL(e.URL), e.Err
	}
	if strings.HasPrefix(err.Error(), "failed to parse Location header") { // it may be a signed one
		err = errors.New("redirected to an address that is no URL")
	}
	if hint := hintFor(err, req.URL.Scheme); hint != "" {
		err = fmt.Errorf("%w (%s)", err, hint)
	}
	return nil, &Transient{Err: fmt.Errorf("%s %s: %w", req.Method, u, err)}
}

const requestID = "X-Request-Id"

// newRequestID is a UUID of version 4 without dashes, as gitlab-runner sends it.
func newRequestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return hex.EncodeToString(b[:])
}

// RequestID is what the server calls the request that it answered; GitLab's logs have it.
func RequestID(resp *http.Response) string {
	id := resp.Header.Get(requestID)
	if id == "" && resp.Request != nil {
		id = resp.Request.Header.Get(requestID)
	}
	return printable(id, 64)
}

// harmless are the headers that any host may see.
var harmless = []string{"User-Agent", "Accept", "Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since"}

func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return errors.New("redirected to an address that is neither http:// nor https://")
	}
	home := origin(via[0].URL)
	if origin(req.URL) == home && !slices.ContainsFunc(via, func(r *http.Request) bool { return origin(r.URL) != home }) {
		return nil
	}
	for name := range req.Header {
		if !slices.Contains(harmless, name) {
			req.Header.Del(name)
		}
	}
	return nil
}

// origin is scheme, host and port.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port
}

// SameOrigin says whether two URLs have the same scheme, host and port.
func SameOrigin(a, b *url.URL) bool { return origin(a) == origin(b) }

// proxies finds the proxy of a request by the job's variables.
func proxies(value func(string) string) (func(*http.Request) (*url.URL, error), error) {
	if value == nil {
		return nil, nil
	}
	var config httpproxy.Config
	for name, to := range map[string]*string{"HTTP_PROXY": &config.HTTPProxy, "HTTPS_PROXY": &config.HTTPSProxy, "NO_PROXY": &config.NoProxy} {
		if *to = value(name); *to == "" {
			name = strings.ToLower(name)
			*to = value(name)
		}
		if to != &config.NoProxy && *to != "" && !isProxy(*to) { // the value may hold a password
			return nil, fmt.Errorf("the job's variable %s is not the address of a proxy: give it as in http://proxy.example.com:3128", name)
		}
	}
	find := config.ProxyFunc()
	return func(req *http.Request) (*url.URL, error) { return find(req.URL) }, nil
}

// isProxy says whether httpproxy would understand an address; it ignores others.
func isProxy(address string) bool {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5" && u.Scheme != "socks5h" {
		u, err = url.Parse("http://" + address)
	}
	return err == nil && u.Hostname() != ""
}
