package coordinator

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
)

func TestRunnerRoutes(t *testing.T) {
	s := newServer(t, Options{RegistrationToken: "GR1348941secret"})
	r := s.runner()
	var c credentials
	w := s.do(http.MethodPost, "/api/v4/runners/verify", obj{"token": r.Token, "system_id": "s_1", "info": modern()})
	require.Equal(t, 200, w.Code)
	require.JSONEq(t, fmt.Sprintf(`{"id":%d,"token":%q,"token_expires_at":null}`, r.ID, r.Token), w.Body.String())
	require.Equal(t, 403, s.do(http.MethodPost, "/api/v4/runners/verify", obj{"token": "no"}).Code)
	require.Equal(t, 400, s.do(http.MethodPost, "/api/v4/runners/verify", obj{}).Code)

	managers := func(body obj) int { return s.do(http.MethodDelete, "/api/v4/runners/managers", body).Code }
	require.Equal(t, 404, managers(obj{"token": r.Token, "system_id": "s_unknown"}))
	require.Equal(t, 400, managers(obj{"token": r.Token}))
	require.Equal(t, 400, managers(obj{"system_id": "s_1"}))
	require.Equal(t, 403, managers(obj{"token": "no", "system_id": "s_1"}))
	require.Equal(t, 204, managers(obj{"token": r.Token, "system_id": "s_1"}))
	require.Equal(t, 404, managers(obj{"token": r.Token, "system_id": "s_1"}))

	w = s.do(http.MethodPost, "/api/v4/runners/reset_authentication_token", obj{"token": r.Token})
	require.Equal(t, 201, w.Code)
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &c))
	require.NotEqual(t, r.Token, c.Token)
	require.Equal(t, 403, s.request(r, nil).Code, "the old token is gone")
	r.Token = c.Token
	require.Equal(t, 204, s.request(r, nil).Code)
	renewed, err := s.ResetToken(r.ID)
	require.NoError(t, err)
	require.Equal(t, 403, s.request(r, nil).Code)
	r = renewed

	discover := func(token string) int {
		return s.do(http.MethodGet, "/api/v4/runners/router/discovery", nil, "Runner-Token", token).Code
	}
	require.Equal(t, 501, discover(r.Token))
	require.Equal(t, 403, discover("no"))

	require.Equal(t, 204, s.do(http.MethodDelete, "/api/v4/runners", obj{"token": r.Token}).Code)
	require.Equal(t, 403, s.do(http.MethodDelete, "/api/v4/runners", obj{"token": r.Token}).Code)
	_, err = s.Runner(r.ID)
	require.ErrorIs(t, err, ErrNotFound)
	require.Equal(t, 404, s.do(http.MethodGet, "/api/v4/projects", nil).Code)
}

func TestTokensExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{RegistrationToken: "GR1348941secret", RunnerTokenTTL: time.Hour})
		began := time.Now()
		r := s.runner()
		call := func(method, path string, body obj) (int, credentials) {
			var c credentials
			w := s.do(method, "/api/v4/"+path, body)
			if w.Body.Len() > 0 {
				require.NoError(t, json.Unmarshal(w.Body.Bytes(), &c))
			}
			return w.Code, c
		}
		code, c := call(http.MethodPost, "runners/verify", obj{"token": r.Token})
		require.Equal(t, 200, code)
		require.WithinDuration(t, began.Add(time.Hour), *c.TokenExpiresAt, 0)
		require.Equal(t, r.ExpiresAt.UTC(), *c.TokenExpiresAt)
		code, c = call(http.MethodPost, "runners", obj{"token": "GR1348941secret"})
		require.Equal(t, 201, code)
		require.WithinDuration(t, began.Add(time.Hour), *c.TokenExpiresAt, 0)

		time.Sleep(time.Hour - time.Second) // virtual
		code, c = call(http.MethodPost, "runners/reset_authentication_token", obj{"token": r.Token})
		require.Equal(t, 201, code)
		require.WithinDuration(t, time.Now().Add(time.Hour), *c.TokenExpiresAt, 0)
		require.Zero(t, c.ID)
		old := r.Token
		r.Token = c.Token
		require.Equal(t, 204, s.request(r, nil).Code)
		code, _ = call(http.MethodPost, "runners/verify", obj{"token": old})
		require.Equal(t, 403, code)

		time.Sleep(time.Hour) // virtual
		require.Equal(t, 403, s.request(r, nil).Code)
		for _, route := range []string{
			"POST runners/verify", "POST runners/reset_authentication_token", "DELETE runners", "DELETE runners/managers",
		} {
			method, path, _ := strings.Cut(route, " ")
			code, _ := call(method, path, obj{"token": r.Token, "system_id": "s_1"})
			require.Equal(t, 403, code, route)
		}
	})
}

