package supervisor

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/switchyard-ci/switchyard/executors"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// Fetched is an accepted job as the control plane gives it out.
type Fetched struct {
	Payload  []byte // GitLab's
	Settings Settings
}

// Settings are those of the runner that claimed a job. The zero value, which is what a control plane without them gives,
// is gitlab-runner's default for each.
type Settings struct {
	folder.Settings
	// Environment is added to the job's variables below GitLab's.
	Environment []runnerapi.Variable
	// ServerURL and ServerCA are those of [folder.Spec].
	ServerURL string
	ServerCA  string
	// PrepareTimeout limits the preparation of the environment; 0 is the job's own timeout.
	PrepareTimeout time.Duration
}

// SettingsOf reads what a control plane sent; nil is none. What makes no sense as a limit is none.
func SettingsOf(s *fleetv1.JobSettings) Settings {
	limit := func(d *durationpb.Duration) time.Duration { return max(0, d.AsDuration()) }
	out := Settings{
		Settings: folder.Settings{
			PreGetSourcesScript: s.GetPreGetSourcesScript(), PostGetSourcesScript: s.GetPostGetSourcesScript(),
			PreBuildScript: s.GetPreBuildScript(), PostBuildScript: s.GetPostBuildScript(),
			CloneURL: s.GetCloneUrl(), DebugTraceDisabled: s.GetDebugTraceDisabled(), FeatureFlags: s.GetFeatureFlags(),
			GetSourcesTimeout:             limit(s.GetGetSourcesTimeout()),
			ArtifactUploadTimeout:         limit(s.GetArtifactUploadTimeout()),
			ArtifactResponseHeaderTimeout: limit(s.GetArtifactResponseHeaderTimeout()),
			RemoteCache:                   s.GetRemoteCache(),
			MaxUploadedArchiveSize:        max(0, s.GetMaxUploadedArchiveSize()),
		},
		ServerURL: s.GetServerUrl(), ServerCA: s.GetServerCa(), PrepareTimeout: limit(s.GetPrepareTimeout()),
	}
	for _, v := range s.GetEnvironment() {
		out.Environment = append(out.Environment, runnerapi.Variable{
			Key: v.GetKey(), Value: v.GetValue(), File: v.GetFile(), Masked: v.GetMasked(), Raw: v.GetRaw(),
		})
	}
	return out
}

// complete copies the settings into a job's spec. Variables of the executor's place come after it: they win.
func (s *Settings) complete(spec *folder.Spec) {
	spec.Settings = s.Settings
	spec.ServerURL, spec.ServerCA = s.ServerURL, s.ServerCA
	spec.Environment = append(spec.Environment, s.Environment...)
}

// prepareLimit bounds the preparation of a job's environment. The job's timeout wins if it is the shorter one.
func (s *Settings) prepareLimit(ctx context.Context, job *runnerapi.Job) (context.Context, context.CancelFunc) {
	limit := time.Duration(job.RunnerInfo.Timeout) * time.Second
	if limit <= 0 {
		limit = defaultTimeout
	}
	what := fmt.Errorf("execution took longer than %s", limit)
	if s.PrepareTimeout > 0 && s.PrepareTimeout < limit {
		limit = s.PrepareTimeout
		what = fmt.Errorf("preparing the environment took longer than %s (prepare_timeout)", limit)
	}
	return context.WithTimeoutCause(ctx, limit, &executors.Error{Reason: runnerapi.ReasonExecutionTimeout, Err: what})
}
