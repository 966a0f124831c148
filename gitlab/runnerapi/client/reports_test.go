package client

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func TestUpdateJob(t *testing.T) {
	for _, test := range []struct {
		name    string
		code    int
		status  string // Job-Status
		outcome UpdateOutcome
		cancel  bool
	}{
		{"done", 200, "running", UpdateSucceeded, false},
		{"done, to be cancelled", 200, "canceling", UpdateSucceeded, true},
		{"done, but GitLab has given it up", 200, "failed", UpdateAbort, false},
		{"cancelled", 200, "canceled", UpdateAbort, false},
		{"cancelled, forbidden", 403, "canceled", UpdateAbort, false},
		{"forbidden", 403, "", UpdateAbort, false},
		{"forbidden while cancelling", 403, "canceling", UpdateAbort, true},
		{"gone", 404, "", UpdateAbort, false},
		{"not yet", 202, "running", UpdateNotCompleted, false},
		{"trace is bad", 412, "", UpdateTraceInvalid, false},
		{"bad", 400, "running", UpdateFailed, false},
		{"conflict", 409, "", UpdateFailed, false},
		{"limited", 429, "", UpdateFailed, false},
		{"broken", 500, "canceling", UpdateFailed, true},
		{"failed and broken", 500, "failed", UpdateAbort, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			sent := runnerapi.UpdateRequest{
				Token: jobToken, State: runnerapi.StateFailed, FailureReason: runnerapi.ReasonScriptFailure,
				Output: runnerapi.Output{Checksum: "crc32:00000001", Bytesize: 12}, ExitCode: 3,
			}
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				var got runnerapi.UpdateRequest
				err := json.NewDecoder(r.Body).Decode(&got)
				if err != nil || !reflect.DeepEqual(got, sent) || r.Method != http.MethodPut || r.URL.Path != "/api/v4/jobs/42" || r.Header.Get("Job-Token") != jobToken {
					t.Errorf("%v %s %s %+v", err, r.Method, r.URL, got)
				}
				if test.status != "" {
					w.Header().Set("Job-Status", test.status)
				}
				w.Header().Set("X-GitLab-Trace-Update-Interval", "60")
				w.Header().Set("Retry-After", "9")
				w.WriteHeader(test.code)
				_, _ = io.WriteString(w, `{"message":"hello"}`)
			})
			result, err := c.UpdateJob(t.Context(), 42, sent)
			require.NoError(t, err)
			require.Equal(t, test.outcome, result.Outcome())
			require.Equal(t, test.cancel, result.CancelRequested())
			require.Equal(t, test.code, result.Code)
			require.Equal(t, test.status, result.JobStatus)
			require.Equal(t, time.Minute, result.Interval)
			if test.code == 200 || test.code == 202 {
				require.Empty(t, result.Message)
			} else {
				require.Equal(t, "hello", result.Message)
				require.Equal(t, 9*time.Second, result.RetryAfter)
			}
		})
	}
}

func TestPatchTraceOutcomes(t *testing.T) {
	for _, test := range []struct {
		name    string
		code    int
		status  string
		header  string // Range
		outcome PatchOutcome
		offset  int64
		cancel  bool
	}{
		{"done", 202, "running", "0-15", PatchSucceeded, 15, false},
		{"done, to be cancelled", 202, "canceling", "0-15", PatchSucceeded, 15, true},
		{"done, without a range", 202, "running", "", PatchSucceeded, -1, false},
		{"elsewhere", 416, "running", "0-7", PatchRangeMismatch, 7, false},
		{"from the start", 416, "running", "0-0", PatchRangeMismatch, 0, false},
		{"elsewhere, odd", 416, "running", "bytes=?", PatchRangeMismatch, 0, false},
		{"elsewhere, negative", 416, "running", "0--7", PatchRangeMismatch, 0, false},
		{"elsewhere, missing", 416, "running", "", PatchRangeMismatch, 0, false},
		{"cancelled", 403, "canceled", "", PatchAbort, -1, false},
		{"cancelled elsewhere", 202, "canceled", "0-15", PatchAbort, 15, false},
		{"gone", 404, "", "", PatchNotFound, -1, false},
		{"just 200", 200, "", "", PatchFailed, -1, false},
		{"busy", 409, "", "", PatchFailed, -1, false},
		{"broken", 500, "canceling", "", PatchFailed, -1, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if test.status != "" {
					w.Header().Set("Job-Status", test.status)
				}
				if test.header != "" {
					w.Header().Set("Range", test.header)
				}
				w.Header().Set("X-GitLab-Trace-Update-Interval", "3")
				w.WriteHeader(test.code)
			})
			result, err := c.PatchTrace(t.Context(), 42, jobToken, 10, bytes.NewReader([]byte("hello")), true)
			require.NoError(t, err)
			require.Equal(t, test.outcome, result.Outcome())
			require.Equal(t, test.offset, result.Range)
			require.Equal(t, test.cancel, result.CancelRequested())
			require.Equal(t, 3*time.Second, result.Interval)
		})
	}
}

