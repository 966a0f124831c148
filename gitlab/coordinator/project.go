package coordinator

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/gitrepo"
)

// ProjectOptions describe a project.
type ProjectOptions struct {
	// Path is the full path: at least one group and the project, as in "group/sub/name".
	Path string
	// RepoDir is a local git repository, bare or not, that is served and read but never written. Empty makes a project
	// without repository: its pipelines need [PipelineOptions.Config].
	RepoDir string
	// Objects are further git object directories that belong to the project, for commits that are not in RepoDir.
	Objects []string
	// DefaultBranch is the project's default branch; empty takes that of the repository's HEAD, or main.
	DefaultBranch string
	Title         string // empty: the last part of Path
	Description   string
	// Timeout is that of jobs which have none of their own, in whole seconds; 0 means 1 h.
	Timeout time.Duration
	// GitDepth is how much history jobs get; 0 means 20 commits, less than 0 all.
	GitDepth int
	// CIConfigPath is the path of the configuration in the repository; empty means .gitlab-ci.yml.
	CIConfigPath string
	// Variables are the project's CI/CD variables.
	Variables []ciconfig.Variable
	// ProtectedRefs are branches and tags that are protected, with `*` as wildcard; the default branch always is.
	ProtectedRefs []string
	// NoSharedRunners keeps instance runners away; NoGroupRunners those of the groups above.
	NoSharedRunners, NoGroupRunners bool
	// NoAutoCancel switches off that a newer pipeline of a ref cancels older ones of other commits
	// (workflow:auto_cancel:on_new_commit).
	NoAutoCancel bool
	// MaxArtifact overrides [Options.MaxArtifact] for this project, in bytes; 0 keeps it.
	MaxArtifact int64
	// NoKeepLatestArtifacts lets artifacts go when their time is over also if their pipeline is the latest of its ref; GitLab
	// keeps these until a newer one succeeds.
	NoKeepLatestArtifacts bool
	// SharedCaches gives protected and other branches the same caches.
	SharedCaches bool
	// MaxTrace overrides [Options.MaxTrace] for this project, in bytes; 0 keeps it.
	MaxTrace int64
}

// Project is a project of the coordinator.
type Project struct {
	ID            int64
	Path          string
	DefaultBranch string
	RepoDir       string
}

// The defaults of [ProjectOptions].
const (
	DefaultTimeout      = time.Hour
	DefaultGitDepth     = 20
	DefaultCIConfigPath = ".gitlab-ci.yml"
)

type project struct {
	ProjectOptions
	id         int64
	namespaces []int64 // the root group first
	parts      []string
	repo       *gitrepo.Repo // nil without repository
	lastIID    int64
	lastSHA    map[string]string                    // of the last pipeline, by ref
	alive      map[string]map[*pipelineRun]struct{} // by ref
	lockedRuns map[string][]*pipelineRun            // by full ref: see lockArtifacts
	cacheIndex int64                                // see ClearCaches
}

var pathPart = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)

func (o *ProjectOptions) complete() error {
	parts := strings.Split(o.Path, "/")
	if len(parts) < 2 {
		return fmt.Errorf("project path %q: a project is in a group, as in \"group/name\"", o.Path)
	}
	for _, p := range parts {
		if !pathPart.MatchString(p) || strings.HasSuffix(p, ".git") || strings.HasSuffix(p, ".") || p == "api" || p == "-" {
			return fmt.Errorf("project path %q: %q is no valid name; use letters, digits, \"_\", \"-\" and \".\", with a letter or digit first", o.Path, p)
		}
	}
	if o.Timeout < 0 || o.MaxTrace < 0 || o.MaxArtifact < 0 {
		return fmt.Errorf("project %s: timeout and limits of traces and artifacts must not be negative", o.Path)
	}
	setDefault(&o.Title, parts[len(parts)-1])
	setDefault(&o.Timeout, DefaultTimeout)
	setDefault(&o.GitDepth, DefaultGitDepth)
	setDefault(&o.CIConfigPath, DefaultCIConfigPath)
	return nil
}

