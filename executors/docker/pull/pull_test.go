package pull

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/docker/auth"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/internal/testbed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const username, password = "reader", "open sesame"

// hub is a registry on this machine, where an engine takes it without TLS. Its images are gone from the engine after the
// test.
type hub struct {
	t      *testing.T
	engine *client.Client
	host   string
	open   bool // without a password
	// fail answers in the registry's place if it returns true.
	fail  atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	pulls atomic.Int32 // of manifests
}

func newHub(t *testing.T, open bool) *hub {
	t.Helper()
	testbed.Need(t, testbed.Docker)
	engine, err := client.New(client.FromEnv)
	require.NoError(t, err)
	h := &hub{t: t, engine: engine, open: open}
	blobs := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); !open && (u != username || p != password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="hub"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if fail := h.fail.Load(); fail != nil && (*fail)(w, r) {
			return
		}
		if strings.Contains(r.URL.Path, "/manifests/") && r.Method != http.MethodPut {
			h.pulls.Add(1)
		}
		blobs.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		require.NoError(t, engine.Close())
	})
	u, err := url.Parse(server.URL)
	require.NoError(t, err)
	h.host = u.Host
	return h
}

// push puts an image of layers of this size into the registry and returns its name, with a tag that only it has.
func (h *hub) push(layers int, size int64, architecture string) string {
	h.t.Helper()
	reference := fmt.Sprintf("%s/group/image:%s", h.host, strings.ToLower(rand.Text()[:10]))
	h.pushTo(reference, layers, size, architecture)
	return reference
}

func (h *hub) pushTo(reference string, layers int, size int64, architecture string) v1.Hash {
	h.t.Helper()
	image, err := random.Image(size, int64(layers))
	require.NoError(h.t, err)
	file, err := image.ConfigFile()
	require.NoError(h.t, err)
	file.OS, file.Architecture = "linux", architecture
	image, err = mutate.ConfigFile(image, file)
	require.NoError(h.t, err)
	tag, err := name.NewTag(reference)
	require.NoError(h.t, err)
	transport := &http.Transport{DisableKeepAlives: true}
	require.NoError(h.t, remote.Write(tag, image, remote.WithTransport(transport), remote.WithAuth(&authn.Basic{Username: username, Password: password})))
	id, err := image.ConfigName()
	require.NoError(h.t, err)
	h.t.Cleanup(func() {
		_, _ = h.engine.ImageRemove(context.Background(), id.String(), client.ImageRemoveOptions{Force: true})
	})
	digest, err := image.Digest()
	require.NoError(h.t, err)
	h.pulls.Store(0)
	return digest
}

func (h *hub) puller(c config.Config) *Puller {
	p := New(Options{Engine: h.engine, Config: &c})
	if !h.open {
		p.options.Credentials.Job = []runnerapi.Credentials{{Type: "registry", URL: h.host, Username: username, Password: password}}
	}
	p.min, p.max = time.Millisecond, 2*time.Millisecond
	return p
}

func get(t *testing.T, p *Puller, r Request) (client.ImageInspectResult, string, error) {
	t.Helper()
	var trace bytes.Buffer
	image, err := p.Get(t.Context(), r, &trace)
	return image, trace.String(), err
}

func reason(t *testing.T, err error) runnerapi.FailureReason {
	t.Helper()
	var typed *executors.Error
	require.ErrorAs(t, err, &typed)
	return typed.Reason
}

func TestPullWithCredentials(t *testing.T) {
	h := newHub(t, false)
	image := h.push(3, 100_000, runtime.GOARCH)
	var told []string
	p := h.puller(config.Config{})
	p.options.Secrets = func(secrets []string) { told = append(told, secrets...) }
	found, trace, err := get(t, p, Request{Image: image})
	require.NoError(t, err, trace)
	lines := strings.Split(strings.TrimSpace(trace), "\n")
	require.Len(t, lines, 5)
	require.Equal(t, "Using effective pull policy of [always] for container "+image, lines[0])
	require.Equal(t, "Authenticating with credentials from job payload (GitLab Registry)", lines[1])
	require.Equal(t, "Pulling docker image "+image+" ...", lines[2])
	require.Regexp(t, `^  Pulled 3 of 3 layers \([0-9.]+kB\) in [0-9.]+ s$`, lines[3])
	require.Regexp(t, `^Using docker image `+found.ID+` for `+image+` with digest `+h.host+`/group/image@sha256:[0-9a-f]{64} \.\.\.$`, lines[4])
	require.Contains(t, told, password)
	require.NotContains(t, trace, password)

	// The job has it: no second pull. Another job pulls, and finds that nothing is new.
	before := h.pulls.Load()
	_, trace, err = get(t, p, Request{Image: image})
	require.NoError(t, err)
	require.NotContains(t, trace, "Pulling")
	require.Equal(t, before, h.pulls.Load())
	_, trace, err = get(t, h.puller(config.Config{}), Request{Image: image})
	require.NoError(t, err)
	require.Contains(t, trace, "Pulling")
	require.NotContains(t, trace, "Pulled")
	require.Greater(t, h.pulls.Load(), before)

	none := h.puller(config.Config{})
	none.options.Credentials = auth.Sources{}
	_, trace, err = get(t, none, Request{Image: image})
	require.Equal(t, runnerapi.ReasonConfiguration, reason(t, err), err)
	require.ErrorContains(t, err, "failed to pull image \""+image+"\" with specified policies [always]: ")
	require.ErrorContains(t, err, "no basic auth credentials")
	require.Contains(t, trace, "WARNING: Failed to pull image with policy \"always\": ")
	require.NotContains(t, trace, "retrying")
}

