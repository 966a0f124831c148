package dispatch

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/switchyard-ci/switchyard/controlplane/cachestore"
	"github.com/switchyard-ci/switchyard/controlplane/registry"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// withCache gives the runner "any" settings and an object store.
func withCache(t *testing.T, c *registry.Cache) func(*Config) {
	t.Helper()
	caches, err := cachestore.New(*c, "AbCdEfGhI")
	require.NoError(t, err)
	return func(cfg *Config) {
		cfg.Runners[0].Caches = caches
		cfg.Runners[0].Settings = registry.Settings{
			Environment:         []runnerapi.Variable{{Key: "A", Value: "1"}, {Key: "B", Value: "2", File: true, Masked: true, Raw: true}},
			PreGetSourcesScript: "one", PostGetSourcesScript: "two", PreBuildScript: "three", PostBuildScript: "four",
			CloneURL: "https://git.example.com", DebugTraceDisabled: true, FeatureFlags: map[string]bool{"FF_TIMESTAMPS": true},
			PrepareTimeout: time.Minute, GetSourcesTimeout: 2 * time.Minute, ArtifactUploadTimeout: 3 * time.Minute,
			ArtifactResponseHeaderTimeout: 4 * time.Minute, Cache: c,
		}
	}
}

func s3() *registry.Cache {
	return &registry.Cache{Path: "ci", MaxUploadedArchiveSize: 1000, S3: registry.S3{
		ServerAddress: "s3.example.com", BucketName: "caches", BucketLocation: "us-east-1", AccessKey: "access", SecretKey: "S3CRET",
		Encryption: registry.EncryptionS3,
	}}
}

// claimFor claims a job with an envelope of its own.
func (f *fleet) claimFor(runner string, timeout int, project int64) {
	f.t.Helper()
	r, err := f.d.Reserve(f.t.Context(), runner)
	require.NoError(f.t, err)
	f.nextJob++
	e := runnerapi.Envelope{ID: f.nextJob, Token: "t"}
	e.JobInfo.ProjectID, e.RunnerInfo.Timeout = project, timeout
	require.NoError(f.t, f.d.Claimed(f.t.Context(), runner, r, Claim{Payload: []byte(`{"id":1}`), Envelope: e, ServerCA: "pem", At: time.Now()}))
}

func TestAJobIsRunWithItsRunnersSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab(), withCache(t, s3()))
		defer f.stop()
		a, _ := f.join("a", hello("1", 2))
		defer a.leave()

		f.claimFor("any", 3600, 42)
		ref := a.begin()
		got, err := a.client.GetJob(a.ctx, &fleetv1.GetJobRequest{Ref: ref})
		require.NoError(t, err)
		want := &fleetv1.JobSettings{
			ServerUrl: "http://gitlab", ServerCa: "pem",
			Environment:    []*fleetv1.Variable{{Key: "A", Value: "1"}, {Key: "B", Value: "2", File: true, Masked: true, Raw: true}},
			PrepareTimeout: durationpb.New(time.Minute), GetSourcesTimeout: durationpb.New(2 * time.Minute),
			PreGetSourcesScript: "one", PostGetSourcesScript: "two", PreBuildScript: "three", PostBuildScript: "four",
			CloneUrl: "https://git.example.com", DebugTraceDisabled: true, FeatureFlags: map[string]bool{"FF_TIMESTAMPS": true},
			ArtifactUploadTimeout: durationpb.New(3 * time.Minute), ArtifactResponseHeaderTimeout: durationpb.New(4 * time.Minute),
			RemoteCache: true, MaxUploadedArchiveSize: 1000,
		}
		require.True(t, proto.Equal(want, got.GetSettings()), "%v", got.GetSettings())
		require.NotContains(t, got.String(), "S3CRET")
		a.finish(ref, "done")

		f.claim("one")
		ref = a.begin()
		got, err = a.client.GetJob(a.ctx, &fleetv1.GetJobRequest{Ref: ref})
		require.NoError(t, err)
		require.True(t, proto.Equal(&fleetv1.JobSettings{ServerUrl: "http://gitlab"}, got.GetSettings()), "%v", got.GetSettings())
		a.finish(ref, "done")
	})
}

