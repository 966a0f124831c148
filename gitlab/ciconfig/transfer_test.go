package ciconfig

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestImages(t *testing.T) {
	p := compile(t, `
image: {name: "golang:$VERSION", entrypoint: [""]}
services: [redis]
job: {script: x}
own:
  script: x
  image:
    name: debian
    pull_policy: [if-not-present, always]
    docker: {platform: linux/arm64, user: "1000"}
    kubernetes: {user: 1000}
  services:
    - name: postgres:17
      alias: db,database
      entrypoint: [/bin/sh]
      command: postgres -c fsync=off
      pull_policy: never
      variables: {POSTGRES_PASSWORD: "$SECRET", PORT: 5432}
none: {script: x, services: [], inherit: {default: [services]}}
`, Options{})
	require.Equal(t, &Image{Name: "golang:$VERSION", Entrypoint: []string{""}}, one(t, p, "job").Image)
	require.Equal(t, []Image{{Name: "redis"}}, one(t, p, "job").Services)
	own := one(t, p, "own")
	require.Equal(t, &Image{
		Name: "debian", PullPolicy: []string{"if-not-present", "always"},
		Docker: &DockerOptions{Platform: "linux/arm64", User: "1000"}, Kubernetes: &KubernetesOptions{User: "1000"},
	}, own.Image)
	require.Equal(t, []Image{{
		Name: "postgres:17", Alias: "db,database", Entrypoint: []string{"/bin/sh"}, Command: []string{"postgres -c fsync=off"},
		PullPolicy: []string{"never"}, Variables: []Variable{
			{Key: "POSTGRES_PASSWORD", Value: "$SECRET", Public: true}, {Key: "PORT", Value: "5432", Public: true},
		},
	}}, own.Services)
	require.Nil(t, one(t, p, "none").Image)
	require.Empty(t, one(t, p, "none").Services)
}

func TestArtifacts(t *testing.T) {
	p := compile(t, `
default: {artifacts: {paths: [default]}}
inherited: {script: x}
kept: {script: x, artifacts: {paths: [], expire_in: Never, access: none}}
reports: {script: x, artifacts: {reports: {sast: a.json, junit: null}}}
nothing: {script: x, artifacts: {when: on_failure}}
pages: {script: x, artifacts: {paths: [site]}}
`, Options{})
	require.Equal(t, &Artifacts{Paths: []string{"default"}}, one(t, p, "inherited").Artifacts)
	kept := one(t, p, "kept").Artifacts
	require.Equal(t, &Artifacts{Paths: []string{}, ExpireIn: "Never", Access: "none"}, kept)
	require.True(t, kept.Archive())
	require.Equal(t, []Report{{"sast", []string{"a.json"}}}, one(t, p, "reports").Artifacts.Reports)
	require.False(t, one(t, p, "reports").Artifacts.Archive())
	require.Equal(t, &Artifacts{When: "on_failure"}, one(t, p, "nothing").Artifacts)
	require.Equal(t, []string{"site", "public"}, one(t, p, "pages").Artifacts.Paths)

	p = compile(t, `
own:
  script: x
  artifacts: {name: "$CI_JOB_NAME", paths: [a], exclude: [a/tmp], untracked: true, when: always, expire_in: 1 week, expose_as: A name, public: false,
    reports: {junit: [a.xml, b.xml], dotenv: build.env, coverage_report: {coverage_format: cobertura, path: c.xml}}}
pages: {script: x}
`, Options{})
	require.Equal(t, &Artifacts{
		Name: "$CI_JOB_NAME", Paths: []string{"a"}, Exclude: []string{"a/tmp"}, Untracked: true, When: "always", ExpireIn: "1 week",
		ExposeAs: "A name", Access: "developer",
		Reports: []Report{{"junit", []string{"a.xml", "b.xml"}}, {"dotenv", []string{"build.env"}}, {"cobertura", []string{"c.xml"}}},
	}, one(t, p, "own").Artifacts)
	require.Equal(t, &Artifacts{Paths: []string{"public"}}, one(t, p, "pages").Artifacts)
}

