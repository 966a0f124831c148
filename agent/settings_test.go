package agent_test

import (
	"context"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/switchyard-ci/switchyard/agent"
	"github.com/switchyard-ci/switchyard/agent/internal/fakefleet"
	"github.com/switchyard-ci/switchyard/agent/internal/fakejob"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// spec reads what the only job on the agent was given.
func (r *runner) spec() folder.Spec {
	r.t.Helper()
	found, err := filepath.Glob(filepath.Join(r.dir, "jobs", "*", "job"))
	require.NoError(r.t, err)
	require.Len(r.t, found, 1)
	f, err := folder.Open(found[0])
	require.NoError(r.t, err)
	defer f.Close()
	spec, err := f.Spec()
	require.NoError(r.t, err)
	return spec
}

func TestARunnersSettingsReachItsJobs(t *testing.T) {
	r, f, s := connect(t, fakejob.New(t))
	f.SetPayload(1, fakejob.Payload(1, "print hello"))
	f.SetSettings(1, &fleetv1.JobSettings{
		ServerUrl: "https://gitlab.example.com", ServerCa: "pem",
		Environment:         []*fleetv1.Variable{{Key: "A", Value: "1"}, {Key: "B", Value: "2", File: true, Masked: true, Raw: true}},
		PreGetSourcesScript: "one", PostGetSourcesScript: "two", PreBuildScript: "three", PostBuildScript: "four",
		CloneUrl: "https://git.example.com", DebugTraceDisabled: true, FeatureFlags: map[string]bool{"FF_TIMESTAMPS": true, "FF_X": false},
		PrepareTimeout: durationpb.New(time.Minute), GetSourcesTimeout: durationpb.New(2 * time.Minute),
		ArtifactUploadTimeout: durationpb.New(3 * time.Minute), ArtifactResponseHeaderTimeout: durationpb.New(-time.Minute),
		RemoteCache: true, MaxUploadedArchiveSize: 1000,
	})
	run(s, one)
	require.Equal(t, "success", s.Finished(one).GetState())
	spec := r.spec()
	require.Equal(t, folder.Settings{
		PreGetSourcesScript: "one", PostGetSourcesScript: "two", PreBuildScript: "three", PostBuildScript: "four",
		CloneURL: "https://git.example.com", DebugTraceDisabled: true, FeatureFlags: map[string]bool{"FF_TIMESTAMPS": true, "FF_X": false},
		GetSourcesTimeout: 2 * time.Minute, ArtifactUploadTimeout: 3 * time.Minute, RemoteCache: true, MaxUploadedArchiveSize: 1000,
	}, spec.Settings)
	require.Equal(t, "https://gitlab.example.com", spec.ServerURL)
	require.Equal(t, "pem", spec.ServerCA)
	require.Equal(t, []runnerapi.Variable{{Key: "A", Value: "1"}, {Key: "B", Value: "2", File: true, Masked: true, Raw: true}}, spec.Environment)
}

func TestAControlPlaneOfBeforeThereWereSettings(t *testing.T) {
	r, f, s := connect(t, fakejob.New(t))
	f.SetPayload(1, fakejob.Payload(1, "print hello"))
	run(s, one)
	require.Equal(t, "success", s.Finished(one).GetState())
	spec := r.spec()
	require.Equal(t, folder.Settings{}, spec.Settings)
	require.Empty(t, spec.ServerURL)
	require.Empty(t, spec.Environment)
}

func TestPreparingHasATimeLimit(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare time.Duration
		job     int // seconds
		want    string
	}{
		"the runner's":                       {50 * time.Millisecond, 3600, "preparing the environment took longer than 50ms (prepare_timeout)"},
		"the job's, where that is shorter":   {time.Hour, 1, "execution took longer than 1s"},
		"the job's, where there is no other": {0, 1, "execution took longer than 1s"},
	} {
		t.Run(name, func(t *testing.T) {
			x := fakejob.New(t)
			x.OnPrepare = func(ctx context.Context, _ io.Writer) error {
				<-ctx.Done()
				return ctx.Err()
			}
			_, f, s := connect(t, x)
			f.SetPayload(1, fakejob.PayloadWithTimeout(1, tc.job, "print hello"))
			f.SetSettings(1, &fleetv1.JobSettings{PrepareTimeout: durationpb.New(tc.prepare)})
			run(s, one)
			result := s.Finished(one)
			require.Equal(t, "failed", result.GetState())
			require.EqualValues(t, runnerapi.ReasonExecutionTimeout, result.GetFailureReason())
			require.Equal(t, tc.want, result.GetMessage())
			require.Contains(t, f.WholeTrace(1, result), "ERROR: Job failed: "+tc.want)
		})
	}
}

