package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(verifyEnv); url != "" {
		verifyAndExit(url)
	}
	goleak.VerifyTestMain(m)
}

const (
	runnerToken = "glrt-very-secret"
	jobToken    = "glcbt-just-as-secret"
)

// serve starts a server and a client of it.
func serve(t testing.TB, handler http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	c, err := New(Options{URL: server.URL})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func jobRequest() runnerapi.JobRequest {
	return runnerapi.JobRequest{
		Info:  runnerapi.Info{Name: "switchyard", Features: runnerapi.Features{Masking: true}},
		Token: runnerToken, SystemID: "r_abcdefghijkl", LastUpdate: "value",
	}
}

func TestURL(t *testing.T) {
	for raw, base := range map[string]string{
		"https://gitlab.example.com":         "https://gitlab.example.com/api/v4/",
		"https://gitlab.example.com///":      "https://gitlab.example.com/api/v4/",
		"http://gitlab.example.com:8080/ci":  "http://gitlab.example.com:8080/api/v4/",
		"http://gitlab.example.com/ci/":      "http://gitlab.example.com/api/v4/",
		"https://example.com/gitlab":         "https://example.com/gitlab/api/v4/",
		"https://example.com/gitlab/ci":      "https://example.com/gitlab/api/v4/",
		"https://example.com/a%20b":          "https://example.com/a%20b/api/v4/",
		"http://[::1]:8080":                  "http://[::1]:8080/api/v4/",
		"HTTPS://gitlab.example.com/my/ci/x": "https://gitlab.example.com/my/ci/x/api/v4/",
	} {
		c, err := New(Options{URL: raw})
		require.NoError(t, err, raw)
		require.Equal(t, base, c.base.String())
		require.Equal(t, strings.TrimSuffix(base, "/api/v4/"), c.URL())
	}
	for raw, message := range map[string]string{
		"":                               "is empty; give the address of GitLab",
		"gitlab.example.com":             "must begin with https:// or http://",
		"ftp://gitlab.example.com":       "must begin with https:// or http://",
		"https://":                       "names no host",
		"https://:443":                   "names no host",
		"https://u:hunter2@gitlab":       "must not carry a user or a password",
		"https://u:hunter2@gitlab:port/": "is not a URL",
		"https://gitlab?x=1":             "without ? and #",
		"https://gitlab#x":               "without ? and #",
		"https://git lab":                "is not a URL",
	} {
		_, err := New(Options{URL: raw})
		require.ErrorContains(t, err, message, raw)
		require.NotContains(t, err.Error(), "hunter2")
	}
}

func TestRequestJobSendsWhatGitLabExpects(t *testing.T) {
	var ids sync.Map
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/api/v4/jobs/request" || r.URL.RawQuery != "" {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		for header, want := range map[string]string{
			"Runner-Token": runnerToken, "Content-Type": "application/json", "Accept": "application/json",
		} {
			if got := r.Header.Get(header); got != want {
				t.Errorf("%s: %q", header, got)
			}
		}
		if !strings.HasPrefix(r.Header.Get("User-Agent"), "switchyard (go") {
			t.Errorf("User-Agent: %q", r.Header.Get("User-Agent"))
		}
		id := r.Header.Get("X-Request-Id")
		if _, twice := ids.LoadOrStore(id, true); twice || len(id) != 32 || id[12] != '4' || !strings.ContainsRune("89ab", rune(id[16])) {
			t.Errorf("X-Request-Id: %q", id)
		}
		body, _ := io.ReadAll(r.Body)
		var got runnerapi.JobRequest
		if err := json.Unmarshal(body, &got); err != nil || int64(len(body)) != r.ContentLength {
			t.Errorf("body: %v, %d of %d bytes", err, len(body), r.ContentLength)
		}
		if got.Token != runnerToken || got.SystemID != "r_abcdefghijkl" || got.LastUpdate != "value" || !got.Info.Features.Masking {
			t.Errorf("body: %s", body)
		}
		w.Header().Set("X-GitLab-Last-Update", "next")
		w.Header().Set("X-Request-Id", "the-server's")
		w.WriteHeader(http.StatusNoContent)
	})
	for range 100 {
		result, err := c.RequestJob(t.Context(), jobRequest(), LaneClaim)
		require.NoError(t, err)
		require.Positive(t, result.Held)
		result.Held = 0
		require.Equal(t, &RequestResult{Status: NoJob, LastUpdate: "next", HasLastUpdate: true, CorrelationID: "the-server's"}, result)
	}
}

