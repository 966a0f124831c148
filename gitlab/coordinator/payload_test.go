package coordinator

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// values are the variables of a job by key; of two with one key the later.
func values(j runnerapi.Job) map[string]string {
	m := map[string]string{}
	for _, v := range j.Variables {
		m[v.Key] = v.Value
	}
	return m
}

// TestThePayloadIsGitLabs compares everything but the variables with what GitLab sends.
func TestThePayloadIsGitLabs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{URL: "https://gitlab.example.com:8443/"})
		p := s.projectWith(ProjectOptions{Path: "top/sub/app", Title: "The App"})
		r := s.runner()
		s.runWith(p, PipelineOptions{
			Ref: "topic", SHA: strings.Repeat("ab", 20), BeforeSHA: strings.Repeat("cd", 20),
			Config: config(ciconfig.Job{
				Name: "unit 1/2", Group: "unit", Stage: "test", BeforeScript: []string{"b1", "b2"}, Script: []string{"s1"}, AfterScript: []string{"a1"},
			}),
		})
		pass(1500 * time.Millisecond)
		w := s.request(r, nil)
		var got map[string]any
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &got))
		token := got["token"].(string)
		require.Regexp(t, "^glcbt-[0-9A-Za-z_-]{24}$", token)
		require.NotEmpty(t, got["variables"])
		delete(got, "variables")
		features := got["features"].(map[string]any)
		require.Contains(t, features["failure_reasons"], "runner_interrupted")
		delete(features, "failure_reasons")
		want := `{
			"id": 1, "token": "` + token + `", "allow_git_fetch": true,
			"job_info": {
				"id": 1, "name": "unit 1/2", "stage": "test", "pipeline_id": 1, "project_id": 1, "project_name": "The App",
				"project_full_path": "top/sub/app", "namespace_id": 2, "root_namespace_id": 1, "organization_id": 1, "instance_id": "",
				"instance_uuid": "", "user_id": 1, "scoped_user_id": null, "time_in_queue_seconds": 1.5,
				"project_jobs_running_on_instance_runners_count": "0", "queue_size": 1, "queue_depth": 1
			},
			"git_info": {
				"repo_url": "https://gitlab-ci-token:` + token + `@gitlab.example.com:8443/top/sub/app.git", "repo_object_format": "sha1",
				"ref": "topic", "sha": "` + strings.Repeat("ab", 20) + `", "before_sha": "` + strings.Repeat("cd", 20) + `",
				"ref_type": "branch", "refspecs": ["+refs/pipelines/1:refs/pipelines/1", "+refs/heads/topic:refs/remotes/origin/topic"],
				"depth": 20, "protected": false
			},
			"runner_info": {"timeout": 3600, "runner_session_url": null},
			"inputs": [],
			"steps": [
				{"name": "script", "script": ["b1", "b2", "s1"], "timeout": 3600, "when": "on_success", "allow_failure": false},
				{"name": "after_script", "script": ["a1"], "timeout": 3600, "when": "always", "allow_failure": true}
			],
			"hooks": [], "image": null, "services": [], "artifacts": null, "cache": [], "credentials": [], "dependencies": [],
			"features": {"trace_sections": true, "token_mask_prefixes": ["glpat-"]}
		}`
		text, err := json.Marshal(got)
		require.NoError(t, err)
		require.JSONEq(t, want, string(text))
	})
}

