package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// RequestStatus is what GitLab did with a request for a job.
type RequestStatus int

const (
	// NoJob (204): there is none, or nothing changed, or something did while the request was held.
	NoJob RequestStatus = iota
	// JobReceived (201): GitLab has given the job away; it must not be lost.
	JobReceived
	// Conflict (409): others took the jobs that were looked at; there may be more.
	Conflict
)

// maxLastUpdate is how long a queue value may be; GitLab's have 32 bytes. A longer one is taken for missing.
const maxLastUpdate = 256

// RequestResult is GitLab's answer to a request for a job.
type RequestResult struct {
	Status RequestStatus
	// Payload is the body of the 201, byte for byte; Envelope is what was read of it. Only with JobReceived.
	Payload  []byte
	Envelope runnerapi.Envelope
	// LastUpdate is the queue's value that the answer carried; it may be missing with every status.
	LastUpdate    string
	HasLastUpdate bool
	// ServerCA is the PEM of the CAs that the connection's certificate leads to, if they are not among the system's.
	// Only with JobReceived.
	ServerCA string
	// CorrelationID is the X-Request-Id under which GitLab logged the request, at most 128 bytes.
	CorrelationID string
	// Held is the time from the call to the header of the answer.
	Held time.Duration
}

// RequestJob asks for a job (POST /jobs/request). With a LastUpdate that is the queue's current value GitLab may hold the
// request until something changes: such a request belongs to LaneWatch.
//
// Every status but 201, 204 and 409 is a *StatusError. After any error a job may have been given away whose payload did
// not arrive; without two-phase commit GitLab then waits for a job that nobody runs.
func (c *Client) RequestJob(ctx context.Context, r runnerapi.JobRequest, lane Lane) (*RequestResult, error) {
	timeout := claimTimeout
	if lane == LaneWatch {
		timeout = watchTimeout
	}
	res, err := c.sendJSON(ctx, &request{
		lane: lane, timeout: timeout, method: http.MethodPost, path: "jobs/request",
		tokenHeader: runnerapi.HeaderRunnerToken, token: r.Token, json: true,
	}, r)
	if err != nil {
		return nil, err
	}
	defer res.close()
	result := &RequestResult{CorrelationID: requestID(res.Request, res.Response), Held: res.took}
	if v := res.Header[runnerapi.HeaderLastUpdate]; len(v) > 0 && v[0] != "" && len(v[0]) <= maxLastUpdate {
		result.LastUpdate, result.HasLastUpdate = v[0], true
	}
	switch res.StatusCode {
	case http.StatusNoContent:
		result.Status = NoJob
	case http.StatusConflict:
		result.Status = Conflict
	case http.StatusCreated:
		if result.Payload, err = res.read(maxPayload); err != nil {
			return nil, err
		}
		if err := readEnvelope(result.Payload, &result.Envelope); err != nil {
			return nil, res.unusable(result.Payload, err.Error())
		}
		result.Status = JobReceived
		result.ServerCA = c.serverCA.of(res.TLS)
	default:
		return nil, res.statusError(c.now())
	}
	return result, nil
}

// readEnvelope fills e. A value of another type than expected is left out if the job can be named without it: GitLab has
// given the job away, so it has to end, and who reads the whole payload says what is wrong with it.
func readEnvelope(payload []byte, e *runnerapi.Envelope) error {
	err := json.Unmarshal(payload, e)
	if _, odd := errors.AsType[*json.UnmarshalTypeError](err); odd && e.ID > 0 && e.Token != "" {
		err = nil
	}
	switch {
	case err != nil:
		return fmt.Errorf("the job's payload (%d bytes) is not readable: %w", len(payload), err)
	case e.ID <= 0:
		return fmt.Errorf("the job's payload (%d bytes) has no id", len(payload))
	case e.Token == "":
		return fmt.Errorf("the payload of job %d has no token", e.ID)
	}
	return nil
}

// sendJSON sends v as the body.
func (c *Client) sendJSON(ctx context.Context, r *request, v any) (*response, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, &TransportError{Method: r.method, URL: r.path, Err: fmt.Errorf("encode the request: %w", err)}
	}
	r.contentType = "application/json"
	r.length = int64(len(body))
	r.rewind = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	return c.send(ctx, r)
}