func TestRequestJobAnswers(t *testing.T) {
	// Spaces and an unknown field: the payload must come through as it is.
	const payload = ` {"id": 7, "token":"` + jobToken + `", "new": {"x": [1, 2 ]}, "job_info": {"name":"test","project_id": 3}, "git_info": {"ref":"main"}, "runner_info": {"timeout": 3600} }` + "\n"
	for _, test := range []struct {
		name    string
		handler http.HandlerFunc
		result  RequestResult
		err     string // the rest of the text after the URL
		status  StatusError
	}{
		{
			name: "a job",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusCreated)
				_, _ = io.WriteString(w, payload)
			},
			result: RequestResult{
				Status: JobReceived, Payload: []byte(payload),
				Envelope: runnerapi.Envelope{
					ID: 7, Token: jobToken, JobInfo: runnerapi.JobInfo{Name: "test", ProjectID: 3},
					GitInfo: runnerapi.GitInfo{Ref: "main"}, RunnerInfo: runnerapi.RunnerInfo{Timeout: 3600},
				},
			},
		},
		{
			name:    "nothing, without a header",
			handler: answer(http.StatusNoContent, "", ""),
			result:  RequestResult{Status: NoJob},
		},
		{
			name: "nothing, with an absurd value",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set(runnerapi.HeaderLastUpdate, strings.Repeat("x", maxLastUpdate+1))
				w.WriteHeader(http.StatusNoContent)
			},
			result: RequestResult{Status: NoJob},
		},
		{
			name:    "conflict",
			handler: answer(http.StatusConflict, "application/json", `{"message":"409 Conflict"}`),
			result:  RequestResult{Status: Conflict},
		},
		{
			name:    "forbidden",
			handler: answer(http.StatusForbidden, "application/json", `{"message":"403 Forbidden"}`),
			err:     "403 Forbidden: 403 Forbidden",
			status:  StatusError{Code: 403, Message: "403 Forbidden"},
		},
		{
			name:    "bad request",
			handler: answer(http.StatusBadRequest, "application/json", `{"message":{"tag_list":["is bad","is worse"],"active":["no"]}}`),
			err:     "400 Bad Request: active: no; tag_list: is bad, is worse",
			status:  StatusError{Code: 400, Message: "active: no; tag_list: is bad, is worse"},
		},
		{
			name:    "missing parameter",
			handler: answer(http.StatusBadRequest, "application/json", `{"error":"token is missing"}`),
			err:     "400 Bad Request: token is missing",
			status:  StatusError{Code: 400, Message: "token is missing"},
		},
		{
			name:    "a page",
			handler: answer(http.StatusOK, "text/html; charset=utf-8", "<html><body>Sign in</body></html>"),
			err:     "200 OK: answered with an HTML page; is the URL of the GitLab right?",
			status:  StatusError{Code: 200, Message: "answered with an HTML page; is the URL of the GitLab right?", HTML: true},
		},
		{
			name:    "a page that says nothing of its kind",
			handler: answer(http.StatusNotFound, "", "\n <!DOCTYPE HTML>\n<p>"),
			err:     "404 Not Found: answered with an HTML page; is the URL of the GitLab right?",
			status:  StatusError{Code: 404, Message: "answered with an HTML page; is the URL of the GitLab right?", HTML: true},
		},
		{
			name:    "a page instead of a job",
			handler: answer(http.StatusCreated, "text/html", "<html>"),
			err:     "201 Created: answered with an HTML page; is the URL of the GitLab right?",
			status:  StatusError{Code: 201, Message: "answered with an HTML page; is the URL of the GitLab right?", HTML: true},
		},
		{
			name:    "a long text with control characters",
			handler: answer(http.StatusBadGateway, "text/plain", "bad\x1b[31m\r\n\x00gateway \xff "+strings.Repeat("x", 1<<20)),
			err:     "502 Bad Gateway: bad[31m gateway � " + strings.Repeat("x", 500-20) + "…",
			status:  StatusError{Code: 502, Message: "bad[31m gateway � " + strings.Repeat("x", 500-20) + "…"},
		},
		{
			name: "too many requests",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", "60")
				w.WriteHeader(http.StatusTooManyRequests)
			},
			err:    "429 Too Many Requests",
			status: StatusError{Code: 429, RetryAfter: time.Minute},
		},
		{
			name: "moved",
			handler: func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "https://gitlab.example.com/sub"+r.URL.Path+"?private=1", http.StatusMovedPermanently)
			},
			err:    "301 Moved Permanently: the address of the GitLab seems to be https://gitlab.example.com/sub; redirects are not followed",
			status: StatusError{Code: 301, Message: "the address of the GitLab seems to be https://gitlab.example.com/sub; redirects are not followed"},
		},
		{
			name:    "a job without an id",
			handler: answer(http.StatusCreated, "application/json", `{"token":"x"}`),
			err:     "201 Created: the job's payload (13 bytes) has no id",
			status:  StatusError{Code: 201, Message: "the job's payload (13 bytes) has no id"},
		},
		{
			name:    "a job without a token",
			handler: answer(http.StatusCreated, "application/json", `{"id":5}`),
			err:     "201 Created: the payload of job 5 has no token",
			status:  StatusError{Code: 201, Message: "the payload of job 5 has no token"},
		},
		{
			name:    "half a job",
			handler: answer(http.StatusCreated, "application/json", `{"id":5,`),
			err:     "201 Created: the job's payload (8 bytes) is not readable: unexpected end of JSON input",
			status:  StatusError{Code: 201, Message: "the job's payload (8 bytes) is not readable: unexpected end of JSON input"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := serve(t, test.handler)
			result, err := c.RequestJob(t.Context(), jobRequest(), LaneClaim)
			if test.err == "" {
				require.NoError(t, err)
				result.Held, result.CorrelationID = 0, ""
				require.Equal(t, &test.result, result)
				return
			}
			require.Nil(t, result)
			status := new(StatusError)
			require.ErrorAs(t, err, &status)
			require.Equal(t, "POST "+c.URL()+"/api/v4/jobs/request: "+test.err, err.Error())
			test.status.Method, test.status.URL = "POST", c.URL()+"/api/v4/jobs/request"
			require.Equal(t, &test.status, status)
			require.NotContains(t, err.Error(), "secret")
		})
	}
}