func TestPolicies(t *testing.T) {
	h := newHub(t, true)
	image := h.push(1, 1000, runtime.GOARCH)
	_, trace, err := get(t, h.puller(config.Config{PullPolicy: config.PullPolicies{config.PullNever}}), Request{Image: image})
	require.ErrorContains(t, err, "No such image: "+image)
	require.Equal(t, runnerapi.ReasonRunnerSystem, reason(t, err))
	require.Zero(t, h.pulls.Load(), trace)

	first, trace, err := get(t, h.puller(config.Config{PullPolicy: config.PullPolicies{config.PullNever, config.PullIfNotPresent}}), Request{Image: image})
	require.NoError(t, err)
	require.Contains(t, trace, "Using effective pull policy of [never if-not-present] for container")
	require.Contains(t, trace, "WARNING: Failed to pull image with policy \"never\": ")
	require.Contains(t, trace, "Attempt #2: Trying \"if-not-present\" pull policy\nPulling docker image")

	// The tag moves.
	h.pushTo(image, 1, 1000, runtime.GOARCH)
	for _, policy := range []config.PullPolicy{config.PullNever, config.PullIfNotPresent} {
		found, trace, err := get(t, h.puller(config.Config{PullPolicy: config.PullPolicies{policy}}), Request{Image: image})
		require.NoError(t, err)
		require.Equal(t, first.ID, found.ID)
		require.Equal(t, policy == config.PullIfNotPresent, strings.Contains(trace, "Using locally found image version due to \"if-not-present\" pull policy\n"))
	}
	require.Zero(t, h.pulls.Load())
	moved, _, err := get(t, h.puller(config.Config{}), Request{Image: image})
	require.NoError(t, err)
	require.NotEqual(t, first.ID, moved.ID)

	// An image by its ID is never pulled.
	before := h.pulls.Load()
	byID, _, err := get(t, h.puller(config.Config{}), Request{Image: moved.ID})
	require.NoError(t, err)
	require.Equal(t, moved.ID, byID.ID)
	require.Equal(t, before, h.pulls.Load())
	_, _, err = get(t, h.puller(config.Config{}), Request{Image: "sha256:" + strings.Repeat("0", 64)})
	require.ErrorContains(t, err, "no registry has images by their ID")
}

func TestOnlyAllowedPolicies(t *testing.T) {
	p := func(own, allowed []config.PullPolicy) *Puller {
		return New(Options{Config: &config.Config{PullPolicy: own, AllowedPullPolicies: allowed}})
	}
	always, never, absent := config.PullAlways, config.PullNever, config.PullIfNotPresent
	for _, row := range []struct {
		own, allowed []config.PullPolicy
		job          []string
		want         []config.PullPolicy
		wrong        string
	}{
		{nil, nil, nil, []config.PullPolicy{always}, ""},
		{nil, nil, []string{"never"}, nil, "pull_policy ([never]) defined in GitLab pipeline config is not one of the allowed_pull_policies ([always])"},
		{[]config.PullPolicy{absent}, nil, []string{"if-not-present"}, []config.PullPolicy{absent}, ""},
		{[]config.PullPolicy{absent}, []config.PullPolicy{always, never}, nil, nil, "pull_policy ([if-not-present]) defined in Runner config is not one of the allowed_pull_policies ([always never])"},
		{nil, []config.PullPolicy{never}, nil, nil, "pull_policy ([always]) defined in Runner config (default) is not one of the allowed_pull_policies ([never])"},
		{nil, []config.PullPolicy{always, absent}, []string{"never", "if-not-present", "always"}, []config.PullPolicy{absent, always}, ""},
		{nil, []config.PullPolicy{always}, []string{"sometimes"}, nil, "pull_policy ([sometimes])"},
	} {
		got, err := p(row.own, row.allowed).policies(row.job)
		require.Equal(t, row.want, got)
		if row.wrong != "" {
			require.ErrorContains(t, err, row.wrong)
		}
	}
	_, _, err := get(t, p(nil, nil), Request{Image: "ruby", Policies: []string{"never"}})
	require.ErrorContains(t, err, "invalid pull policy for image \"ruby\": pull_policy ([never])")
	require.Equal(t, runnerapi.ReasonConfiguration, reason(t, err))
}

