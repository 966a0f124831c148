package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// TakeFolder commits a folder as a project of its own, also where it is a part of a greater repository, whose rules of
// what is ignored then hold. Its history is this one commit on DefaultRef. A folder that is the root of its repository is
// left to Take, which also says what scratch is.
func TakeFolder(ctx context.Context, dir, scratch string) (Snapshot, error) {
	r, err := find(ctx, dir)
	switch {
	case errors.Is(err, ErrNoRepository):
		return takeLoose(ctx, dir, scratch)
	case err != nil:
		return Snapshot{}, err
	}
	if r.prefix == "" {
		return r.take(ctx, scratch)
	}
	if _, err := git(ctx, dir, nil, "check-ignore", "--quiet", "."); err == nil {
		return takeLoose(ctx, dir, scratch) // the greater repository has nothing to say about it
	}
	s, err := newRepository(ctx, dir, scratch)
	if err != nil {
		return Snapshot{}, err
	}
	if err := borrow(s.RepoDir, r.objects); err != nil {
		return Snapshot{}, err
	}
	head, err := git(ctx, r.top, nil, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
	if err != nil {
		head = ""
	}
	env, err := r.stage(ctx, dir, scratch, filepath.Join(s.RepoDir, "objects"), head)
	if err != nil {
		return Snapshot{}, err
	}
	tree, err := git(ctx, r.top, env, "write-tree", "--prefix="+r.prefix)
	if err != nil {
		return Snapshot{}, fmt.Errorf("store the folder %s: %w", dir, err)
	}
	if head != "" {
		was, err := git(ctx, r.top, env, "rev-parse", "--verify", "--quiet", head+":"+r.folder())
		s.Dirty = err != nil || was != tree
	}
	return s, s.root(ctx, env, tree)
}

// ResolveFolder is TakeFolder for the folder as it is in a commit of the repository that it is in.
func ResolveFolder(ctx context.Context, dir, ref, scratch string) (Snapshot, error) {
	of, err := Resolve(ctx, dir, ref)
	if err != nil {
		return Snapshot{}, err
	}
	r, err := find(ctx, dir)
	if err != nil || r.prefix == "" {
		return of, err
	}
	tree, err := git(ctx, r.top, nil, "rev-parse", "--verify", "--quiet", of.SHA+":"+r.folder())
	if err != nil {
		return Snapshot{}, fmt.Errorf("%s has no folder %s", ref, r.folder())
	}
	s, err := newRepository(ctx, dir, scratch)
	if err != nil {
		return Snapshot{}, err
	}
	if err := borrow(s.RepoDir, r.objects); err != nil {
		return Snapshot{}, err
	}
	if err := s.root(ctx, nil, tree); err != nil {
		return Snapshot{}, err
	}
	return s, nil
}

// folder is the path in the repository of the folder by which it was found, without a slash at the end.
func (r repository) folder() string { return strings.TrimSuffix(r.prefix, "/") }

// takeLoose commits a folder that is in no repository.
func takeLoose(ctx context.Context, dir, scratch string) (Snapshot, error) {
	s, err := newRepository(ctx, dir, scratch)
	if err != nil {
		return Snapshot{}, err
	}
	env := []string{"GIT_DIR=" + s.RepoDir, "GIT_WORK_TREE=" + s.Top, "GIT_INDEX_FILE=" + filepath.Join(scratch, "index")}
	if _, err := git(ctx, s.Top, env, "add", "--all", "--", "."); err != nil {
		return Snapshot{}, fmt.Errorf("read the folder %s: %w", s.Top, err)
	}
	tree, err := git(ctx, s.Top, env, "write-tree")
	if err != nil {
		return Snapshot{}, fmt.Errorf("store the folder %s: %w", s.Top, err)
	}
	return s, s.root(ctx, env, tree)
}

// newRepository makes an empty repository for a folder.
func newRepository(ctx context.Context, dir, scratch string) (Snapshot, error) {
	top, err := filepath.Abs(dir)
	if err != nil {
		return Snapshot{}, err
	}
	if _, err := os.Stat(top); err != nil {
		return Snapshot{}, fmt.Errorf("read the working tree: %w", err)
	}
	repo := filepath.Join(scratch, "repository.git")
	if _, err := git(ctx, scratch, nil, "init", "--quiet", "--bare", "--template=", "--initial-branch="+DefaultRef, repo); err != nil {
		return Snapshot{}, fmt.Errorf("make a repository for %s: %w", top, err)
	}
	return Snapshot{RepoDir: repo, Ref: DefaultRef, DefaultBranch: DefaultRef, Top: top}, nil
}

// borrow lets a repository read the objects of another one.
func borrow(repo, objects string) error {
	info := filepath.Join(repo, "objects", "info")
	if err := os.MkdirAll(info, 0o700); err != nil {
		return fmt.Errorf("borrow objects: %w", err)
	}
	if err := os.WriteFile(filepath.Join(info, "alternates"), []byte(objects+"\n"), 0o600); err != nil {
		return fmt.Errorf("borrow objects: %w", err)
	}
	return nil
}

// root makes the first and only commit of the snapshot's own repository.
func (s *Snapshot) root(ctx context.Context, env []string, tree string) error {
	sha, err := commit(ctx, s.RepoDir, env, tree, "")
	if err != nil {
		return err
	}
	if _, err := git(ctx, s.RepoDir, nil, "update-ref", "refs/heads/"+DefaultRef, sha); err != nil {
		return fmt.Errorf("name the commit: %w", err)
	}
	s.SHA = sha
	return nil
}
