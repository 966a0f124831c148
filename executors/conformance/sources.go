//go:build unix

package conformance

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

func getSources(t *testing.T, p *place) {
	const token = "glcbt-a-job-token"
	g := p.newGitLab(token)
	fetch := func(sha string, depth int) option {
		return func(j *runnerapi.Job, s *folder.Spec) {
			j.Token = token
			j.Variables = []runnerapi.Variable{
				{Key: "GIT_STRATEGY", Value: "fetch", Public: true},
				{Key: "CI_JOB_TOKEN", Value: token, Masked: true},
			}
			j.GitInfo = runnerapi.GitInfo{
				RepoURL: g.repoURL(), Ref: "main", RefType: "branch", SHA: sha, Depth: depth, BeforeSHA: strings.Repeat("0", 40),
				Refspecs: []string{"+refs/heads/main:refs/remotes/origin/main", "+" + sha + ":refs/pipelines/1"},
			}
			s.ConcurrentProjectID = 0 // the second job finds the first one's clone
		}
	}
	result, trace := p.finish(script("cat file; git log -1 --format=%H", "touch untracked",
		"! grep -r "+token+" .git"), fetch(g.commits[1], 20))
	succeeded(t, result, trace)
	require.Contains(t, trace, "second\n"+g.commits[1])
	require.NotContains(t, trace, token)

	result, trace = p.finish(script("cat file; test ! -e untracked"), fetch(g.commits[0], 20))
	succeeded(t, result, trace)
	require.Contains(t, trace, "first\n")

	result, trace = p.finish(script("echo never"), fetch(g.commits[1], 20), func(j *runnerapi.Job, _ *folder.Spec) {
		j.GitInfo.RepoURL = strings.Replace(g.repoURL(), token, "wrong", 1)
		j.GitInfo.SHA = strings.Repeat("1", 40)
		j.GitInfo.Refspecs = []string{"+" + strings.Repeat("1", 40) + ":refs/pipelines/1"}
	})
	require.Equal(t, runnerapi.StateFailed, result.State)
	require.NotContains(t, trace, "never\n")
}
