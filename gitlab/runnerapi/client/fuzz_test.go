package client

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// answered reads a 201 with a body as the client reads it off the wire.
func answered(c *Client, body []byte) (*RequestResult, error) {
	res := &response{
		Response: &http.Response{
			StatusCode: http.StatusCreated, Header: http.Header{}, ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)),
		},
		req: &request{method: http.MethodPost}, cancel: func() {}, gate: c.gate, now: time.Now,
	}
	defer res.close()
	result := new(RequestResult)
	var err error
	if result.Payload, err = res.read(maxPayload); err != nil {
		return nil, err
	}
	return result, readEnvelope(result.Payload, &result.Envelope)
}

// FuzzEnvelope: whatever GitLab sends, the payload stays what it was, byte for byte, and the envelope says the same as
// the payload.
func FuzzEnvelope(f *testing.F) {
	c, err := New(Options{URL: "http://127.0.0.1"})
	require.NoError(f, err)
	f.Add([]byte(`{"id":1,"token":"t","job_info":{"name":"a","project_id":2},"git_info":{"sha":"x","protected":true},"runner_info":{"timeout":3600}}`))
	f.Add([]byte(`{"id":1,"token":"t","of_tomorrow":{"deep":[1.0e400,{"a":"\ud800"}]},"variables":[{"key":"A","value":"\u0000"}]}`))
	f.Add([]byte(`{"ID":1,"Token":"t"}`))
	f.Add([]byte(`{"id":1,"id":2,"token":"a","token":"b"}`))
	f.Add([]byte(`{"id":9223372036854775808,"token":"t"}`))
	f.Add([]byte(`{"id":1,"token":"t"} {"id":2}`))
	f.Add([]byte("\xef\xbb\xbf{\"id\":1,\"token\":\"t\"}"))
	f.Add([]byte(`<!DOCTYPE html>`))
	f.Add([]byte(`null`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, body []byte) {
		sent := bytes.Clone(body)
		result, err := answered(c, body)
		if result != nil {
			require.True(t, bytes.Equal(sent, result.Payload), "not a byte is changed")
		}
		if err != nil {
			require.LessOrEqual(t, len(err.Error()), 1000, "no payload in an error")
			return
		}
		e := result.Envelope
		require.Positive(t, e.ID)
		require.NotEmpty(t, e.Token)
		require.True(t, json.Valid(sent))
		var whole runnerapi.Job
		if json.Unmarshal(sent, &whole) == nil { // who runs the job reads the same of it
			require.Equal(t, whole.ID, e.ID)
			require.Equal(t, whole.Token, e.Token)
			require.Equal(t, whole.JobInfo, e.JobInfo)
			require.Equal(t, whole.RunnerInfo, e.RunnerInfo)
		}
		// Fields that nobody knows survive being carried as JSON.
		var fields map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(sent, &fields))
		for name, value := range fields {
			require.Contains(t, string(sent), string(value), name)
		}
	})
}

// FuzzHeaders: no header makes a runner wait for longer than the limits, or send bytes from a place that is none.
func FuzzHeaders(f *testing.F) {
	for _, v := range []string{
		"", "0", "60", "-1", " 7 ", "1e3", "99999999999999999999", "Thu, 01 Jan 2026 00:00:20 GMT", "Thursday, 01-Jan-26 00:00:20 GMT",
		"0-15", "bytes 0-15/20", "0-", "-5", "0--5", "0-9223372036854775807", "0-9223372036854775808", "\x00", "ä", "x\r\ny",
	} {
		f.Add(v, "", v, v)
		f.Add("5", "Thu, 01 Jan 2026 00:00:00 GMT", v, v)
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, after, date, reset, text string) {
		h := http.Header{"Retry-After": {after}, "Date": {date}, "Ratelimit-Resettime": {reset}}
		wait := retryAfter(h, now)
		require.GreaterOrEqual(t, wait, time.Duration(0))
		require.LessOrEqual(t, wait, maxRetryAfter)
		interval := seconds(text, maxInterval)
		require.GreaterOrEqual(t, interval, time.Duration(0))
		require.LessOrEqual(t, interval, maxInterval)
		require.Zero(t, interval%time.Second)
		offset := traceRange(text)
		require.GreaterOrEqual(t, offset, int64(-1))
		if offset >= 0 {
			require.Contains(t, text, "-")
		}
		line := limited(text, 64)
		require.LessOrEqual(t, len(line), 64+len("…"))
		require.True(t, utf8.ValidString(line))
		require.False(t, strings.ContainsAny(line, "\r\n\x00\x1b\x7f"), "%q", line)
	})
}
