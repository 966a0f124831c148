package coordinator

import (
	"context"
	"errors"
	"fmt"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/gitrepo"
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
	files := &commitFiles{ctx: ctx, repo: p.repo, commit: run.commit.SHA}
	def, err := ciconfig.Compile(p.CIConfigPath, src, ciconfig.Options{
		Predefined: configVariables(c.pipelineVariables(run, c.baseURL(""))),
		Project:    p.Variables,
		Pipeline:   run.opts.Variables,
		Include:    func(path string) ([]byte, error) { return reader.File(run.commit.SHA, path) },
		Glob:       files.glob,
		Exists:     files.exists,
	})
	if errors.Is(err, ciconfig.ErrNoJobs) || errors.Is(err, ciconfig.ErrWorkflow) {
		return nil, errors.Join(err, ErrNoPipeline)
	}
	return def, err
}

// commitFiles answers questions about the paths of a commit; it lists them once.
type commitFiles struct {
	ctx    context.Context
	repo   *gitrepo.Repo
	commit string
	paths  []string
	listed bool
}

func (f *commitFiles) list() ([]string, error) {
	if !f.listed {
		paths, err := f.repo.Files(f.ctx, f.commit)
		if err != nil {
			return nil, err
		}
		f.paths, f.listed = paths, true
	}
	return f.paths, nil
}

func (f *commitFiles) glob(pattern string) ([]string, error) {
	paths, err := f.list()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, p := range paths {
		if matchGlob(pattern, p) {
			found = append(found, p)
		}
	}
	return found, nil
}

func (f *commitFiles) exists(pattern string) (bool, error) {
	paths, err := f.list()
	if err != nil {
		return false, err
	}
	for _, p := range paths {
		if matchGlob(pattern, p) {
			return true, nil
		}
	}
	return false, nil
}
