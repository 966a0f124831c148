package faults

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// upstream counts what has its effect and answers with the request's body.
type upstream struct{ effects atomic.Int64 }

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	u.effects.Add(1)
	if r.URL.Path == "/empty" {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("X-Upstream", "yes")
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, "you said %s", body)
}

type fixture struct {
	*GitLab
	behind *upstream
	client *http.Client
	t      *testing.T
}

func newFixture(t *testing.T) fixture {
	t.Helper()
	behind := &upstream{}
	g, err := NewGitLab(behind)
	require.NoError(t, err)
	// A connection per request: the transport would repeat a request on a connection that had been used before.
	transport := &http.Transport{DisableKeepAlives: true}
	t.Cleanup(func() {
		require.NoError(t, g.Close())
		transport.CloseIdleConnections()
	})
	return fixture{g, behind, &http.Client{Transport: transport, Timeout: time.Minute}, t}
}

// got is an answer, with as much of its body as could be read.
type got struct {
	code   int
	header http.Header
	body   string
}

func (f fixture) post(path, body string) (got, error) {
	f.t.Helper()
	resp, err := f.client.Post(f.URL()+path, "text/plain", strings.NewReader(body))
	if err != nil {
		return got{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return got{resp.StatusCode, resp.Header, string(b)}, err
}

func TestWhatNoRuleWantsPassesUnchanged(t *testing.T) {
	f := newFixture(t)
	f.Set(Rule{Match: func(r *http.Request) bool { return r.URL.Path == "/other" }, Fault: Fault{Kind: Reset}})
	g, err := f.post("/", "hello")
	require.NoError(t, err)
	require.Equal(t, 201, g.code)
	require.Equal(t, "yes", g.header.Get("X-Upstream"))
	require.Equal(t, "you said hello", g.body)
	require.Empty(t, f.Injected())
}

func TestFaultsBeforeAndAfterTheEffect(t *testing.T) {
	for _, c := range []struct {
		name  string
		path  string
		fault Fault
		check func(t *testing.T, g got, err error)
		// effects of one request, and whether its answer is lost
		effects int64
		lost    bool
	}{
		{name: "status", fault: Fault{Kind: Status, Code: 429, Header: http.Header{"Retry-After": {"7"}}}, check: func(t *testing.T, g got, err error) {
			require.NoError(t, err)
			require.Equal(t, 429, g.code)
			require.Equal(t, "7", g.header.Get("Retry-After"))
			require.JSONEq(t, `{"message":"429 Too Many Requests"}`, g.body)
		}},
		{name: "status after", fault: Fault{Kind: Status, AfterEffect: true}, effects: 1, lost: true, check: func(t *testing.T, g got, err error) {
			require.NoError(t, err)
			require.Equal(t, 500, g.code)
			require.Empty(t, g.header.Get("X-Upstream"))
		}},
		{name: "page", fault: Fault{Kind: HTML}, check: func(t *testing.T, g got, err error) {
			require.NoError(t, err)
			require.Equal(t, 200, g.code)
			require.Contains(t, g.header.Get("Content-Type"), "text/html")
			require.Contains(t, g.body, "<html>")
		}},
		{name: "reset", fault: Fault{Kind: Reset}, check: wasReset},
		{name: "lost answer", fault: Fault{Kind: Reset, AfterEffect: true}, effects: 1, lost: true, check: wasReset},
		{name: "truncated body", fault: Fault{Kind: Truncate}, effects: 1, lost: true, check: func(t *testing.T, g got, err error) {
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			require.Equal(t, 201, g.code)
			require.Equal(t, "you sai", g.body)
		}},
		{name: "truncated head", path: "empty", fault: Fault{Kind: Truncate}, effects: 1, lost: true, check: func(t *testing.T, _ got, err error) {
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		}},
		{name: "no answer for a while", fault: Fault{Kind: Hang, Wait: time.Millisecond}, check: func(t *testing.T, _ got, err error) {
			require.ErrorIs(t, err, io.EOF)
		}},
		{name: "delay", fault: Fault{Kind: Delay, Wait: time.Millisecond}, effects: 1, check: passed},
		{name: "delayed answer", fault: Fault{Kind: Delay, AfterEffect: true, Wait: time.Millisecond}, effects: 1, check: passed},
		{name: "slow", fault: Fault{Kind: Slow, BytesPerSecond: 1000}, effects: 1, check: passed},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t)
			var mu sync.Mutex
			var seen []Injection
			f.Observe(func(i Injection) {
				mu.Lock()
				defer mu.Unlock()
				seen = append(seen, i)
			})
			f.Set(Rule{Fault: c.fault, Times: 1})
			g, err := f.post("/"+c.path, "hello")
			c.check(t, g, err)
			require.Equal(t, c.effects, f.behind.effects.Load())
			require.Equal(t, map[Kind]int{c.fault.Kind: 1}, f.Injected())
			mu.Lock()
			require.Len(t, seen, 1)
			require.Equal(t, c.lost, seen[0].Lost())
			if c.lost && c.path == "" {
				require.Equal(t, 201, seen[0].Code)
				require.Equal(t, "you said hello", string(seen[0].Body))
			}
			mu.Unlock()

			g, err = f.post("/", "hello") // Times is used up
			passed(t, g, err)
		})
	}
}

