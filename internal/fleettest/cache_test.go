package fleettest

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/localfleet"
)

// A cache in an object store is there for the next job, wherever that runs; agents and jobs never see the store's keys.
func TestACacheGoesFromAgentToAgent(t *testing.T) {
	store := s3mem.New()
	require.NoError(t, store.CreateBucket("caches"))
	server := httptest.NewServer(gofakes3.New(store, gofakes3.WithTimeSkewLimit(0)).Server())
	t.Cleanup(server.Close)
	byPath := true
	const secret = "the-stores-own-secret-key"
	f := start(t, localfleet.Options{Agents: 2, Slots: 1, Runners: []localfleet.Runner{{
		RunnerOptions: coordinator.RunnerOptions{RunUntagged: true},
		Settings: registry.Settings{Cache: &registry.Cache{Path: "ci", S3: registry.S3{
			ServerAddress: strings.TrimPrefix(server.URL, "http://"), Insecure: true, PathStyle: &byPath, BucketName: "caches",
			BucketLocation: "us-east-1", AccessKey: "access", SecretKey: secret,
		}}},
	}}})
	p := project(t, f.GitLab(), "group/cached")
	const job = `
  cache: {key: "deps-$CI_COMMIT_REF_SLUG", paths: [deps]}
  script: [%s]
`
	first := wait(t, f.GitLab(), pipeline(t, f.GitLab(), p, "warm:"+strings.ReplaceAll(job, "%s", `"mkdir deps; echo warm >deps/x"`)))
	require.Equal(t, "success", first.Status, "%s", trace(t, f.GitLab(), first.Jobs[0]))
	require.Contains(t, string(trace(t, f.GitLab(), first.Jobs[0])), "Created cache")

	// With one slot each, both agents are at work: one of them has never seen the cache.
	meet := `"cat deps/x", "touch $BOTH/$CI_JOB_NAME; while ! test -e $BOTH/$OTHER; do sleep 0.02; done"`
	both := t.TempDir()
	with := func(name, other string) string {
		return name + ":\n  variables: {OTHER: " + other + ", BOTH: " + both + "}" + strings.ReplaceAll(job, "%s", meet)
	}
	second := wait(t, f.GitLab(), pipeline(t, f.GitLab(), p, with("one", "two")+with("two", "one")))
	for _, j := range second.Jobs {
		text := string(trace(t, f.GitLab(), j))
		require.Equal(t, "success", j.Status, text)
		require.Contains(t, text, "Successfully extracted cache")
		require.Contains(t, text, "warm\n")
		require.NotContains(t, text, secret)
	}
	list, err := store.ListBucket("caches", nil, gofakes3.ListBucketPage{})
	require.NoError(t, err)
	require.Len(t, list.Contents, 1)
	require.Regexp(t, `^ci/runner/[^/]+/project/\d+/deps-`, list.Contents[0].Key)
}
