package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// verifyEnv makes this test binary verify a runner at the address in it and end: proxies are read from a process's
// environment once.
const verifyEnv, verifyCAEnv = "CLIENT_TEST_VERIFY", "CLIENT_TEST_CA"

func verifyAndExit(url string) {
	c, err := New(Options{URL: url, CA: []byte(os.Getenv(verifyCAEnv))})
	if err == nil {
		var answer *runnerapi.VerifyResponse
		if answer, err = c.Verify(context.Background(), runnerapi.VerifyRequest{Token: runnerToken}); err == nil {
			_, _ = fmt.Fprintln(os.Stdout, "id", answer.ID)
		}
		c.Close()
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stdout, "error:", err)
	}
	os.Exit(0)
}

// verifyWith runs it with an environment of proxies and returns what it printed.
func verifyWith(t *testing.T, url, ca string, proxies ...string) string {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(proxies, verifyEnv+"="+url, verifyCAEnv+"="+ca)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return strings.TrimSpace(string(out))
}

// proxyServer is a proxy for http and, by CONNECT, for https. It takes every name for the servers of the test.
type proxyServer struct {
	*httptest.Server
	plain, secure string       // addresses of the two servers
	refuse        atomic.Int64 // answer all with this status

	mu   sync.Mutex
	seen []string
}

func newProxy(t *testing.T, plain, secure string) *proxyServer {
	p := &proxyServer{plain: plain, secure: secure}
	p.Server = httptest.NewServer(http.HandlerFunc(p.serve))
	t.Cleanup(p.Close)
	return p
}

func (p *proxyServer) serve(w http.ResponseWriter, r *http.Request) {
	user, password, _ := (&http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}).BasicAuth()
	p.mu.Lock()
	p.seen = append(p.seen, strings.TrimSpace(r.Method+" "+r.RequestURI+" "+user+" "+password))
	p.mu.Unlock()
	switch {
	case p.refuse.Load() != 0:
		w.WriteHeader(int(p.refuse.Load()))
	case r.Method == http.MethodConnect:
		p.connect(w)
	default:
		out := r.Clone(r.Context())
		out.URL.Host, out.RequestURI = p.plain, ""
		out.Header.Del("Proxy-Authorization")
		res, err := http.DefaultTransport.RoundTrip(out)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer func() { _ = res.Body.Close() }()
		w.WriteHeader(res.StatusCode)
		_, _ = io.Copy(w, res.Body)
	}
}

func (p *proxyServer) connect(w http.ResponseWriter) {
	up, err := net.Dial("tcp", p.secure)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer func() { _ = up.Close() }()
	w.WriteHeader(http.StatusOK)
	down, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(up, buffered)
		_ = up.Close()
		close(done)
	}()
	_, _ = io.Copy(down, up)
	_ = down.Close()
	<-done
}

func (p *proxyServer) requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() { p.seen = nil }()
	return p.seen
}

func TestProxiesOfTheEnvironment(t *testing.T) {
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	gitlab := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != "" || r.URL.Path != "/api/v4/runners/verify" {
			w.WriteHeader(http.StatusTeapot)
		}
		_, _ = io.WriteString(w, `{"id":7,"token":"x"}`)
	})
	plain := httptest.NewServer(gitlab)
	defer plain.Close()
	ca := newAuthority(t, "private")
	var cert atomic.Pointer[tls.Certificate]
	leaf := ca.server("gitlab.example.test")
	cert.Store(&leaf)
	secureURL := serveTLS(t, &cert, nil, gitlab)
	secure := strings.TrimPrefix(secureURL, "https://")
	p := newProxy(t, plain.Listener.Addr().String(), secure)
	with := strings.Replace(p.URL, "http://", "http://user:hunter2@", 1)
	_, plainPort, err := net.SplitHostPort(plain.Listener.Addr().String())
	require.NoError(t, err)
	everywhere := "http://0.0.0.0:" + plainPort // this host, and no loopback address, which never goes by a proxy

	const verify = " http://gitlab.example.test/api/v4/runners/verify"
	for name, test := range map[string]struct {
		url     string
		env     []string
		printed string
		seen    []string
	}{
		"http":                     {"http://gitlab.example.test", []string{"HTTP_PROXY=" + p.URL}, "id 7", []string{"POST" + verify}},
		"http, lower case":         {"http://gitlab.example.test", []string{"http_proxy=" + with}, "id 7", []string{"POST" + verify + " user hunter2"}},
		"https":                    {"https://gitlab.example.test", []string{"HTTPS_PROXY=" + p.URL}, "id 7", []string{"CONNECT gitlab.example.test:443"}},
		"https, with a password":   {"https://gitlab.example.test", []string{"https_proxy=" + with}, "id 7", []string{"CONNECT gitlab.example.test:443 user hunter2"}},
		"another port":             {"https://gitlab.example.test:8443", []string{"HTTPS_PROXY=" + p.URL}, "id 7", []string{"CONNECT gitlab.example.test:8443"}},
		"by proxy":                 {everywhere, []string{"HTTP_PROXY=" + p.URL}, "id 7", []string{"POST " + everywhere + "/api/v4/runners/verify"}},
		"not by proxy":             {everywhere, []string{"HTTP_PROXY=" + p.URL, "NO_PROXY=example.com,0.0.0.0"}, "id 7", nil},
		"not by proxy, a net":      {everywhere, []string{"HTTP_PROXY=" + p.URL, "no_proxy=0.0.0.0/8"}, "id 7", nil},
		"no proxy":                 {everywhere, nil, "id 7", nil},
		"a proxy that is wrong":    {"https://gitlab.example.test", []string{"HTTPS_PROXY=http://user:hunter2@%zz"}, "HTTPS_PROXY in the environment is not the address of a proxy; write it like", nil},
		"no kind of proxy":         {"http://gitlab.example.test", []string{"http_proxy=ftp://user:hunter2@x"}, "http_proxy in the environment begins with ftp://", nil},
		"a wrong proxy for others": {everywhere, []string{"HTTPS_PROXY=http://%zz"}, "id 7", nil},
		"a proxy that is down":     {"https://gitlab.example.test", []string{"HTTPS_PROXY=http://user:hunter2@127.0.0.1:1"}, "connection refused", nil},
	} {
		t.Run(name, func(t *testing.T) {
			printed := verifyWith(t, test.url, string(ca.pem), test.env...)
			require.Contains(t, printed, test.printed)
			require.NotContains(t, printed, "hunter2")
			require.Equal(t, test.seen, p.requests())
		})
	}

	t.Run("a proxy that refuses", func(t *testing.T) {
		p.refuse.Store(http.StatusProxyAuthRequired)
		printed := verifyWith(t, "https://gitlab.example.test", string(ca.pem), "HTTPS_PROXY="+with)
		require.Contains(t, printed, "Proxy Authentication Required")
		require.NotContains(t, printed, "hunter2")
		require.NotEmpty(t, p.requests())
	})
}