func TestCaches(t *testing.T) {
	opt := repository(map[string]string{"go.sum": "", "sub/Gemfile.lock": "", ".tool": ""})
	p := compile(t, `
cache: {paths: [vendor]}
job: {script: x}
empty: {script: x, cache: []}
several:
  script: x
  cache:
    - key: $CI_COMMIT_REF_SLUG
      paths: [a]
      untracked: true
      policy: pull
      when: always
      unprotect: true
      fallback_keys: [one, "$TWO"]
    - {key: {files: [/go.sum, sub/Gemfile.lock]}, policy: $POLICY}
    - {key: {files: [none, go.sum], prefix: $CI_JOB_NAME}}
    - {key: {files_commits: [.tool], prefix: ""}}
more: {script: x, cache: [{key: {files: [none]}}, {key: {files_commits: [go.sum]}}, {key: {files: [.tool]}}], parallel: 2}
`, opt)
	none := []string{}
	require.Equal(t, []Cache{{
		Key: "default", Paths: []string{"vendor"}, Policy: "pull-push", When: "on_success", FallbackKeys: none,
	}}, one(t, p, "job").Caches)
	require.Empty(t, one(t, p, "empty").Caches)
	require.Equal(t, []Cache{
		{
			Key: "$CI_COMMIT_REF_SLUG", Paths: []string{"a"}, Untracked: true, Policy: "pull", When: "always", Unprotect: true,
			FallbackKeys: []string{"one", "$TWO"},
		},
		{Key: "1_go_sub/Gemfile-go.sum+sub/Gemfile.lock", Policy: "$POLICY", When: "on_success", FallbackKeys: none},
		{Key: "$CI_JOB_NAME-go.sum", Policy: "pull-push", When: "on_success", FallbackKeys: none},
		{Key: ".tool+commits", Policy: "pull-push", When: "on_success", FallbackKeys: none},
	}, one(t, p, "several").Caches)
	var keys []string
	for _, c := range one(t, p, "more 2/2").Caches {
		keys = append(keys, c.Key)
	}
	require.Equal(t, []string{"0_none-default", "1-go.sum+commits", "2_-.tool"}, keys)
}

func TestCacheKeysOfFilesNeedFiles(t *testing.T) {
	const src = "job: {script: x, cache: {key: {files: [a]}, paths: [b]}}"
	require.Equal(t, ".gitlab-ci.yml:1:39: jobs:job:cache:key:files: `cache:key:files` cannot be evaluated here: the repository's files are not known",
		refuse(t, src, Options{}))
	failure := errors.New("git is gone")
	opt := Options{CacheDigest: func([]string, bool) (string, error) { return "", failure }}
	_, err := Compile(file, []byte(src), opt)
	require.ErrorIs(t, err, failure)
	require.EqualError(t, err, ".gitlab-ci.yml:1:31: jobs:job:cache:key: make the key: git is gone")
}

func TestRetries(t *testing.T) {
	p := compile(t, `
default: {retry: 1, hooks: {pre_get_sources_script: [a, [b]]}}
job: {script: x}
without: {script: x, retry: 0}
full: {script: x, retry: {max: 2, when: script_failure, exit_codes: [137, 3]}, hooks: {}}
pointless: {script: x, retry: {when: always}}
`, Options{})
	require.Equal(t, &Retry{Max: 1}, one(t, p, "job").Retry)
	require.Equal(t, []string{"a", "b"}, one(t, p, "job").PreGetSources)
	require.Equal(t, &Retry{}, one(t, p, "without").Retry)
	require.Equal(t, &Retry{Max: 2, When: []string{"script_failure"}, ExitCodes: []int{137, 3}}, one(t, p, "full").Retry)
	require.Nil(t, one(t, p, "full").PreGetSources)
	require.Nil(t, one(t, p, "pointless").Retry)
	require.Equal(t, []string{"jobs:pointless:retry: without `max` it has no effect in GitLab, and has none here"}, p.Warnings)

	for _, tc := range []struct {
		retry  Retry
		reason string
		code   int
		want   bool
	}{
		{Retry{}, "script_failure", 1, true},
		{Retry{When: []string{"always"}}, "api_failure", 0, true},
		{Retry{When: []string{"script_failure"}}, "script_failure", 1, true},
		{Retry{When: []string{"script_failure"}}, "runner_system_failure", 0, false},
		{Retry{When: []string{}}, "script_failure", 1, false},
		{Retry{ExitCodes: []int{3}}, "script_failure", 3, true},
		{Retry{ExitCodes: []int{3}}, "script_failure", 1, false},
		{Retry{ExitCodes: []int{0}}, "runner_system_failure", 0, false},
		{Retry{ExitCodes: []int{3}, When: []string{"runner_system_failure"}}, "runner_system_failure", 0, true},
		{Retry{ExitCodes: []int{3}, When: []string{"runner_system_failure"}}, "script_failure", 3, true},
	} {
		require.Equal(t, tc.want, tc.retry.Applies(tc.reason, tc.code), "%+v, %s, %d", tc.retry, tc.reason, tc.code)
	}
}

func TestDependencies(t *testing.T) {
	p := compile(t, `
build: {script: x, stage: build, parallel: 2}
other: {script: x, stage: build, rules: [{when: never}]}
all: {script: x}
none: {script: x, dependencies: []}
some: {script: x, dependencies: [build 2/2, other]}
parallel: {script: x, dependencies: [build], needs: [build]}
`, Options{})
	require.Nil(t, one(t, p, "all").Dependencies)
	require.NotNil(t, one(t, p, "none").Dependencies)
	require.Empty(t, one(t, p, "none").Dependencies)
	require.Equal(t, []string{"build 2/2", "other"}, one(t, p, "some").Dependencies)
	require.Equal(t, []string{"build 1/2", "build 2/2"}, one(t, p, "parallel").Dependencies)
}
