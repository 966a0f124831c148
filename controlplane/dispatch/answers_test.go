package dispatch

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/breaker"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// Every answer that a job which has not started may get, over real connections.
func TestAnswersBeforeTheStart(t *testing.T) {
	const page = "<!DOCTYPE html><html>Sign in</html>"
	for name, test := range map[string]struct {
		code             int
		status           string // Job-Status
		body             string
		retry            string // Retry-After
		pending, running gitlabVerdict
		cancel           bool
	}{
		"yes":                       {code: 200, status: "running", pending: verdictOK, running: verdictOK},
		"yes, to be cancelled":      {code: 200, status: "canceling", pending: verdictOK, running: verdictOK, cancel: true},
		"cancelled":                 {code: 200, status: "canceled", pending: verdictGone, running: verdictGone},
		"failed":                    {code: 200, status: "failed", pending: verdictGone, running: verdictGone},
		"later":                     {code: 202, pending: verdictRetry, running: verdictRetry},
		"not in this state":         {code: 400, status: "running", pending: verdictRunning, running: verdictGone},
		"refused":                   {code: 403, pending: verdictGone, running: verdictGone},
		"refused and cancelled":     {code: 403, status: "canceled", pending: verdictGone, running: verdictGone},
		"gone":                      {code: 404, pending: verdictGone, running: verdictGone},
		"a conflict":                {code: 409, pending: verdictRetry, running: verdictRetry},
		"a precondition":            {code: 412, pending: verdictRetry, running: verdictRetry},
		"a range":                   {code: 416, pending: verdictRetry, running: verdictRetry},
		"throttled":                 {code: 429, retry: "9", pending: verdictRetry, running: verdictRetry},
		"broken":                    {code: 500, pending: verdictRetry, running: verdictRetry},
		"maintenance":               {code: 503, retry: "9", body: page, pending: verdictRetry, running: verdictRetry},
		"a page that says yes":      {code: 200, body: page, pending: verdictRetry, running: verdictRetry},
		"a page that refuses":       {code: 403, body: page, pending: verdictRetry, running: verdictRetry},
		"a page that knows nothing": {code: 404, body: page, pending: verdictRetry, running: verdictRetry},
		"no answer":                 {pending: verdictRetry, running: verdictRetry},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if test.code == 0 {
					panic(http.ErrAbortHandler)
				}
				if test.status != "" {
					w.Header().Set("Job-Status", test.status)
				}
				if test.retry != "" {
					w.Header().Set("Retry-After", test.retry)
				}
				w.WriteHeader(test.code)
				_, _ = io.WriteString(w, test.body)
			}))
			defer server.Close()
			c, err := client.New(client.Options{URL: server.URL})
			require.NoError(t, err)
			defer c.Close()
			d, j := waitingFor(c)
			for state, want := range map[string]gitlabVerdict{runnerapi.StatePending: test.pending, runnerapi.StateRunning: test.running} {
				ev := d.askGitLab(t.Context(), j, state, time.Minute)
				require.Equal(t, want, ev.verdict, state)
				require.Equal(t, test.cancel, ev.cancel == cancelGraceful)
				require.Equal(t, want == verdictGone, ev.reason != "", "why it is gone is said")
				if test.retry != "" {
					require.Equal(t, 9*time.Second, ev.retry)
				}
			}
		})
	}
}

// waitingFor is a job that has not started, of a runner of that GitLab.
func waitingFor(c *client.Client) (*Dispatcher, *job) {
	d := &Dispatcher{log: slog.New(slog.DiscardHandler)}
	return d, &job{d: d, row: store.Job{ID: 1, GitLabJobID: 2, Token: "t"}, runner: &runner{Runner: Runner{GitLab: c}}}
}

// A GitLab that is known not to work is not asked, and the job waits for it.
func TestNoRequestWhileGitLabIsDown(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer server.Close()
	c, err := client.New(client.Options{URL: server.URL, Breaker: breaker.Settings{Failures: 1, Span: 1, First: time.Hour, Most: time.Hour}})
	require.NoError(t, err)
	defer c.Close()
	d, j := waitingFor(c)
	for range 3 {
		require.Equal(t, verdictRetry, d.askGitLab(t.Context(), j, runnerapi.StateRunning, time.Minute).verdict)
	}
	_, err = c.UpdateJob(t.Context(), 2, runnerapi.UpdateRequest{Token: "t"})
	require.ErrorAs(t, err, new(*breaker.OpenError))
}
