package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/snapshot"
	"github.com/switchyard-ci/switchyard/internal/tracetext"
)

// project is what `switchyard run` runs.
type project struct {
	snapshot.Snapshot
	path   string // in GitLab
	config string // the configuration's path in the repository
	ref    string // --ref
}

// findProject commits the working tree, or finds the commit that was asked for. scratch is made.
func findProject(ctx context.Context, c *runCmd, scratch string) (*project, error) {
	if err := os.Mkdir(scratch, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder for the project: %w", err)
	}
	if info, err := os.Stat(c.Dir); err != nil {
		return nil, usageError(err)
	} else if !info.IsDir() {
		return nil, usageError(fmt.Errorf("%s is no folder", c.Dir))
	}
	own, err := exists(filepath.Join(c.Dir, coordinator.DefaultCIConfigPath))
	if err != nil {
		return nil, err
	}
	p := &project{ref: c.Ref, config: coordinator.DefaultCIConfigPath}
	switch {
	case own && c.Ref == "":
		p.Snapshot, err = snapshot.TakeFolder(ctx, c.Dir, scratch)
	case own:
		p.Snapshot, err = snapshot.ResolveFolder(ctx, c.Dir, c.Ref, scratch)
	case c.Ref == "":
		p.Snapshot, err = snapshot.Take(ctx, c.Dir, scratch)
	default:
		p.Snapshot, err = snapshot.Resolve(ctx, c.Dir, c.Ref)
	}
	if err != nil {
		return nil, usageError(err)
	}
	if p.path = projectPath(p.Origin); p.path == "" {
		p.path = projectPath("local/" + filepath.Base(p.Top))
	}
	if c.File != "" {
		if p.config, err = inside(p.Top, c.Dir, c.File); err != nil {
			return nil, usageError(err)
		}
	}
	if c.Ref == "" {
		there, err := exists(filepath.Join(p.Top, filepath.FromSlash(p.config)))
		if err == nil && !there {
			err = fmt.Errorf("there is no %s in %s (-C names another project, --file another configuration)", p.config, p.Top)
		}
		if err != nil {
			return nil, usageError(err)
		}
	}
	return p, nil
}

