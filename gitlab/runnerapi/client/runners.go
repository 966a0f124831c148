package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Verify asks whether GitLab knows the runner (POST /runners/verify) and tells it who asks. GitLab's 403 is a
// *StatusError: the token is wrong or has expired, or the runner was deleted.
//
// The full Info must be sent: GitLab makes its record of this manager from the first request and refreshes it once an hour.
func (c *Client) Verify(ctx context.Context, r runnerapi.VerifyRequest) (*runnerapi.VerifyResponse, error) {
	res, err := c.sendRunner(ctx, http.MethodPost, "runners/verify", r.Token, r)
	if err != nil {
		return nil, err
	}
	defer res.close()
	if res.StatusCode != http.StatusOK {
		return nil, res.statusError(c.now())
	}
	body, err := res.read(maxAnswer)
	if err != nil {
		return nil, err
	}
	if looksLikeHTML(bytes.TrimSpace(body)) {
		return nil, res.unusable(body, "")
	}
	verified := new(runnerapi.VerifyResponse)
	// An old GitLab answers 200 with a text; that it knows the token is all that matters.
	if json.Valid(body) {
		if err := json.Unmarshal(body, verified); err != nil {
			verified = new(runnerapi.VerifyResponse)
		}
	}
	return verified, nil
}

// Register makes a runner with a registration token (POST /runners), which GitLab may have forbidden. r.Token is that
// token; the answer's is the runner's own.
//
// A *StatusError has Code 400 if a parameter is wrong (Message names it), 403 if GitLab does not know the registration
// token, 410 if it takes none any more. After a *TransportError there may be a runner whose token nobody has.
func (c *Client) Register(ctx context.Context, r runnerapi.RegisterRequest) (*runnerapi.RegisterResponse, error) {
	res, err := c.sendRunner(ctx, http.MethodPost, "runners", r.Token, r)
	if err != nil {
		return nil, err
	}
	defer res.close()
	answer := new(runnerapi.RegisterResponse)
	if err := c.created(res, answer, &answer.Token); err != nil {
		return nil, err
	}
	return answer, nil
}

// Unregister removes the runner from GitLab (DELETE /runners). Jobs that it has go on and can be reported. Code 403 of a
// *StatusError: GitLab does not know the token, perhaps because the runner is gone already.
func (c *Client) Unregister(ctx context.Context, token string) error {
	return c.remove(ctx, "runners", runnerapi.UnregisterRequest{Token: token})
}

// UnregisterManager removes one manager of a runner from GitLab (DELETE /runners/managers): who is known there under
// systemID. Code 404 of a *StatusError: there is no such manager; 403: GitLab does not know the token.
func (c *Client) UnregisterManager(ctx context.Context, token, systemID string) error {
	if systemID == "" {
		return &TransportError{Method: http.MethodDelete, URL: c.URL() + apiPath + "runners/managers", Err: errNoSystemID}
	}
	return c.remove(ctx, "runners/managers", runnerapi.UnregisterRequest{Token: token, SystemID: systemID})
}

var errNoSystemID = errors.New("no system_id was given")

func (c *Client) remove(ctx context.Context, path string, r runnerapi.UnregisterRequest) error {
	res, err := c.sendRunner(ctx, http.MethodDelete, path, r.Token, r)
	if err != nil {
		return err
	}
	defer res.close()
	if res.StatusCode != http.StatusNoContent {
		return res.statusError(c.now())
	}
	return nil
}

// ResetToken gives the runner a new token (POST /runners/reset_authentication_token); GitLab refuses the old one at once.
// Code 403 of a *StatusError: GitLab does not know the token, which may have expired.
//
// After any other error the reset may have happened: then the old token is refused and nobody has the new one.
func (c *Client) ResetToken(ctx context.Context, token string) (*runnerapi.ResetTokenResponse, error) {
	res, err := c.sendRunner(ctx, http.MethodPost, "runners/reset_authentication_token", token, runnerapi.ResetTokenRequest{Token: token})
	if err != nil {
		return nil, err
	}
	defer res.close()
	answer := new(runnerapi.ResetTokenResponse)
	if err := c.created(res, answer, &answer.Token); err != nil {
		return nil, err
	}
	return answer, nil
}

// sendRunner sends a request about a runner itself.
func (c *Client) sendRunner(ctx context.Context, method, path, token string, body any) (*response, error) {
	return c.sendJSON(ctx, &request{
		lane: laneReport, timeout: verifyTimeout, method: method, path: path,
		tokenHeader: runnerapi.HeaderRunnerToken, token: token, json: true,
	}, body)
}

// created reads the answer 201, which must hold a token.
func (c *Client) created(res *response, answer any, token *string) error {
	if res.StatusCode != http.StatusCreated {
		return res.statusError(c.now())
	}
	body, err := res.read(maxAnswer)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return res.unusable(body, "the answer is not readable: "+err.Error())
	}
	if *token == "" {
		return res.unusable(body, "the answer has no token in it")
	}
	return nil
}

// unusable is the error for an answer with the right status and a wrong body. The body is not shown: it may hold a token.
func (r *response) unusable(body []byte, message string) *StatusError {
	e := &StatusError{Method: r.req.method, URL: r.url, Code: r.StatusCode, Message: message}
	if looksLikeHTML(bytes.TrimSpace(body)) {
		e.Message, e.HTML = htmlMessage, true
		r.broken = e
	}
	return e
}
