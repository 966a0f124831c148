package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/gitrepo"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/glob"
)

// compile turns the configuration at the pipeline's commit into jobs.
func (c *Coordinator) compile(ctx context.Context, run *pipelineRun, reader *gitrepo.Reader) (*ciconfig.Pipeline, error) {
	p := run.project
	src, err := reader.File(run.commit.SHA, p.CIConfigPath)
	if errors.Is(err, gitrepo.ErrNotFound) {
		return nil, fmt.Errorf("commit %.8s has no %s", run.commit.SHA, p.CIConfigPath)
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	files := c.commitFiles(ctx, run)
	// Without a commit to compare with, `changes` is always true: for a new branch, a tag, a pipeline by hand, and if
	// the commit is gone.
	hasBefore := run.before != blank(run.before) && !run.opts.Tag && run.opts.Source == "push"
	if hasBefore {
		switch _, err := reader.Commit(run.before); {
		case errors.Is(err, gitrepo.ErrNotFound):
			hasBefore = false
		case err != nil:
			return nil, fmt.Errorf("find the commit before: %w", err)
		}
	}
	var user list
	user.user(run.user, run.userID)
	def, err := ciconfig.Compile(p.CIConfigPath, src, ciconfig.Options{
		Predefined: configVariables(c.pipelineVariables(run, c.baseURL(""))),
		Project:    slices.Concat(configVariables(user), p.Variables),
		Pipeline:   run.opts.Variables,
		Include:    func(path string) ([]byte, error) { return reader.File(run.commit.SHA, path) },
		Glob:       files.include,
		Exists:     func(pattern string) (bool, error) { return match(pattern, files.paths) },
		Changes: func(pattern string) (bool, error) {
			if !hasBefore {
				return true, nil
			}
			return match(pattern, files.changed)
		},
		CacheDigest: files.cacheDigest,
	})
	if errors.Is(err, ciconfig.ErrNoJobs) || errors.Is(err, ciconfig.ErrWorkflow) {
		return nil, errors.Join(err, ErrNoPipeline)
	}
	return def, err
}

// commitFiles answers questions about the paths of a commit and of what it changes; it lists each once.
type commitFiles struct {
	paths      func() ([]string, error)
	changed    func() ([]string, error)
	blobs      func() (map[string]string, error) // id by path
	lastCommit func(path string) (string, error)
}

func (c *Coordinator) commitFiles(ctx context.Context, run *pipelineRun) *commitFiles {
	repo, sha, before := run.project.repo, run.commit.SHA, run.before
	return &commitFiles{
		paths:      sync.OnceValues(func() ([]string, error) { return repo.Files(ctx, sha) }),
		changed:    sync.OnceValues(func() ([]string, error) { return repo.Changed(ctx, before, sha) }),
		blobs:      sync.OnceValues(func() (map[string]string, error) { return repo.Blobs(ctx, sha) }),
		lastCommit: func(path string) (string, error) { return repo.LastCommit(ctx, sha, path) },
	}
}

// include lists the files that a pattern of `include:local` means.
func (f *commitFiles) include(pattern string) ([]string, error) {
	p, err := glob.Include(pattern)
	if err != nil {
		return nil, err
	}
	paths, err := f.paths()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(paths), func(path string) bool { return !p.Match(path) }), nil
}

// match says whether one of the paths matches a pattern of `rules`.
func match(pattern string, list func() ([]string, error)) (bool, error) {
	p, err := glob.Fnmatch(pattern)
	if err != nil {
		return false, err
	}
	paths, err := list()
	if err != nil {
		return false, err
	}
	return p.Any(paths), nil
}
