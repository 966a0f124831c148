package client

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/breaker"
)

// serveBreaking starts a server whose handler can be exchanged, and a client whose breaker opens after three failures and
// stays open for an hour unless first says otherwise.
func serveBreaking(t *testing.T, first time.Duration, handler http.HandlerFunc) (*Client, *atomic.Value, *atomic.Int64) {
	t.Helper()
	var current atomic.Value
	current.Store(handler)
	requests := new(atomic.Int64)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		current.Load().(http.HandlerFunc)(w, r)
	}))
	t.Cleanup(server.Close)
	c, err := New(Options{URL: server.URL, Breaker: breaker.Settings{Failures: 3, Span: 1, First: first, Most: first}})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c, &current, requests
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func hijack(write string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_, _ = conn.Write([]byte(write))
			_ = conn.Close()
		}
	}
}

// each makes every kind of request once.
func each(ctx context.Context, c *Client) []error {
	_, claim := c.RequestJob(ctx, jobRequest(), LaneClaim)
	_, watch := c.RequestJob(ctx, jobRequest(), LaneWatch)
	_, verify := c.Verify(ctx, runnerapi.VerifyRequest{Token: runnerToken})
	_, update := c.UpdateJob(ctx, 1, runnerapi.UpdateRequest{Token: jobToken})
	_, patch := c.PatchTrace(ctx, 1, jobToken, 0, bytes.NewReader([]byte("x")), false)
	return []error{claim, watch, verify, update, patch}
}

func TestTroubleHoldsAllRequestsBack(t *testing.T) {
	for name, trouble := range map[string]http.HandlerFunc{
		"502": status(502),
		"503": status(503),
		"500 with a Retry-After": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusInternalServerError)
		},
		"HTML": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.WriteHeader(http.StatusNotFound)
		},
		"HTML without saying so": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte("<!DOCTYPE html><html>Sign in</html>"))
		},
		"reset":             hijack(""),
		"truncated header":  hijack("HTTP/1.1 204 No Con"),
		"truncated body":    hijack("HTTP/1.1 201 Created\r\nContent-Length: 1000\r\n\r\n{"),
		"truncated chunked": hijack("HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"id\""),
		"not HTTP":          hijack("SSH-2.0-OpenSSH_9.9\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			c, handler, requests := serveBreaking(t, time.Hour, trouble)
			for range 3 {
				_, err := c.RequestJob(t.Context(), jobRequest(), LaneClaim)
				require.Error(t, err)
				require.NotErrorAs(t, err, new(*breaker.OpenError))
			}
			sent := requests.Load()
			require.NotZero(t, c.Unreachable())
			handler.Store(status(http.StatusNoContent))
			for _, err := range each(t.Context(), c) {
				transport := new(TransportError)
				require.ErrorAs(t, err, &transport)
				require.ErrorAs(t, err, new(*breaker.OpenError))
				require.ErrorContains(t, err, "GitLab has failed since")
				require.ErrorContains(t, err, "/api/v4/")
			}
			require.Equal(t, sent, requests.Load(), "nothing is sent")
		})
	}
}

// nginx says "too large" and "too many" with a page.
func TestPagesOfProxiesThatAreMeant(t *testing.T) {
	for _, code := range []int{413, 429} {
		c, _, _ := serveBreaking(t, time.Hour, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(code)
			_, _ = w.Write([]byte("<html></html>"))
		})
		for range 4 {
			each(t.Context(), c)
		}
		require.Zero(t, c.Unreachable(), code)
	}
}

func TestRefusalsHoldNothingBack(t *testing.T) {
	for _, code := range []int{200, 202, 204, 400, 403, 404, 409, 410, 412, 416, 422, 429} {
		c, _, _ := serveBreaking(t, time.Hour, status(code))
		for range 4 {
			for _, err := range each(t.Context(), c) {
				require.NotErrorAs(t, err, new(*TransportError), "%d", code)
			}
		}
		require.Zero(t, c.Unreachable(), code)
	}
}

// Whoever gives a request up says nothing about GitLab, whoever waits in vain does.
func TestRequestsThatWereGivenUp(t *testing.T) {
	over := make(chan struct{})
	c, _, _ := serveBreaking(t, time.Hour, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-over:
		}
	})
	defer close(over)
	call := func(ctx context.Context, lane Lane) {
		t.Helper()
		_, err := c.RequestJob(ctx, jobRequest(), lane)
		require.Error(t, err)
	}
	for range 4 {
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		call(cancelled, LaneClaim)
		late, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		call(late, LaneWatch)
		cancel()
	}
	require.Zero(t, c.Unreachable())
	for range 3 {
		late, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		call(late, LaneClaim)
		cancel()
	}
	require.NotZero(t, c.Unreachable())
}

// An application that fails at one job works for the others; one that fails at all does not work.
func TestAnExceptionIsNotADeadGitLab(t *testing.T) {
	c, _, _ := serveBreaking(t, time.Hour, status(500))
	update := func(token string) {
		t.Helper()
		result, err := c.UpdateJob(t.Context(), 1, runnerapi.UpdateRequest{Token: token})
		require.NoError(t, err)
		require.Equal(t, 500, result.Code)
	}
	for range 20 {
		update("one job's")
	}
	require.Zero(t, c.Unreachable())
	update("another job's")
	require.NotZero(t, c.Unreachable())
}

func TestRecovery(t *testing.T) {
	c, handler, _ := serveBreaking(t, 10*time.Millisecond, status(503))
	recovered := c.Recovered()
	for range 3 {
		_, err := c.RequestJob(t.Context(), jobRequest(), LaneClaim)
		require.Error(t, err)
	}
	require.NotZero(t, c.Unreachable())
	handler.Store(status(http.StatusNoContent))
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		if _, err := c.RequestJob(ctx, jobRequest(), LaneClaim); err == nil {
			break
		}
		<-ticker.C
	}
	<-recovered
	require.Zero(t, c.Unreachable())
	for _, err := range each(t.Context(), c)[:2] {
		require.NoError(t, err)
	}
	select {
	case <-c.Recovered():
		require.Fail(t, "that is for the next time")
	default:
	}
}

// A GitLab that says "too many" is asked less often, never not at all.
func TestTooManyRequests(t *testing.T) {
	server := httptest.NewServer(status(http.StatusTooManyRequests))
	defer server.Close()
	c, err := New(Options{URL: server.URL, RequestsPerSecond: 2})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.RequestJob(t.Context(), jobRequest(), LaneClaim)
	require.ErrorContains(t, err, "429")
	_, err = c.RequestJob(t.Context(), jobRequest(), LaneClaim) // has its turn after a moment
	require.ErrorContains(t, err, "429")
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err = c.RequestJob(ctx, jobRequest(), LaneClaim)
	require.ErrorIs(t, err, context.DeadlineExceeded, "waiting for its turn ends with the context")
	require.Zero(t, c.Unreachable())
}

// One GitLab's trouble is its own.
func TestBreakersAreNotShared(t *testing.T) {
	bad, _, _ := serveBreaking(t, time.Hour, status(503))
	good, _, _ := serveBreaking(t, time.Hour, status(http.StatusNoContent))
	for range 10 {
		_, err := bad.RequestJob(t.Context(), jobRequest(), LaneClaim)
		require.Error(t, err)
		_, err = good.RequestJob(t.Context(), jobRequest(), LaneClaim)
		require.NoError(t, err)
	}
}
