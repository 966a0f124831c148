package folder

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// ProjectDir is where the project's files are, in the environment: gitlab-runner's place for them. GIT_CLONE_PATH may move
// it.
func (s *Spec) ProjectDir(p *runnerapi.Job) string {
	dir := ProjectPath(p)
	if s.SharedBuildsDir {
		dir = path.Join(s.Runner.ShortToken, fmt.Sprint(s.ConcurrentProjectID), dir)
	}
	return path.Join(s.BuildsDir, dir)
}

// ProjectPath is the project's path at GitLab as a folder's: below it are the project's files and its caches. It never
// leads out of where it is put.
func ProjectPath(p *runnerapi.Job) string {
	dir, err := slug(p.GitInfo.RepoURL)
	if err != nil {
		return fmt.Sprintf("project-%d", p.JobInfo.ProjectID)
	}
	return dir
}

// slug is the project's path as its URL has it.
func slug(repoURL string) (string, error) {
	u, err := url.Parse(repoURL)
	if err != nil {
		return "", errors.New("not a URL")
	}
	if u.Host == "" {
		return "", errors.New("no host")
	}
	dir := path.Clean(strings.TrimSuffix(u.Path, ".git"))
	if dir == "." || dir == "/" || strings.Contains(dir, "..") || strings.IndexByte(dir, 0) >= 0 {
		return "", errors.New("no path of a project")
	}
	return dir, nil
}
