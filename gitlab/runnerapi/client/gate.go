package client

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/breaker"
)

// DefaultRequestsPerSecond is far above what a healthy fleet sends: a last line against a mistake of our own.
const DefaultRequestsPerSecond = 1000

// gate is what all requests to one GitLab pass: they are held back while it does not work, and slowed down when it says
// that there are too many.
type gate struct {
	logger *slog.Logger
	url    string

	mu        sync.Mutex
	breaker   *breaker.Breaker
	pace      *breaker.Pace
	recovered chan struct{} // closed at the next recovery
}

func newGate(o Options, url string, now time.Time, logger *slog.Logger) *gate {
	perSecond := o.RequestsPerSecond
	if perSecond <= 0 {
		perSecond = DefaultRequestsPerSecond
	}
	return &gate{
		logger: logger, url: url, recovered: make(chan struct{}),
		breaker: breaker.New(o.Breaker, rand.Float64), pace: breaker.NewPace(perSecond, now),
	}
}

// enter waits for the request's turn. The error says that it must not be sent.
func (g *gate) enter(ctx context.Context, now time.Time) (breaker.Pass, error) {
	g.mu.Lock()
	pass, err := g.breaker.Ask(now)
	var wait time.Duration
	if err == nil {
		wait = g.pace.Wait(now)
	}
	g.mu.Unlock()
	if err != nil || wait <= 0 {
		return pass, err
	}
	turn := time.NewTimer(wait)
	defer turn.Stop()
	select {
	case <-turn.C:
		return pass, nil
	case <-ctx.Done():
		g.mu.Lock()
		g.pace.Back()
		g.breaker.Dropped(now.Add(wait), pass)
		g.mu.Unlock()
		return pass, context.Cause(ctx)
	}
}

// unanswered notes that no answer came. Whoever gave a request up tells nothing about GitLab, and neither does a watch
// that lasts longer than it may.
func (g *gate) unanswered(ctx context.Context, lane Lane, pass breaker.Pass, now time.Time, err error) {
	if ended := ctx.Err(); errors.Is(ended, context.Canceled) || ended != nil && lane == LaneWatch {
		g.mu.Lock()
		g.breaker.Dropped(now, pass)
		g.mu.Unlock()
		return
	}
	g.failed(pass, now, breaker.Failure{}, err)
}

func (g *gate) failed(pass breaker.Pass, now time.Time, f breaker.Failure, err error) {
	g.mu.Lock()
	opened := g.breaker.Failed(now, pass, f)
	open, _ := g.breaker.Open()
	g.mu.Unlock()
	if opened {
		g.logger.Warn("GitLab does not work; no more requests than one at a time are sent until it does",
			"gitlab", g.url, "since", open.Since, "next", open.Until, "error", err)
	}
}

func (g *gate) answered(pass breaker.Pass, now time.Time, code int) {
	g.mu.Lock()
	open, _ := g.breaker.Open()
	again := g.breaker.Answered(pass)
	if again {
		close(g.recovered)
		g.recovered = make(chan struct{})
	}
	if code == http.StatusTooManyRequests {
		g.pace.TooMany(now)
	}
	g.mu.Unlock()
	if again {
		g.logger.Info("GitLab works again", "gitlab", g.url, "after", now.Sub(open.Since).Round(time.Millisecond))
	}
}

// Recovered returns a channel that is closed when GitLab next works again after requests were held back. Whoever waits
// after a failure need not wait longer than until then.
func (c *Client) Recovered() <-chan struct{} {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	return c.gate.recovered
}

// Unreachable returns since when requests are held back because GitLab does not work; zero: they are not.
func (c *Client) Unreachable() time.Time {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	if open, is := c.gate.breaker.Open(); is {
		return open.Since
	}
	return time.Time{}
}