func TestURLsOfCachesAreAskedForAtTheControlPlane(t *testing.T) {
	f := fakefleet.Start(t)
	asked := make(chan *fleetv1.SignCacheRequest, 10)
	f.OnSign = func(r *fleetv1.SignCacheRequest) (*fleetv1.SignCacheResponse, error) {
		asked <- r
		if r.GetKey() == "../x" {
			return nil, status.Error(codes.InvalidArgument, `cache key "../x": it has a part ..`)
		}
		return &fleetv1.SignCacheResponse{Url: "https://s3/" + r.GetKey(), Headers: map[string]string{"X-Amz-A": "b"}}, nil
	}
	r := start(t, f, fakejob.New(t), t.TempDir())
	f.Next().Welcome(period, forever)
	for op, want := range map[string]fleetv1.CacheOperation{
		"head": fleetv1.CacheOperation_CACHE_OPERATION_HEAD, "get": fleetv1.CacheOperation_CACHE_OPERATION_GET, "put": fleetv1.CacheOperation_CACHE_OPERATION_PUT,
	} {
		answer := r.Sign(t.Context(), one, folder.CacheRequest{ID: 7, Op: op, Key: "key"})
		require.Equal(t, folder.CacheAnswer{ID: 7, URL: "https://s3/key", Headers: map[string]string{"X-Amz-A": "b"}}, answer)
		q := <-asked
		require.Equal(t, want, q.GetOperation())
		require.Equal(t, "key", q.GetKey())
		require.Equal(t, one.Job, q.GetRef().GetJob())
		require.Equal(t, one.Epoch, q.GetRef().GetEpoch())
	}
	require.Equal(t, folder.CacheAnswer{ID: 8, Error: `cache key "../x": it has a part ..`},
		r.Sign(t.Context(), one, folder.CacheRequest{ID: 8, Op: "get", Key: "../x"}))
	for _, op := range []string{"delete", "", "unspecified"} {
		require.Equal(t, folder.CacheAnswer{ID: 9, Error: `"` + op + `" is nothing that can be done with a cache: it must be head, get or put`},
			r.Sign(t.Context(), one, folder.CacheRequest{ID: 9, Op: op, Key: "key"}))
	}
	require.Len(t, asked, 1)
}

func TestAJobDoesNotWaitLongForAControlPlaneThatIsAway(t *testing.T) {
	f := fakefleet.Start(t)
	f.OnSign = func(*fleetv1.SignCacheRequest) (*fleetv1.SignCacheResponse, error) {
		return &fleetv1.SignCacheResponse{Url: "https://s3/key"}, nil
	}
	r := start(t, f, fakejob.New(t), t.TempDir())
	f.Next().Welcome(period, forever)
	request := folder.CacheRequest{ID: 7, Op: "get", Key: "key"}
	require.Empty(t, r.Sign(t.Context(), one, request).Error)

	f.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	answer := r.Sign(ctx, one, request)
	require.Contains(t, answer.Error, "the control plane cannot be reached")
	require.Empty(t, answer.URL)
	require.EqualValues(t, 7, answer.ID)

	// One that comes back in time is heard.
	back := make(chan folder.CacheAnswer, 1)
	go func() { back <- r.Sign(context.Background(), one, request) }()
	f.Restart()
	f.Next().Welcome(period, forever)
	require.Equal(t, folder.CacheAnswer{ID: 7, URL: "https://s3/key"}, <-back)
}

func TestAControlPlaneThatDoesNotSign(t *testing.T) {
	r, _, _ := connect(t, fakejob.New(t))
	answer := r.Sign(t.Context(), one, folder.CacheRequest{Op: "get", Key: "key"})
	require.Contains(t, answer.Error, "older than this agent")
}

func TestGitLabIsToldOnlyWhatIsTrue(t *testing.T) {
	everything := runnerapi.Features{}
	for _, name := range []string{
		"variables", "shared", "image", "services", "service_variables", "service_multiple_aliases", "image_executor_opts", "service_executor_opts",
		"vault_secrets", "job_inputs", "native_steps_integration", "session", "terminal", "proxy", "trace_reset", "two_phase_job_commit",
	} {
		everything = everything.Union(runnerapi.FeaturesOf([]string{name}))
	}
	always := []string{
		"artifacts", "cache", "fallback_cache_keys", "upload_multiple_artifacts", "upload_raw_artifacts", "refspecs", "masking",
		"raw_variables", "artifacts_exclude", "multi_build_steps", "cancelable", "return_exit_code", "cancel_gracefully",
	}
	require.ElementsMatch(t, always, agent.Features(runnerapi.Features{}).Names())
	require.ElementsMatch(t, append(always,
		"variables", "shared", "image", "services", "service_variables", "service_multiple_aliases", "image_executor_opts", "service_executor_opts",
	), agent.Features(everything).Names())
}