func TestPredefinedVariables(t *testing.T) {
	s := newServer(t, Options{URL: "http://gitlab.test:8080"})
	dir := repository(t, map[string]string{".gitlab-ci.yml": "workflow: {name: 'Build $CI_COMMIT_BRANCH'}\nunit test:\n  parallel: 2\n  tags: [x]\n  script: [a]\n"})
	p := s.projectWith(ProjectOptions{Path: "Top/sub/My.App", RepoDir: dir, Description: "what it is"})
	r := s.runnerWith(RunnerOptions{Description: "the runner", Tags: []string{"y", "x"}})
	run := s.runWith(p, PipelineOptions{User: User{Login: "ada", Name: "Ada L", Email: "ada@example.com"}})
	j := s.claim(r)
	got := values(j)
	started, err := time.Parse(time.RFC3339, got["CI_JOB_STARTED_AT"])
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), started, time.Minute)
	created, err := time.Parse(time.RFC3339, got["CI_PIPELINE_CREATED_AT"])
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), created, time.Minute)
	delete(got, "CI_JOB_STARTED_AT")
	delete(got, "CI_PIPELINE_CREATED_AT")
	require.Equal(t, map[string]string{
		"CI": "true", "GITLAB_CI": "true", "GITLAB_FEATURES": "",
		"CI_PIPELINE_ID": "1", "CI_PIPELINE_URL": "http://gitlab.test:8080/Top/sub/My.App/-/pipelines/1", "CI_PIPELINE_IID": "1",
		"CI_PIPELINE_SOURCE": "push", "CI_PIPELINE_NAME": "Build main",
		"CI_JOB_ID": "1", "CI_JOB_URL": "http://gitlab.test:8080/Top/sub/My.App/-/jobs/1", "CI_JOB_TOKEN": j.Token,
		"CI_REGISTRY_USER": "gitlab-ci-token", "CI_REGISTRY_PASSWORD": j.Token,
		"CI_JOB_NAME": "unit test 1/2", "CI_JOB_NAME_SLUG": "unit-test-1-2", "CI_JOB_GROUP_NAME": "unit test", "CI_JOB_STAGE": "test",
		"CI_NODE_INDEX": "1", "CI_NODE_TOTAL": "2",
		"CI_REPOSITORY_URL": "http://gitlab-ci-token:" + j.Token + "@gitlab.test:8080/Top/sub/My.App.git",
		"CI_SERVER_FQDN":    "gitlab.test:8080", "CI_SERVER_URL": "http://gitlab.test:8080", "CI_SERVER_HOST": "gitlab.test",
		"CI_SERVER_PORT": "8080", "CI_SERVER_PROTOCOL": "http", "CI_SERVER_SHELL_SSH_HOST": "gitlab.test", "CI_SERVER_SHELL_SSH_PORT": "22",
		"CI_SERVER_NAME": "GitLab", "CI_SERVER_VERSION": "18.6.0", "CI_SERVER_VERSION_MAJOR": "18", "CI_SERVER_VERSION_MINOR": "6",
		"CI_SERVER_VERSION_PATCH": "0", "CI_SERVER_REVISION": "switchyard",
		"CI_PROJECT_ID": "1", "CI_PROJECT_NAME": "My.App", "CI_PROJECT_TITLE": "My.App", "CI_PROJECT_DESCRIPTION": "what it is",
		"CI_PROJECT_PATH": "Top/sub/My.App", "CI_PROJECT_PATH_SLUG": "top-sub-my-app", "CI_PROJECT_NAMESPACE": "Top/sub",
		"CI_PROJECT_NAMESPACE_SLUG": "top-sub", "CI_PROJECT_NAMESPACE_ID": "2", "CI_PROJECT_ROOT_NAMESPACE": "Top",
		"CI_PROJECT_URL": "http://gitlab.test:8080/Top/sub/My.App", "CI_PROJECT_VISIBILITY": "private", "CI_PROJECT_REPOSITORY_LANGUAGES": "",
		"CI_PROJECT_CLASSIFICATION_LABEL": "", "CI_DEFAULT_BRANCH": "main", "CI_DEFAULT_BRANCH_SLUG": "main", "CI_CONFIG_PATH": ".gitlab-ci.yml",
		"CI_API_V4_URL": "http://gitlab.test:8080/api/v4", "CI_API_GRAPHQL_URL": "http://gitlab.test:8080/api/graphql",
		"CI_TEMPLATE_REGISTRY_HOST": "registry.gitlab.com",
		"CI_COMMIT_SHA":             run.SHA, "CI_COMMIT_SHORT_SHA": run.SHA[:8], "CI_COMMIT_BEFORE_SHA": strings.Repeat("0", 40),
		"CI_COMMIT_REF_NAME": "main", "CI_COMMIT_REF_SLUG": "main", "CI_COMMIT_BRANCH": "main", "CI_COMMIT_REF_PROTECTED": "true",
		"CI_COMMIT_MESSAGE": "First commit\n\nwith a body\n", "CI_COMMIT_MESSAGE_IS_TRUNCATED": "false", "CI_COMMIT_TITLE": "First commit",
		"CI_COMMIT_DESCRIPTION": "\nwith a body", "CI_COMMIT_TIMESTAMP": "2026-01-02T03:04:05+01:00", "CI_COMMIT_AUTHOR": "Ada <ada@example.com>",
		"CI_RUNNER_ID": "1", "CI_RUNNER_DESCRIPTION": "the runner", "CI_RUNNER_TAGS": "x, y",
		"GITLAB_USER_ID": "1", "GITLAB_USER_LOGIN": "ada", "GITLAB_USER_NAME": "Ada L", "GITLAB_USER_EMAIL": "ada@example.com",
	}, got)
	for _, v := range j.Variables {
		token := v.Key == "CI_JOB_TOKEN" || v.Key == "CI_REGISTRY_PASSWORD"
		require.Equal(t, !token && v.Key != "CI_REPOSITORY_URL", v.Public, v.Key)
		require.Equal(t, token, v.Masked, v.Key)
	}
}

