package registry_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/registry"
)

func TestShortToken(t *testing.T) {
	for token, want := range map[string]string{
		"glrt-AbCdEfGhIjKlMnOpQrSt":    "AbCdEfGhI",
		"glrt-t1_AbCdEfGhIjKlMnOpQrSt": "AbCdEfGhI",
		"glrt-t3_AbCdEfGhIjKl.01.0z1":  "AbCdEfGhI",
		"glrt-t4_AbCdEfGhIjKl":         "t4_AbCdEf",
		"t2_AbCdEfGhIjKl":              "AbCdEfGhI",
		"glrtr-AbCdEfGhIjKl":           "AbCdEfGhI",
		"glcbt-AbCdEfGhIjKl":           "AbCdEfGhI",
		"GR1348941AbCdEfGhIjKl":        "AbCdEfGhI",
		"GRx348941AbCdEfGhIjKl":        "GRx348941",
		"AbCdEfGhIjKlMnOpQrSt":         "AbCdEfGhI",
		"short":                        "short",
		"glrt-":                        "",
		"":                             "",
		"GR1348941":                    "GR1348941",
		"glrt-glrt-glrt-":              "glrt-glrt",
	} {
		require.Equal(t, want, registry.Runner{Token: token}.ShortToken(), token)
	}
}

func TestATokenIsNotLogged(t *testing.T) {
	var log bytes.Buffer
	r := registry.Runner{Name: "everything", URL: "https://gitlab.example.com", Token: "glrt-AbCdEfGhIjKlMnOpQrSt", Executor: "shell"}
	slog.New(slog.NewTextHandler(&log, nil)).Info("start", "runner", r)
	require.Contains(t, log.String(), "runner.token=AbCdEfGhI…")
	require.NotContains(t, log.String(), "JkLmN")
	require.NotContains(t, log.String(), "AbCdEfGhIjKl")
}

func TestSelector(t *testing.T) {
	for _, c := range []struct {
		selector registry.Selector
		labels   map[string]string
		want     bool
	}{
		{nil, nil, true},
		{nil, map[string]string{"os": "linux"}, true},
		{registry.Selector{"os": "linux"}, map[string]string{"os": "linux", "arch": "amd64"}, true},
		{registry.Selector{"os": "linux", "gpu": "yes"}, map[string]string{"os": "linux"}, false},
		{registry.Selector{"os": "linux"}, map[string]string{"os": "darwin"}, false},
		{registry.Selector{"os": ""}, nil, false},
		{registry.Selector{"os": ""}, map[string]string{"os": ""}, true},
	} {
		require.Equal(t, c.want, c.selector.Matches(c.labels), fmt.Sprint(c.selector, c.labels))
	}
	require.Equal(t, "arch=amd64,os=linux", registry.Selector{"os": "linux", "arch": "amd64"}.String())
	require.Empty(t, registry.Selector{}.String())
}
