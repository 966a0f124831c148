package transfer

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTokensStayAtHome(t *testing.T) {
	foreign := newFileServer(t, []byte("data"))
	home := newFileServer(t, nil)
	home.before = func(w http.ResponseWriter, r *http.Request) bool {
		switch r.URL.Path {
		case "/away":
			http.Redirect(w, r, foreign.URL+"/file?signature=hidden", http.StatusFound)
		case "/round":
			http.Redirect(w, r, foreign.URL+"/back", http.StatusFound)
		case "/here":
			http.Redirect(w, r, "/there", http.StatusFound)
		default:
			_, _ = io.WriteString(w, "data")
		}
		return true
	}
	foreign.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/back" {
			http.Redirect(w, r, home.URL+"/there", http.StatusFound)
			return true
		}
		if r.Header.Get("Referer") != "" || r.Header.Get(requestID) != "" || r.Header.Get("User-Agent") != "switchyard test" {
			t.Errorf("another host sees %v", r.Header)
		}
		return false
	}
	for path, want := range map[string][2][]string{
		"/away":  {{"secret"}, {""}},
		"/round": {{"secret", ""}, {""}},
		"/here":  {{"secret", "secret"}, nil},
	} {
		home.tokens, foreign.tokens = nil, nil
		got, _, err := get(t, home.URL+path, nil)
		require.NoError(t, err)
		require.Equal(t, "data", string(got))
		require.Equal(t, want, [2][]string{home.tokens, foreign.tokens}, path)
	}
	home.before = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, "/again?signature=hidden", http.StatusFound)
		return true
	}
	_, _, err := get(t, home.URL, nil)
	require.ErrorContains(t, err, "more than 10 redirects")
	require.NotContains(t, err.Error(), "hidden")
	home.before = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Location", "file:///etc/passwd")
		w.WriteHeader(http.StatusFound)
		return true
	}
	_, _, err = get(t, home.URL, nil)
	require.ErrorContains(t, err, "neither http:// nor https://")
	home.before = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Location", "http://x/%zz?signature=hidden")
		w.WriteHeader(http.StatusFound)
		return true
	}
	_, _, err = get(t, home.URL, nil)
	require.ErrorContains(t, err, "redirected to an address that is no URL")
}

func TestOrigins(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"https://a", "https://A:443/x", true},
		{"http://a", "http://a:80", true},
		{"https://a", "http://a", false},
		{"https://a", "https://a:8443", false},
		{"https://a", "https://a.b", false},
		{"http://[::1]", "http://[::1]:80", true},
	} {
		a, err := url.Parse(c.a)
		require.NoError(t, err)
		b, err := url.Parse(c.b)
		require.NoError(t, err)
		require.Equal(t, c.same, SameOrigin(a, b), c)
	}
}

func TestCertificates(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "x") }))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer s.Close()
	do := func(o Options, url string) error {
		c := newClient(t, o)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		require.NoError(t, err)
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	require.NoError(t, do(Options{CA: ca}, s.URL))
	require.ErrorContains(t, do(Options{}, s.URL), "give the CA that signed")
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	require.ErrorContains(t, do(Options{}, strings.Replace(plain.URL, "http", "https", 1)), "is it http://?")
	_, err := New(Options{CA: "no certificate"})
	require.ErrorContains(t, err, "no certificate in PEM form")
}

func TestProxies(t *testing.T) {
	var seen []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Method+" "+r.URL.String()+" "+r.Host)
		if r.Method == http.MethodConnect {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = io.WriteString(w, "through the proxy")
	}))
	defer proxy.Close()
	t.Setenv("http_proxy", "http://127.0.0.1:1") // not this process's environment
	do := func(variables map[string]string, url string) (string, error) {
		c := newClient(t, Options{Value: func(k string) string { return variables[k] }})
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		require.NoError(t, err)
		resp, err := c.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	got, err := do(map[string]string{"http_proxy": proxy.URL}, "http://gitlab.test/x")
	require.NoError(t, err)
	require.Equal(t, "through the proxy", got)
	_, err = do(map[string]string{"HTTPS_PROXY": proxy.URL}, "https://gitlab.test/x")
	require.ErrorContains(t, err, "Forbidden")
	require.Equal(t, []string{"GET http://gitlab.test/x gitlab.test", "CONNECT //gitlab.test:443 gitlab.test:443"}, seen)
	_, err = New(Options{Value: func(k string) string { return map[string]string{"http_proxy": "http://user:pass%zz@x"}[k] }})
	require.ErrorContains(t, err, "http_proxy is not the address of a proxy")
	require.NotContains(t, err.Error(), "pass")
	_, err = do(map[string]string{"HTTP_PROXY": proxy.URL, "NO_PROXY": ".invalid"}, "http://gitlab.invalid/x")
	require.Error(t, err)
	require.Len(t, seen, 2)
}