func TestPredefinedVariablesOfATag(t *testing.T) {
	s := newServer(t, Options{})
	dir := repository(t, map[string]string{".gitlab-ci.yml": oneJob})
	git(t, dir, "tag", "-a", "-m", "Release\n\nnotes", "v1.0")
	git(t, dir, "tag", "light")
	p := s.projectWith(ProjectOptions{Path: "g/p", RepoDir: dir})
	r := s.runner()
	for tag, text := range map[string]string{"v1.0": "Release\n\nnotes", "light": ""} {
		s.runWith(p, PipelineOptions{Ref: tag, Tag: true})
		j := s.claim(r)
		got := values(j)
		require.Equal(t, tag, got["CI_COMMIT_TAG"])
		require.Equal(t, text, got["CI_COMMIT_TAG_MESSAGE"])
		require.NotContains(t, got, "CI_COMMIT_BRANCH")
		require.Equal(t, "false", got["CI_COMMIT_REF_PROTECTED"])
		require.Equal(t, "tag", j.GitInfo.RefType)
		require.Equal(t, "+refs/tags/"+tag+":refs/tags/"+tag, j.GitInfo.Refspecs[1])
	}
}

func TestTheAddressIsThatOfTheRequestUntilItIsSet(t *testing.T) {
	s := newServer(t, Options{})
	p, r := s.project("g/p"), s.runner()
	s.run(p, ciconfig.Job{}, ciconfig.Job{})
	require.Equal(t, "http://gitlab.test", values(s.claim(r))["CI_SERVER_URL"])
	require.NoError(t, s.SetURL("https://set.example"))
	got := values(s.claim(r))
	require.Equal(t, "https://set.example", got["CI_SERVER_URL"])
	require.Equal(t, "443", got["CI_SERVER_PORT"])
	require.Equal(t, "http://h:1", requestBase("h:1", false))
	require.Equal(t, "https://h", requestBase("h", true))
	for _, odd := range []string{"", "a/b", "u@h", "h?x"} {
		require.Empty(t, requestBase(odd, false), odd)
	}
}

