package polling

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// Every way in which a GitLab, or something in its place, may end a request for a job, over real connections.
func TestAnswers(t *testing.T) {
	const page = "<!DOCTYPE html><html>Sign in</html>"
	for name, test := range map[string]struct {
		code    int
		header  map[string]string
		body    string
		raw     string // after a "!": what is sent instead of an answer before the connection is closed
		want    answer // of a request without a cursor
		verify  kind   // what a verification makes of it, where it may get it
		trouble bool   // there is an error to show
	}{
		"a job":         {code: 201, body: `{"id":1,"token":"t"}`, want: answer{kind: job, rails: true}},
		"none":          {code: 204, header: map[string]string{"X-GitLab-Last-Update": "a"}, want: answer{cursor: "a", rails: true}},
		"none, no news": {code: 204, want: answer{rails: true}},
		"a conflict":    {code: 409, want: answer{kind: conflict, rails: true}, verify: none},
		"refused":       {code: 403, body: `{"message":"403 Forbidden"}`, want: answer{kind: refused, rails: true}, verify: refused, trouble: true},
		"refused by a page": {
			code: 403, header: map[string]string{"Content-Type": "text/html"}, body: page, want: answer{kind: failed}, verify: failed, trouble: true,
		},
		"throttled": {
			code: 429, header: map[string]string{"Retry-After": "60"}, want: answer{kind: throttled, rails: true, wait: time.Minute}, verify: throttled, trouble: true,
		},
		"throttled until": {
			code:   429,
			header: map[string]string{"Date": "Thu, 01 Jan 2026 00:00:00 GMT", "RateLimit-ResetTime": "Thu, 01 Jan 2026 00:00:20 GMT", "Retry-After": "60"},
			want:   answer{kind: throttled, rails: true, wait: 20 * time.Second}, verify: throttled, trouble: true,
		},
		"throttled without a word": {code: 429, want: answer{kind: throttled, rails: true}, verify: throttled, trouble: true},
		"a bad request":            {code: 400, body: `{"error":"token is missing"}`, want: answer{kind: failed, rails: true}, verify: none, trouble: true},
		"not found":                {code: 404, want: answer{kind: failed, rails: true}, verify: none, trouble: true},
		"a precondition":           {code: 412, want: answer{kind: failed, rails: true}, verify: none, trouble: true},
		"too large":                {code: 413, want: answer{kind: failed, rails: true}, verify: none, trouble: true},
		"a range":                  {code: 416, want: answer{kind: failed, rails: true}, verify: none, trouble: true},
		"an orphan":                {code: 422, want: answer{kind: failed, rails: true}, verify: none, trouble: true},
		"accepted, whatever that":  {code: 202, want: answer{kind: failed, rails: true}, verify: failed, trouble: true},
		"elsewhere":                {code: 302, header: map[string]string{"Location": "https://example.com/"}, want: answer{kind: failed, rails: true}, verify: failed, trouble: true},
		"broken":                   {code: 500, want: answer{kind: failed}, verify: failed, trouble: true},
		"a bad gateway":            {code: 502, header: map[string]string{"Content-Type": "text/html"}, body: page, want: answer{kind: failed}, verify: failed, trouble: true},
		"maintenance":              {code: 503, header: map[string]string{"Retry-After": "120"}, want: answer{kind: failed, wait: 2 * time.Minute}, verify: failed, trouble: true},
		"a page with a job's code": {code: 201, header: map[string]string{"Content-Type": "text/html"}, body: page, want: answer{kind: failed}, trouble: true},
		"reset":                    {raw: "!", want: answer{kind: failed}, trouble: true},
		"cut in the header":        {raw: "!HTTP/1.1 204 No Content\r\nX-GitLab-", want: answer{kind: failed}, trouble: true},
		"cut in the job": {
			raw: "!HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{\"id\":1", want: answer{kind: failed}, trouble: true,
		},
		"a job without an id": {code: 201, body: `{"token":"t"}`, want: answer{kind: failed, rails: true}, trouble: true},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if test.raw != "" {
					conn, _, err := http.NewResponseController(w).Hijack()
					if err == nil {
						_, _ = io.WriteString(conn, test.raw[1:])
						_ = conn.Close()
					}
					return
				}
				for key, value := range test.header {
					w.Header().Set(key, value)
				}
				w.WriteHeader(test.code)
				_, _ = io.WriteString(w, test.body)
			}))
			defer server.Close()
			c, err := client.New(client.Options{URL: server.URL})
			require.NoError(t, err)
			defer c.Close()
			result, err := c.RequestJob(t.Context(), runnerapi.JobRequest{Token: "t"}, client.LaneClaim)
			require.Equal(t, test.trouble, err != nil, err)
			got := answerOf(result, err, "", 0)
			got.held = 0
			require.Equal(t, test.want, got)
			if test.code < 202 || test.code == 204 {
				return // no answers to a verification
			}
			_, err = c.Verify(t.Context(), runnerapi.VerifyRequest{Token: "t"})
			require.Equal(t, test.verify, answerOfVerify(err).kind, err)
		})
	}
}

// A bare 204 to a watch comes from what is before Rails, one with the header from Rails.
func TestWhoAnswersAWatch(t *testing.T) {
	require.False(t, answerOf(&client.RequestResult{}, nil, "a", 0).rails)
	require.True(t, answerOf(&client.RequestResult{HasLastUpdate: true, LastUpdate: "a"}, nil, "a", 0).rails)
}
