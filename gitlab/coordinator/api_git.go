package coordinator

import (
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/githttp"
)

// openRepository lets a running job read the repository of its project.
func (c *Coordinator) openRepository(path, user, password string) (dir string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobTokens[password]
	if user != "gitlab-ci-token" || j == nil || !j.processing() {
		if password != "" { // git asks without a password first
			c.stats.gitRefused.Add(1)
		}
		return "", githttp.ErrUnauthorized
	}
	p := c.paths[path]
	if p == nil || p != j.pipe.project || p.repo == nil {
		c.stats.gitRefused.Add(1)
		return "", githttp.ErrNotFound
	}
	c.stats.gitRequests.Add(1)
	return p.repo.Dir(), nil
}
