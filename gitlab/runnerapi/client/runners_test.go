package client_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

func coordinatorClient(t *testing.T, o coordinator.Options) (*coordinator.Coordinator, *client.Client) {
	t.Helper()
	gitlab, err := coordinator.New(o)
	require.NoError(t, err)
	server := httptest.NewServer(gitlab.Handler())
	c, err := client.New(client.Options{URL: server.URL})
	require.NoError(t, err)
	t.Cleanup(func() {
		c.Close()
		server.Close()
		require.NoError(t, gitlab.Close())
	})
	return gitlab, c
}

func requireCode(t *testing.T, code int, err error) {
	t.Helper()
	status := new(client.StatusError)
	require.ErrorAs(t, err, &status)
	require.Equal(t, code, status.Code, err.Error())
}

// The life of a runner, at the embedded GitLab.
func TestLifeOfARunner(t *testing.T) {
	const registration = "GR1348941registration"
	gitlab, c := coordinatorClient(t, coordinator.Options{RegistrationToken: registration, RunnerTokenTTL: time.Hour})

	_, err := c.Register(t.Context(), runnerapi.RegisterRequest{Token: "GR1348941wrong"})
	requireCode(t, 403, err)
	require.NotContains(t, err.Error(), "GR1348941wrong")
	_, err = c.Register(t.Context(), runnerapi.RegisterRequest{Token: registration, RunUntagged: true, MaximumTimeout: 10})
	requireCode(t, 400, err)
	require.ErrorContains(t, err, "maximum_timeout: needs to be at least 10 minutes")
	registered, err := c.Register(t.Context(), runnerapi.RegisterRequest{
		Token: registration, Description: "old", TagList: "a,b", MaximumTimeout: 600, Locked: true, Paused: true, AccessLevel: "ref_protected",
	})
	require.NoError(t, err)
	r, err := gitlab.Runner(registered.ID)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, r.Tags)
	require.Equal(t, "old", r.Description)
	require.True(t, r.Paused)
	require.Equal(t, r.Token, registered.Token)
	require.Equal(t, r.ExpiresAt.UTC(), registered.TokenExpiresAt.UTC())

	verified, err := c.Verify(t.Context(), runnerapi.VerifyRequest{Token: r.Token, SystemID: "r_abcdefghijkl"})
	require.NoError(t, err)
	require.Equal(t, registered.ID, verified.ID)
	require.Equal(t, registered.TokenExpiresAt.UTC(), verified.TokenExpiresAt.UTC())

	reset, err := c.ResetToken(t.Context(), r.Token)
	require.NoError(t, err)
	require.NotEqual(t, r.Token, reset.Token)
	require.True(t, reset.TokenExpiresAt.After(time.Now()))
	_, err = c.Verify(t.Context(), runnerapi.VerifyRequest{Token: r.Token})
	requireCode(t, 403, err)
	_, err = c.ResetToken(t.Context(), r.Token)
	requireCode(t, 403, err)
	require.NotContains(t, err.Error(), r.Token)

	requireCode(t, 403, c.UnregisterManager(t.Context(), r.Token, "r_abcdefghijkl"))
	err = c.UnregisterManager(t.Context(), reset.Token, "r_unknownunkno")
	requireCode(t, 404, err)
	require.ErrorContains(t, err, "Runner manager not found")
	require.NoError(t, c.UnregisterManager(t.Context(), reset.Token, "r_abcdefghijkl"))
	requireCode(t, 404, c.UnregisterManager(t.Context(), reset.Token, "r_abcdefghijkl"))
	require.ErrorContains(t, c.UnregisterManager(t.Context(), reset.Token, ""), "no system_id was given")

	requireCode(t, 403, c.Unregister(t.Context(), r.Token))
	require.NoError(t, c.Unregister(t.Context(), reset.Token))
	requireCode(t, 403, c.Unregister(t.Context(), reset.Token))
	_, err = gitlab.Runner(registered.ID)
	require.ErrorIs(t, err, coordinator.ErrNotFound)
}

