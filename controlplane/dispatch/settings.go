package dispatch

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// settings are what the job is to be run with: its runner's, as they are now.
func (j *job) settings() *fleetv1.JobSettings {
	s := &j.runner.Settings
	out := &fleetv1.JobSettings{
		ServerUrl: j.row.GitLabURL, ServerCa: j.row.Envelope.ServerCA,
		PrepareTimeout: limit(s.PrepareTimeout), GetSourcesTimeout: limit(s.GetSourcesTimeout),
		PreGetSourcesScript: s.PreGetSourcesScript, PostGetSourcesScript: s.PostGetSourcesScript,
		PreBuildScript: s.PreBuildScript, PostBuildScript: s.PostBuildScript,
		CloneUrl: s.CloneURL, DebugTraceDisabled: s.DebugTraceDisabled, FeatureFlags: s.FeatureFlags,
		ArtifactUploadTimeout: limit(s.ArtifactUploadTimeout), ArtifactResponseHeaderTimeout: limit(s.ArtifactResponseHeaderTimeout),
		RemoteCache: j.runner.Caches != nil,
	}
	if s.Cache != nil {
		out.MaxUploadedArchiveSize = s.Cache.MaxUploadedArchiveSize
	}
	for _, v := range s.Environment {
		out.Environment = append(out.Environment, &fleetv1.Variable{Key: v.Key, Value: v.Value, File: v.File, Masked: v.Masked, Raw: v.Raw})
	}
	return out
}

// limit is nil for a time that is not set.
func limit(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}
