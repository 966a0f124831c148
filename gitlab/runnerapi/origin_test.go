package runnerapi

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWhereAJobComesFrom(t *testing.T) {
	var e Envelope
	require.NoError(t, json.Unmarshal([]byte(`{"id": 1, "token": "t", "variables": [
		{"key": "CI_PIPELINE_SOURCE", "value": "push"}, {"key": "OTHER", "value": 3}, {"value": "no key"},
		{"key": "CI_ENVIRONMENT_NAME", "value": "production/eu", "public": true}, {"key": "GITLAB_USER_LOGIN", "value": null},
		{"key": "CI_PIPELINE_SOURCE", "value": "schedule"}]}`), &e))
	require.Equal(t, Origin{Environment: "production/eu", Source: "schedule"}, e.Origin)

	again, err := json.Marshal(e)
	require.NoError(t, err)
	var same Envelope
	require.NoError(t, json.Unmarshal(again, &same))
	require.Equal(t, e, same)

	e = Envelope{}
	require.NoError(t, json.Unmarshal([]byte(`{"variables": [{"key": "GITLAB_USER_LOGIN", "value": "`+strings.Repeat("x", 1000)+`"}]}`), &e))
	require.Len(t, e.Origin.User, 255)

	e = Envelope{}
	require.NoError(t, json.Unmarshal([]byte(`{"id": 1}`), &e))
	require.Zero(t, e.Origin)
	require.NoError(t, json.Unmarshal([]byte(`{"variables": [{"key": "CI_PIPELINE_SOURCE", "value": 5}]}`), &e))
	require.Zero(t, e.Origin)
}