func TestRegistrationTokensMayBeForbidden(t *testing.T) {
	_, c := coordinatorClient(t, coordinator.Options{})
	_, err := c.Register(t.Context(), runnerapi.RegisterRequest{Token: "any"})
	requireCode(t, 410, err)
	require.ErrorContains(t, err, "registration disallowed")
}

// What goes over the wire, to the letter.
func TestRunnerRequests(t *testing.T) {
	type request struct {
		line, token string
		body        map[string]any
	}
	requests := make(chan request, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got := request{line: r.Method + " " + r.URL.RequestURI(), token: r.Header.Get("RUNNER-TOKEN")}
		_ = json.Unmarshal(body, &got.body)
		requests <- got
		w.WriteHeader(http.StatusTeapot)
	}))
	defer server.Close()
	c, err := client.New(client.Options{URL: server.URL})
	require.NoError(t, err)
	defer c.Close()

	_, err = c.Register(t.Context(), runnerapi.RegisterRequest{Token: "reg", TagList: "a,b", MaintenanceNote: "note", Info: runnerapi.Info{Name: "switchyard"}})
	requireCode(t, 418, err)
	got := <-requests
	require.Equal(t, "POST /api/v4/runners", got.line)
	require.Equal(t, "reg", got.token)
	require.Subset(t, got.body, map[string]any{
		"token": "reg", "tag_list": "a,b", "maintenance_note": "note", "run_untagged": false, "locked": false, "paused": false,
	})
	require.Equal(t, "switchyard", got.body["info"].(map[string]any)["name"])

	_, err = c.ResetToken(t.Context(), "tok")
	requireCode(t, 418, err)
	require.Equal(t, request{"POST /api/v4/runners/reset_authentication_token", "tok", map[string]any{"token": "tok"}}, <-requests)
	requireCode(t, 418, c.Unregister(t.Context(), "tok"))
	require.Equal(t, request{"DELETE /api/v4/runners", "tok", map[string]any{"token": "tok"}}, <-requests)
	requireCode(t, 418, c.UnregisterManager(t.Context(), "tok", "s"))
	require.Equal(t, request{"DELETE /api/v4/runners/managers", "tok", map[string]any{"token": "tok", "system_id": "s"}}, <-requests)

	_, err = c.Verify(t.Context(), runnerapi.VerifyRequest{
		Token: "tok", SystemID: "s", Info: runnerapi.Info{Name: "n", Version: "v", Executor: "shell", Features: runnerapi.Features{CancelGracefully: true}},
	})
	requireCode(t, 418, err)
	got = <-requests
	info := got.body["info"].(map[string]any)
	require.Equal(t, "shell", info["executor"])
	require.Equal(t, true, info["features"].(map[string]any)["cancel_gracefully"], "GitLab takes features that were not sent for false")
	require.Equal(t, map[string]any{"gpus": ""}, info["config"])
	require.Equal(t, "s", got.body["system_id"])
}

// A 201 that cannot be used must not look like a token, and its body, which may hold one, must not be shown.
func TestUnusableTokens(t *testing.T) {
	answer := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, <-answer)
	}))
	defer server.Close()
	c, err := client.New(client.Options{URL: server.URL})
	require.NoError(t, err)
	defer c.Close()
	for body, message := range map[string]string{
		`{"token":"secret","token_expires_at":"soon"}`: "the answer is not readable",
		`{"token":"secret`:    "the answer is not readable",
		`{"token":""}`:        "the answer has no token in it",
		``:                    "the answer is not readable",
		`<html>secret</html>`: "answered with an HTML page",
	} {
		answer <- body
		_, err := c.ResetToken(t.Context(), "old")
		requireCode(t, 201, err)
		require.ErrorContains(t, err, message)
		require.NotContains(t, err.Error(), "secret")
		answer <- body
		_, err = c.Register(t.Context(), runnerapi.RegisterRequest{Token: "old"})
		requireCode(t, 201, err)
		require.ErrorContains(t, err, message)
	}
}