// A page made for people is nobody's word about a job, whatever its status and its headers say.
func TestPagesAreNotReports(t *testing.T) {
	for _, code := range []int{200, 202, 400, 403, 404, 409, 412, 416, 413, 429, 500, 503} {
		for contentType, body := range map[string]string{"text/html": "", "application/json": "<!DOCTYPE html><html>", "": " \n<HTML>"} {
			c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", contentType)
				w.Header().Set("Job-Status", "canceled")
				w.Header().Set("Range", "0-1000")
				w.WriteHeader(code)
				_, _ = io.WriteString(w, body)
			})
			result, err := c.UpdateJob(t.Context(), 42, runnerapi.UpdateRequest{Token: jobToken, State: "success"})
			if code == 413 || code == 429 || code >= 500 { // those mean the same whoever says them
				require.NoError(t, err)
				require.Equal(t, code, result.Code)
				continue
			}
			status := new(StatusError)
			require.ErrorAs(t, err, &status)
			require.True(t, status.HTML)
			require.Equal(t, code, status.Code)
			_, err = c.PatchTrace(t.Context(), 42, jobToken, 10, bytes.NewReader([]byte("hello")), true)
			require.ErrorAs(t, err, &status)
			require.ErrorContains(t, err, "/api/v4/jobs/42/trace: "+strconv.Itoa(code))
		}
	}
}

// What arrives is byte for byte the section, with the headers that GitLab reads.
func TestPatchTraceBodies(t *testing.T) {
	content := make([]byte, 3<<20)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	path := filepath.Join(t.TempDir(), "trace")
	require.NoError(t, os.WriteFile(path, content, 0o600))
	file, err := os.Open(path)
	require.NoError(t, err)
	defer func() { require.NoError(t, file.Close()) }()

	var got []byte
	var header http.Header
	var query string
	var length int64
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got, _ = io.ReadAll(r.Body)
		header, query, length = r.Header, r.URL.RawQuery, r.ContentLength
		w.WriteHeader(http.StatusAccepted)
	})
	for _, test := range []struct{ start, size int64 }{{0, 1}, {5, 1 << 20}, {1 << 20, 2 << 20}, {17, 4096}} {
		for name, body := range map[string]TraceBody{
			"file":  io.NewSectionReader(file, test.start, test.size),
			"bytes": bytes.NewReader(content[test.start : test.start+test.size]),
		} {
			result, err := c.PatchTrace(t.Context(), 42, jobToken, test.start, body, name == "file")
			require.NoError(t, err)
			require.Equal(t, PatchSucceeded, result.Outcome())
			require.True(t, bytes.Equal(content[test.start:test.start+test.size], got), "%s at %d", name, test.start)
			require.Equal(t, test.size, length)
			require.Equal(t, strconv.FormatInt(test.start, 10)+"-"+strconv.FormatInt(test.start+test.size-1, 10), header.Get("Content-Range"))
			require.Equal(t, "text/plain", header.Get("Content-Type"))
			require.Equal(t, jobToken, header.Get("Job-Token"))
			require.Equal(t, "debug_trace="+strconv.FormatBool(name == "file"), query)
		}
	}
	_, err = c.PatchTrace(t.Context(), 42, jobToken, 0, bytes.NewReader(nil), false)
	require.ErrorContains(t, err, "there are no bytes to send")
}

func TestIntervalIsCapped(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": 0, "3": 3 * time.Second, "-1": 0, "x": 0, " 60 ": time.Minute, "86400": maxInterval,
	} {
		require.Equal(t, want, seconds(value, maxInterval), value)
	}
}
