package pull

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func TestClassify(t *testing.T) {
	for message, want := range map[string]runnerapi.FailureReason{
		`Get "https://r.test/v2/": dial tcp: lookup r.test: no such host`:                             runnerapi.ReasonExternalDependency,
		`net/http: request canceled while waiting for connection (Client.Timeout exceeded)`:           runnerapi.ReasonExternalDependency,
		`net/http: TLS handshake timeout`:                                                             runnerapi.ReasonExternalDependency,
		`read tcp 10.0.0.1:1->10.0.0.2:2: read: connection reset by peer`:                             runnerapi.ReasonExternalDependency,
		`received unexpected HTTP status: 503 Service Unavailable`:                                    runnerapi.ReasonExternalDependency,
		`manifest for ruby:none not found: manifest unknown`:                                          runnerapi.ReasonConfiguration,
		`pull access denied for x, repository does not exist or may require 'docker login': denied`:   runnerapi.ReasonConfiguration,
		`Head "https://r.test/v2/x/manifests/1": no basic auth credentials`:                           runnerapi.ReasonConfiguration,
		`unauthorized: authentication required`:                                                       runnerapi.ReasonConfiguration,
		`no matching manifest for linux/arm64/v8 in the manifest list entries`:                        runnerapi.ReasonConfiguration,
		`toomanyrequests: You have reached your pull rate limit`:                                      runnerapi.ReasonImagePull,
		`failed to register layer: Error processing tar file(exit status 1): no space left on device`: runnerapi.ReasonImagePull,
	} {
		require.Equal(t, want, Classify(message), message)
	}
}

func TestProgressIsAFewLines(t *testing.T) {
	var trace strings.Builder
	p := newProgress(&trace, time.Hour)
	message := func(id, status string, current, total int64) {
		p.message(jsonstream.Message{ID: id, Status: status, Progress: &jsonstream.Progress{Current: current, Total: total}})
	}
	message("3.19", "Pulling from library/alpine", 0, 0)
	for _, id := range []string{"a", "b", "c"} {
		message(id, "Pulling fs layer", 0, 0)
	}
	message("a", "Already exists", 0, 0)
	for i := range int64(10_000) {
		message("b", "Downloading", i, 10_000)
	}
	require.Empty(t, trace.String())
	p.every = 0
	message("b", "Download complete", 0, 0)
	message("b", "Extracting", 1, 10)
	message("b", "Pull complete", 0, 0)
	p.done()
	require.Equal(t, "  2 of 3 layers downloaded (10kB of 10kB), 1 extracted\n  2 of 3 layers downloaded (10kB of 10kB), 2 extracted\n",
		trace.String()[:strings.Index(trace.String(), "  Pulled")])
	require.Regexp(t, `  Pulled 2 of 3 layers \(10kB\) in 0\.0 s\n$`, trace.String())

	for i := range 2 * maxLayers {
		message(fmt.Sprint(i), "Waiting", 0, 0)
	}
	require.Len(t, p.layers, maxLayers)
}

func TestPausesGrowAndDiffer(t *testing.T) {
	p := New(Options{})
	require.Equal(t, [2]time.Duration{2 * time.Second, 10 * time.Second}, [2]time.Duration{p.min, p.max})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, p.pause(ctx, 1), context.Canceled)
}

// telltale is an engine whose errors repeat what it was given.
type telltale struct{}

func (telltale) ClientVersion() string { return "1.41" }

func (telltale) ImageInspect(context.Context, string, ...client.ImageInspectOption) (client.ImageInspectResult, error) {
	return client.ImageInspectResult{}, errdefs.ErrNotFound
}

func (telltale) ImagePull(_ context.Context, _ string, options client.ImagePullOptions) (client.ImagePullResponse, error) {
	return nil, errors.New("bad header " + options.RegistryAuth + " of reader:open sesame")
}

func TestErrorsTellNoSecrets(t *testing.T) {
	p := New(Options{Engine: telltale{}, Config: &config.Config{}})
	p.options.Credentials.Job = []runnerapi.Credentials{{Type: "registry", URL: "r.test", Username: "reader", Password: "open sesame"}}
	var trace bytes.Buffer
	_, err := p.Get(t.Context(), Request{Image: "r.test/a"}, &trace)
	require.ErrorContains(t, err, "bad header [MASKED] of reader:[MASKED]")
	require.NotContains(t, trace.String(), "sesame")
	text, err := json.Marshal(fmt.Sprintf("%+v", err))
	require.NoError(t, err)
	require.NotContains(t, string(text), "sesame")
}