// A job whose payload has a value of another type is taken: GitLab has given it away, and only who has it can end it.
func TestAJobWithAnOddValueIsReceived(t *testing.T) {
	for _, odd := range []string{
		`"job_info":{"name":"test","project_id":3,"queue_size":"many"}`,
		`"job_info":{"name":"test","project_id":3},"runner_info":{"timeout":3600.5}`,
		`"variables":{"A":"b"},"job_info":{"name":"test","project_id":3}`,
	} {
		payload := `{"id":7,"token":"` + jobToken + `",` + odd + `}`
		c := serve(t, answer(http.StatusCreated, "application/json", payload))
		result, err := c.RequestJob(t.Context(), jobRequest(), LaneClaim)
		require.NoError(t, err, odd)
		require.Equal(t, JobReceived, result.Status)
		require.Equal(t, payload, string(result.Payload))
		require.EqualValues(t, 7, result.Envelope.ID)
		require.Equal(t, jobToken, result.Envelope.Token)
		require.Equal(t, "test", result.Envelope.JobInfo.Name, "what can be read is read")
		require.EqualValues(t, 3, result.Envelope.JobInfo.ProjectID)
	}
	for _, odd := range []string{`{"id":"7","token":"t"}`, `{"id":7,"token":["t"]}`} { // nobody can say what becomes of it
		c := serve(t, answer(http.StatusCreated, "application/json", odd))
		_, err := c.RequestJob(t.Context(), jobRequest(), LaneClaim)
		require.ErrorContains(t, err, "is not readable: json: cannot unmarshal")
	}
}