func TestCachesAreSignedForTheHolderOfARunningJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab(), withCache(t, s3()))
		defer f.stop()
		a, _ := f.join("a", hello("1", 2))
		defer a.leave()
		b, _ := f.join("b", hello("2", 1))
		defer b.leave()
		const put, get = fleetv1.CacheOperation_CACHE_OPERATION_PUT, fleetv1.CacheOperation_CACHE_OPERATION_GET
		sign := func(a *fake, ref *fleetv1.JobRef, o fleetv1.CacheOperation, key string) (*fleetv1.SignCacheResponse, codes.Code, string) {
			res, err := a.client.SignCache(a.ctx, &fleetv1.SignCacheRequest{Ref: ref, Operation: o, Key: key})
			return res, status.Code(err), status.Convert(err).Message()
		}
		refused := func(want codes.Code, text string, a *fake, ref *fleetv1.JobRef, o fleetv1.CacheOperation, key string) {
			t.Helper()
			_, code, message := sign(a, ref, o, key)
			require.Equal(t, want, code, message)
			require.Contains(t, message, text)
		}

		f.claimFor("any", 3600, 42)
		holder, other := a, b
		ref := a.next().GetOffer().GetRef()
		refused(codes.NotFound, "does not run on this agent", a, ref, get, "key") // it is only asked
		a.reply(ref, true)
		require.NotNil(t, a.next().GetStart())

		res, code, message := sign(holder, ref, put, "key")
		require.Equal(t, codes.OK, code, message)
		require.Contains(t, res.GetUrl(), "https://s3.example.com/caches/ci/runner/AbCdEfGhI/project/42/key?")
		require.Contains(t, res.GetUrl(), "X-Amz-Expires=3600&")
		require.Equal(t, map[string]string{"X-Amz-Server-Side-Encryption": "AES256"}, res.GetHeaders())
		res, code, message = sign(holder, ref, get, "key")
		require.Equal(t, codes.OK, code, message)
		require.Empty(t, res.GetHeaders())

		refused(codes.NotFound, "does not run on this agent", other, ref, get, "key")
		refused(codes.NotFound, "does not run on this agent", holder, &fleetv1.JobRef{Job: ref.GetJob(), Epoch: ref.GetEpoch() + 1}, get, "key")
		refused(codes.NotFound, "does not run on this agent", holder, &fleetv1.JobRef{Job: ref.GetJob() + 1, Epoch: 1}, get, "key")
		refused(codes.InvalidArgument, "has a part ..", holder, ref, get, "../43/key")
		refused(codes.InvalidArgument, "cache key is empty", holder, ref, get, "")
		refused(codes.InvalidArgument, "HEAD, GET or PUT", holder, ref, 17, "key")
		nobody := &fake{t: t, ctx: t.Context(), client: holder.client}
		refused(codes.Unauthenticated, "", nobody, ref, get, "key")

		// A job that asks without end is stopped, and goes on later.
		asked := 0
		for ; asked < 2*signBurst; asked++ {
			if _, code, message = sign(holder, ref, get, strings.Repeat("k", 1+asked%10)); code != codes.OK {
				break
			}
		}
		require.Less(t, asked, signBurst)
		require.Equal(t, codes.ResourceExhausted, code)
		require.Contains(t, message, "asked for too many URLs")
		refill := time.NewTimer(2 * signPace)
		<-refill.C
		_, code, message = sign(holder, ref, get, "key")
		require.Equal(t, codes.OK, code, message)

		a.report(ref, fleetv1.JobState_JOB_STATE_STARTED, nil)
		require.NotNil(t, a.next().GetReportAck())
		a.finish(ref, "done")
		refused(codes.NotFound, "does not run on this agent", holder, ref, get, "key")

		f.claim("one")
		ref = a.begin()
		refused(codes.FailedPrecondition, `the runner "one" keeps no caches in an object store`, holder, ref, get, "key")
		a.finish(ref, "done")
	})
}

// TestARunningJobsCachesAreSignedAfterARestart: what the control plane must know for it is in the store.
func TestARunningJobsCachesAreSignedAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, g := t.TempDir(), newGitLab()
		f := start(t, dir, g, withCache(t, s3()))
		a, _ := f.join("a", hello("1", 1))
		f.claimFor("any", 600, 42)
		ref := a.begin()
		f.stop()
		a.leave()

		f = start(t, dir, g, withCache(t, s3()))
		defer f.stop()
		h := hello("1", 1)
		h.Jobs = []*fleetv1.HeldJob{{Ref: ref, State: fleetv1.JobState_JOB_STATE_STARTED}}
		a, _ = f.join("a", h)
		defer a.leave()
		res, err := a.client.SignCache(a.ctx, &fleetv1.SignCacheRequest{Ref: ref, Operation: fleetv1.CacheOperation_CACHE_OPERATION_HEAD, Key: "key"})
		require.NoError(t, err)
		require.Contains(t, res.GetUrl(), "/project/42/key?")
		require.Contains(t, res.GetUrl(), "X-Amz-Expires=600&")
		a.finish(ref, "done")
	})
}
