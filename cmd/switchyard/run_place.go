package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/switchyard-ci/switchyard/executors/docker"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/executors/shell"
	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/localfleet"
	"github.com/switchyard-ci/switchyard/internal/tracetext"
)

// checkPlace looks at the flags that say where jobs run and what is kept.
func (c *runCmd) checkPlace() error {
	switch {
	case c.Image != "" && c.Executor != docker.Name:
		return errors.New("--image is for jobs in containers: add --executor docker")
	case c.Cache != "" && c.NoCache:
		return errors.New("--cache and --no-cache exclude each other")
	case c.Cache != "" && c.Executor == docker.Name:
		return errors.New("--cache is for --executor shell: jobs in containers have their caches in a volume of the Docker Engine")
	}
	return nil
}

// usePlace says in a fleet's options where its jobs run and where their caches are.
func (c *runCmd) usePlace(o *localfleet.Options) error {
	name := cacheName(projectRoot(c.Dir))
	if c.Executor == docker.Name {
		d := &localfleet.Docker{Config: &config.Config{
			Image: c.Image, PullPolicy: config.PullPolicies{config.PullIfNotPresent},
			AllowedPullPolicies: []config.PullPolicy{config.PullAlways, config.PullIfNotPresent, config.PullNever},
		}}
		if !c.NoCache {
			d.CacheVolume = "switchyard-run-" + name
		}
		var err error
		if d.Programs, err = programFolder(); err != nil {
			return err
		}
		if d.Home, err = os.UserHomeDir(); err != nil {
			d.Home = "" // no credentials of registries
		}
		o.Docker = d
		return nil
	}
	if c.NoCache {
		return nil
	}
	o.CacheDir = c.Cache
	if o.CacheDir == "" {
		caches, err := os.UserCacheDir()
		if err != nil {
			return usageError(fmt.Errorf("there is no folder for the jobs' caches (%w): name one with --cache, or use --no-cache", err))
		}
		o.CacheDir = filepath.Join(caches, "switchyard", "run", name)
	}
	return nil
}

// projectRoot is the folder that findProject will find, as far as that is known before.
func projectRoot(dir string) string {
	root, err := filepath.Abs(dir)
	if err != nil {
		return dir
	}
	if target, err := filepath.EvalSymlinks(root); err == nil {
		root = target
	}
	if own, err := exists(filepath.Join(root, coordinator.DefaultCIConfigPath)); err == nil && own {
		return root
	}
	for at := root; ; at = filepath.Dir(at) {
		if repository, err := exists(filepath.Join(at, ".git")); err == nil && repository {
			return at
		}
		if at == filepath.Dir(at) {
			return root
		}
	}
}

// cacheName is that of a project's caches: two projects of one name have not the same.
func cacheName(root string) string {
	sum := sha256.Sum256([]byte(root))
	name := strings.Trim(notInAPath.ReplaceAllString(filepath.Base(root), "-"), ".-_")
	return cmp.Or(name, "project") + "-" + hex.EncodeToString(sum[:4])
}

// removeIfEmpty removes a folder for caches that has none, with the empty ones above that are only for such.
func removeIfEmpty(cacheDir string) {
	for range 3 { // <project>, run, switchyard
		if cacheDir == "" || os.Remove(cacheDir) != nil {
			return
		}
		cacheDir = filepath.Dir(cacheDir)
	}
}

// programFolder is where this program is, links followed: its companions are beside it.
func programFolder() (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	return filepath.Dir(self), nil
}

// maxNamedJobs is how many jobs a message about all of them names.
const maxNamedJobs = 5

// checkImages says before anything runs which jobs cannot run where they would.
func (c *runCmd) checkImages(p coordinator.Pipeline) error {
	var lines []string
	for _, j := range p.Jobs {
		if j.When == ciconfig.Manual && !c.named(j) {
			continue
		}
		if line := c.misplaced(j); line != "" {
			lines = append(lines, tracetext.Clean(line))
		}
	}
	if len(lines) == 0 {
		return nil
	}
	if more := len(lines) - maxNamedJobs; more > 0 {
		lines = append(lines[:maxNamedJobs], fmt.Sprintf("and %s", count(more, "job")+" more"))
	}
	way := "run with --executor docker"
	if c.Executor == docker.Name {
		way = "give these jobs one with --image, for example --image debian:stable-slim"
	}
	return usageError(fmt.Errorf("%s\n(%s)", strings.Join(lines, "\n"), way))
}

func (c *runCmd) misplaced(j coordinator.Job) string {
	switch {
	case c.Executor == docker.Name && j.Image == "" && c.Image == "":
		return fmt.Sprintf("the job %q names no image", j.Name)
	case c.Executor == shell.Name && j.Image != "":
		return fmt.Sprintf("the job %q uses the image %q", j.Name, j.Image)
	case c.Executor == shell.Name && len(j.Services) > 0:
		return fmt.Sprintf("the job %q uses the service %q", j.Name, j.Services[0])
	}
	return ""
}

// named says whether the user has named a job.
func (c *runCmd) named(j coordinator.Job) bool {
	return slices.Contains(c.Names, j.Name) || slices.Contains(c.Names, j.Group)
}