func exists(name string) (bool, error) {
	_, err := os.Stat(name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// inside returns the path of a file relative to the project's root, with slashes. A relative one is relative to dir.
func inside(top, dir, file string) (string, error) {
	whole := file
	if !filepath.IsAbs(whole) {
		whole = filepath.Join(dir, file)
	}
	if folder, err := filepath.EvalSymlinks(filepath.Dir(whole)); err == nil {
		whole = filepath.Join(folder, filepath.Base(whole))
	}
	rel, err := filepath.Rel(top, whole)
	if err != nil || !filepath.IsLocal(rel) {
		return "", fmt.Errorf("--file %s: it must be in the project, %s", file, top)
	}
	return filepath.ToSlash(rel), nil
}

var notInAPath = regexp.MustCompile(`[^A-Za-z0-9_.-]+`)

// projectPath makes a path that GitLab allows of another one; empty if it has no group.
func projectPath(of string) string {
	var parts []string
	for part := range strings.SplitSeq(of, "/") {
		part = strings.TrimLeft(notInAPath.ReplaceAllString(part, "-"), ".-")
		part = strings.TrimRight(strings.TrimSuffix(part, ".git"), ".")
		if part == "" || part == "api" {
			part = "project"
		}
		parts = append(parts, part)
	}
	if len(parts) < 2 {
		return ""
	}
	return strings.Join(parts, "/")
}

// create makes the pipeline in the embedded GitLab.
func (p *project) create(ctx context.Context, gitlab *coordinator.Coordinator, c *runCmd, variables []ciconfig.Variable) (coordinator.Pipeline, error) {
	o := coordinator.ProjectOptions{
		Path: p.path, RepoDir: p.RepoDir, DefaultBranch: p.DefaultBranch, Title: filepath.Base(p.Top), CIConfigPath: p.config,
	}
	if p.Objects != "" {
		o.Objects = []string{p.Objects}
	}
	added, err := gitlab.AddProject(ctx, o)
	if err != nil {
		return coordinator.Pipeline{}, fmt.Errorf("prepare the project: %w", err)
	}
	if c.Source == mergeRequest {
		variables = append(p.mergeRequest(), variables...)
	}
	pipeline, err := gitlab.CreatePipeline(ctx, added.ID, coordinator.PipelineOptions{
		Ref: p.Ref, Tag: p.Tag, SHA: p.SHA, Source: c.Source, Variables: variables, Jobs: c.Names, User: p.user(),
	})
	if err == nil {
		return pipeline, nil
	}
	return pipeline, usageError(p.explain(err))
}

const mergeRequest = "merge_request_event"

// mergeRequest are the variables of a pipeline of a merge request of this branch into the default branch.
func (p *project) mergeRequest() []ciconfig.Variable {
	list := []ciconfig.Variable{
		{Key: "CI_MERGE_REQUEST_ID", Value: "1"},
		{Key: "CI_MERGE_REQUEST_IID", Value: "1"},
		{Key: "CI_MERGE_REQUEST_EVENT_TYPE", Value: "detached"},
		{Key: "CI_MERGE_REQUEST_PROJECT_PATH", Value: p.path},
		{Key: "CI_MERGE_REQUEST_SOURCE_PROJECT_PATH", Value: p.path},
		{Key: "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME", Value: p.Ref},
		{Key: "CI_MERGE_REQUEST_SOURCE_BRANCH_SHA", Value: p.SHA},
		{Key: "CI_MERGE_REQUEST_TARGET_BRANCH_NAME", Value: p.DefaultBranch},
		{Key: "CI_MERGE_REQUEST_TITLE", Value: "Merge " + p.Ref},
		{Key: "CI_OPEN_MERGE_REQUESTS", Value: p.path + "!1"},
	}
	for i := range list {
		list[i].Public = true
	}
	return list
}

// user is who GITLAB_USER_* name: the user of this program, as git knows them.
func (p *project) user() coordinator.User {
	login := "user"
	if u, err := user.Current(); err == nil && u.Username != "" {
		login = u.Username
	}
	return coordinator.User{Login: login, Name: cmp.Or(p.UserName, login), Email: cmp.Or(p.UserEmail, login+"@localhost")}
}

// explain leaves of an error what the user needs: mistakes in the configuration with their place, which editors
// understand, everything else without what this program calls the project.
func (p *project) explain(err error) error {
	if mistakes, ok := errors.AsType[ciconfig.Errors](err); ok {
		lines := make([]string, len(mistakes))
		for i, m := range mistakes {
			shown := *m
			shown.File = p.show(m.File)
			lines[i] = tracetext.Clean(shown.Error())
		}
		if errors.Is(err, coordinator.ErrNoPipeline) {
			return fmt.Errorf("there is nothing to run:\n%s\n(--source, --ref and --variable change what rules see)", strings.Join(lines, "\n"))
		}
		return fmt.Errorf("the configuration cannot be used:\n%s", strings.Join(lines, "\n"))
	}
	return errors.New(strings.TrimPrefix(err.Error(), fmt.Sprintf("project %s, %s: ", p.path, p.Ref)))
}

// show is the path of a file of the project as the user would write it here.
func (p *project) show(file string) string {
	if p.ref != "" {
		return p.ref + ":" + file
	}
	whole := filepath.Join(p.Top, filepath.FromSlash(path.Clean(file)))
	if here, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(here, whole); err == nil && filepath.IsLocal(rel) {
			return rel
		}
	}
	return whole
}

// title says in a line what is run.
func (p *project) title(pipeline coordinator.Pipeline, source string) string {
	commit := pipeline.SHA[:min(8, len(pipeline.SHA))]
	if p.Dirty {
		commit += " with changes"
	}
	parts := []string{p.path[strings.LastIndexByte(p.path, '/')+1:], pipeline.Ref + " @ " + commit}
	if pipeline.Name != "" {
		parts = append([]string{pipeline.Name}, parts...)
	}
	if source != "push" {
		parts = append(parts, source)
	}
	return tracetext.Clean(strings.Join(parts, " · "))
}
