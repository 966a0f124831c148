package coordinator

import (
	"cmp"
	"fmt"
	"net/http"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// runnerToken is the token of a request: of its body or address, or else of the header.
func runnerToken(r *http.Request, p *params) string {
	return cmp.Or(p.Token, r.Header.Get(runnerapi.HeaderRunnerToken))
}

// authenticate finds the runner of a request and notes that it was heard of; if there is none, it has answered. mu is
// held when it returns a runner.
func (c *Coordinator) authenticate(w http.ResponseWriter, r *http.Request, p *params) *runner {
	token := runnerToken(r, p)
	if token == "" {
		replyError(w, http.StatusBadRequest, "token is missing")
		return nil
	}
	c.mu.Lock()
	now := time.Now()
	run := c.byToken(token, now)
	if run == nil {
		c.mu.Unlock()
		c.forbidden(w, "")
		return nil
	}
	run.heartbeat(p.SystemID, now)
	return run
}

type credentials struct {
	ID             int64      `json:"id,omitempty"`
	Token          string     `json:"token"`
	TokenExpiresAt *time.Time `json:"token_expires_at"`
}

func (r *runner) credentials() credentials {
	c := credentials{ID: r.id, Token: r.token}
	if !r.tokenEnds.IsZero() {
		at := r.tokenEnds.UTC()
		c.TokenExpiresAt = &at
	}
	return c
}

func (c *Coordinator) verifyRunner(w http.ResponseWriter, r *http.Request) {
	p, err := readParams(r, maxAPIBody)
	if err != nil {
		badParams(w, err)
		return
	}
	run := c.authenticate(w, r, p)
	if run == nil {
		return
	}
	answer := run.credentials()
	c.mu.Unlock()
	replyJSON(w, http.StatusOK, answer)
}

func (c *Coordinator) resetRunnerToken(w http.ResponseWriter, r *http.Request) {
	p, err := readParams(r, maxAPIBody)
	if err != nil {
		badParams(w, err)
		return
	}
	run := c.authenticate(w, r, p)
	if run == nil {
		return
	}
	c.resetToken(run)
	answer := run.credentials()
	answer.ID = 0 // GitLab does not repeat it here
	c.mu.Unlock()
	replyJSON(w, http.StatusCreated, answer)
}

func (c *Coordinator) deleteRunner(w http.ResponseWriter, r *http.Request) {
	p, err := readParams(r, maxAPIBody)
	if err != nil {
		badParams(w, err)
		return
	}
	run := c.authenticate(w, r, p)
	if run == nil {
		return
	}
	c.removeRunner(run)
	c.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (c *Coordinator) deleteManager(w http.ResponseWriter, r *http.Request) {
	p, err := readParams(r, maxAPIBody)
	if err != nil {
		badParams(w, err)
		return
	}
	if runnerToken(r, p) != "" && p.SystemID == "" {
		replyError(w, http.StatusBadRequest, "system_id is missing")
		return
	}
	token := runnerToken(r, p)
	if token == "" {
		replyError(w, http.StatusBadRequest, "token is missing")
		return
	}
	c.mu.Lock()
	run := c.byToken(token, time.Now())
	if run == nil {
		c.mu.Unlock()
		c.forbidden(w, "")
		return
	}
	_, known := run.managers[p.SystemID]
	delete(run.managers, p.SystemID)
	c.mu.Unlock()
	if !known {
		reply(w, http.StatusNotFound, "404 Runner manager not found")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// registerRunner is the old way to add a runner, by a registration token.
func (c *Coordinator) registerRunner(w http.ResponseWriter, r *http.Request) {
	p, err := readParams(r, maxAPIBody)
	if err != nil {
		badParams(w, err)
		return
	}
	switch {
	case p.Token == "":
		replyError(w, http.StatusBadRequest, "token is missing")
		return
	case p.Active != nil && p.Paused != nil:
		replyError(w, http.StatusBadRequest, "active, paused are mutually exclusive")
		return
	case p.AccessLevel != "" && p.AccessLevel != "not_protected" && p.AccessLevel != "ref_protected":
		replyError(w, http.StatusBadRequest, "access_level does not have a valid value")
		return
	case c.opts.RegistrationToken == "":
		reply(w, http.StatusGone, "410 Gone - Runner registration disallowed")
		return
	case p.Token != c.opts.RegistrationToken:
		c.forbidden(w, "invalid token supplied")
		return
	}
	const minTimeout = 600
	if p.MaximumTimeout != 0 && p.MaximumTimeout < minTimeout {
		replyJSON(w, http.StatusBadRequest, map[string]any{"message": map[string][]string{
			"maximum_timeout": {fmt.Sprintf("needs to be at least 10 minutes, it is %d seconds", p.MaximumTimeout)},
		}})
		return
	}
	o := RunnerOptions{
		Description: p.Description, Tags: p.TagList, RunUntagged: len(p.TagList) == 0, RefProtected: p.AccessLevel == "ref_protected",
		MaximumTimeout: time.Duration(p.MaximumTimeout) * time.Second,
	}
	if p.RunUntagged != nil {
		o.RunUntagged = *p.RunUntagged
	}
	switch {
	case p.Paused != nil:
		o.Paused = *p.Paused
	case p.Active != nil:
		o.Paused = !*p.Active
	}
	c.mu.Lock()
	run, err := c.addRunner(o, "glrtr-")
	if err != nil {
		c.mu.Unlock()
		replyJSON(w, http.StatusBadRequest, map[string]any{"message": map[string][]string{"tags_list": {err.Error()}}})
		return
	}
	answer := run.credentials()
	c.mu.Unlock()
	replyJSON(w, http.StatusCreated, answer)
}

// discoverRouter says that there is no Job Router, so that runners poll.
func (c *Coordinator) discoverRouter(w http.ResponseWriter, r *http.Request) {
	token := r.Header.Get(runnerapi.HeaderRunnerToken)
	c.mu.Lock()
	known := c.byToken(token, time.Now()) != nil
	c.mu.Unlock()
	if !known {
		c.forbidden(w, "")
		return
	}
	reply(w, http.StatusNotImplemented, "501 Not Implemented - the Job Router is not enabled")
}