// AddProject adds a project. The repository is examined but not changed; its branches and tags are read again for each
// pipeline.
func (c *Coordinator) AddProject(ctx context.Context, o ProjectOptions) (Project, error) {
	if err := o.complete(); err != nil {
		return Project{}, err
	}
	o.Variables, o.ProtectedRefs = slices.Clone(o.Variables), slices.Clone(o.ProtectedRefs)
	c.mu.Lock()
	if c.paths[o.Path] != nil {
		c.mu.Unlock()
		return Project{}, fmt.Errorf("project %s exists already", o.Path)
	}
	p := &project{
		ProjectOptions: o, id: c.id("project"), parts: strings.Split(o.Path, "/"), lastSHA: map[string]string{},
		alive: map[string]map[*pipelineRun]struct{}{}, lockedRuns: map[string][]*pipelineRun{},
	}
	c.mu.Unlock()

	if o.RepoDir != "" {
		repo, err := gitrepo.Open(ctx, gitrepo.Options{
			Source: o.RepoDir, Objects: o.Objects, DefaultBranch: o.DefaultBranch,
			Dir: filepath.Join(c.dir, "repositories", strconv.FormatInt(p.id, 10)+".git"),
		})
		if err != nil {
			return Project{}, fmt.Errorf("project %s: %w", o.Path, err)
		}
		if err := repo.Sync(ctx); err != nil {
			return Project{}, fmt.Errorf("project %s: %w", o.Path, err)
		}
		p.repo, p.DefaultBranch = repo, repo.DefaultBranch()
	}
	setDefault(&p.DefaultBranch, "main")

	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paths[o.Path] != nil {
		return Project{}, fmt.Errorf("project %s exists already", o.Path)
	}
	for i := 1; i < len(p.parts); i++ {
		p.namespaces = append(p.namespaces, c.namespace(strings.Join(p.parts[:i], "/")))
	}
	c.projects[p.id], c.paths[o.Path] = p, p
	return p.snapshot(), nil
}

// namespace returns the id of a group, which exists from its first mention on.
func (c *Coordinator) namespace(path string) int64 {
	id, ok := c.namespaces[path]
	if !ok {
		id = c.id("namespace")
		c.namespaces[path] = id
	}
	return id
}

// Project returns a project by its path.
func (c *Coordinator) Project(path string) (Project, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.paths[path]
	if p == nil {
		return Project{}, fmt.Errorf("project %s: %w", path, ErrNotFound)
	}
	return p.snapshot(), nil
}

// ClearCaches gives the project's jobs new caches from now on, by a number in their keys.
func (c *Coordinator) ClearCaches(path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.paths[path]
	if p == nil {
		return fmt.Errorf("project %s: %w", path, ErrNotFound)
	}
	p.cacheIndex++
	return nil
}

func (p *project) snapshot() Project {
	return Project{ID: p.id, Path: p.Path, DefaultBranch: p.DefaultBranch, RepoDir: p.RepoDir}
}

// namespacePath is the path of the group that the project is in.
func (p *project) namespacePath() string { return strings.Join(p.parts[:len(p.parts)-1], "/") }

// protects says whether a branch or tag is protected.
func (p *project) protects(ref string, tag bool) bool {
	if ref == p.DefaultBranch && !tag {
		return true
	}
	for _, pattern := range p.ProtectedRefs {
		if matchWildcard(pattern, ref) {
			return true
		}
	}
	return false
}

// matchWildcard matches a name with a pattern in which `*` stands for any number of any characters.
func matchWildcard(pattern, name string) bool {
	first, rest, more := strings.Cut(pattern, "*")
	if !more {
		return pattern == name
	}
	if !strings.HasPrefix(name, first) {
		return false
	}
	name = name[len(first):]
	for {
		next, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(name, rest)
		}
		i := strings.Index(name, next)
		if i < 0 {
			return false
		}
		name, rest = name[i+len(next):], after
	}
}