func TestPatience(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		errs  []error
		calls int
		err   error
	}{
		"at once":        {[]error{nil}, 1, nil},
		"later":          {[]error{&Transient{Err: boom}, &Transient{Err: boom}, nil}, 3, nil},
		"never":          {[]error{&Transient{Err: boom}, &Transient{Err: boom}, &Transient{Err: boom}, nil}, 3, boom},
		"no use":         {[]error{boom, nil}, 1, boom},
		"more than that": {[]error{&Transient{Err: boom, Tries: 5}, &Transient{Err: boom, Tries: 5}, &Transient{Err: boom, Tries: 5}, &Transient{Err: boom, Tries: 5}, &Transient{Err: boom, Tries: 5}}, 5, boom},
		"mixed":          {[]error{&Transient{Err: boom, Tries: 5}, &Transient{Err: boom, Tries: 5}, &Transient{Err: boom}}, 3, boom},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			var pauses []time.Duration
			p := Patience{Tries: 3, Least: time.Second, Most: 3 * time.Second, Wait: func(_ context.Context, d time.Duration) error {
				pauses = append(pauses, d)
				return nil
			}}
			err := p.Do(t.Context(), nil, func(n int) error {
				require.Equal(t, calls, n)
				calls++
				return c.errs[n]
			})
			require.ErrorIs(t, err, c.err)
			require.Equal(t, c.calls, calls)
			require.Len(t, pauses, calls-1)
			for i, d := range pauses {
				most := min(time.Second<<i, 3*time.Second)
				require.LessOrEqual(t, d, most)
				require.Greater(t, d, most/2)
			}
		})
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	err := Patience{Tries: 9, Least: time.Hour, Most: time.Hour}.Do(ctx, func(error) { cancel(boom) }, func(int) error { return &Transient{Err: io.EOF} })
	require.ErrorIs(t, err, boom)
	var pause time.Duration
	p := Patience{Tries: 2, Least: time.Second, Wait: func(_ context.Context, d time.Duration) error { pause = d; return nil }}
	require.ErrorIs(t, p.Do(t.Context(), nil, func(int) error { return &Transient{Err: boom, After: time.Minute} }), boom)
	require.Equal(t, time.Minute, pause)
}

func TestRetryAfter(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": 0, "x": 0, "-1": 0, "7": 7 * time.Second, "86400": time.Minute, "Wed, 21 Oct 2015 07:28:10 GMT": 10 * time.Second, "Wed, 21 Oct 2015 07:27:00 GMT": 0,
	} {
		require.Equal(t, want, retryAfter(http.Header{"Retry-After": {value}, "Date": {"Wed, 21 Oct 2015 07:28:00 GMT"}}), value)
	}
}

func TestMeter(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.00 KB", 1_500_000: "1.50 MB", 9_876_543_210: "9.88 GB"} {
		require.Equal(t, want, size(n))
	}
	require.Equal(t, "2.5 MB/s", rate(5_000_000, 2*time.Second))
	for value, want := range map[string]time.Duration{"": 0, "0": 0, "0s": 0, "-3s": 0, "100ms": time.Second, "1m30s": 90 * time.Second} {
		d, ok := Frequency(value)
		require.True(t, ok, value)
		require.Equal(t, want, d, value)
	}
	_, ok := Frequency("often")
	require.False(t, ok)
	require.Nil(t, StartMeter("x", 0, 0, nil))
	var none *Meter
	none.Add(5)
	none.Stop()

	var lines []string
	m := StartMeter("Uploading cache", 2_000_000, time.Hour, func(text string) { lines = append(lines, text) })
	_, err := io.Copy(io.Discard, m.Reader(bytes.NewReader(make([]byte, 1_500_000))))
	require.NoError(t, err)
	m.Stop()
	require.Len(t, lines, 2)
	require.True(t, strings.HasPrefix(lines[1], "\rUploading cache 1.50 MB/2.00 MB ("), lines[1])
	require.True(t, strings.HasSuffix(lines[1], "B/s)                \n"), lines[1])
}

func TestCleanURL(t *testing.T) {
	require.Equal(t, "https://h:1/a%20b", CleanURL("https://u:p@h:1/a%20b?q=1#f"))
	require.Equal(t, "an address that is no URL", CleanURL("http://h/%zz"))
}
