package faults

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Kind is what goes wrong with a request.
type Kind string

// What can go wrong.
const (
	Status   Kind = "status"   // the answer is Fault.Code with Fault.Header
	HTML     Kind = "html"     // the answer is a page, as of a proxy or a login
	Reset    Kind = "reset"    // the connection is reset (RST) without an answer
	Truncate Kind = "truncate" // the connection ends within the body; within the head if there is no body
	Delay    Kind = "delay"    // Fault.Wait passes, nothing else is wrong
	Slow     Kind = "slow"     // both bodies go at Fault.BytesPerSecond
	Hang     Kind = "hang"     // there is no answer: the connection ends after Fault.Wait, or when the client goes or the proxy is closed
)

// Fault is one way to spoil a request.
type Fault struct {
	Kind Kind
	// AfterEffect forwards the request first, so that it has its effect, and spoils what comes back: Reset with
	// AfterEffect is the lost answer. Truncate and Slow always forward.
	AfterEffect bool
	Code        int           // of Status, 0 is 500; of HTML, 0 is 200
	Header      http.Header   // further headers of Status and HTML: Retry-After, RateLimit-ResetTime
	Wait        time.Duration // of Delay; of Hang, 0 is for ever
	// BytesPerSecond is the speed of Slow, in each direction; at least 1.
	BytesPerSecond int
}

// Rule says which requests a fault happens to.
type Rule struct {
	Match  func(*http.Request) bool // nil matches all; it must not read the body
	Fault  Fault
	Times  int         // how often at most; 0 is always
	Chance func() bool // asked for each request that matches; nil is always
}

// Injection is a fault that happened.
type Injection struct {
	Fault   Fault
	Request *http.Request // its body has been read or dropped
	// Code is how the GitLab behind answered, 0 if it was not asked.
	Code int
	// Body is the begin of that answer, at most 64 KiB, if the fault kept the answer from the client (Reset, Status, HTML
	// and Hang after the effect, Truncate).
	Body []byte
}

// Lost says that the request had its effect and the client did not get the answer.
func (i Injection) Lost() bool {
	return i.Code != 0 && i.Fault.Kind != Delay && i.Fault.Kind != Slow
}

// GitLab is a reverse proxy on a loopback address that spoils requests by rules. Requests that no rule wants pass
// unchanged. It is safe for concurrent use. Make one with [NewGitLab], end it with Close.
type GitLab struct {
	upstream http.Handler
	server   *http.Server
	url      string
	cancel   context.CancelFunc
	serving  sync.WaitGroup // the listener's goroutine
	open     atomic.Int64   // connections

	mu       sync.Mutex
	rules    []*Rule
	used     map[*Rule]int
	counts   map[Kind]int
	observer func(Injection)
	handlers sync.WaitGroup // guarded by closed
	closed   bool
}

// NewGitLab starts a proxy in front of a handler (coordinator.Handler, httputil.ReverseProxy) on a free port.
func NewGitLab(upstream http.Handler) (*GitLab, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for GitLab's proxy: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g := &GitLab{
		upstream: upstream, url: "http://" + l.Addr().String(), cancel: cancel,
		used: map[*Rule]int{}, counts: map[Kind]int{},
	}
	g.server = &http.Server{
		Handler: http.HandlerFunc(g.serve), ReadHeaderTimeout: time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				g.open.Add(1)
			case http.StateClosed, http.StateHijacked:
				g.open.Add(-1)
			default:
			}
		},
	}
	g.serving.Go(func() { _ = g.server.Serve(l) })
	return g, nil
}

// URL is where the proxy listens, without a path.
func (g *GitLab) URL() string { return g.url }

// Set replaces all rules at once; the first rule that wants a request has it. Requests under way keep their fault.
func (g *GitLab) Set(rules ...Rule) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rules = make([]*Rule, len(rules))
	for i := range rules {
		g.rules[i] = &rules[i]
	}
	clear(g.used)
}

// Observe lets f hear of every fault when its effect is done and before the client can notice. It is called concurrently.
func (g *GitLab) Observe(f func(Injection)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.observer = f
}

// Injected counts the faults that happened.
func (g *GitLab) Injected() map[Kind]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.counts)
}

// Connections is how many clients' connections are open. After a client has been killed and they are none, none of its
// requests will have an effect any more.
func (g *GitLab) Connections() int { return int(g.open.Load()) }

// Close ends all connections and waits until the last request has left the GitLab behind.
func (g *GitLab) Close() error {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel()
	err := g.server.Close()
	g.serving.Wait()
	g.handlers.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close GitLab's proxy: %w", err)
	}
	return nil
}

// choose returns the fault of a request, or false.
func (g *GitLab) choose(r *http.Request) (Fault, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, rule := range g.rules {
		if rule.Times > 0 && g.used[rule] >= rule.Times || rule.Match != nil && !rule.Match(r) || rule.Chance != nil && !rule.Chance() {
			continue
		}
		g.used[rule]++
		g.counts[rule.Fault.Kind]++
		return rule.Fault, true
	}
	return Fault{}, false
}

func (g *GitLab) serve(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	g.handlers.Add(1)
	g.mu.Unlock()
	defer g.handlers.Done()
	fault, ok := g.choose(r)
	if !ok {
		g.upstream.ServeHTTP(w, r)
		return
	}
	g.spoil(w, r, fault)
}

func (g *GitLab) spoil(w http.ResponseWriter, r *http.Request, f Fault) {
	injection := Injection{Fault: f, Request: r}
	var a *answer
	switch {
	case f.Kind == Slow:
		g.observe(injection)
		slow := &throttle{ctx: r.Context(), rate: max(f.BytesPerSecond, 1)}
		r.Body = slow.reader(r.Body)
		g.upstream.ServeHTTP(slow.writer(w), r)
		return
	case f.AfterEffect || f.Kind == Truncate:
		a = &answer{header: http.Header{}}
		g.upstream.ServeHTTP(a, r)
		a.WriteHeader(http.StatusOK) // unless it has said something else
		injection.Code = a.code
		if injection.Lost() {
			injection.Body = a.body[:min(len(a.body), 64<<10)]
		}
	}
	g.observe(injection)
	if f.Kind == Hang || f.Kind == Delay {
		if err := readBody(r); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	switch f.Kind {
	case Reset:
		reset(w)
	case Truncate:
		truncate(w, a)
	case HTML:
		page(w, f)
	case Hang:
		if f.Wait > 0 {
			wait(r.Context(), f.Wait)
		} else {
			<-r.Context().Done()
		}
		panic(http.ErrAbortHandler)
	case Delay:
		wait(r.Context(), f.Wait)
		if a != nil {
			a.send(w)
			return
		}
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler) // nobody waits for it any more
		}
		g.upstream.ServeHTTP(w, r)
	default:
		status(w, f)
	}
}

func (g *GitLab) observe(i Injection) {
	g.mu.Lock()
	f := g.observer
	g.mu.Unlock()
	if f != nil {
		f(i)
	}
}