func answer(code int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil
		if contentType != "" {
			w.Header().Set("Content-Type", contentType)
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

func TestLargePayload(t *testing.T) {
	for _, chunked := range []bool{false, true} {
		for _, size := range []int{5 << 20, maxPayload + 1} {
			t.Run(fmt.Sprintf("%d bytes, chunked %t", size, chunked), func(t *testing.T) {
				head := `{"id":1,"token":"x","pad":"`
				payload := []byte(head + strings.Repeat("p", size-len(head)-2) + `"}`)
				c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
					if !chunked {
						w.Header().Set("Content-Length", strconv.Itoa(len(payload)))
					}
					w.WriteHeader(http.StatusCreated)
					_, _ = w.Write(payload)
				})
				result, err := c.RequestJob(t.Context(), jobRequest(), LaneClaim)
				if size > maxPayload {
					require.ErrorContains(t, err, "limit of 33554432")
					return
				}
				require.NoError(t, err)
				require.True(t, bytes.Equal(payload, result.Payload))
			})
		}
	}
}

func TestPayloadThatIsCutOff(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"id":1`)
	})
	_, err := c.RequestJob(t.Context(), jobRequest(), LaneClaim)
	transport := new(TransportError)
	require.ErrorAs(t, err, &transport)
	require.ErrorContains(t, err, "/api/v4/jobs/request: read the 201 answer: the answer ended after 7 of 100 bytes: unexpected EOF")
}

func TestGitLabThatIsNotThere(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())
	c, err := New(Options{URL: "http://" + address})
	require.NoError(t, err)
	_, err = c.RequestJob(t.Context(), jobRequest(), LaneClaim)
	require.ErrorContains(t, err, "POST http://"+address+"/api/v4/jobs/request: dial tcp "+address)
	require.ErrorContains(t, err, "connection refused")
	require.NotContains(t, err.Error(), "secret")
}

func TestContextEndsARequest(t *testing.T) {
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	c := serve(t, func(http.ResponseWriter, *http.Request) {
		arrived <- struct{}{}
		<-release
	})
	defer close(release)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := fmt.Errorf("a good reason")
	go func() {
		<-arrived
		cancel(why)
	}()
	_, err := c.RequestJob(ctx, jobRequest(), LaneWatch)
	require.ErrorIs(t, err, why)
}

func TestNoTokenIsRefused(t *testing.T) {
	c, err := New(Options{URL: "http://gitlab.invalid"})
	require.NoError(t, err)
	_, err = c.RequestJob(t.Context(), runnerapi.JobRequest{}, LaneClaim)
	require.ErrorContains(t, err, "no token was given")
}

func TestVerify(t *testing.T) {
	expires := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, test := range []struct {
		name    string
		handler http.HandlerFunc
		want    *runnerapi.VerifyResponse
		code    int
	}{
		{
			"known", answer(200, "application/json", `{"id":9,"token":"t","token_expires_at":"2027-01-02T03:04:05Z"}`),
			&runnerapi.VerifyResponse{ID: 9, Token: "t", TokenExpiresAt: &expires}, 0,
		},
		{"known to an old GitLab", answer(200, "application/json", `"200"`), &runnerapi.VerifyResponse{}, 0},
		{"known to a very old GitLab", answer(200, "text/plain", `null`), &runnerapi.VerifyResponse{}, 0},
		{"unknown", answer(403, "application/json", `{"message":"403 Forbidden"}`), nil, 403},
		{"a page", answer(200, "text/html", `<html>`), nil, 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				var got runnerapi.VerifyRequest
				if err := json.NewDecoder(r.Body).Decode(&got); err != nil || got.SystemID != "s" || !got.Info.Features.Cache {
					t.Errorf("%v %+v", err, got)
				}
				if r.URL.Path != "/api/v4/runners/verify" || r.Header.Get("Runner-Token") != runnerToken {
					t.Errorf("%s %v", r.URL, r.Header)
				}
				test.handler(w, r)
			})
			got, err := c.Verify(t.Context(), runnerapi.VerifyRequest{
				Token: runnerToken, SystemID: "s", Info: runnerapi.Info{Features: runnerapi.Features{Cache: true}},
			})
			require.Equal(t, test.want, got)
			if test.want == nil {
				status := new(StatusError)
				require.ErrorAs(t, err, &status)
				require.Equal(t, test.code, status.Code)
				require.NotEmpty(t, status.Message)
			}
		})
	}
}

// A lane uses one connection for requests one after another, whatever the answers are, and never that of another lane.
func TestConnectionsAreUsedAgain(t *testing.T) {
	var opened atomic.Int32
	var calls atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch calls.Add(1) % 4 {
		case 0:
			w.WriteHeader(http.StatusNoContent)
		case 1:
			http.Error(w, strings.Repeat("x", 100<<10), http.StatusInternalServerError)
		case 2:
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"message":"no"}`)
		case 3:
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, `{"id":1,"token":"x"}`)
		}
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	c, err := New(Options{URL: server.URL})
	require.NoError(t, err)
	defer c.Close()
	for range 100 {
		_, _ = c.RequestJob(t.Context(), jobRequest(), LaneClaim)
	}
	require.EqualValues(t, 1, opened.Load())
	for range 100 {
		_, _ = c.RequestJob(t.Context(), jobRequest(), LaneWatch)
	}
	require.EqualValues(t, 2, opened.Load())
	for range 100 {
		_, err := c.UpdateJob(t.Context(), 1, runnerapi.UpdateRequest{Token: jobToken})
		require.NoError(t, err)
		_, err = c.PatchTrace(t.Context(), 1, jobToken, 0, bytes.NewReader([]byte("x")), false)
		require.NoError(t, err)
	}
	require.EqualValues(t, 3, opened.Load())

	// After a while connections are renewed.
	c.now = func() time.Time { return time.Now().Add(maxConnectionAge) }
	_, _ = c.RequestJob(t.Context(), jobRequest(), LaneClaim)
	require.EqualValues(t, 4, opened.Load())
}

