package client

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/breaker"
)

const (
	// maxPayload is how long the JSON of a job may be.
	maxPayload = 32 << 20
	// maxAnswer is how much is read of any other answer.
	maxAnswer = 64 << 10
	// maxDrain is how much is thrown away to use a connection again; beyond that it is closed.
	maxDrain = 256 << 10
)

// request is one HTTP request before it is sent.
type request struct {
	lane        Lane
	timeout     time.Duration
	method      string
	path        string // below api/v4/
	query       string
	tokenHeader string
	token       string
	contentType string
	header      http.Header // of its own, owned by the request; may be nil
	json        bool        // a JSON answer is wanted
	rewind      func() (io.ReadCloser, error)
	length      int64
}

// response is an answer whose body is still to be read. It must be closed.
type response struct {
	*http.Response
	// took is the time from the call until the header was there.
	took   time.Duration
	req    *request
	url    string
	cancel context.CancelFunc
	pass   breaker.Pass
	gate   *gate
	broken error // why the answer shows that GitLab does not work, as far as it was read
	now    func() time.Time
}

// send sends a request and returns when the header of the answer is there. Its errors are *TransportError.
func (c *Client) send(ctx context.Context, r *request) (*response, error) {
	u := c.base
	u.Path += r.path
	printable := u.String()
	u.RawQuery = r.query
	if r.token == "" {
		return nil, &TransportError{Method: r.method, URL: printable, Err: errNoToken}
	}
	body, err := r.rewind()
	if err != nil {
		return nil, &TransportError{Method: r.method, URL: printable, Err: err}
	}
	pass, err := c.gate.enter(ctx, c.now())
	if err != nil {
		return nil, &TransportError{Method: r.method, URL: printable, Err: err}
	}
	called := ctx
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	header := r.header
	if header == nil {
		header = make(http.Header, 6)
	}
	header["User-Agent"] = []string{c.userAgent}
	header["X-Request-Id"] = []string{newRequestID()}
	header[r.tokenHeader] = []string{r.token}
	header["Content-Type"] = []string{r.contentType}
	if r.json {
		header["Accept"] = []string{"application/json"}
	}
	req := (&http.Request{
		Method:        r.method,
		URL:           &u,
		Host:          u.Host,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        header,
		Body:          body,
		GetBody:       r.rewind,
		ContentLength: r.length,
	}).WithContext(ctx)

	start := c.now()
	res, err := c.transport(r.lane).RoundTrip(req) //nolint:bodyclose // response.close does
	took := c.now().Sub(start)
	if err != nil {
		// What the context says is what happened; the transport's own text for it differs from version to version.
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w (%w)", cause, err)
		}
		c.gate.unanswered(called, r.lane, pass, start.Add(took), err)
		cancel()
		c.transportFailed()
		return nil, &TransportError{Method: r.method, URL: printable, Err: err, Hint: hintFor(err, c.base.Scheme)}
	}
	if c.logger.Enabled(ctx, slog.LevelDebug) {
		c.logger.LogAttrs(ctx, slog.LevelDebug, "gitlab request",
			slog.String("method", r.method), slog.String("path", r.path), slog.Int("code", res.StatusCode),
			slog.Duration("took", took), slog.String("request_id", requestID(req, res)))
	}
	return &response{Response: res, took: took, req: r, url: printable, cancel: cancel, pass: pass, gate: c.gate, now: c.now}, nil
}

// close reads a short rest so that the connection can be used again, and says what the answer tells about GitLab.
func (r *response) close() {
	switch now := r.now(); {
	case r.broken != nil:
		r.gate.failed(r.pass, now, breaker.Failure{}, r.broken)
	case r.StatusCode >= 500 || isHTML(r.Header) && !meantByProxy(r.StatusCode):
		f := breaker.Failure{Wait: retryAfter(r.Header, now)}
		if r.StatusCode == http.StatusInternalServerError && f.Wait == 0 && !isHTML(r.Header) {
			f.About = r.req.token // an exception of the application: GitLab is there
		}
		r.gate.failed(r.pass, now, f, fmt.Errorf("%s %s: %s", r.req.method, r.url, r.Status))
	default:
		r.gate.answered(r.pass, now, r.StatusCode)
	}
	if r.ContentLength != 0 {
		_, _ = io.CopyN(io.Discard, r.Body, maxDrain)
	}
	_ = r.Body.Close()
	r.cancel()
}

// read returns the whole body. An answer longer than limit is an error.
func (r *response) read(limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, r.readError(fmt.Errorf("the answer has %d bytes, more than the limit of %d", r.ContentLength, limit))
	}
	if r.ContentLength >= 0 {
		body := make([]byte, r.ContentLength)
		if n, err := io.ReadFull(r.Body, body); err != nil {
			return nil, r.readError(fmt.Errorf("the answer ended after %d of %d bytes: %w", n, len(body), err))
		}
		return body, nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, r.readError(fmt.Errorf("the answer ended after %d bytes: %w", len(body), err))
	}
	if int64(len(body)) > limit {
		return nil, r.readError(fmt.Errorf("the answer is longer than the limit of %d bytes", limit))
	}
	return body, nil
}

func (r *response) readError(err error) error {
	r.broken = err
	return &TransportError{Method: r.req.method, URL: r.url, Err: fmt.Errorf("read the %d answer: %w", r.StatusCode, err)}
}

// requestID is the correlation id under which GitLab logged the request: the answer's if it has one.
func requestID(req *http.Request, res *http.Response) string {
	if id := res.Header.Get(runnerapi.HeaderRequestID); id != "" {
		return limited(id, 128)
	}
	return req.Header.Get(runnerapi.HeaderRequestID)
}

// newRequestID returns a random UUID (version 4) without dashes. It need not be secret.
func newRequestID() string {
	var b [16]byte
	for i := range 2 {
		v := rand.Uint64()
		for j := range 8 {
			b[8*i+j] = byte(v >> (8 * j))
		}
	}
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return hex.EncodeToString(b[:])
}

// limited cuts a text from outside to one printable line of at most limit bytes.
func limited(s string, limit int) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "�")), " ")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}
