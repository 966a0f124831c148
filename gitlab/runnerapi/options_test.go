package runnerapi_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func TestUnsupportedOptions(t *testing.T) {
	for text, want := range map[string]string{
		`null`: "",
		`{}`:   "",
		`{"docker":{"platform":"arm64","user":"me"},"kubernetes":{"user":1000}}`: "",
		`{"docker":{"b":1,"a":2}}`: `Unsupported "image" options [a b] for "docker executor"; supported options are [platform user]`,
		`{"kubernetes":{"platform":""},"podman":{}}`: `Unsupported "image" options [podman] for "executor_opts"; supported options are [docker kubernetes]` + "\n" +
			`Unsupported "image" options [platform] for "kubernetes executor"; supported options are [user]`,
		`{"docker":7}`: `executor_opts:docker of the image "x": json: cannot unmarshal number into Go value of type map[string]json.RawMessage`,
	} {
		var i runnerapi.Image
		require.NoError(t, json.Unmarshal([]byte(`{"name":"x","executor_opts":`+text+`}`), &i))
		if err := i.UnsupportedOptions(); want == "" {
			require.NoError(t, err, text)
		} else {
			require.EqualError(t, err, want, text)
		}
	}
}
