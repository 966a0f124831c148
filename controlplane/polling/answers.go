package polling

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// answerOf sorts the end of a request for a job.
func answerOf(result *client.RequestResult, err error, sent string, held time.Duration) answer {
	if err != nil {
		a := troubleOf(err)
		a.sent, a.held = sent, held
		return a
	}
	a := answer{kind: none, sent: sent, cursor: result.LastUpdate, held: result.Held}
	switch result.Status {
	case client.JobReceived:
		a.kind, a.rails = job, true
	case client.Conflict:
		a.kind, a.rails = conflict, true
	default:
		// Workhorse answers without the header, and without Rails.
		a.rails = result.HasLastUpdate || sent == ""
	}
	return a
}

// answerOfVerify sorts the end of a verification. GitLab versions differ in it, so only "forbidden" counts against the
// token, and only trouble against GitLab; claims will show the rest.
func answerOfVerify(err error) answer {
	if err == nil {
		return answer{kind: none, rails: true}
	}
	a := troubleOf(err)
	status := new(client.StatusError)
	if a.kind == failed && errors.As(err, &status) && status.Code >= 400 && status.Code < 500 && !status.HTML {
		return answer{kind: none, rails: true}
	}
	return a
}

func troubleOf(err error) answer {
	a := answer{kind: failed}
	status := new(client.StatusError)
	if !errors.As(err, &status) {
		return a
	}
	a.wait = status.RetryAfter
	a.rails = status.Code < 500 && !status.HTML
	switch {
	case status.Code == http.StatusForbidden && !status.HTML:
		a.kind = refused
	case status.Code == http.StatusTooManyRequests:
		a.kind = throttled
	}
	return a
}

// watchError adds the way out to a watch that something between here and GitLab has cut.
func watchError(err error, held time.Duration) error {
	status := new(client.StatusError)
	cut := errors.As(err, &status) && (status.Code == http.StatusGatewayTimeout || status.Code == http.StatusBadGateway)
	if cut && held >= slowAnswer {
		return fmt.Errorf("%w (a proxy before GitLab cut a held request after %s; let it wait longer than GitLab's long polling)",
			err, held.Round(time.Second))
	}
	return err
}

// explain says what a person can do about it, where that is known.
func explain(a answer, err error, runner string) error {
	switch a.kind {
	case refused:
		return fmt.Errorf("GitLab does not know the token of runner %q; check it, or create the runner in GitLab again and use the new token: %w", runner, err)
	case throttled:
		return fmt.Errorf("GitLab limits the requests of runner %q; they go on by themselves: %w", runner, err)
	default:
		return err
	}
}
