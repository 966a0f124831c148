// Package snapshot makes a commit of a working tree as it is, without touching the repository that it belongs to: no
// ref, no index, no object of the user's is written.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Snapshot is a commit that can be served to jobs.
type Snapshot struct {
	// RepoDir is the repository that has the commit's history: the user's own, or one made for the purpose.
	RepoDir string
	// Objects is a git object directory that RepoDir lacks; empty if it lacks none.
	Objects string
	// SHA is the commit, Ref the branch's or tag's short name, Tag says which of the two.
	SHA string
	Ref string
	Tag bool
	// Top is the root of the working tree.
	Top string
	// Dirty: the commit differs from the one that is checked out.
	Dirty bool
}

// DefaultRef is the branch's name where there is none: outside a repository, or with a detached HEAD.
const DefaultRef = "main"

// Take commits the working tree that dir is in, with files that git does not track and does not ignore. If dir is in no
// repository it is taken as the root of one. What has to be stored goes below scratch, a folder of the caller's that
// must outlive the use of the snapshot.
func Take(ctx context.Context, dir, scratch string) (Snapshot, error) {
	top, err := git(ctx, dir, nil, "rev-parse", "--show-toplevel")
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return Snapshot{}, fmt.Errorf("git is needed to read the working tree: install git: %w", err)
	case err != nil:
		return takeFolder(ctx, dir, scratch)
	}
	objects := filepath.Join(scratch, "objects")
	if err := os.MkdirAll(objects, 0o700); err != nil {
		return Snapshot{}, fmt.Errorf("make a folder for objects: %w", err)
	}
	common, err := git(ctx, top, nil, "rev-parse", "--git-path", "objects")
	if err != nil {
		return Snapshot{}, fmt.Errorf("find the repository's objects: %w", err)
	}
	if !filepath.IsAbs(common) {
		common = filepath.Join(top, common)
	}
	env := []string{
		"GIT_INDEX_FILE=" + filepath.Join(scratch, "index"),
		"GIT_OBJECT_DIRECTORY=" + objects,
		"GIT_ALTERNATE_OBJECT_DIRECTORIES=" + common,
	}
	s := Snapshot{RepoDir: top, Objects: objects, Ref: DefaultRef, Top: top}
	if branch, err := git(ctx, top, nil, "symbolic-ref", "--short", "--quiet", "HEAD"); err == nil {
		s.Ref = branch
	}
	head, err := git(ctx, top, nil, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
	if err != nil {
		head = "" // no commit yet
	} else if _, err := git(ctx, top, env, "read-tree", head); err != nil {
		return Snapshot{}, fmt.Errorf("read the tree of %s: %w", head, err)
	}
	if err := commit(ctx, &s, env, head); err != nil {
		return Snapshot{}, err
	}
	return s, nil
}

// takeFolder makes a repository for a folder that is in none.
func takeFolder(ctx context.Context, dir, scratch string) (Snapshot, error) {
	top, err := filepath.Abs(dir)
	if err != nil {
		return Snapshot{}, err
	}
	if _, err := os.Stat(top); err != nil {
		return Snapshot{}, err
	}
	repo := filepath.Join(scratch, "repository.git")
	if _, err := git(ctx, scratch, nil, "init", "--quiet", "--bare", "--initial-branch="+DefaultRef, repo); err != nil {
		return Snapshot{}, fmt.Errorf("make a repository for %s: %w", top, err)
	}
	s := Snapshot{RepoDir: repo, Ref: DefaultRef, Top: top}
	env := []string{"GIT_DIR=" + repo, "GIT_WORK_TREE=" + top, "GIT_INDEX_FILE=" + filepath.Join(scratch, "index")}
	if err := commit(ctx, &s, env, ""); err != nil {
		return Snapshot{}, err
	}
	if _, err := git(ctx, repo, nil, "update-ref", "refs/heads/"+DefaultRef, s.SHA); err != nil {
		return Snapshot{}, fmt.Errorf("name the commit: %w", err)
	}
	return s, nil
}

// commit stores the working tree as a child of head; if nothing has changed it is head itself.
func commit(ctx context.Context, s *Snapshot, env []string, head string) error {
	if _, err := git(ctx, s.Top, env, "add", "--all", "--", "."); err != nil {
		return fmt.Errorf("read the working tree %s: %w", s.Top, err)
	}
	tree, err := git(ctx, s.Top, env, "write-tree")
	if err != nil {
		return fmt.Errorf("store the working tree %s: %w", s.Top, err)
	}
	args := []string{"commit-tree", "--no-gpg-sign", "-m", "Working tree", tree}
	if head != "" {
		if was, err := git(ctx, s.Top, env, "rev-parse", head+"^{tree}"); err == nil && was == tree {
			s.SHA = head
			return nil
		}
		args = append(args, "-p", head)
	}
	author := []string{
		"GIT_AUTHOR_NAME=Switchyard", "GIT_AUTHOR_EMAIL=switchyard@localhost",
		"GIT_COMMITTER_NAME=Switchyard", "GIT_COMMITTER_EMAIL=switchyard@localhost",
	}
	if s.SHA, err = git(ctx, s.Top, append(author, env...), args...); err != nil {
		return fmt.Errorf("commit the working tree %s: %w", s.Top, err)
	}
	s.Dirty = true
	return nil
}

// Resolve names a commit of the repository that dir is in: a branch, a tag, or anything else that git understands.
func Resolve(ctx context.Context, dir, ref string) (Snapshot, error) {
	top, err := git(ctx, dir, nil, "rev-parse", "--show-toplevel")
	if err != nil {
		return Snapshot{}, fmt.Errorf("%s is in no git repository, so it has no %q: leave out --ref to run the folder as it is", dir, ref)
	}
	s := Snapshot{RepoDir: top, Ref: DefaultRef, Top: top}
	if s.SHA, err = git(ctx, top, nil, "rev-parse", "--verify", "--quiet", "--end-of-options", ref+"^{commit}"); err != nil {
		return Snapshot{}, fmt.Errorf("%q is no commit, branch or tag of %s", ref, top)
	}
	name, err := git(ctx, top, nil, "rev-parse", "--symbolic-full-name", ref)
	if err != nil {
		return s, nil
	}
	if tag, ok := strings.CutPrefix(name, "refs/tags/"); ok {
		s.Ref, s.Tag = tag, true
	} else if branch, ok := strings.CutPrefix(name, "refs/heads/"); ok {
		s.Ref = branch
	}
	return s, nil
}

// git runs git in dir and returns its output without the last newline. Its error has what git said.
func git(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	cmd.Env = append(clean(os.Environ()), "GIT_OPTIONAL_LOCKS=0", "LC_ALL=C")
	cmd.Env = append(cmd.Env, env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		if text := strings.TrimSpace(stderr.String()); text != "" {
			return "", fmt.Errorf("git %s: %s: %w", args[0], text, err)
		}
		return "", fmt.Errorf("git %s: %w", args[0], err)
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}

// clean drops what would point git elsewhere, for example when this runs in a hook.
func clean(env []string) []string {
	kept := make([]string, 0, len(env))
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		switch name {
		case "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_PREFIX", "GIT_COMMON_DIR":
		default:
			kept = append(kept, e)
		}
	}
	return kept
}