func TestDebugLogCarriesNoToken(t *testing.T) {
	var log bytes.Buffer
	c := serve(t, answer(200, "", "200"))
	c.logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	_, err := c.UpdateJob(t.Context(), 12, runnerapi.UpdateRequest{Token: jobToken})
	require.NoError(t, err)
	require.Contains(t, log.String(), "method=PUT path=jobs/12 code=200")
	require.NotContains(t, log.String(), "secret")
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 5, 5, 12, 0, 0, 0, time.UTC)
	in := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for _, test := range []struct {
		header http.Header
		want   time.Duration
	}{
		{http.Header{}, 0},
		{http.Header{"Retry-After": {"7"}}, 7 * time.Second},
		{http.Header{"Retry-After": {"-7"}}, 0},
		{http.Header{"Retry-After": {"soon"}}, 0},
		{http.Header{"Retry-After": {"99999999999999999999"}}, 0},
		{http.Header{"Retry-After": {"9999999999"}}, maxRetryAfter},
		{http.Header{"Retry-After": {in(90 * time.Second)}}, 90 * time.Second},
		{http.Header{"Ratelimit-Resettime": {in(30 * time.Second)}, "Retry-After": {"7"}}, 30 * time.Second},
		{http.Header{"Ratelimit-Resettime": {in(-30 * time.Second)}, "Retry-After": {"7"}}, 7 * time.Second},
		{http.Header{"Ratelimit-Resettime": {in(48 * time.Hour)}}, maxRetryAfter},
		// The server's clock is an hour ahead of ours.
		{http.Header{"Ratelimit-Resettime": {in(time.Hour + 20*time.Second)}, "Date": {in(time.Hour)}}, 20 * time.Second},
	} {
		require.Equal(t, test.want, retryAfter(test.header, now), "%v", test.header)
	}
}
