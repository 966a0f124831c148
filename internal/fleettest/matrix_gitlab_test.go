//go:build linux

package fleettest

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/faults"
)

// maxHeldBody is how much of a request is read to find out whether it is held.
const maxHeldBody = 1 << 20

// holds stands before the embedded GitLab and stops single requests, so that a job stays where it is.
type holds struct {
	next http.Handler
	mu   sync.Mutex
	list []*hold
}

// hold is for the first request that it wants.
type hold struct {
	wants func(method, path, body string) bool
	// answer: the request has its effect before it is held, and is held only if GitLab answers with this code. 0: it is
	// held before GitLab hears of it.
	answer int

	arrived chan struct{} // closed when a request is held
	let     chan bool     // true: it goes on; false: its connection ends
}

// hold begins to wait for a request.
func (h *holds) hold(answer int, wants func(method, path, body string) bool) *hold {
	one := &hold{wants: wants, answer: answer, arrived: make(chan struct{}), let: make(chan bool, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list, one)
	return one
}

// take returns the hold that wants a request, which from now on wants no other. answer is 0 before GitLab hears of it.
func (h *holds) take(r *http.Request, body string, answer int) *hold {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, one := range h.list {
		if one.answer == answer && one.wants(r.Method, r.URL.Path, body) {
			h.list = append(h.list[:i:i], h.list[i+1:]...)
			return one
		}
	}
	return nil
}

func (h *holds) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body []byte
	if !strings.HasSuffix(r.URL.Path, "/artifacts") {
		var err error
		if body, err = io.ReadAll(io.LimitReader(r.Body, maxHeldBody)); err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), r.Body))
	}
	h.pass(r, string(body), 0)
	h.next.ServeHTTP(&answering{ResponseWriter: w, about: func(code int) { h.pass(r, string(body), code) }}, r)
}

// pass waits as long as a hold that wants the request says.
func (h *holds) pass(r *http.Request, body string, answer int) {
	one := h.take(r, body, answer)
	if one == nil {
		return
	}
	close(one.arrived)
	select {
	case on := <-one.let:
		if !on {
			panic(http.ErrAbortHandler)
		}
	case <-r.Context().Done():
		panic(http.ErrAbortHandler)
	}
}

// answering asks before an answer goes out: also for a request that was waiting at GitLab before anyone wanted it held.
type answering struct {
	http.ResponseWriter
	about func(code int)
	begun bool
}

func (a *answering) WriteHeader(code int) {
	if !a.begun && code >= http.StatusOK {
		a.begun = true
		a.about(code)
	}
	a.ResponseWriter.WriteHeader(code)
}

func (a *answering) Write(b []byte) (int, error) {
	if !a.begun {
		a.WriteHeader(http.StatusOK)
	}
	return a.ResponseWriter.Write(b)
}

func (a *answering) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// Requests that the phases of a job wait for.

func claims(method, path, _ string) bool {
	return method == http.MethodPost && strings.HasSuffix(path, "/jobs/request")
}

func starts(method, _, body string) bool {
	return method == http.MethodPut && strings.Contains(body, `"state":"running"`)
}

func results(method, _, body string) bool {
	return method == http.MethodPut && (strings.Contains(body, `"state":"success"`) || strings.Contains(body, `"state":"failed"`))
}

func uploads(method, path, _ string) bool {
	return method == http.MethodPost && strings.HasSuffix(path, "/artifacts")
}

// door is where control plane and jobs find GitLab. While it is shut connections are refused.
type door struct {
	t       testing.TB
	address string
	behind  string // host:port

	listener net.Listener
	carrying sync.WaitGroup
	mu       sync.Mutex
	closed   bool
	conns    map[net.Conn]struct{}
}

// newDoor opens a door on a loopback address that nobody else uses, so that the port is still free when it is opened again.
func newDoor(t testing.TB, ip string, behind *faults.GitLab) *door {
	t.Helper()
	d := &door{t: t, address: net.JoinHostPort(ip, "0"), behind: strings.TrimPrefix(behind.URL(), "http://")}
	d.open()
	return d
}

func (d *door) open() {
	d.t.Helper()
	var err error
	d.listener, err = new(net.ListenConfig).Listen(context.Background(), "tcp", d.address)
	require.NoError(d.t, err)
	d.address, d.closed, d.conns = d.listener.Addr().String(), false, map[net.Conn]struct{}{}
	d.carrying.Go(func() {
		for {
			conn, err := d.listener.Accept()
			if err != nil {
				return
			}
			d.carrying.Go(func() { d.carry(conn) })
		}
	})
}

func (d *door) carry(conn net.Conn) {
	defer d.end(conn)
	gitlab, err := new(net.Dialer).DialContext(context.Background(), "tcp", d.behind)
	if err != nil {
		return
	}
	defer d.end(gitlab)
	if !d.enter(conn) || !d.enter(gitlab) {
		return
	}
	d.carrying.Go(func() {
		_, _ = io.Copy(gitlab, conn)
		d.end(gitlab)
	})
	_, _ = io.Copy(conn, gitlab)
}

// enter counts a connection in; false: the door is shut.
func (d *door) enter(conn net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns[conn] = struct{}{}
	return !d.closed
}

func (d *door) end(conn net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = conn.Close()
	delete(d.conns, conn)
}

// shut refuses connections and ends those that there are.
func (d *door) shut() {
	_ = d.listener.Close()
	d.mu.Lock()
	d.closed = true
	for conn := range d.conns {
		_ = conn.Close()
	}
	d.mu.Unlock()
	d.carrying.Wait()
}

func (d *door) url() string { return "http://" + d.address }