func passed(t *testing.T, g got, err error) {
	t.Helper()
	require.NoError(t, err)
	require.Equal(t, 201, g.code)
	require.Equal(t, "yes", g.header.Get("X-Upstream"))
	require.Equal(t, "you said hello", g.body)
}

func wasReset(t *testing.T, _ got, err error) {
	t.Helper()
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestSlowBodiesTakeTheirTime(t *testing.T) {
	f := newFixture(t)
	f.Set(Rule{Fault: Fault{Kind: Slow, BytesPerSecond: 400}})
	began := time.Now()
	g, err := f.post("/", strings.Repeat("x", 100))
	require.NoError(t, err)
	require.Len(t, g.body, len("you said ")+100)
	require.GreaterOrEqual(t, time.Since(began), 500*time.Millisecond, "100 bytes there and 109 back")
}

func TestHangLastsUntilTheClientGoes(t *testing.T) {
	for _, after := range []bool{false, true} {
		f := newFixture(t)
		hung := make(chan struct{})
		f.Observe(func(Injection) { close(hung) })
		f.Set(Rule{Fault: Fault{Kind: Hang, AfterEffect: after}})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-hung
			cancel()
		}()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.URL(), strings.NewReader("hello"))
		require.NoError(t, err)
		_, err = f.client.Do(req) //nolint:bodyclose // there is no answer
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, after, f.behind.effects.Load() == 1)
		require.Eventually(t, func() bool { return f.Connections() == 0 }, time.Minute, time.Millisecond)
	}
}

func TestADelayedRequestOfAClientThatHasGoneHasNoEffect(t *testing.T) {
	f := newFixture(t)
	delayed := make(chan struct{})
	f.Observe(func(Injection) { close(delayed) })
	f.Set(Rule{Fault: Fault{Kind: Delay, Wait: time.Hour}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-delayed
		cancel()
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.URL(), strings.NewReader("hello"))
	require.NoError(t, err)
	_, err = f.client.Do(req) //nolint:bodyclose // there is no answer
	require.ErrorIs(t, err, context.Canceled)
	require.Eventually(t, func() bool { return f.Connections() == 0 }, time.Minute, time.Millisecond)
	require.Zero(t, f.behind.effects.Load())
}

func TestCloseEndsHungRequests(t *testing.T) {
	f := newFixture(t)
	hung := make(chan struct{})
	f.Observe(func(Injection) { close(hung) })
	f.Set(Rule{Fault: Fault{Kind: Hang}})
	closed := make(chan error, 1)
	go func() {
		<-hung
		closed <- f.Close()
	}()
	_, err := f.post("/", "hello")
	require.Error(t, err)
	require.NoError(t, <-closed)
}

func TestTheFirstRuleThatHasTheChanceWins(t *testing.T) {
	f := newFixture(t)
	chances := 0
	f.Set(
		Rule{Fault: Fault{Kind: Status, Code: 502}, Chance: func() bool { chances++; return chances == 2 }},
		Rule{Fault: Fault{Kind: Status, Code: 503}, Times: 2},
	)
	var codes []int
	for range 4 {
		g, err := f.post("/", "hello")
		require.NoError(t, err)
		codes = append(codes, g.code)
	}
	require.Equal(t, []int{503, 502, 503, 201}, codes)
	f.Set()
	_, err := f.post("/", "hello")
	require.NoError(t, err)
	require.Equal(t, 4, chances, "replaced rules are not asked")
	require.Equal(t, map[Kind]int{Status: 3}, f.Injected())
}
