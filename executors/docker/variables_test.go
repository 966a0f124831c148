package docker

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// Names of images and volumes, and variables of services, may say where the project is.
func TestVariablesTellWhereTheProjectIs(t *testing.T) {
	p := &preparation{
		executor: &Executor{options: Options{BuildsDir: "/builds", CacheDir: "/cache"}, settings: &config.Config{NetworkMode: "none"}},
		spec: executors.Spec{
			Name: "sy-a-1-1", Runner: folder.Runner{ShortToken: "abc"}, ConcurrentProjectID: 2,
			Job: &runnerapi.Job{
				GitInfo:   runnerapi.GitInfo{RepoURL: "https://gitlab.example.com/group/project.git"},
				Variables: []runnerapi.Variable{{Key: "DATA", Value: "$CI_PROJECT_DIR/data", Public: true}},
			},
		},
	}
	require.NoError(t, p.readVariables(false))
	require.Equal(t, "/builds/group/project/x", p.expand("$CI_PROJECT_DIR/x"))
	require.Contains(t, p.environment(), "DATA=/builds/group/project/data")
	require.Contains(t, p.environment(), "RUNNER_TEMP_PROJECT_DIR=/builds/group/project.tmp")
	require.NoError(t, p.readVariables(true))
	require.Contains(t, p.environment(), "DATA=/builds/abc/2/group/project/data")
	require.Equal(t, "/builds/abc/2/group/project/x", p.expand("$CI_PROJECT_DIR/x"))
	require.Contains(t, p.environment(), "CI_PROJECT_DIR=/builds/abc/2/group/project")
}
