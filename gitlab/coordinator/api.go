package coordinator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Limits of request bodies in bytes. The first is Workhorse's for held job requests.
const (
	maxRequestBody = 32 << 10
	maxAPIBody     = 1 << 20
)

// routes is the HTTP interface: the Runner API and, everywhere else, repositories.
func (c *Coordinator) routes(repositories http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v4/runners", c.registerRunner)
	mux.HandleFunc("DELETE /api/v4/runners", c.deleteRunner)
	mux.HandleFunc("DELETE /api/v4/runners/managers", c.deleteManager)
	mux.HandleFunc("POST /api/v4/runners/verify", c.verifyRunner)
	mux.HandleFunc("POST /api/v4/runners/reset_authentication_token", c.resetRunnerToken)
	mux.HandleFunc("GET /api/v4/runners/router/discovery", c.discoverRouter)
	mux.HandleFunc("POST /api/v4/jobs/request", c.requestJob)
	mux.HandleFunc("PUT /api/v4/jobs/{id}", c.updateJob)
	mux.HandleFunc("PATCH /api/v4/jobs/{id}/trace", c.patchTrace)
	mux.HandleFunc("POST /api/v4/jobs/{id}/artifacts/authorize", c.authorizeArtifact)
	mux.HandleFunc("POST /api/v4/jobs/{id}/artifacts", c.uploadArtifact)
	mux.HandleFunc("GET /api/v4/jobs/{id}/artifacts", c.downloadArtifact)
	mux.HandleFunc("GET /-/storage/artifacts/{id}/{name}", c.serveStorage)
	mux.HandleFunc("/api/", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusNotFound, "404 Not Found") })
	mux.Handle("/", repositories)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.ctx.Err() != nil {
			reply(w, http.StatusServiceUnavailable, "503 the coordinator is closed")
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// params are the parameters of a request: of its JSON or form body, else of its address.
type params struct {
	runnerapi.UpdateRequest        // info, token, state, checksum, failure_reason, output, exit_code
	SystemID                string `json:"system_id"`
	LastUpdate              string `json:"last_update"`

	// Of POST /runners.
	Description    string  `json:"description"`
	Active         *bool   `json:"active"`
	Paused         *bool   `json:"paused"`
	Locked         *bool   `json:"locked"`
	AccessLevel    string  `json:"access_level"`
	RunUntagged    *bool   `json:"run_untagged"`
	TagList        tagList `json:"tag_list"`
	MaximumTimeout int64   `json:"maximum_timeout"`
	isJSON         bool
}

// tagList is a list or a text with commas.
type tagList []string

// UnmarshalJSON takes both forms.
func (t *tagList) UnmarshalJSON(data []byte) error {
	var csv string
	if err := json.Unmarshal(data, &csv); err == nil {
		*t = splitTags(csv)
		return nil
	}
	var list []string
	if err := json.Unmarshal(data, &list); err != nil {
		return fmt.Errorf("tag_list is neither a text nor a list of texts: %w", err)
	}
	*t = list
	return nil
}

func splitTags(csv string) []string {
	tags := strings.Split(csv, ",")
	for i := range tags {
		tags[i] = strings.TrimSpace(tags[i])
	}
	return slices.DeleteFunc(tags, func(t string) bool { return t == "" })
}

var errTooLarge = errors.New("the request body is too large")

// readParams reads a body of up to limit bytes and what it says. Unknown fields are ignored.
func readParams(r *http.Request, limit int64) (*params, error) {
	body, err := readBody(r.Body, r.ContentLength, limit)
	if err != nil {
		return nil, err
	}
	p := &params{}
	mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch mediaType {
	case "application/json":
		p.isJSON = true
		if len(bytes.TrimSpace(body)) > 0 {
			if err := json.Unmarshal(body, p); err != nil {
				return nil, fmt.Errorf("the body is no valid JSON object for this request: %w", err)
			}
		}
	case "application/x-www-form-urlencoded":
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return nil, fmt.Errorf("the body is no valid form: %w", err)
		}
		if err := p.fromForm(form); err != nil {
			return nil, err
		}
	}
	if r.URL.RawQuery != "" {
		if err := p.fromForm(r.URL.Query()); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func readBody(body io.Reader, length, limit int64) ([]byte, error) {
	if length > limit {
		return nil, errTooLarge
	}
	var buf bytes.Buffer
	if length > 0 {
		buf.Grow(int(length) + bytes.MinRead)
	}
	n, err := buf.ReadFrom(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	if n > limit {
		return nil, errTooLarge
	}
	return buf.Bytes(), nil
}

// fromForm takes what is in a form or a query; a field that the body had already stays.
func (p *params) fromForm(form url.Values) error {
	text := func(to *string, key string) {
		if *to == "" {
			*to = form.Get(key)
		}
	}
	text(&p.Token, "token")
	text(&p.SystemID, "system_id")
	text(&p.LastUpdate, "last_update")
	text(&p.State, "state")
	text(&p.Checksum, "checksum")
	text((*string)(&p.FailureReason), "failure_reason")
	text(&p.Output.Checksum, "output[checksum]")
	text(&p.Description, "description")
	text(&p.AccessLevel, "access_level")
	if p.TagList == nil && form.Has("tag_list") {
		p.TagList = splitTags(form.Get("tag_list"))
	}
	for key, to := range map[string]**bool{"active": &p.Active, "paused": &p.Paused, "locked": &p.Locked, "run_untagged": &p.RunUntagged} {
		if *to == nil && form.Has(key) {
			b, err := strconv.ParseBool(form.Get(key))
			if err != nil {
				return fmt.Errorf("%s is invalid", key)
			}
			*to = &b
		}
	}
	for key, set := range map[string]func(int64){
		"exit_code":        func(n int64) { p.ExitCode = int(n) },
		"output[bytesize]": func(n int64) { p.Output.Bytesize = n },
		"maximum_timeout":  func(n int64) { p.MaximumTimeout = n },
	} {
		if !form.Has(key) {
			continue
		}
		n, err := strconv.ParseInt(form.Get(key), 10, 64)
		if err != nil {
			return fmt.Errorf("%s is invalid", key)
		}
		set(n)
	}
	return nil
}

// badParams answers a request whose parameters cannot be read.
func badParams(w http.ResponseWriter, err error) {
	if errors.Is(err, errTooLarge) {
		reply(w, http.StatusRequestEntityTooLarge, "413 Request Entity Too Large")
		return
	}
	replyError(w, http.StatusBadRequest, err.Error())
}

// replyJSON answers with a JSON document.
func replyJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	writeJSON(w, status, v)
}

// writeJSON is replyJSON for a Content-Type that is set already.
func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "500 Internal Server Error", http.StatusInternalServerError)
		return
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client has gone
}

// reply answers {"message": ...}, GitLab's form for refusals by the application.
func reply(w http.ResponseWriter, status int, message string) {
	replyJSON(w, status, map[string]string{"message": message})
}

// replyError answers {"error": ...}, GitLab's form for requests that do not fit the route.
func replyError(w http.ResponseWriter, status int, message string) {
	replyJSON(w, status, map[string]string{"error": message})
}

// forbidden answers 403, which makes a runner stop the job.
func (c *Coordinator) forbidden(w http.ResponseWriter, reason string) {
	c.stats.forbidden.Add(1)
	if reason == "" {
		reply(w, http.StatusForbidden, "403 Forbidden")
		return
	}
	reply(w, http.StatusForbidden, "403 Forbidden - "+reason)
}

// replyStatus answers with the status as text.
func replyStatus(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, strconv.Itoa(status)) // the client has gone
}