// TestPrecedence: the later wins, and in this order.
func TestPrecedence(t *testing.T) {
	s := newServer(t, Options{})
	v := func(key, value string) []ciconfig.Variable {
		return []ciconfig.Variable{{Key: key, Value: value, Public: true}}
	}
	p := s.projectWith(ProjectOptions{Path: "g/p", Variables: append(v("A", "project"), v("B", "project")...)})
	r := s.runner()
	job := ciconfig.Job{When: ciconfig.Manual, Variables: slices.Concat(v("A", "yaml"), v("B", "yaml"), v("C", "yaml"), v("CI_JOB_STAGE", "own"), v("GITLAB_USER_NAME", "no"))}
	run := s.runWith(p, PipelineOptions{Config: config(job), Variables: append(v("A", "pipeline"), v("D", "${A}+$B+$C")...)})
	_, err := s.Play(run.Jobs[0].ID, ciconfig.Variable{Key: "A", Value: "played"}, ciconfig.Variable{Key: "SECRET", Value: "x", Masked: true, Raw: true, File: true})
	require.NoError(t, err)
	j := s.claim(r)
	got := values(j)
	require.Equal(t, "played", got["A"])
	require.Equal(t, "project", got["B"])
	require.Equal(t, "yaml", got["C"])
	require.Equal(t, "played+project+yaml", got["D"])
	require.Equal(t, "own", got["CI_JOB_STAGE"])
	require.Equal(t, "Administrator", got["GITLAB_USER_NAME"], "the user is above the YAML")
	require.Equal(t, "true", got["CI_JOB_MANUAL"])
	require.Contains(t, j.Variables, runnerapi.Variable{Key: "SECRET", Value: "x", Masked: true, Raw: true, File: true})
}

func TestGitDepth(t *testing.T) {
	s := newServer(t, Options{})
	r := s.runner()
	for i, c := range []struct {
		project int
		job     string
		want    int
	}{{0, "", 20}, {0, "5", 5}, {7, "", 7}, {-1, "", 0}, {0, "0", 0}, {0, "x", 0}, {0, "12 commits", 12}, {0, "-3", 0}} {
		p := s.projectWith(ProjectOptions{Path: fmt.Sprintf("g/d%d", i), GitDepth: c.project})
		var job ciconfig.Job
		if c.job != "" {
			job.Variables = []ciconfig.Variable{{Key: "GIT_DEPTH", Value: c.job}}
		}
		s.run(p, job)
		require.Equal(t, c.want, s.claim(r).GitInfo.Depth, "%+v", c)
	}
}

func TestHowManyRun(t *testing.T) {
	s := newServer(t, Options{})
	p, r := s.project("g/p"), s.runner()
	own := s.runnerWith(RunnerOptions{Type: ProjectRunner, Projects: []string{"g/p"}, RunUntagged: true})
	s.run(p, make([]ciconfig.Job, 9)...)
	for i, want := range []string{"0", "1", "2", "3", "4", "5+", "5+"} {
		j := s.claim(r)
		require.Equal(t, want, j.JobInfo.ProjectJobsRunning)
		require.EqualValues(t, 9-i, j.JobInfo.QueueSize)
	}
	require.Equal(t, "+Inf", s.claim(own).JobInfo.ProjectJobsRunning)
}

func TestLongCommitMessages(t *testing.T) {
	long := strings.Repeat("x", 100)
	for _, c := range []struct{ message, title, description string }{
		{"title", "title", ""},
		{"title\n\nbody\n", "title", "\nbody"},
		{"title\r\nbody\r\n", "title", "body"},
		{"title\nbody", "title", "body"},
		{long[:99] + "\nbody", long[:99], "body"},
		{long + "\n\nbody", long, long + "\n\nbody"},
	} {
		title, description := splitMessage(c.message)
		require.Equal(t, c.title, title)
		require.Equal(t, c.description, description)
	}
	s := newServer(t, Options{})
	dir := repository(t, map[string]string{".gitlab-ci.yml": oneJob})
	commit(t, dir, "t\n\n"+strings.Repeat("long\n", 25_000), nil)
	s.runWith(s.projectWith(ProjectOptions{Path: "g/p", RepoDir: dir}), PipelineOptions{})
	w := s.request(s.runner(), nil)
	require.Equal(t, http.StatusCreated, w.Code)
	var j runnerapi.Job
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &j))
	require.Len(t, values(j)["CI_COMMIT_MESSAGE"], 100_000)
	require.Equal(t, "true", values(j)["CI_COMMIT_MESSAGE_IS_TRUNCATED"])
}