func TestPlatformsAndDigests(t *testing.T) {
	h := newHub(t, true)
	other := map[bool]string{true: "amd64", false: "arm64"}[runtime.GOARCH == "arm64"]
	tag := h.push(1, 1000, other)
	_, _, err := get(t, h.puller(config.Config{}), Request{Image: tag, Platform: "linux/" + runtime.GOARCH})
	require.Error(t, err)
	found, trace, err := get(t, h.puller(config.Config{}), Request{Image: tag, Platform: other})
	require.NoError(t, err, trace)
	require.Equal(t, other, found.Architecture)
	require.Contains(t, trace, "Pulling docker image "+tag+" for platform "+other+" ...")
	// An image for another platform is as good as none.
	_, _, err = get(t, h.puller(config.Config{PullPolicy: config.PullPolicies{config.PullNever}}), Request{Image: tag, Platform: runtime.GOARCH})
	require.ErrorContains(t, err, "the engine has "+tag+" for linux/"+other+" only, not for "+runtime.GOARCH)

	digest := h.pushTo(tag, 1, 1000, runtime.GOARCH)
	repository := tag[:strings.LastIndexByte(tag, ':')]
	for _, image := range []string{repository + "@" + digest.String(), tag + "@" + digest.String()} {
		found, _, err := get(t, h.puller(config.Config{PullPolicy: config.PullPolicies{config.PullIfNotPresent}}), Request{Image: image})
		require.NoError(t, err)
		require.Contains(t, found.RepoDigests, repository+"@"+digest.String())
	}
	for _, text := range []string{"a/b/c/d", "linux/", "/"} {
		_, _, err := get(t, h.puller(config.Config{}), Request{Image: tag, Platform: text})
		require.ErrorContains(t, err, "must be like linux/arm64")
	}
	_, _, err = get(t, h.puller(config.Config{}), Request{Image: "A:"})
	require.ErrorContains(t, err, ": use NAME, NAME:TAG")
}

func TestOnePullForAllOfAJob(t *testing.T) {
	h := newHub(t, true)
	image := h.push(2, 1000, runtime.GOARCH)
	p := h.puller(config.Config{})
	var group sync.WaitGroup
	var traces [4]bytes.Buffer
	for i := range traces {
		group.Go(func() { _, _ = p.Get(t.Context(), Request{Image: image}, &traces[i]) })
	}
	group.Wait()
	pulled := 0
	for i := range traces {
		pulled += strings.Count(traces[i].String(), "Pulling docker image")
		require.Contains(t, traces[i].String(), "Using docker image")
	}
	require.Equal(t, 1, pulled)
}

func TestTheNetworkIsTriedAgain(t *testing.T) {
	h := newHub(t, true)
	image := h.push(1, 1000, runtime.GOARCH)
	fail := func(times int32, answer func(http.ResponseWriter)) *atomic.Int32 {
		var count atomic.Int32
		f := func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") || count.Add(1) > times {
				return false
			}
			answer(w)
			return true
		}
		h.fail.Store(&f)
		return &count
	}
	reset := func(w http.ResponseWriter) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_ = conn.Close()
		}
	}
	fail(1_000, reset)
	_, trace, err := get(t, h.puller(config.Config{}), Request{Image: image})
	require.Equal(t, runnerapi.ReasonExternalDependency, reason(t, err), err)
	require.Equal(t, 2, strings.Count(trace, ", retrying: "), trace)
	require.Contains(t, trace, "WARNING: Failed to pull image \""+image+"\" (attempt #2), retrying: ")

	// A registry that does not know the image is not asked again.
	h.fail.Store(nil)
	_, trace, err = get(t, h.puller(config.Config{}), Request{Image: h.host + "/group/none:1"})
	require.Equal(t, runnerapi.ReasonConfiguration, reason(t, err), err)
	require.NotContains(t, trace, "retrying")

	_, trace, err = get(t, h.puller(config.Config{}), Request{Image: image})
	require.NoError(t, err, trace)

	// Nobody listens.
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	_, trace, err = get(t, h.puller(config.Config{}), Request{Image: strings.TrimPrefix(dead.URL, "http://") + "/group/none:1"})
	require.Equal(t, runnerapi.ReasonExternalDependency, reason(t, err), err)
	require.Equal(t, 2, strings.Count(trace, ", retrying: "), trace)
}

func TestTheEndOfAJobEndsItsPulls(t *testing.T) {
	h := newHub(t, true)
	image := h.push(1, 1000, runtime.GOARCH)
	asked, release := make(chan struct{}, 100), make(chan struct{})
	stall := func(_ http.ResponseWriter, r *http.Request) bool {
		asked <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	}
	h.fail.Store(&stall)
	defer close(release)
	canceled := errors.New("the job was canceled")
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	p := h.puller(config.Config{})
	go func() {
		_, err := p.Get(ctx, Request{Image: image}, &bytes.Buffer{})
		ended <- err
	}()
	<-asked
	cancel(canceled)
	require.Equal(t, canceled, <-ended)
	_, err := p.Get(ctx, Request{Image: image}, &bytes.Buffer{})
	require.Equal(t, canceled, err)
}
