// Package snapshot makes a commit of a working tree as it is, without touching the repository that it belongs to: no
// ref, no index, no object of the user's is written.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
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
	// DefaultBranch is the project's: that of the remote origin if it is known, else main or master if there is such a
	// branch, else Ref.
	DefaultBranch string
	// Origin is the path of the project on the remote origin, "group/name"; empty if there is none.
	Origin string
	// UserName and UserEmail are git's user.name and user.email; empty if they are not set.
	UserName, UserEmail string
	// Top is the root of the working tree.
	Top string
	// Dirty: what was taken differs from the commit that is checked out.
	Dirty bool
}

// DefaultRef is the branch's name where there is none: outside a repository, or with a detached HEAD.
const DefaultRef = "main"

// ErrNoRepository says that a folder is in no git repository.
var ErrNoRepository = errors.New("not in a git repository")

// Take commits the working tree that dir is in, with files that git does not track and does not ignore. If dir is in no
// repository it is taken as the root of one. What has to be stored goes below scratch, a folder of the caller's that
// must outlive the use of the snapshot.
func Take(ctx context.Context, dir, scratch string) (Snapshot, error) {
	r, err := find(ctx, dir)
	switch {
	case errors.Is(err, ErrNoRepository):
		return takeLoose(ctx, dir, scratch)
	case err != nil:
		return Snapshot{}, err
	}
	return r.take(ctx, scratch)
}

// take commits the whole working tree.
func (r repository) take(ctx context.Context, scratch string) (Snapshot, error) {
	s := Snapshot{RepoDir: r.top, Objects: filepath.Join(scratch, "objects"), Top: r.top, Ref: DefaultRef}
	if err := os.MkdirAll(s.Objects, 0o700); err != nil {
		return Snapshot{}, fmt.Errorf("make a folder for objects: %w", err)
	}
	var describing errgroup.Group
	describing.Go(func() error {
		if branch, err := git(ctx, r.top, nil, "symbolic-ref", "--short", "--quiet", "HEAD"); err == nil {
			s.Ref = branch
		}
		return r.describe(ctx, &s)
	})
	sha, dirty, err := r.commit(ctx, scratch, s.Objects)
	if err := errors.Join(err, describing.Wait()); err != nil {
		return Snapshot{}, err
	}
	s.SHA, s.Dirty = sha, dirty
	return s, nil
}

// commit stores the working tree in objects; if it is what is checked out, nothing is new.
func (r repository) commit(ctx context.Context, scratch, objects string) (sha string, dirty bool, err error) {
	head, err := git(ctx, r.top, nil, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
	if err != nil {
		head = "" // no commit yet
	}
	env, err := r.stage(ctx, r.top, scratch, objects, head)
	if err != nil {
		return "", false, err
	}
	tree, err := git(ctx, r.top, env, "write-tree")
	if err != nil {
		return "", false, fmt.Errorf("store the working tree %s: %w", r.top, err)
	}
	if head != "" {
		if was, err := git(ctx, r.top, env, "rev-parse", head+"^{tree}"); err == nil && was == tree {
			return head, false, nil
		}
	}
	sha, err = commit(ctx, r.top, env, tree, head)
	return sha, true, err
}

// Resolve names a commit of the repository that dir is in: a branch, a tag, or anything else that git understands.
func Resolve(ctx context.Context, dir, ref string) (Snapshot, error) {
	r, err := find(ctx, dir)
	if errors.Is(err, ErrNoRepository) {
		return Snapshot{}, fmt.Errorf("%s is in no git repository, so it has no %q: leave out --ref to run the folder as it is", dir, ref)
	}
	if err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{RepoDir: r.top, Ref: DefaultRef, Top: r.top}
	if s.SHA, err = git(ctx, r.top, nil, "rev-parse", "--verify", "--quiet", "--end-of-options", ref+"^{commit}"); err != nil {
		return Snapshot{}, fmt.Errorf("%q is no commit, branch or tag of %s", ref, r.top)
	}
	name, err := git(ctx, r.top, nil, "rev-parse", "--symbolic-full-name", ref)
	if err != nil {
		name = "" // for example v1.0~2, which has no name of its own
	}
	if tag, ok := strings.CutPrefix(name, "refs/tags/"); ok {
		s.Ref, s.Tag = tag, true
	} else if branch, ok := strings.CutPrefix(name, "refs/heads/"); ok {
		s.Ref = branch
	}
	return s, r.describe(ctx, &s)
}

// commit makes a commit of a tree; parent may be empty.
func commit(ctx context.Context, dir string, env []string, tree, parent string) (string, error) {
	args := []string{"commit-tree", "--no-gpg-sign", "-m", "Working tree", tree}
	if parent != "" {
		args = append(args, "-p", parent)
	}
	author := []string{
		"GIT_AUTHOR_NAME=Switchyard", "GIT_AUTHOR_EMAIL=switchyard@localhost",
		"GIT_COMMITTER_NAME=Switchyard", "GIT_COMMITTER_EMAIL=switchyard@localhost",
	}
	sha, err := git(ctx, dir, append(author, env...), args...)
	if err != nil {
		return "", fmt.Errorf("commit the working tree %s: %w", dir, err)
	}
	return sha, nil
}