func TestBodiesThatCannotBeRead(t *testing.T) {
	s := newServer(t, Options{RegistrationToken: "x"})
	j := running(t, s)
	for _, route := range []string{
		"POST /api/v4/runners", "DELETE /api/v4/runners", "DELETE /api/v4/runners/managers", "POST /api/v4/runners/verify",
		"POST /api/v4/runners/reset_authentication_token", "POST /api/v4/jobs/request", "PUT " + jobPath(j),
	} {
		method, path, _ := strings.Cut(route, " ")
		for want, body := range map[int][]byte{400: []byte(`{"token":`), 413: make([]byte, maxAPIBody+1)} {
			w := s.do(method, path, body, "Content-Type", "application/json")
			require.Equal(t, want, w.Code, route)
		}
		w := s.do(method, path, []byte("token=%zz"), "Content-Type", "application/x-www-form-urlencoded")
		require.Equal(t, 400, w.Code, route)
		w = s.do(method, path+"?exit_code=many&token=x", nil)
		require.Equal(t, 400, w.Code, route)
	}
}

func TestRegistration(t *testing.T) {
	s := newServer(t, Options{RegistrationToken: "GR1348941secret"})
	p := s.project("g/p")
	register := func(fields obj) *httptest.ResponseRecorder {
		body := obj{"token": "GR1348941secret"}
		maps.Copy(body, fields)
		return s.do(http.MethodPost, "/api/v4/runners", body)
	}
	w := register(obj{"description": "old", "tag_list": "a, b", "run_untagged": false, "maximum_timeout": 1200, "locked": true})
	require.Equal(t, 201, w.Code, w.Body.String())
	var c credentials
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &c))
	r, err := s.Runner(c.ID)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, r.Tags)
	require.Equal(t, c.Token, r.Token)
	s.run(p, ciconfig.Job{Tags: []string{"b"}})
	require.Equal(t, 1200, s.claim(r).RunnerInfo.Timeout)

	require.Equal(t, 201, register(obj{"tag_list": []string{"x"}, "paused": true}).Code)
	require.Equal(t, 201, register(obj{"active": false}).Code)
	for name, c := range map[string]struct {
		fields obj
		want   int
	}{
		"both names of one thing":   {obj{"active": true, "paused": false}, 400},
		"an unknown access level":   {obj{"access_level": "all"}, 400},
		"tags that are no texts":    {obj{"tag_list": 7}, 400},
		"no tags and no untagged":   {obj{"run_untagged": false}, 400},
		"a timeout below 10 min":    {obj{"maximum_timeout": 599}, 400},
		"a wrong token":             {obj{"token": "no"}, 403},
		"no token":                  {obj{"token": ""}, 400},
		"a protected runner is one": {obj{"access_level": "ref_protected"}, 201},
	} {
		require.Equal(t, c.want, register(c.fields).Code, name)
	}
	form := "token=GR1348941secret&tag_list=q,r&run_untagged=false&paused=true&maximum_timeout=900"
	w = s.do(http.MethodPost, "/api/v4/runners", []byte(form), "Content-Type", "application/x-www-form-urlencoded")
	require.Equal(t, 201, w.Code, w.Body.String())
	for _, bad := range []string{"&paused=perhaps", "&maximum_timeout=long"} {
		w = s.do(http.MethodPost, "/api/v4/runners", []byte("token=GR1348941secret"+bad), "Content-Type", "application/x-www-form-urlencoded")
		require.Equal(t, 400, w.Code, bad)
	}
	closed := newServer(t, Options{})
	require.Equal(t, 410, closed.do(http.MethodPost, "/api/v4/runners", obj{"token": "any"}).Code)
}

func TestRunnerOptionsAreChecked(t *testing.T) {
	s := newServer(t, Options{})
	for _, c := range []struct {
		o    RunnerOptions
		want string
	}{
		{RunnerOptions{}, "can never run a job: add tags or set RunUntagged"},
		{RunnerOptions{Type: "shared", RunUntagged: true}, `runner type "shared": use instance_type`},
		{RunnerOptions{Type: GroupRunner, RunUntagged: true}, "a group runner needs a group"},
		{RunnerOptions{Type: ProjectRunner, RunUntagged: true}, "needs at least one project"},
		{RunnerOptions{Type: ProjectRunner, Projects: []string{"g/no"}, RunUntagged: true}, "project g/no: not found"},
		{RunnerOptions{RunUntagged: true, MaximumTimeout: -1}, "must not be negative"},
		{RunnerOptions{RunUntagged: true, TokenTTL: -1}, "must not be negative"},
	} {
		_, err := s.AddRunner(c.o)
		require.ErrorContains(t, err, c.want)
	}
	require.ErrorIs(t, s.SetPaused(99, true), ErrNotFound)
	require.ErrorIs(t, s.RemoveRunner(99), ErrNotFound)
	_, err := s.ResetToken(99)
	require.ErrorIs(t, err, ErrNotFound)
	r := s.runner()
	require.NoError(t, s.RemoveRunner(r.ID))
	require.Equal(t, 403, s.request(r, nil).Code)
}
